//! The only sockets: listener, parking, workers, the HTTP/1 codec, outbound connections.
//!
//! Nothing above this room mentions a socket type or a network crate.

pub mod http;
pub mod http1;
