//! The codec as a whole: what is written is read back, and nothing that comes breaks it.

use proptest::prelude::*;

use super::*;
use crate::base::error::Kind;
use crate::net::http::{BodyLength, Head, Method};

const LIMITS: HeadLimits = HeadLimits { head_max: 16 * 1024, headers_max: 100, target_max: 8192 };

// === Property tests ===

fn name() -> impl Strategy<Value = String> {
    // With a first letter of its own, so that no field means something.
    "[xX][!#$%&'*+.^_`|~0-9A-Za-z-]{0,20}"
}

/// Visible ASCII, without spaces at its ends, since those are trimmed.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[!-~]", "[!-~][ -~\t]{0,60}[!-~]"]
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec((name(), value()), 0..12)
}

fn pairs(fields: &[(String, String)]) -> impl Iterator<Item = (&str, &[u8])> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9._-]{1,30}",
        "[a-z0-9.-]{1,30}:[1-9][0-9]{0,3}",
        Just("[::1]:11434".to_owned()),
        Just("[fe80::1]".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_request_that_is_written_is_read_back_at_any_split(
        target in "/[!-\"$-~]{0,60}",
        host in host(),
        fields in fields(),
        length in prop::option::of(any::<u64>()),
        split in any::<prop::sample::Index>(),
    ) {
        let body = length.map_or(BodyLength::Chunked, BodyLength::Exact);
        let line = RequestLine { method: Method::Post, target: &target, host: &host, body };
        let mut bytes = Vec::new();
        write_request_head(&mut bytes, &line, pairs(&fields)).unwrap();
        let end = bytes.len();
        bytes.extend_from_slice(b"the body");

        let mut scanned = 0;
        let split = split.index(end);
        prop_assert!(request_head(&bytes[..split], &mut scanned, &LIMITS).unwrap().is_none());
        let (head, used) = request_head(&bytes, &mut scanned, &LIMITS).unwrap().expect("complete");
        prop_assert_eq!(used, end);
        prop_assert_eq!(head.method, Method::Post);
        prop_assert_eq!(&*head.target, target.as_str());
        prop_assert_eq!(head.headers.get_str("host"), Some(host.as_str()));
        prop_assert_eq!(head.body, body);
        let read: Vec<_> = head.headers.iter().skip(1).take(fields.len()).collect();
        prop_assert_eq!(read, pairs(&fields).collect::<Vec<_>>());
    }

    #[test]
    fn an_answer_that_is_written_is_read_back_at_any_split(
        status in prop_oneof![Just(200u16), 200..600u16],
        fields in fields(),
        body in prop_oneof![
            Just(BodyLength::None),
            any::<u64>().prop_map(BodyLength::Exact),
            Just(BodyLength::Chunked),
            Just(BodyLength::UntilClose),
        ],
        connection in prop_oneof![Just(Connection::KeepAlive), Just(Connection::Close)],
        split in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        write_response_head(&mut bytes, status, body, connection, pairs(&fields));
        let end = bytes.len();
        bytes.extend_from_slice(b"the body");

        let read = |buf: &[u8], scanned: &mut usize| {
            response_head(buf, scanned, 64 * 1024, Method::Post).unwrap()
        };
        let mut scanned = 0;
        prop_assert!(read(&bytes[..split.index(end)], &mut scanned).is_none());
        let (head, used) = read(&bytes, &mut scanned).expect("complete");
        prop_assert_eq!((used, head.status, head.http11), (end, status, true));
        let bodyless = matches!(status, 204 | 304);
        prop_assert_eq!(head.body, match body {
            _ if bodyless => BodyLength::None,
            BodyLength::None => BodyLength::Exact(0),
            other => other,
        });
        if !bodyless {
            let stays = connection == Connection::KeepAlive && body != BodyLength::UntilClose;
            prop_assert_eq!(head.keep_alive, stays);
        }
        let read: Vec<_> = head.headers.iter().take(fields.len()).collect();
        prop_assert_eq!(read, pairs(&fields).collect::<Vec<_>>());
    }

    #[test]
    fn chunks_that_are_written_are_read_back_at_any_split(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        step in 1..64usize,
    ) {
        let mut bytes = Vec::new();
        for piece in &pieces {
            write_chunk(&mut bytes, piece);
        }
        bytes.extend_from_slice(LAST_CHUNK);
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut data = Vec::new();
        for part in bytes.chunks(step) {
            let mut rest = part;
            while !rest.is_empty() {
                prop_assert!(!decoder.finished());
                let decoded = decoder.decode(rest).unwrap();
                data.extend_from_slice(decoded.data);
                rest = &rest[decoded.used..];
            }
        }
        prop_assert!(decoder.finished());
        prop_assert_eq!(data, pieces.concat());
    }

    #[test]
    fn no_field_can_split_an_answer(
        name in ".{0,12}",
        value in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = Vec::new();
        let fields = [(name.as_str(), value.as_slice())];
        write_response_head(&mut bytes, 200, BodyLength::Exact(3), Connection::KeepAlive, fields);
        bytes.extend_from_slice(b"abc");
        let parsed = response_head(&bytes, &mut 0, 4096, Method::Get).unwrap();
        let (head, used) = parsed.expect("complete");
        prop_assert_eq!((used, head.body), (bytes.len() - 3, BodyLength::Exact(3)));
        prop_assert!(head.headers.len() <= 2);
    }

    #[test]
    fn any_bytes_at_all_are_judged_alike_however_they_are_split(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        oracle::request(&bytes);
        oracle::response(&bytes);
        oracle::body(&bytes);
    }
}

