//! Identifiers of requests.

use std::fmt;
use std::sync::Arc;

/// Longest `x-request-id` taken over from a client, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// The id of one request: taken over from the client when it is sane, else made here (a ULID).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A new id, unique and sortable by time.
    pub fn generate() -> Self {
        let made = ulid::Ulid::generate();
        RequestId(made.to_string().into())
    }

    /// A client's id, when it is 1 to 128 bytes of visible ASCII without quotes or backslashes.
    pub fn from_client(value: &[u8]) -> Option<Self> {
        let sane = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\');
        if value.is_empty() || value.len() > REQUEST_ID_BYTES_MAX || !value.iter().all(sane) {
            return None;
        }
        std::str::from_utf8(value).ok().map(|text| RequestId(text.into()))
    }

    /// The text, as it goes on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
