//! The only sockets: listener, parking, workers, the HTTP/1 codec, outbound connections.
//!
//! Nothing above this room mentions a socket type or a network crate.

mod accept;
mod address;
mod conn;
pub mod control;
mod date;
pub mod engine;
pub mod http;
pub mod http1;
pub mod http_client;
mod inbox;
mod intake;
pub mod inward;
mod line;
pub mod notify;
pub mod outbound;
mod park;
pub mod pressure;
pub mod pump;
mod respond;
mod serve;
pub mod service;
pub mod settings;
mod sizes;
pub mod turn;
pub mod websocket;
mod unsent;
mod workers;
