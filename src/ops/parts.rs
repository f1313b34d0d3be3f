//! What the ops plane and the control socket show and act on.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::base::events::Events;
use crate::base::health::Board;
use crate::base::heartbeat::Heartbeats;
use crate::base::hold::Hold;
use crate::base::metrics::Registry;
use crate::base::orders::Desk;
use crate::config::overview::Overview;
use crate::gateway::Gateway;
use crate::gateway::cached::Answers;
use crate::gateway::usage::Accounts;
use crate::health::alerts::Handle;
use crate::health::overload::Overload;
use crate::nodes::Nodes;
use crate::observe::history::History;
use crate::observe::levels::Levels;
use crate::observe::log::Tail;
use crate::store::Store;
use crate::upstream::link::Links;

use super::shown::Shown;

/// Handles on the parts of the daemon. Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    /// When the process was started.
    pub started: Instant,
    /// Phase and checks.
    pub board: Arc<Board>,
    /// The beats of the threads.
    pub heartbeats: Arc<Heartbeats>,
    /// Metrics and limits.
    pub registry: Arc<Registry>,
    /// What happened lately.
    pub events: Arc<Events>,
    /// The last minutes of all metrics, and their windows.
    pub history: Arc<History>,
    /// The container and the machine.
    pub levels: Arc<Levels>,
    /// For what only the main loop can do.
    pub desk: Desk,
    /// What is kept on disk.
    pub store: Arc<Store>,
    /// What is wrong, and who was told.
    pub alerts: Option<Arc<Handle>>,
    /// The configuration in force.
    pub shown: Arc<Shown>,
    /// Whether new requests are held off.
    pub hold: Arc<Hold>,
    /// The overload level.
    pub overload: Arc<Overload>,
    /// What runs, by its configuration.
    pub gateway: Option<Arc<Gateway>>,
    /// The log's lines, as they are written.
    pub tail: Option<Arc<Tail>>,
    /// For their breakers.
    pub links: Option<Arc<Links>>,
    /// Who used how much.
    pub accounts: Option<Arc<Accounts>>,
    /// Answers that are kept.
    pub answers: Option<Answers>,
    /// The connections on WebSocket.
    pub nodes: Option<Arc<Nodes>>,
    /// Which configuration is in force.
    pub config: Option<Arc<Overview>>,
}

#[cfg(test)]
use crate::config::settings::History as Settings;

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}

#[cfg(test)]
impl Parts {
    /// Only what there always is, with nothing in it. Nobody takes its orders.
    pub(super) fn bare() -> Self {
        let registry = Arc::new(Registry::default());
        Parts {
            started: crate::base::clock::now(),
            board: Arc::new(Board::default()),
            heartbeats: Arc::new(Heartbeats::default()),
            events: Events::new(Arc::clone(&registry)),
            levels: Arc::default(),
            desk: Desk::new(&registry).0,
            shown: Shown::new(&registry, super::shown::Configured::default()),
            store: Store::nowhere(),
            history: History::new(&registry, &Settings::default(), crate::base::clock::now()),
            registry,
            hold: Arc::default(),
            overload: Arc::default(),
            gateway: None,
            tail: None,
            alerts: None,
            links: None,
            accounts: None,
            answers: None,
            nodes: None,
            config: None,
        }
    }
}
