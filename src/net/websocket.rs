//! WebSocket (RFC 6455), the server's side: frames, messages, and one connection's socket.

mod bell;

pub use bell::Bell;