// === Seeded fuzzing ===

/// Inputs that reach deep; the loop changes them.
const SEEDS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /v1/chat HTTP/1.1\r\nHost: localhost:80\r\nContent-Length: 12\r\nX: y\r\n\r\nbody",
    "POST /a HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
    "OPTIONS * HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
    "\r\nGET http://a:80/b?c HTTP/1.1\r\nHost: b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nConnection: close\r\n\r\nhello",
    "HTTP/1.1 404\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.0 204 No Content\r\n\r\n",
    "\x025\r\nhello\r\n1;a=b\r\n!\r\n0\r\nA: b\r\n\r\nrest",
    "\x03ffffffffffffffff\r\nhello",
    "\x08exactly",
];

/// What is put in: bytes and words that mean something.
const WORDS: &[&str] = &[
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "\0",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "#",
    "\u{e9}",
    "0",
    "+5",
    "-1",
    "f",
    "Host: a\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "chunked",
    "HTTP/1.1",
    "HTTP/2.0",
    "1.2",
    "18446744073709551616",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "0\r\n\r\n",
    "http://",
    "*",
];

/// A generator that is always the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

fn changed(random: &mut Random) -> Vec<u8> {
    let mut bytes = SEEDS[random.below(SEEDS.len())].as_bytes().to_vec();
    for _ in 0..random.below(5) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] = random.next().to_le_bytes()[0],
            1 if at < bytes.len() => {
                bytes.remove(at);
            }
            2 => bytes.truncate(at),
            3 => {
                let to = at + random.below(bytes.len() + 1 - at);
                let piece = bytes[at..to].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..at, word.bytes());
            }
        }
    }
    bytes.truncate(2000);
    bytes
}

#[test]
fn a_seeded_loop_of_changed_inputs_finds_no_two_readings_and_no_panic() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("TIDEGATE_FUZZ_SEED").unwrap_or(0x7469_6465_6761_7465);
    // About a second in a debug build.
    let rounds = number("TIDEGATE_FUZZ_ROUNDS").unwrap_or(6_000);
    println!("TIDEGATE_FUZZ_SEED={seed} TIDEGATE_FUZZ_ROUNDS={rounds}");
    let mut random = Random(seed);
    let mut taken = 0u32;
    for _ in 0..rounds {
        let bytes = changed(&mut random);
        oracle::request(&bytes);
        oracle::response(&bytes);
        oracle::body(&bytes);
        taken += u32::from(matches!(request_head(&bytes, &mut 0, &LIMITS), Ok(Some(_))));
    }
    assert!(u64::from(taken) > rounds / 20, "the loop must reach past the refusals: {taken}");
}

// === What the parts write ===

fn written(
    status: u16,
    body: BodyLength,
    connection: Connection,
    fields: &[(&str, &str)],
) -> String {
    let mut out = Vec::new();
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    write_response_head(&mut out, status, body, connection, fields);
    String::from_utf8(out).unwrap()
}

