//! An answer's head and a whole answer, as bytes, with the fields that are the engine's.

use super::conn::Current;
use super::http::{BodyLength, Response};
use super::http1::{self, Connection};

/// Writes the head of an answer: the given fields, `x-request-id`, `date`, and the framing.
pub fn head<'a>(
    out: &mut Vec<u8>,
    status: u16,
    fields: impl Iterator<Item = (&'a str, &'a str)>,
    body: BodyLength,
    current: &Current,
    keep_alive: bool,
) {
    let connection = match (keep_alive, current.http11) {
        (false, _) => Connection::Close,
        (true, true) => Connection::KeepAlive,
        (true, false) => Connection::KeepAliveAloud,
    };
    let date = super::date::now();
    let fields = fields
        .map(|(name, value)| (name, value.as_bytes()))
        .chain([("x-request-id", current.id.as_str().as_bytes()), ("date", &date[..])]);
    http1::write_response_head(out, status, body, connection, fields);
}

/// Writes a whole answer. `notice`: a field that the engine adds to all of them.
pub fn whole(
    out: &mut Vec<u8>,
    response: &Response,
    current: &Current,
    keep_alive: bool,
    notice: Option<(&'static str, &'static str)>,
) {
    let fields = response.headers.iter().map(|(name, value)| (*name, value.as_str()));
    let fields = fields.chain(notice);
    let bodyless = matches!(response.status, 204 | 304);
    let body =
        if bodyless { BodyLength::None } else { BodyLength::Exact(response.body.len() as u64) };
    head(out, response.status, fields, body, current, keep_alive);
    if !current.head_only && !bodyless {
        out.extend_from_slice(&response.body);
    }
}
