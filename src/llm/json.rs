//! JSON: the scanner for what is passed on as it is, serde_json for what is rebuilt, and the text of
//! strings.

mod scan;

use std::borrow::Cow;

pub(super) use scan::{Bad, Scan, Shape};

/// The text of a string's inside. Half a surrogate pair, which no Rust string can hold, becomes
/// U+FFFD; the inside must have passed the scanner.
pub(super) fn unescaped(inside: &str) -> Cow<'_, str> {
    let Some(first) = memchr::memchr(b'\\', inside.as_bytes()) else {
        return Cow::Borrowed(inside);
    };
    let (clean, mut rest) = inside.split_at(first);
    let mut text = String::with_capacity(inside.len());
    text.push_str(clean);
    while let Some(after) = rest.strip_prefix('\\') {
        let mut chars = after.chars();
        let escaped = chars.next().unwrap_or('\\');
        rest = chars.as_str();
        match escaped {
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'u' => {
                let high = unit(rest);
                rest = rest.get(4..).unwrap_or_default();
                let low = rest.strip_prefix("\\u").map(unit);
                let both = low.and_then(|low| char::decode_utf16([high, low]).next()?.ok());
                match (char::from_u32(u32::from(high)), both) {
                    (Some(whole), _) => text.push(whole),
                    (None, Some(pair)) => {
                        text.push(pair);
                        rest = rest.get(6..).unwrap_or_default();
                    }
                    (None, None) => text.push(char::REPLACEMENT_CHARACTER),
                }
            }
            other => text.push(other),
        }
        let next = memchr::memchr(b'\\', rest.as_bytes()).unwrap_or(rest.len());
        let (clean, more) = rest.split_at(next);
        text.push_str(clean);
        rest = more;
    }
    Cow::Owned(text)
}

/// The UTF-16 unit of the four hexadecimal digits at the start.
fn unit(text: &str) -> u16 {
    text.get(..4).and_then(|digits| u16::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

/// Writes a string with its quotes.
pub(super) fn write_string(out: &mut Vec<u8>, text: &str) {
    let start = out.len();
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, text);
    escape_line_ends(out, start);
}

/// Escapes what Python's `splitlines` takes for the end of a line, in the JSON from `start` on. The
/// Ollama library for Python reads lines of JSON with it; Ollama itself escapes the two that Unicode
/// calls separators. JSON has such characters inside strings only.
pub(super) fn escape_line_ends(out: &mut Vec<u8>, start: usize) {
    let line_end = |bytes: &[u8]| match bytes {
        [0xc2, 0x85, ..] => Some((2, "\\u0085")),
        [0xe2, 0x80, 0xa8, ..] => Some((3, "\\u2028")),
        [0xe2, 0x80, 0xa9, ..] => Some((3, "\\u2029")),
        _ => None,
    };
    let text = out.get(start..).unwrap_or_default();
    let mut found = memchr::memchr2_iter(0xc2, 0xe2, text);
    let Some(first) = found.find(|at| line_end(&text[*at..]).is_some()) else { return };
    let rest = out.split_off(start + first);
    let mut copied = 0;
    for at in memchr::memchr2_iter(0xc2, 0xe2, &rest) {
        if let Some((length, escaped)) = line_end(&rest[at..]) {
            out.extend_from_slice(&rest[copied..at]);
            out.extend_from_slice(escaped.as_bytes());
            copied = at + length;
        }
    }
    out.extend_from_slice(&rest[copied..]);
}

/// A string with its quotes.
pub(super) fn string(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    write_string(&mut out, text);
    String::from_utf8(out).unwrap_or_default()
}

/// Reads a text into a typed value. Half a surrogate pair, which serde_json refuses but the scanner
/// lets pass and other languages write, is read as U+FFFD.
pub(super) fn read<T: serde::de::DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text).or_else(|error| match without_half_pairs(text) {
        Some(mended) => serde_json::from_str(&mended),
        None => Err(error),
    })
}

/// The text with `\ufffd` for each escape that is half a surrogate pair; `None` when there is none.
fn without_half_pairs(text: &str) -> Option<String> {
    let mut mended = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', text.as_bytes().get(at..)?) {
        at += found;
        let here = text.get(at..)?;
        if !here.starts_with("\\u") {
            at += 2;
            continue;
        }
        let high = here.get(2..).map(unit)?;
        let low = here.get(6..).and_then(|next| next.strip_prefix("\\u")).map(unit);
        match (high, low) {
            (0xd800..=0xdbff, Some(0xdc00..=0xdfff)) => at += 12,
            (0xd800..=0xdfff, _) => {
                mended.push_str(text.get(copied..at)?);
                mended.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            _ => at += 6,
        }
    }
    if copied == 0 {
        return None;
    }
    mended.push_str(text.get(copied..)?);
    Some(mended)
}

#[cfg(test)]
mod tests;