#[test]
fn an_answer_says_its_length_and_its_connection_once() {
    let none: &[(&str, &str)] = &[];
    let framing =
        [("Content-Length", "9"), ("transfer-encoding", "x"), ("Connection", "x"), ("a", "b")];
    let check = |status, body, connection, fields, expected: &str| {
        assert_eq!(written(status, body, connection, fields), expected);
    };
    use Connection::{Close, KeepAlive, KeepAliveAloud, Upgrade};
    check(
        200,
        BodyLength::Exact(5),
        KeepAlive,
        &framing,
        "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 5\r\n\r\n",
    );
    check(
        200,
        BodyLength::None,
        Close,
        none,
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    check(204, BodyLength::None, KeepAlive, none, "HTTP/1.1 204 No Content\r\n\r\n");
    check(
        200,
        BodyLength::Chunked,
        KeepAliveAloud,
        none,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n",
    );
    check(
        200,
        BodyLength::UntilClose,
        KeepAlive,
        none,
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    );
    check(
        101,
        BodyLength::None,
        Upgrade,
        &[("upgrade", "websocket")],
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    );
    check(599, BodyLength::Exact(0), KeepAlive, none, "HTTP/1.1 599 \r\ncontent-length: 0\r\n\r\n");
}

#[test]
fn a_field_that_would_split_an_answer_is_left_out() {
    for (name, value) in
        [("a", "b\r\nc: d"), ("a", "b\nc"), ("a", "b\0"), ("a\r\nb", "c"), ("", "c"), ("a b", "c")]
    {
        let written =
            written(200, BodyLength::None, Connection::KeepAlive, &[(name, value), ("ok", "x")]);
        assert_eq!(written, "HTTP/1.1 200 OK\r\nok: x\r\ncontent-length: 0\r\n\r\n");
    }
}

#[test]
fn a_request_that_cannot_be_sent_as_it_is_is_an_error_and_leaves_nothing_behind() {
    let good =
        RequestLine { method: Method::Post, target: "/", host: "a", body: BodyLength::Exact(2) };
    let check = |line: RequestLine<'_>, fields: &[(&str, &[u8])]| {
        let mut out = b"before".to_vec();
        let result = write_request_head(&mut out, &line, fields.iter().copied());
        let error = result.expect_err("refused");
        assert_eq!(error.kind(), Kind::Internal);
        assert!(!error.context().contains("secret"), "{error}");
        assert_eq!(out, b"before");
    };
    check(RequestLine { target: "/a b", ..good }, &[]);
    check(RequestLine { target: "", ..good }, &[]);
    check(RequestLine { target: "/\r\nx: y", ..good }, &[]);
    check(RequestLine { host: "a\r\nb", ..good }, &[]);
    check(RequestLine { method: Method::Other, ..good }, &[]);
    check(RequestLine { body: BodyLength::UntilClose, ..good }, &[]);
    check(good, &[("ok", b"x"), ("authorization", b"secret\n")]);
    check(good, &[("a:", b"secret")]);
}

#[test]
fn a_get_has_no_length_and_a_post_always_has_one() {
    let write = |method| {
        let mut out = Vec::new();
        let line = RequestLine { method, target: "/", host: "a", body: BodyLength::None };
        write_request_head(&mut out, &line, [("Host", b"b".as_slice())]).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(write(Method::Get), "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(write(Method::Post), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
}

#[test]
fn the_answers_connection_follows_the_request() {
    let head = |lines: &str| -> Head {
        let bytes = format!("{lines}\r\n\r\n");
        request_head(bytes.as_bytes(), &mut 0, &LIMITS).unwrap().expect("complete").0
    };
    let current = head("GET / HTTP/1.1\r\nHost: a");
    assert_eq!(Connection::answering(&current, false), Connection::KeepAlive);
    assert_eq!(Connection::answering(&current, true), Connection::Close);
    let old = head("GET / HTTP/1.0\r\nConnection: keep-alive");
    assert_eq!(Connection::answering(&old, false), Connection::KeepAliveAloud);
    assert_eq!(Connection::answering(&head("GET / HTTP/1.0"), false), Connection::Close);
}

#[test]
fn a_large_chunk_has_its_size_in_hex() {
    let mut out = Vec::new();
    write_chunk(&mut out, &[b'x'; 0x1a2b]);
    assert!(out.starts_with(b"1a2b\r\nxx") && out.ends_with(b"x\r\n"));
    out.clear();
    write_chunk(&mut out, b"");
    assert!(out.is_empty(), "an empty chunk would end the body");
}
