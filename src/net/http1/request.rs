//! Heads of requests, strictly.

use super::ascii::{self, Values};
use super::fields::{self, Fault, Meaning, Persistence};
use super::host;
use crate::base::error::{Error, Kind, Result};
use crate::net::http::{BodyLength, Field, Head, Headers, Method};

/// Longest method, in bytes: registered ones have at most 17. Past it: 400. It lets us refuse
/// what is no HTTP at all by its first bytes.
const METHOD_BYTES_MAX: usize = 32;

/// More than what can follow the target in a request line that is not yet refused
/// (` HTTP/1.1` and CR, 10 bytes).
const LINE_TAIL_BYTES: usize = 16;

/// The bounds of a request's head. They are settings of each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Most bytes of request line and fields with their line ends. Past it: 431.
    pub head_max: usize,
    /// Most header fields. Past it: 431.
    pub headers_max: usize,
    /// Most bytes of the request target. Past it: 414.
    pub target_max: usize,
}

/// Looks for a complete request head at the start of `buf`, and says how many bytes it took. One
/// leading CRLF is tolerated. `Ok(None)` means that more bytes are needed; what cannot become a
/// request is refused without waiting for them.
///
/// `scanned` is the caller's memory between calls on a growing `buf`: zero for each new request,
/// else what the last call left there. It keeps slow bytes from being read over and over.
///
/// # Errors
/// [`Kind::BadRequest`], [`Kind::TransferEncoding`], [`Kind::HttpVersion`], [`Kind::HeadTooLarge`],
/// [`Kind::TargetTooLong`] or [`Kind::Expectation`]. The connection cannot be used further after
/// any of them.
pub fn request_head(
    buf: &[u8],
    scanned: &mut usize,
    limits: &HeadLimits,
) -> Result<Option<(Head, usize)>> {
    let start = match buf {
        [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    let window = &buf[..buf.len().min(limits.head_max.saturating_add(start))];
    let full = window.len() == limits.head_max.saturating_add(start);
    let before = (*scanned).clamp(start, window.len().max(start));
    let seen = window.get(start..before).unwrap_or_default();
    // The line is checked before anything behind it, so that a split changes no verdict.
    let mut line = None;
    if memchr::memchr(b'\n', seen).is_none() {
        let bytes = window.get(start..).unwrap_or_default();
        line = request_line(bytes, seen.len(), limits.target_max)?;
        if line.is_none() {
            if full {
                return Err(too_large(limits));
            }
            *scanned = window.len();
            return Ok(None);
        }
    }
    let Some(end) =
        fields::head_end(window, start, before).map_err(|fault| refuse(fault, limits))?
    else {
        if full {
            return Err(too_large(limits));
        }
        *scanned = window.len();
        return Ok(None);
    };
    let bytes = &window[start..end];
    let line = match line {
        Some(line) => Some(line),
        // An earlier call saw its end.
        None => request_line(bytes, 0, limits.target_max)?,
    };
    let line = line.ok_or_else(|| bad("the request line does not end"))?;
    Ok(Some((complete(bytes, &line, limits)?, end)))
}

/// Where the parts of a request line are.
struct Line {
    method_end: usize,
    target_end: usize,
    /// The digit behind `HTTP/1.`.
    minor: u8,
    end: usize,
}

/// Reads the request line at the start of `bytes`, from left to right. `None` when it is right so
/// far. The first `seen` bytes were read by earlier calls and do not end the line.
fn request_line(bytes: &[u8], seen: usize, target_max: usize) -> Result<Option<Line>> {
    let mut at = 0;
    loop {
        match bytes.get(at) {
            None => return Ok(None),
            Some(b' ') if at > 0 => break,
            Some(b) if at < METHOD_BYTES_MAX && ascii::is_token(*b) => at += 1,
            Some(0x16) if at == 0 => {
                return Err(bad("these bytes are TLS; this port speaks plain HTTP"));
            }
            Some(_) => return Err(bad("the first bytes are not an HTTP request")),
        }
    }
    let method_end = at;
    let target = at + 1;
    at = target.max(seen.saturating_sub(LINE_TAIL_BYTES));
    loop {
        match bytes.get(at) {
            None => return Ok(None),
            Some(b' ') => break,
            Some(_) if at - target >= target_max => {
                return Err(Error::new(
                    Kind::TargetTooLong,
                    format!("the request target is longer than {target_max} bytes"),
                ));
            }
            Some(b) if ascii::is_target(*b) => at += 1,
            Some(b'\r' | b'\n') => return Err(bad("the request line has no version")),
            Some(_) => {
                return Err(bad("the request target holds a byte that must be percent-encoded"));
            }
        }
    }
    if at == target {
        return Err(bad("the request target is empty"));
    }
    let target_end = at;
    let rest = &bytes[at + 1..];
    let mut version = [b'0'; 2];
    for (place, &b) in rest.iter().take(10).enumerate() {
        let fine = match place {
            0..=4 => b == b"HTTP/"[place],
            5 | 7 => {
                version[place / 6] = b;
                b.is_ascii_digit()
            }
            6 if b != b'.' && version[0] != b'1' => return Err(unknown_version()),
            6 => b == b'.',
            8 => b == b'\r',
            _ => b == b'\n',
        };
        if !fine {
            return Err(bad("the request line does not end in a space, HTTP/1.1 and CRLF"));
        }
    }
    if rest.len() < 10 {
        return Ok(None);
    }
    let [major, minor] = version;
    if major != b'1' {
        return Err(unknown_version());
    }
    Ok(Some(Line { method_end, target_end, minor, end: target_end + 11 }))
}

/// Reads a head that is complete.
fn complete(bytes: &[u8], line: &Line, limits: &HeadLimits) -> Result<Head> {
    // A higher minor version is read as the highest that we know (RFC 9110, 2.5).
    let http11 = line.minor != b'0';
    let block = &bytes[line.end..bytes.len() - 2];
    let places = fields::parse(block, Values::Ascii, limits.headers_max)
        .map_err(|fault| refuse(fault, limits))?;
    let said = Said::read(block, &places)?;

    if http11 && said.host.is_none() {
        return Err(bad("the Host field is missing; HTTP/1.1 requires it"));
    }
    let method = std::str::from_utf8(&bytes[..line.method_end]).unwrap_or_default();
    let method = Method::parse(method);
    let target = &bytes[line.method_end + 1..line.target_end];
    let mut headers = Headers::from_block(block, places);
    let target = match form(method, target)? {
        Form::Origin => text(target),
        Form::Absolute { authority, target } => {
            // The authority in the target is what the client asks for (RFC 9112, 3.2.2).
            match said.host {
                Some(index) => headers.replace(index, authority),
                None => headers.push(b"host", authority),
            }
            target
        }
    };
    Ok(Head {
        method,
        target,
        http11,
        body: said.body(http11)?,
        keep_alive: said.persistence.stays(http11),
        expects_continue: said.expects_continue && http11,
        headers,
    })
}

/// What the fields say about the message.
#[derive(Default)]
struct Said {
    host: Option<usize>,
    length: Option<u64>,
    chunked: bool,
    persistence: Persistence,
    expects_continue: bool,
}

impl Said {
    fn read(block: &[u8], places: &[Field]) -> Result<Said> {
        let mut said = Said::default();
        for (index, field) in places.iter().enumerate() {
            let name = &block[field.name as usize..field.name_end as usize];
            let value = &block[field.value as usize..field.value_end as usize];
            match fields::meaning(name) {
                Meaning::Other => {}
                Meaning::Host => said.host(index, value)?,
                Meaning::ContentLength => said.length(value)?,
                Meaning::TransferEncoding => said.coding(value)?,
                Meaning::Connection => said.persistence.read(value),
                Meaning::Expect => said.expect(value)?,
            }
        }
        Ok(said)
    }

    fn host(&mut self, index: usize, value: &[u8]) -> Result<()> {
        if self.host.is_some() {
            return Err(bad("there are two Host fields; send one"));
        }
        if !host::valid(value) {
            return Err(bad("the Host field is not a host name or address with an optional port"));
        }
        self.host = Some(index);
        Ok(())
    }

    fn length(&mut self, value: &[u8]) -> Result<()> {
        if self.length.is_some() {
            return Err(bad("there are two Content-Length fields; send one"));
        }
        let length = fields::length(value);
        self.length =
            Some(length.ok_or_else(|| bad("Content-Length is not a number of bytes in digits"))?);
        Ok(())
    }

    fn coding(&mut self, value: &[u8]) -> Result<()> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Error::new(
                Kind::TransferEncoding,
                "the only Transfer-Encoding taken here is one field that says chunked",
            ));
        }
        self.chunked = true;
        Ok(())
    }

    fn expect(&mut self, value: &[u8]) -> Result<()> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Error::new(
                Kind::Expectation,
                "the only expectation that can be met here is 100-continue",
            ));
        }
        self.expects_continue = true;
        Ok(())
    }

    fn body(&self, http11: bool) -> Result<BodyLength> {
        match (self.length, self.chunked) {
            (Some(_), true) => {
                Err(bad("there are both Content-Length and Transfer-Encoding; send one of them"))
            }
            (None, true) if !http11 => Err(Error::new(
                Kind::TransferEncoding,
                "HTTP/1.0 has no Transfer-Encoding; send Content-Length",
            )),
            (None, true) => Ok(BodyLength::Chunked),
            (Some(length), false) => Ok(BodyLength::Exact(length)),
            (None, false) => Ok(BodyLength::None),
        }
    }
}

