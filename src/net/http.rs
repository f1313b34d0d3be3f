//! Requests and responses as handlers see them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::base::id::RequestId;
use crate::base::metrics::Lease;

/// The methods the gateway knows; every other token is [`Method::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Other,
}

impl Method {
    /// From the token on the wire.
    pub fn parse(token: &str) -> Method {
        match token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "PATCH" => Method::Patch,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            _ => Method::Other,
        }
    }

    /// The token on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Other => "other",
        }
    }
}

/// The head of a request: parsed strictly, fields in the order they came.
#[derive(Clone, Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The target as it came, in origin form (`/path?query`), absolute form reduced to it.
    pub target: Box<str>,
    /// True for HTTP/1.1, false for HTTP/1.0.
    pub http11: bool,
    /// The header fields; values are free of CR, LF and NUL, and trimmed.
    pub headers: Headers,
    /// The body that follows.
    pub body: BodyLength,
    /// Whether the connection may serve another request after this one.
    pub keep_alive: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
}

impl Head {
    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }

    /// The query without its `?`, empty when there is none.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }
}

/// How the length of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body.
    None,
    /// `Content-Length`, in bytes.
    Exact(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Until the peer closes (answers only).
    UntilClose,
}

/// The head of an answer from an upstream, fields in the order they came.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// The status, 100 to 599.
    pub status: u16,
    /// True for HTTP/1.1, false for HTTP/1.0.
    pub http11: bool,
    /// The header fields; values are free of CR, LF and NUL, and trimmed, but may hold bytes
    /// outside ASCII.
    pub headers: Headers,
    /// The body that follows.
    pub body: BodyLength,
    /// Whether the connection may carry another request after this answer.
    pub keep_alive: bool,
}

/// Header fields in one buffer: no allocation per field.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

/// Where one field lies in the buffer of its [`Headers`]. Heads are bounded far below 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: u32,
    pub(crate) name_end: u32,
    pub(crate) value: u32,
    pub(crate) value_end: u32,
}

/// An offset within a head.
pub(crate) fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Headers {
    /// From a block of raw lines and the places of the fields in it. One copy for all of them.
    pub(crate) fn from_block(block: &[u8], fields: Vec<Field>) -> Self {
        Headers { bytes: block.to_vec(), fields }
    }

    /// Adds a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = offset(self.bytes.len());
        self.bytes.extend_from_slice(name);
        let name_end = offset(self.bytes.len());
        let (value, value_end) = self.append(value);
        self.fields.push(Field { name: start, name_end, value, value_end });
    }

    /// Gives the field at `index` another value.
    pub(crate) fn replace(&mut self, index: usize, value: &[u8]) {
        let (value, value_end) = self.append(value);
        if let Some(field) = self.fields.get_mut(index) {
            *field = Field { value, value_end, ..*field };
        }
    }

    /// All fields, as they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        // Names were checked to be tokens, which are ASCII.
        self.raw().map(|(name, value)| (std::str::from_utf8(name).unwrap_or_default(), value))
    }

    /// The first field of this name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let name = name.as_bytes();
        self.raw().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The same, when it is visible ASCII or UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// All fields as bytes.
    pub(crate) fn raw(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| {
            (
                &self.bytes[field.name as usize..field.name_end as usize],
                &self.bytes[field.value as usize..field.value_end as usize],
            )
        })
    }

    fn append(&mut self, value: &[u8]) -> (u32, u32) {
        let start = offset(self.bytes.len());
        self.bytes.extend_from_slice(value);
        (start, offset(self.bytes.len()))
    }
}

/// A complete request.
#[derive(Debug)]
pub struct Request {
    /// Its id.
    pub id: RequestId,
    /// Its head.
    pub head: Head,
    /// Its body, whole.
    pub body: Vec<u8>,
    /// What the body takes of the total budget, held as long as the body is.
    pub budget: Lease,
    /// The route that admitted it, as the service numbers them.
    pub route: u16,
    /// The name of the key that was shown.
    pub key: Option<Arc<str>>,
    /// The process itself asks, for somebody whom it let in without a key: `key` is no key's name
    /// but that of an account.
    pub granted: bool,
    /// Who asks.
    pub peer: SocketAddr,
    /// When its first byte was read.
    pub started: Instant,
}

/// A whole answer. `Content-Length`, `Date`, `Connection` and `x-request-id` are the engine's.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Further header fields; names in lower case, values free of CR and LF.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer with a body of this type.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Response {
            status,
            headers: vec![("content-type", content_type.to_owned())],
            body: body.into(),
        }
    }

    /// A JSON answer.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Response::new(status, "application/json", body)
    }

    /// A plain text answer.
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Response::new(status, "text/plain; charset=utf-8", body)
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    /// With one more header field. A value with CR, LF or NUL is left out: it would split the answer.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            self.headers.push((name, value));
        }
        self
    }
}
