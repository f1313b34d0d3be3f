//! What we write: heads and chunks. No value can end its line early.

use super::ascii::{self, Values};
use super::fields::{self, Meaning};
use crate::base::error::{Error, Kind, Result};
use crate::net::http::{BodyLength, Head, Method};

/// The chunk that ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What an answer says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It stays open: nothing is said, as HTTP/1.1 has it.
    KeepAlive,
    /// It stays open, said aloud to an HTTP/1.0 client that asked for it.
    KeepAliveAloud,
    /// It is closed after the answer.
    Close,
    /// It changes its protocol (with 101; the `upgrade` field is the caller's).
    Upgrade,
}

impl Connection {
    /// As the request `head` asks, unless `close`.
    pub fn answering(head: &Head, close: bool) -> Self {
        match (head.keep_alive && !close, head.http11) {
            (false, _) => Connection::Close,
            (true, true) => Connection::KeepAlive,
            (true, false) => Connection::KeepAliveAloud,
        }
    }
}

/// Writes the head of an answer. Length, coding and connection are written from `body` and
/// `connection`; such fields among `fields` are left out, and so are fields whose name is no token
/// or whose value holds a control character.
///
/// A body [`BodyLength::UntilClose`] closes the connection whatever `connection` says. The answer
/// to a HEAD request takes the length that the body would have.
pub fn write_response_head<'a>(
    out: &mut Vec<u8>,
    status: u16,
    body: BodyLength,
    connection: Connection,
    fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) {
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
        out.push(b' ');
        out.extend_from_slice(reason(status).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in fields {
        // Invariant: what is written is one line that says nothing about the framing.
        if sound(name.as_bytes(), value) && !ours(name.as_bytes()) {
            field(out, name.as_bytes(), value);
        }
    }
    let bodyless = matches!(status, 100..=199 | 204 | 304);
    match body {
        BodyLength::None if bodyless => {}
        BodyLength::None => out.extend_from_slice(b"content-length: 0\r\n"),
        BodyLength::Exact(_) if matches!(status, 100..=199 | 204) => {}
        _ => length(out, body),
    }
    match connection {
        _ if body == BodyLength::UntilClose => out.extend_from_slice(b"connection: close\r\n"),
        Connection::KeepAlive => {}
        Connection::KeepAliveAloud => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Connection::Close => out.extend_from_slice(b"connection: close\r\n"),
        Connection::Upgrade => out.extend_from_slice(b"connection: upgrade\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// The first lines of a request to an upstream.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    /// The method, not [`Method::Other`].
    pub method: Method,
    /// The target: a path with its query, or an absolute form for a proxy.
    pub target: &'a str,
    /// The host, with the port unless it is the scheme's own.
    pub host: &'a str,
    /// The body that follows: [`BodyLength::UntilClose`] is not for requests.
    pub body: BodyLength,
}

/// Writes the head of a request. Host, length and coding are written from `line`; such fields among
/// `fields` are left out. Nothing is written when it fails.
///
/// # Errors
/// [`Kind::Internal`] when the target, the host or a field could not be sent as it is. A field is
/// refused, not left out as in an answer: a request without its key or its type is another one.
pub fn write_request_head<'a>(
    out: &mut Vec<u8>,
    line: &RequestLine<'_>,
    fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<()> {
    let internal = |what: String| Err(Error::new(Kind::Internal, what));
    let target = line.target.as_bytes();
    if target.is_empty() || !target.iter().all(|b| ascii::is_target(*b)) {
        return internal(format!("the request target {:?} cannot be sent", line.target));
    }
    if !super::host::valid(line.host.as_bytes()) {
        return internal(format!("the host {:?} cannot be sent", line.host));
    }
    if line.method == Method::Other || line.body == BodyLength::UntilClose {
        return internal("a request needs a method and a length".to_owned());
    }
    let start = out.len();
    for part in [line.method.as_str(), " ", line.target, " HTTP/1.1\r\nhost: ", line.host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in fields {
        if !sound(name.as_bytes(), value) {
            out.truncate(start);
            // The value may be a secret.
            return internal(format!("the header field {name:?} holds a byte that cannot be sent"));
        }
        if fields::meaning(name.as_bytes()) != Meaning::Host && !ours(name.as_bytes()) {
            field(out, name.as_bytes(), value);
        }
    }
    match line.body {
        BodyLength::None if matches!(line.method, Method::Get | Method::Head) => {}
        BodyLength::None => out.extend_from_slice(b"content-length: 0\r\n"),
        body => length(out, body),
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Writes `data` as one chunk. Empty data is no chunk, since that would end the body.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    out.reserve(data.len() + 20);
    let mut digits = [0; 16];
    let mut first = digits.len();
    let mut left = data.len();
    while left > 0 {
        first -= 1;
        digits[first] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    out.extend_from_slice(&digits[first..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Writes the field that tells the length of `body`.
fn length(out: &mut Vec<u8>, body: BodyLength) {
    match body {
        BodyLength::Exact(bytes) => {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(bytes).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        BodyLength::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        BodyLength::None | BodyLength::UntilClose => {}
    }
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether the field can be sent: one line, read by the other side as it is.
fn sound(name: &[u8], value: &[u8]) -> bool {
    !name.is_empty()
        && name.iter().all(|b| ascii::is_token(*b))
        && ascii::value_end(value, Values::Any) == value.len()
}

/// Whether the codec writes the field of this name itself.
fn ours(name: &[u8]) -> bool {
    matches!(
        fields::meaning(name),
        Meaning::ContentLength | Meaning::TransferEncoding | Meaning::Connection
    )
}

/// The reason phrase of a status (RFC 9110, 15, and its registry); empty when it has none.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "",
    }
}
