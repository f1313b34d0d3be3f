//! How many connections the descriptor limit allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for everything that is no connection of a client: listeners, epoll, log files, the
/// store's files, the control socket, the configuration, resolver and catalog calls, the catalog's and
/// the ops plane's own connections. An idle daemon with a state directory holds 41 of them.
const RESERVE: u64 = 64;

/// Connections that are allowed even under a descriptor limit that is too small for them.
const CONNECTIONS_MIN: u64 = 4;

/// Raises the soft descriptor limit to the hard one; gives the limit that then holds.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum.unwrap_or(u64::MAX);
    }
    limit.current.unwrap_or(u64::MAX)
}

/// How many connections `limit` descriptors allow: half of them, since each may need one more to
/// its upstream.
pub fn connections(limit: u64) -> u64 {
    (limit.saturating_sub(RESERVE) / 2).max(CONNECTIONS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_is_not_reserved_and_never_none() {
        assert_eq!(connections(20_000), 9968);
        assert_eq!(connections(96), 16);
        assert_eq!(connections(10), CONNECTIONS_MIN);
    }
}
