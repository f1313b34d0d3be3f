//! Companion devices and operators on WebSocket: the OpenClaw gateway protocol, versions 3 and 4.
//!
//! Each connection has a thread of its own, which does nothing but move frames and keep time, so that
//! pings and ticks are on time whatever a request costs. Requests run on a few method threads; what
//! takes long is data (a pending call, a run), never a waiting thread.

pub mod connected;
pub mod device;
pub mod fleet;
pub mod frame;
pub mod handshake;
pub mod health;
pub mod host;
pub mod limits;
pub mod idempotency;
pub mod invoke;
pub mod json5;
pub mod methods;
pub mod outbox;
pub mod pairing;
pub mod peer;
pub mod queue;
pub mod refusal;
pub mod shared;
pub mod tokens;
pub mod who;
pub mod writes;

use std::sync::Arc;

use crate::base::events::Events;
use crate::base::health::Board;
use crate::base::heartbeat::Heartbeats;
use crate::base::metrics::Registry;
use crate::base::orders::Desk;
use crate::config::overview::Overview;
use crate::observe::log::Tail;
use crate::store::Store;

use fleet::Fleet;
use host::{Host, Tables};
use limits::Limits;
use shared::Shared;

/// What the room works with.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is documented where it is made")]
pub struct Parts {
    pub registry: Arc<Registry>,
    pub events: Arc<Events>,
    pub board: Arc<Board>,
    pub heartbeats: Arc<Heartbeats>,
    pub store: Arc<Store>,
    pub desk: Desk,
    pub tail: Option<Arc<Tail>>,
    pub host: Arc<dyn Host>,
    pub tables: Arc<dyn Tables>,
    pub limits: Limits,
    /// Which configuration is in force.
    pub config: Option<Arc<Overview>>,
}

/// The room: every connection, and what they share.
pub struct Nodes {
    parts: Parts,
    fleet: Fleet,
    shared: Shared,
}

impl Nodes {
    /// The handles that it was made with.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The nodes at work.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }
}
