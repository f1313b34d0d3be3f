//! `[nodes]`, `[hooks]`, as the rest of the program holds them.

use std::time::Duration;

use super::Secret;

/// The rights of a key on WebSocket, as words of the protocol.
pub const SCOPES: [&str; 8] = [
    "operator.read",
    "operator.write",
    "operator.admin",
    "operator.approvals",
    "operator.pairing",
    "operator.talk",
    "operator.talk.secrets",
    "operator.questions",
];

/// Those of a key that says nothing: to look and to use.
pub const SCOPES_DEFAULT: [&str; 2] = ["operator.read", "operator.write"];

/// `[nodes]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw/nodes.rs")]
pub struct Nodes {
    pub enabled: bool,
    pub token: Option<Secret>,
    pub password: Option<Secret>,
    pub connections_max: usize,
    pub connections_per_key_max: usize,
    pub connections_per_address_max: usize,
    pub handshake_timeout: Duration,
    /// In bytes, as are all sizes here.
    pub hello_max: usize,
    /// Zero: none.
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    pub tick_interval: Duration,
    pub payload_max: usize,
    pub messages_total_max: u64,
    pub buffered_max: u64,
    pub telemetry_max: u64,
    pub buffered_total_max: u64,
    pub write_timeout: Duration,
    pub presence_max: usize,
    pub presence_ttl: Duration,
    pub invoke_timeout: Duration,
    pub pending_max: usize,
    pub sessions_max: usize,
    pub session_bytes_max: u64,
    pub runs_max: usize,
    pub run_timeout: Duration,
    pub devices_max: usize,
    pub pairings_max: usize,
    pub idempotency_max: usize,
    pub writes_per_minute: usize,
}

/// `[hooks]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw/nodes.rs")]
pub struct Hooks {
    /// None: there are no hooks.
    pub token: Option<Secret>,
    pub body_max: u64,
    pub failures_max: usize,
    pub window: Duration,
    pub lockout: Duration,
}

impl Default for Nodes {
    /// As without a file.
    fn default() -> Self {
        crate::config::nodes::plain(&crate::config::raw::RawNodes::default())
    }
}