/// The form of a request target (RFC 9112, 3.2).
enum Form<'a> {
    /// `/path?query`, or `*` with OPTIONS.
    Origin,
    /// `http://host/path`, here with the target it stands for.
    Absolute { authority: &'a [u8], target: Box<str> },
}

fn form(method: Method, target: &[u8]) -> Result<Form<'_>> {
    if target.starts_with(b"/") || (target == b"*" && method == Method::Options) {
        return Ok(Form::Origin);
    }
    let schemes: [&[u8]; 2] = [b"http://", b"https://"];
    let scheme = schemes.into_iter().find(|scheme| {
        target.get(..scheme.len()).is_some_and(|have| have.eq_ignore_ascii_case(scheme))
    });
    let Some(scheme) = scheme else {
        return Err(bad("the request target is not a path; it must start with /"));
    };
    let rest = &target[scheme.len()..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !host::valid(authority) {
        return Err(bad("the request target's host is not a name or address with optional port"));
    }
    let target = match path.first() {
        None if method == Method::Options => "*".into(),
        None => "/".into(),
        Some(b'?') => format!("/{}", text(path)).into(),
        Some(_) => text(path),
    };
    Ok(Form::Absolute { authority, target })
}

/// Bytes that were checked to be ASCII.
fn text(bytes: &[u8]) -> Box<str> {
    std::str::from_utf8(bytes).unwrap_or_default().into()
}

fn bad(what: &'static str) -> Error {
    Error::new(Kind::BadRequest, what)
}

fn unknown_version() -> Error {
    Error::new(Kind::HttpVersion, "this server speaks HTTP/1.1 and HTTP/1.0")
}

fn too_large(limits: &HeadLimits) -> Error {
    let most = limits.head_max;
    Error::new(Kind::HeadTooLarge, format!("the head of the request is longer than {most} bytes"))
}

fn refuse(fault: Fault, limits: &HeadLimits) -> Error {
    match fault {
        Fault::Syntax(what) => bad(what),
        Fault::TooMany => {
            let most = limits.headers_max;
            Error::new(Kind::HeadTooLarge, format!("there are more than {most} header fields"))
        }
    }
}

#[cfg(test)]
mod tests;
