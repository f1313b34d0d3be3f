//! Heads of upstreams' answers.

use super::ascii::{self, Values};
use super::fields::{self, Fault, Meaning, Persistence};
use crate::base::error::{Error, Kind, Result};
use crate::net::http::{BodyLength, Field, Headers, Method, ResponseHead};

/// Most header fields of an answer; providers behind two proxies send about 40. Past it:
/// `upstream_malformed`.
pub const RESPONSE_HEADERS_MAX: usize = 256;

/// Looks for a complete head of an answer at the start of `buf`, and says how many bytes it took.
/// `Ok(None)` means that more bytes are needed. `scanned` is as for
/// [`request_head`](super::request_head). Interim answers (1xx) come out as they are; all of them but 101 are
/// followed by another head.
///
/// `request_method` decides whether a body follows.
///
/// # Errors
/// [`Kind::UpstreamMalformed`], also for a head longer than `head_max` bytes.
pub fn response_head(
    buf: &[u8],
    scanned: &mut usize,
    head_max: usize,
    request_method: Method,
) -> Result<Option<(ResponseHead, usize)>> {
    let window = &buf[..buf.len().min(head_max)];
    if window.iter().zip(b"HTTP/1.").any(|(have, want)| have != want) {
        return Err(bad("the first bytes are not an HTTP/1 answer"));
    }
    let before = (*scanned).min(window.len());
    let Some(end) = fields::head_end(window, 0, before).map_err(refuse)? else {
        if window.len() == head_max {
            return Err(bad("the head of the answer is too long"));
        }
        *scanned = window.len();
        return Ok(None);
    };
    complete(&window[..end], request_method).map(|head| Some((head, end)))
}

fn complete(bytes: &[u8], request_method: Method) -> Result<ResponseHead> {
    let (status, http11, line_end) = status_line(bytes)?;
    let block = &bytes[line_end..bytes.len() - 2];
    let places = fields::parse(block, Values::Any, RESPONSE_HEADERS_MAX).map_err(refuse)?;
    let said = Said::read(block, &places)?;
    if said.length.is_some() && said.chunked {
        return Err(bad("both Content-Length and Transfer-Encoding"));
    }
    if said.chunked && !http11 {
        return Err(bad("Transfer-Encoding in an HTTP/1.0 answer"));
    }
    let mut keep_alive = said.persistence.stays(http11) && status != 101;
    let bodyless = matches!(status, 100..=199 | 204 | 304);
    let body = if bodyless || request_method == Method::Head {
        // A 204 that announces a body may well be followed by one.
        let announces = said.chunked || said.length.is_some_and(|length| length > 0);
        keep_alive &= !(announces && matches!(status, 100..=199 | 204));
        BodyLength::None
    } else if said.chunked {
        BodyLength::Chunked
    } else if let Some(length) = said.length {
        BodyLength::Exact(length)
    } else {
        keep_alive = false;
        BodyLength::UntilClose
    };
    Ok(ResponseHead {
        status,
        http11,
        headers: Headers::from_block(block, places),
        body,
        keep_alive,
    })
}

/// Reads `HTTP/1.1 200 OK` and its line end. The reason phrase may be missing, with or without the
/// space before it.
fn status_line(bytes: &[u8]) -> Result<(u16, bool, usize)> {
    const WHAT: &str = "the status line is not HTTP/1.1, a status and a reason";
    let [minor, b' ', hundreds, tens, ones, rest @ ..] = bytes.get(7..).unwrap_or_default() else {
        return Err(bad(WHAT));
    };
    let digits = [hundreds, tens, ones];
    if !minor.is_ascii_digit() || !digits.iter().all(|b| b.is_ascii_digit()) {
        return Err(bad(WHAT));
    }
    let status = digits.iter().fold(0, |sum, b| sum * 10 + u16::from(**b - b'0'));
    if !(100..=599).contains(&status) {
        return Err(bad("the status is not between 100 and 599"));
    }
    let reason = match rest.first() {
        Some(b' ') => ascii::value_end(rest, Values::Any),
        _ => 0,
    };
    if !rest[reason..].starts_with(b"\r\n") {
        return Err(bad(WHAT));
    }
    Ok((status, *minor != b'0', 7 + 5 + reason + 2))
}

/// What the fields say about the message.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    chunked: bool,
    persistence: Persistence,
}

impl Said {
    fn read(block: &[u8], places: &[Field]) -> Result<Said> {
        let mut said = Said::default();
        for field in places {
            let name = &block[field.name as usize..field.name_end as usize];
            let value = &block[field.value as usize..field.value_end as usize];
            match fields::meaning(name) {
                Meaning::ContentLength => said.length(value)?,
                Meaning::TransferEncoding => said.coding(value)?,
                Meaning::Connection => said.persistence.read(value),
                Meaning::Host | Meaning::Expect | Meaning::Other => {}
            }
        }
        Ok(said)
    }

    /// Some servers say the same length twice, in two fields or in one; that is taken.
    fn length(&mut self, value: &[u8]) -> Result<()> {
        for one in value.split(|b| *b == b',').map(ascii::trim) {
            let length = fields::length(one);
            let length = length.ok_or_else(|| bad("Content-Length is not a number in digits"))?;
            if self.length.is_some_and(|before| before != length) {
                return Err(bad("two different Content-Length values"));
            }
            self.length = Some(length);
        }
        Ok(())
    }

    fn coding(&mut self, value: &[u8]) -> Result<()> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(bad("a Transfer-Encoding other than chunked"));
        }
        self.chunked = true;
        Ok(())
    }
}

