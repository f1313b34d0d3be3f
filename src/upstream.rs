//! Calls to upstreams: chain, deadlines, retry.
