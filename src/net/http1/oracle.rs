//! What must hold for any bytes whatever. The seeded loop of the tests and the fuzz targets in
//! `fuzz/` (which include this file) both call it.

use crate::base::error::Kind;
use crate::net::http::{BodyLength, Headers, Method};
use crate::net::http1::{BodyDecoder, HeadLimits, request_head, response_head};

/// Small, so that short inputs reach them.
const LIMITS: HeadLimits = HeadLimits { head_max: 600, headers_max: 12, target_max: 60 };

/// Checks the reading of requests.
pub fn request(bytes: &[u8]) {
    let whole = request_head(bytes, &mut 0, &LIMITS);
    let outcome = |result: &Result<Option<_>, crate::base::error::Error>| match result {
        Ok(Some((head, used))) => (format!("{head:?}"), *used),
        Ok(None) => ("more".to_owned(), 0),
        Err(error) => (format!("{:?}", error.kind()), 0),
    };

    // Byte by byte: the verdict is the same, and comes no later.
    let mut scanned = 0;
    let mut stepped = Ok(None);
    for length in 0..=bytes.len() {
        stepped = request_head(&bytes[..length], &mut scanned, &LIMITS);
        if !matches!(stepped, Ok(None)) {
            break;
        }
    }
    assert_eq!(outcome(&stepped), outcome(&whole), "split: {}", bytes.escape_ascii());

    let Ok(Some((head, used))) = whole else { return };
    assert!(used <= bytes.len() && used <= LIMITS.head_max + 2);
    assert!(bytes[..used].ends_with(b"\r\n\r\n"));
    assert!(head.headers.len() <= LIMITS.headers_max + 1);
    fields_are_clean(&head.headers);
    let visible = |b: u8| b.is_ascii_graphic() && b != b'#';
    assert!(head.target.bytes().all(visible));
    assert!(head.target.starts_with('/') || &*head.target == "*");
    let named = |name: &str| {
        head.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name)).count()
    };
    let (hosts, lengths, codings) =
        (named("host"), named("content-length"), named("transfer-encoding"));
    assert!(if head.http11 { hosts == 1 } else { hosts <= 1 });
    assert!(lengths + codings <= 1, "two lengths");
    match head.body {
        BodyLength::None => assert_eq!(lengths + codings, 0),
        BodyLength::Exact(_) => assert_eq!(lengths, 1),
        BodyLength::Chunked => assert!(codings == 1 && head.http11),
        BodyLength::UntilClose => panic!("a request has no such body"),
    }

    // What comes behind a head has no say in it.
    let mut more = bytes[..used].to_vec();
    more.extend_from_slice(b"\n\0 GET / HTTP/2.0\r\n");
    let again = request_head(&more, &mut 0, &LIMITS);
    assert_eq!(outcome(&again), (format!("{head:?}"), used));

    // Whatever we take, httparse takes alike. It refuses minor versions above 1.
    let start = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let line = bytes[start..used].split(|b| *b == b'\r').next().unwrap_or_default();
    if !(line.ends_with(b"1.0") || line.ends_with(b"1.1")) {
        return;
    }
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut theirs = httparse::Request::new(&mut fields);
    let parsed = theirs.parse(&bytes[..used]);
    assert_eq!(parsed, Ok(httparse::Status::Complete(used)), "{}", bytes.escape_ascii());
    assert_eq!(theirs.version, Some(u8::from(head.http11)));
    let method = theirs.method.unwrap_or_default();
    assert_eq!(Method::parse(method), head.method);
    let target = theirs.path.unwrap_or_default();
    assert!(target.ends_with(&*head.target) || !target.starts_with('/'));
    let absolute = !target.starts_with('/') && target != "*";
    for (ours, theirs) in head.headers.iter().zip(theirs.headers.iter()) {
        assert_eq!(ours.0, theirs.name);
        if !(absolute && ours.0.eq_ignore_ascii_case("host")) {
            assert_eq!(ours.1, theirs.value);
        }
    }
}

/// Checks the reading of answers.
pub fn response(bytes: &[u8]) {
    const HEAD_MAX: usize = 600;
    for method in [Method::Post, Method::Head] {
        let whole = response_head(bytes, &mut 0, HEAD_MAX, method);
        let mut scanned = 0;
        let mut stepped = Ok(None);
        for length in 0..=bytes.len() {
            stepped = response_head(&bytes[..length], &mut scanned, HEAD_MAX, method);
            if !matches!(stepped, Ok(None)) {
                break;
            }
        }
        match (&whole, &stepped) {
            (Ok(whole), Ok(stepped)) => assert_eq!(format!("{whole:?}"), format!("{stepped:?}")),
            (Err(whole), Err(stepped)) => {
                assert_eq!((whole.kind(), stepped.kind()), (MALFORMED, MALFORMED));
            }
            _ => panic!("{whole:?} and {stepped:?}: {}", bytes.escape_ascii()),
        }
        let Ok(Some((head, used))) = whole else { continue };
        assert!(used <= bytes.len() && used <= HEAD_MAX);
        assert!((100..600).contains(&head.status));
        fields_are_clean(&head.headers);
        if method == Method::Head || matches!(head.status, 100..=199 | 204 | 304) {
            assert_eq!(head.body, BodyLength::None);
        }
        if head.body == BodyLength::UntilClose {
            assert!(!head.keep_alive);
        }
    }
}

const MALFORMED: Kind = Kind::UpstreamMalformed;

/// Checks the reading of bodies: the first byte says of what length.
pub fn body(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let length = match first % 4 {
        0 => BodyLength::Exact(u64::from(*first)),
        1 => BodyLength::UntilClose,
        _ => BodyLength::Chunked,
    };
    let whole = decode(length, bytes, bytes.len().max(1));
    for step in [1, 2, 7] {
        assert_eq!(decode(length, bytes, step), whole, "step {step}: {}", bytes.escape_ascii());
    }
    if let Ok((data, used, finished)) = whole {
        assert!(data.len() <= used && used <= bytes.len());
        assert!(finished || used == bytes.len(), "it stops only at the end");
        if length == BodyLength::Chunked && finished {
            // What was taken writes back to what is taken.
            let mut again = Vec::new();
            crate::net::http1::write_chunk(&mut again, &data);
            again.extend_from_slice(crate::net::http1::LAST_CHUNK);
            assert_eq!(decode(length, &again, again.len()), Ok((data, again.len(), true)));
        }
    }
}

/// Decodes input that comes `step` bytes at a time: the data, the bytes used, whether it is
/// finished.
fn decode(length: BodyLength, bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Kind> {
    let mut decoder = BodyDecoder::new(length);
    let (mut data, mut used) = (Vec::new(), 0);
    for piece in bytes.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() && !decoder.finished() {
            let decoded = decoder.decode(rest).map_err(|error| error.kind())?;
            assert!(decoded.used > 0 && decoded.used <= rest.len(), "no progress");
            data.extend_from_slice(decoded.data);
            used += decoded.used;
            rest = &rest[decoded.used..];
        }
    }
    Ok((data, used, decoder.finished()))
}

fn fields_are_clean(headers: &Headers) {
    for (name, value) in headers.iter() {
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':'));
        assert!(!value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
        let space = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
        assert!(!space(value.first()) && !space(value.last()), "trimmed");
    }
}