fn bad(what: &'static str) -> Error {
    Error::new(Kind::UpstreamMalformed, what)
}

fn refuse(fault: Fault) -> Error {
    match fault {
        Fault::Syntax(what) => bad(what),
        Fault::TooMany => bad("too many header fields in the answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &str) -> Result<ResponseHead> {
        let parsed = response_head(bytes.as_bytes(), &mut 0, 64 * 1024, Method::Post)?;
        let (head, used) = parsed.expect("a complete head");
        assert_eq!(used, bytes.len());
        Ok(head)
    }

    #[test]
    fn status_lines_are_read_with_and_without_a_reason() {
        for line in
            ["HTTP/1.1 404 Not Found", "HTTP/1.1 404 ", "HTTP/1.1 404", "HTTP/1.1 404 \u{e9}\t!"]
        {
            let head = parse(&format!("{line}\r\n\r\n")).unwrap();
            assert_eq!((head.status, head.http11), (404, true), "{line}");
        }
        for line in [
            "HTTP/1.1  404 x",
            "HTTP/1.1 40 x",
            "HTTP/1.1 4040",
            "HTTP/1.1 404x",
            "HTTP/1.1",
            "HTTP/1.1 099 x",
            "HTTP/1.1 600 x",
            "HTTP/2 404",
            "http/1.1 404 x",
            "HTTP/1.x 404 x",
            "ICY 200 OK",
            "HTTP/1.1 404 \0",
        ] {
            let error = parse(&format!("{line}\r\n\r\n")).expect_err(line);
            assert_eq!(error.kind(), Kind::UpstreamMalformed, "{line}");
        }
    }

    #[test]
    fn the_length_of_a_body_is_read_as_rfc_9112_has_it() {
        let check = |lines: &str, body, keep_alive| {
            let head =
                parse(&format!("{lines}\r\n\r\n")).unwrap_or_else(|e| panic!("{lines}: {e}"));
            assert_eq!((head.body, head.keep_alive), (body, keep_alive), "{lines}");
        };
        use BodyLength::{Chunked, Exact, None, UntilClose};
        check("HTTP/1.1 200 OK\r\nContent-Length: 5", Exact(5), true);
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5", Exact(5), true);
        check("HTTP/1.1 200 OK\r\nContent-Length: 5, 5", Exact(5), true);
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", Chunked, true);
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close", Chunked, false);
        check("HTTP/1.1 200 OK", UntilClose, false);
        check("HTTP/1.0 200 OK\r\nContent-Length: 5", Exact(5), false);
        check("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive", Exact(5), true);
        check("HTTP/1.1 204 No Content", None, true);
        check("HTTP/1.1 204 No Content\r\nContent-Length: 0", None, true);
        check("HTTP/1.1 204 No Content\r\nContent-Length: 5", None, false);
        check("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", None, true);
        check("HTTP/1.1 100 Continue", None, true);
        check("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade", None, false);
    }

    #[test]
    fn a_head_request_has_an_answer_without_body_whatever_its_length_says() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let (head, _) =
            response_head(bytes, &mut 0, 1000, Method::Head).unwrap().expect("complete");
        assert_eq!((head.body, head.keep_alive), (BodyLength::None, true));
        assert_eq!(head.headers.get_str("content-length"), Some("5"));
    }

    #[test]
    fn framing_that_can_be_read_in_two_ways_is_malformed() {
        for lines in [
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 6",
            "Content-Length: 5,",
            "Content-Length: +5",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: identity",
            "A: b\nC: d",
            "A: b\r C: d",
            "A : b",
            "A: b\r\n c",
            "A: \0",
            "A",
        ] {
            assert!(parse(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n")).is_err(), "{lines:?}");
        }
        assert!(parse("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn a_value_may_hold_bytes_outside_ascii() {
        let head = parse("HTTP/1.1 200 OK\r\nX: caf\u{e9}\r\n\r\n").unwrap();
        assert_eq!(head.headers.get_str("x"), Some("caf\u{e9}"));
    }

    #[test]
    fn the_limits_hold_exactly() {
        let check =
            |bytes: &str, head_max| response_head(bytes.as_bytes(), &mut 0, head_max, Method::Get);
        let bytes = "HTTP/1.1 200 OK\r\nA: b\r\n\r\n";
        assert!(check(bytes, bytes.len()).unwrap().is_some());
        assert!(check(bytes, bytes.len() - 1).is_err());
        assert!(check(&bytes[..20], 21).unwrap().is_none());
        assert!(check(&bytes[..20], 20).is_err());

        let many = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a:b\r\n".repeat(count));
        assert!(check(&many(RESPONSE_HEADERS_MAX), 64 * 1024).unwrap().is_some());
        assert!(check(&many(RESPONSE_HEADERS_MAX + 1), 64 * 1024).is_err());
    }

    #[test]
    fn what_is_no_answer_is_told_by_its_first_bytes() {
        for bytes in ["\x15\x03\x01", "<", "HTTP/2", "{\"error\"", "\r\nHTTP/1.1 200 OK\r\n\r\n"] {
            let error = response_head(bytes.as_bytes(), &mut 0, 1000, Method::Get).unwrap_err();
            assert_eq!(error.kind(), Kind::UpstreamMalformed, "{bytes:?}");
        }
        assert!(response_head(b"HTTP/", &mut 0, 1000, Method::Get).unwrap().is_none());
    }
}
