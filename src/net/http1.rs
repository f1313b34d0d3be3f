//! The HTTP/1 codec, sans-I/O: bytes in, heads and body bytes out. Both sides of the gateway use it.
//!
//! Requests are read strictly, since what two servers read differently is how requests are
//! smuggled: whatever RFC 9112 lets a server refuse is refused. Answers of upstreams are read as
//! strictly, except where real servers differ (a missing reason phrase, bytes outside ASCII in a
//! value, one length said twice).
//!
//! No function here waits, reads a clock, or keeps what it was given. The same bytes give the same
//! result, however they were split.

mod ascii;
mod body;
mod fields;
mod host;
mod request;
mod response;
mod write;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, Decoded};
pub use request::{HeadLimits, request_head};
pub use response::{RESPONSE_HEADERS_MAX, response_head};
pub use write::{
    CONTINUE, Connection, LAST_CHUNK, RequestLine, reason, write_chunk, write_request_head,
    write_response_head,
};
