//! What the engine may be told: plain values, made from the configuration by `daemon`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::http1::HeadLimits;

/// Settings that can change while the engine runs. Each is documented with its key in
/// `tidegate.toml(5)`.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the key's documentation is the one in config/raw.rs")]
pub struct Settings {
    pub head: HeadLimits,
    pub head_timeout: Duration,
    pub body_rate_min: u64,
    pub body_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub write_timeout: Duration,
    pub waiting_timeout: Duration,
    pub queue_timeout: Duration,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub trusted_proxies: Vec<IpAddr>,
    pub body_max: u64,
    pub bodies_total_max: u64,
    pub answers_total_max: u64,
    pub request_timeout: Duration,
    pub exchanges_max: usize,
    pub waiting_max: usize,
}

/// Settings that hold for the life of an engine.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// `data` or `ops`: in thread names (at most 5 bytes) and as the owner of its limits.
    pub name: &'static str,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Threads that are always ready to take a request.
    pub workers: usize,
    /// Complete requests that wait for a worker.
    pub queue_max: usize,
    /// Threads that bring flowing streams on; none for an engine without streams.
    pub pumps: usize,
}

/// Grace before `body_rate_min` counts (DESIGN section 6).
pub const BODY_RATE_GRACE: Duration = Duration::from_secs(5);

/// How long a worker stays with a keep-alive connection after an answer, when others are free. A
/// client on the same machine or network asks again within this; anyone else is parked.
pub const STAY: Duration = Duration::from_millis(20);

/// Most answers a worker gives to one connection before it looks at the queue.
pub const TURNS_MAX: u32 = 64;

/// After an early refusal: how much of what the client still sends is discarded, and for how long,
/// so that the answer arrives before a reset does (RFC 9112 section 9.6).
pub const LINGER_BYTES_MAX: u64 = 256 * 1024;
/// See [`LINGER_BYTES_MAX`].
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a body that is too large is read on, when its sender was let in ([`LINGER_TIMEOUT`] is for
/// strangers). Many clients (Python's http.client, for one) read only after they have sent everything.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Most connections whose too large bodies are read on at the same time. Past it: as for strangers.
pub const DRAINS_MAX: u64 = 64;

/// Bytes asked for in one read from a client.
pub const READ_BYTES: usize = 16 * 1024;

/// Most bytes the parking thread reads from one connection before it looks at the others.
pub const PARK_READ_BYTES_MAX: usize = 256 * 1024;
