//! Lines of a head: where the head ends, and the fields in it.

use memchr::memchr;

use super::ascii::{self, Values};
use crate::net::http::{Field, offset};

/// Why a head is refused. The side that reads it makes an error of its own from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not as RFC 9112 has it; the sentence says what.
    Syntax(&'static str),
    /// More fields than allowed.
    TooMany,
}

/// The end of the head that starts at `start`: the offset behind its empty line. `None` when it is
/// not there yet. Bytes before `scanned` were seen by an earlier call.
pub(super) fn head_end(bytes: &[u8], start: usize, scanned: usize) -> Result<Option<usize>, Fault> {
    let mut at = scanned.max(start);
    while let Some(distance) = bytes.get(at..).and_then(|rest| memchr(b'\n', rest)) {
        let feed = at + distance;
        if feed == start || bytes[feed - 1] != b'\r' {
            return Err(Fault::Syntax("a line of the head ends in LF without CR; send CRLF"));
        }
        if feed >= start + 3 && bytes[feed - 2] == b'\n' {
            return Ok(Some(feed + 1));
        }
        at = feed + 1;
    }
    Ok(None)
}

/// The fields in `block`, whole lines each ended by CRLF, without the empty line.
pub(super) fn parse(block: &[u8], values: Values, count_max: usize) -> Result<Vec<Field>, Fault> {
    // Fields of clients are about 35 bytes long; a wrong guess costs a reallocation.
    let mut fields = Vec::with_capacity((block.len() / 24).min(count_max));
    let mut at = 0;
    while at < block.len() {
        let name = at;
        while block.get(at).is_some_and(|b| ascii::is_token(*b)) {
            at += 1;
        }
        if at == name || block.get(at) != Some(&b':') {
            return Err(Fault::Syntax(name_fault(&block[name..], at - name)));
        }
        let name_end = at;
        at += 1;
        while matches!(block.get(at), Some(b' ' | b'\t')) {
            at += 1;
        }
        let value = at;
        at += ascii::value_end(&block[at..], values);
        if !block[at..].starts_with(b"\r\n") {
            return Err(Fault::Syntax(value_fault(block.get(at).copied())));
        }
        let mut value_end = at;
        while value_end > value && matches!(block[value_end - 1], b' ' | b'\t') {
            value_end -= 1;
        }
        at += 2;
        if fields.len() == count_max {
            return Err(Fault::TooMany);
        }
        fields.push(Field {
            name: offset(name),
            name_end: offset(name_end),
            value: offset(value),
            value_end: offset(value_end),
        });
    }
    Ok(fields)
}

fn name_fault(line: &[u8], length: usize) -> &'static str {
    match line.get(length) {
        Some(b' ' | b'\t') if length == 0 => {
            "a header field is folded over two lines; send it on one"
        }
        Some(b' ' | b'\t') => "there is space between a header field's name and its colon",
        Some(b':') => "a header field has no name",
        _ => "a header field's name is not a token",
    }
}

fn value_fault(byte: Option<u8>) -> &'static str {
    match byte {
        Some(b'\r') => "there is a CR without LF inside a header field",
        Some(0x80..) => "a header field's value is not ASCII; encode it",
        _ => "there is a control character inside a header field",
    }
}

/// What a field says about the message it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Expect,
    /// Nothing that the codec needs.
    Other,
}

/// What the field of this name says. Lengths differ, so that most names cost one comparison.
pub(super) fn meaning(name: &[u8]) -> Meaning {
    let (like, meaning): (&[u8], Meaning) = match name.len() {
        4 => (b"host", Meaning::Host),
        6 => (b"expect", Meaning::Expect),
        10 => (b"connection", Meaning::Connection),
        14 => (b"content-length", Meaning::ContentLength),
        17 => (b"transfer-encoding", Meaning::TransferEncoding),
        _ => return Meaning::Other,
    };
    if name.eq_ignore_ascii_case(like) { meaning } else { Meaning::Other }
}

/// A `Content-Length`: digits only, within 64 bits.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// What `Connection` fields said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Persistence {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
}

impl Persistence {
    pub(super) fn read(&mut self, value: &[u8]) {
        for option in ascii::list(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Whether the connection stays open after this message (RFC 9112, 9.3).
    pub(super) fn stays(self, http11: bool) -> bool {
        !self.close && (http11 || self.keep_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_only_and_fits_in_64_bits() {
        let check =
            |value: &str, expected| assert_eq!(length(value.as_bytes()), expected, "{value}");
        check("0", Some(0));
        check("007", Some(7));
        check("18446744073709551615", Some(u64::MAX));
        for bad in ["", "18446744073709551616", "99999999999999999999", "+5", "-1", "5, 5", "0x5"] {
            check(bad, None);
        }
        check("5 5", None);
    }

    #[test]
    fn the_end_of_a_head_is_found_from_wherever_the_last_call_stopped() {
        let bytes = b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest";
        for scanned in 0..24 {
            assert_eq!(head_end(bytes, 0, scanned), Ok(Some(24)), "{scanned}");
        }
        assert_eq!(head_end(&bytes[..23], 0, 0), Ok(None));
        assert!(head_end(b"GET / HTTP/1.1\r\nA: b\n", 0, 16).is_err());
    }
}
