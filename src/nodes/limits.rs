//! The limits of `[nodes]` and `[hooks]`: what the room may hold, and holds. Each part takes its own
//! from here.

use std::sync::Arc;

use crate::base::metrics::{Limit, Registry, Unit};
use crate::config::settings::{Hooks, Nodes};

/// Requests that wait for a method thread. Each connection has at most one.
pub const JOBS_MAX: usize = 1024;

/// What was done, and by whom, is bounded by these. One for the process; a reload changes the bounds.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the settings of the same names in tidegate.toml(5)")]
pub struct Limits {
    pub connections: Arc<Limit>,
    /// Of each key, token or device: told of with [`Limit::saw`].
    pub connections_per_key: Arc<Limit>,
    /// Of each address, likewise.
    pub connections_per_address: Arc<Limit>,
    /// Largest first message.
    pub hello: Arc<Limit>,
    /// Largest message after it.
    pub payload: Arc<Limit>,
    /// All messages on their way in.
    pub messages_total: Arc<Limit>,
    /// What waits for each connection.
    pub buffered: Arc<Limit>,
    /// From where on telemetry is dropped.
    pub telemetry: Arc<Limit>,
    /// What waits for all of them.
    pub buffered_total: Arc<Limit>,
    /// Requests that wait for a method thread.
    pub jobs: Arc<Limit>,
    pub presence: Arc<Limit>,
    pub pending: Arc<Limit>,
    pub sessions: Arc<Limit>,
    /// Of each session.
    pub session_bytes: Arc<Limit>,
    pub runs: Arc<Limit>,
    pub devices: Arc<Limit>,
    pub pairings: Arc<Limit>,
    pub idempotency: Arc<Limit>,
    /// Changes of each device in a minute.
    pub writes: Arc<Limit>,
    /// Largest body of a hook.
    pub hook_body: Arc<Limit>,
}

impl Limits {
    /// Registers them; again, it gives them new bounds.
    pub fn new(registry: &Registry, nodes: &Nodes, hooks: &Hooks) -> Self {
        let entries = |name, max: usize, then| registry.limit(name, "", max as u64, then);
        let bytes = |name, max, then| registry.limit_of(Unit::Bytes, name, "", max, then);
        let each = |unit, name, max, then| registry.limit_each(unit, name, "", max, then);
        let count = |name, max: usize, then| each(Unit::Entries, name, max as u64, then);
        let size = |name, max, then| each(Unit::Bytes, name, max, then);
        let (n, slow) = (nodes, "closed with 1008, slow consumer");
        Limits {
            connections: entries(
                "nodes.connections_max",
                n.connections_max,
                "503 with Retry-After",
            ),
            connections_per_key: count(
                "nodes.connections_per_key_max",
                n.connections_per_key_max,
                "UNAVAILABLE, closed with 1013",
            ),
            connections_per_address: count(
                "nodes.connections_per_address_max",
                n.connections_per_address_max,
                "503 with Retry-After",
            ),
            hello: size("nodes.hello_max", n.hello_max as u64, "closed with 1009"),
            payload: size("nodes.payload_max", n.payload_max as u64, "closed with 1009"),
            messages_total: bytes(
                "nodes.messages_total_max",
                n.messages_total_max,
                "nothing more is read until there is room; closed with 1013 when there is none",
            ),
            buffered: size("nodes.buffered_max", n.buffered_max, slow),
            telemetry: size("nodes.telemetry_max", n.telemetry_max, "dropped, and counted"),
            buffered_total: bytes("nodes.buffered_total_max", n.buffered_total_max, slow),
            jobs: entries("nodes.jobs_max", JOBS_MAX, "the connection waits"),
            presence: entries("nodes.presence_max", n.presence_max, "the oldest is left out"),
            pending: entries("nodes.pending_max", n.pending_max, "UNAVAILABLE"),
            sessions: entries(
                "nodes.sessions_max",
                n.sessions_max,
                "the one unused longest is forgotten",
            ),
            session_bytes: size(
                "nodes.session_bytes_max",
                n.session_bytes_max,
                "its oldest messages are forgotten",
            ),
            runs: entries("nodes.runs_max", n.runs_max, "UNAVAILABLE"),
            devices: entries("nodes.devices_max", n.devices_max, "approvals are refused"),
            pairings: entries(
                "nodes.pairings_max",
                n.pairings_max,
                "no further device can ask; a fourth of it for each address",
            ),
            idempotency: entries(
                "nodes.idempotency_max",
                n.idempotency_max,
                "the oldest is forgotten",
            ),
            writes: count(
                "nodes.writes_per_minute",
                n.writes_per_minute,
                "UNAVAILABLE with retryAfterMs",
            ),
            hook_body: size("hooks.body_max", hooks.body_max, "413"),
        }
    }
}
