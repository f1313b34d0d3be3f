//! What the ops plane and the control socket show and act on.

use std::sync::Arc;

use crate::base::events::Events;
use crate::base::health::Board;
use crate::base::heartbeat::Heartbeats;
use crate::base::metrics::Registry;
use crate::base::orders::Desk;
use crate::config::overview::Overview;
use crate::gateway::cached::Answers;
use crate::gateway::usage::Accounts;
use crate::observe::history::History;
use crate::store::Store;
use crate::upstream::link::Links;

use super::shown::Shown;

/// Handles on the parts of the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Parts {
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
    /// For what only the main loop can do.
    pub desk: Desk,
    /// What is kept on disk.
    pub store: Arc<Store>,
    /// The configuration in force.
    pub shown: Arc<Shown>,
    /// For their breakers.
    pub links: Option<Arc<Links>>,
    /// Who used how much.
    pub accounts: Option<Arc<Accounts>>,
    /// Answers that are kept.
    pub answers: Option<Answers>,
    /// Which configuration is in force.
    pub config: Option<Arc<Overview>>,
}

#[cfg(test)]
use crate::config::settings::History as Settings;

#[cfg(test)]
impl Parts {
    /// Only what there always is, with nothing in it. Nobody takes its orders.
    pub(super) fn bare() -> Self {
        let registry = Arc::new(Registry::default());
        Parts {
            board: Arc::new(Board::default()),
            heartbeats: Arc::new(Heartbeats::default()),
            events: Events::new(Arc::clone(&registry)),
            desk: Desk::new(&registry).0,
            shown: Shown::new(&registry, super::shown::Configured::default()),
            store: Store::open(None, crate::store::Tools::bare()),
            history: History::new(&registry, &Settings::default(), crate::base::clock::now()),
            registry,
            links: None,
            accounts: None,
            answers: None,
            config: None,
        }
    }
}
