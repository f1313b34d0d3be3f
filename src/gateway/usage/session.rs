//! Which session a request belongs to.

use crate::net::http::Headers;

/// Longest name of a session, in bytes.
pub(super) const SESSION_BYTES_MAX: usize = 128;

/// The fields that name a session, the first that is there counts: our own, OpenClaw's, the one of
/// many agents, LiteLLM's, Open WebUI's. OpenAI's `user` is a person, not a session.
const FIELDS: [&str; 5] = [
    "x-tidegate-session",
    "x-openclaw-session-key",
    "x-session-id",
    "x-litellm-session-id",
    "x-openwebui-chat-id",
];

/// A name that is too long, or holds other characters than visible ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unfit;

/// The session that is named, if one is.
pub(super) fn named(headers: &Headers) -> Result<Option<&str>, Unfit> {
    let mut found: Option<(usize, &[u8])> = None;
    // One walk over the fields, whose names mostly differ in their first letter already.
    for (name, value) in headers.iter() {
        if !name.as_bytes().first().is_some_and(|first| first.eq_ignore_ascii_case(&b'x')) {
            continue;
        }
        let field = FIELDS.iter().position(|field| field.eq_ignore_ascii_case(name));
        if let Some(field) = field.filter(|field| found.is_none_or(|(best, _)| *field < best)) {
            found = Some((field, value));
        }
    }
    let Some((_, value)) = found.filter(|(_, value)| !value.is_empty()) else { return Ok(None) };
    let fits = value.len() <= SESSION_BYTES_MAX && value.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(value) {
        Ok(name) if fits => Ok(Some(name)),
        _ => Err(Unfit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &[(&str, &str)], expected: Result<Option<&str>, Unfit>) {
        let mut headers = Headers::default();
        for (name, value) in fields {
            headers.push(name.as_bytes(), value.as_bytes());
        }
        assert_eq!(named(&headers), expected, "{fields:?}");
    }

    #[test]
    fn the_first_field_that_is_there_names_the_session() {
        check(&[("accept", "*/*"), ("x-other", "x")], Ok(None));
        check(&[("X-Session-Id", "a/b:1")], Ok(Some("a/b:1")));
        let both = [("x-session-id", "agent"), ("X-Tidegate-Session", "ours")];
        check(&both, Ok(Some("ours")));
        check(&[("x-openwebui-chat-id", "chat")], Ok(Some("chat")));
        check(&[("x-session-id", "")], Ok(None));
    }

    #[test]
    fn a_name_that_would_spoil_a_table_is_none() {
        let longest = "s".repeat(SESSION_BYTES_MAX);
        check(&[("x-session-id", &longest)], Ok(Some(&longest)));
        check(&[("x-session-id", &format!("{longest}s"))], Err(Unfit));
        check(&[("x-session-id", "two words")], Err(Unfit));
        check(&[("x-session-id", "\u{e9}")], Err(Unfit));
        check(&[("x-session-id", "a\u{1b}[2J")], Err(Unfit));
    }
}
