//! The two engines' settings, made from the configuration.

use std::time::Duration;

use crate::config::settings::{Ops, Server};
use crate::net::http1::HeadLimits;
use crate::net::settings::{Fixed, Settings};

/// The ops plane's own bounds. They are small and no settings: it serves its operator.
const OPS_WORKERS: usize = 2;
const OPS_CONNECTIONS_MAX: usize = 64;
const OPS_QUEUE_MAX: usize = 64;
const OPS_BODY_MAX: u64 = 64 * 1024;
/// A page of metrics has less than 1 MiB.
const OPS_ANSWERS_MAX: u64 = 32 * 1024 * 1024;
const OPS_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const OPS_TIMEOUT: Duration = Duration::from_secs(10);

/// Most threads that bring flowing streams on: one a core, up to here.
const PUMPS_MAX: usize = 4;

/// What the data plane keeps for its life.
pub fn data_fixed(server: &Server) -> Fixed {
    Fixed {
        name: "data",
        listen: server.listen,
        workers: server.workers,
        queue_max: server.queue_max,
        pumps: std::thread::available_parallelism().map_or(1, usize::from).min(PUMPS_MAX),
    }
}

/// What the data plane may change. `connections` is what the descriptor limit allows.
pub fn data(server: &Server, connections: usize) -> Settings {
    Settings {
        head: HeadLimits {
            head_max: server.head_max,
            headers_max: server.headers_max,
            target_max: server.target_max,
        },
        head_timeout: server.head_timeout,
        body_rate_min: server.body_rate_min as u64,
        body_timeout: server.body_timeout,
        keepalive_timeout: server.keepalive_timeout,
        write_timeout: server.write_timeout,
        waiting_timeout: server.waiting_timeout,
        queue_timeout: server.queue_timeout,
        connections_max: server.connections_max.min(connections),
        connections_per_address_max: server.connections_per_address_max,
        trusted_proxies: server.trusted_proxies.clone(),
        body_max: server.body_max as u64,
        bodies_total_max: server.bodies_total_max as u64,
        answers_total_max: server.answers_total_max as u64,
        request_timeout: server.request_timeout,
        exchanges_max: server.exchanges_max,
        waiting_max: server.waiting_max,
    }
}

/// What the ops plane keeps for its life.
pub fn ops_fixed(ops: &Ops) -> Fixed {
    Fixed {
        name: "ops",
        listen: ops.listen,
        workers: OPS_WORKERS,
        queue_max: OPS_QUEUE_MAX,
        // For live pages.
        pumps: 1,
    }
}

/// What the ops plane is told.
pub fn ops() -> Settings {
    Settings {
        head: HeadLimits { head_max: 16 * 1024, headers_max: 100, target_max: 8 * 1024 },
        head_timeout: OPS_TIMEOUT,
        body_rate_min: 1024,
        body_timeout: OPS_TIMEOUT,
        keepalive_timeout: Duration::from_secs(75),
        write_timeout: OPS_TIMEOUT,
        waiting_timeout: OPS_TIMEOUT,
        queue_timeout: OPS_TIMEOUT,
        connections_max: OPS_CONNECTIONS_MAX,
        connections_per_address_max: 0,
        trusted_proxies: Vec::new(),
        body_max: OPS_BODY_MAX,
        bodies_total_max: OPS_BODY_MAX,
        answers_total_max: OPS_ANSWERS_MAX,
        request_timeout: OPS_ANSWER_TIMEOUT,
        exchanges_max: 1,
        waiting_max: 1,
    }
}
