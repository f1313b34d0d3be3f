use super::*;

const LIMITS: HeadLimits = HeadLimits { head_max: 16 * 1024, headers_max: 100, target_max: 8192 };

fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>> {
    request_head(bytes, &mut 0, &LIMITS)
}

fn taken(bytes: &[u8]) -> Head {
    let (head, used) = parse(bytes).unwrap().expect("a complete head");
    assert_eq!(used, bytes.len());
    head
}

fn refused(bytes: impl AsRef<[u8]>, kind: Kind) {
    let bytes = bytes.as_ref();
    let shown = String::from_utf8_lossy(bytes).into_owned();
    let error = parse(bytes).expect_err(&shown);
    assert_eq!(error.kind(), kind, "{shown:?}: {error}");
}

/// A request with these further lines.
fn with(lines: &str) -> Vec<u8> {
    format!("POST /v1/chat HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n").into_bytes()
}

#[test]
fn an_ordinary_request_is_read() {
    let head = taken(
        b"POST /v1/chat?a=b HTTP/1.1\r\nHost: localhost:18789\r\nContent-Type:application/json\r\n\
          Content-Length: 12\r\nX-Empty:\r\nX-Tab: \ta\tb \t\r\n\r\n",
    );
    assert_eq!((head.method, &*head.target), (Method::Post, "/v1/chat?a=b"));
    assert_eq!((head.path(), head.query()), ("/v1/chat", "a=b"));
    assert!(head.http11 && head.keep_alive && !head.expects_continue);
    assert_eq!(head.body, BodyLength::Exact(12));
    let fields: Vec<_> = head.headers.iter().collect();
    assert_eq!(fields[1], ("Content-Type", b"application/json".as_slice()));
    assert_eq!(fields[3], ("X-Empty", b"".as_slice()));
    assert_eq!(fields[4], ("X-Tab", b"a\tb".as_slice()));
    assert_eq!(head.headers.get_str("host"), Some("localhost:18789"));
}

#[test]
fn the_table_of_what_another_server_let_through_is_refused() {
    use Kind::{BadRequest, HttpVersion, TransferEncoding};
    for length in
        ["99999999999999999999", "18446744073709551616", "abc", "-1", "+5", "", "5 5", "5,5"]
    {
        refused(with(&format!("Content-Length: {length}\r\n")), BadRequest);
    }
    refused(with("Content-Length: 5\r\nContent-Length: 6\r\n"), BadRequest);
    refused(with("Content-Length: 5\r\nContent-Length: 5\r\n"), BadRequest);
    refused(with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), BadRequest);
    refused(with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), BadRequest);
    for coding in [
        "identity",
        "xchunked",
        "gzip, chunked",
        "chunked, chunked",
        "chunked;a",
        "",
        "\"chunked\"",
    ] {
        refused(with(&format!("Transfer-Encoding: {coding}\r\n")), TransferEncoding);
    }
    refused(with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), TransferEncoding);
    refused(with("A: b\nC: d\r\n"), BadRequest);
    refused(with("A: b\rC: d\r\n"), BadRequest);
    refused(with("A: b\0\r\n"), BadRequest);
    refused(with("A: b\x7f\r\n"), BadRequest);
    refused(with("A: \u{e9}\r\n"), BadRequest);
    refused(with("A: b\r\n folded: c\r\n"), BadRequest);
    refused(with("A: b\r\n\tfolded: c\r\n"), BadRequest);
    refused(with(": b\r\n"), BadRequest);
    refused(with("X(A): b\r\n"), BadRequest);
    refused(with("X-A : b\r\n"), BadRequest);
    refused(with("Transfer-Encoding : chunked\r\n"), BadRequest);
    refused(with("no colon\r\n"), BadRequest);
    refused(with("\u{e9}: b\r\n"), BadRequest);
    refused(b"GET / HTTP/1.1\r\n\r\n", BadRequest);
    refused(b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", BadRequest);
    refused(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", BadRequest);
    refused(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", BadRequest);
    refused(b"GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding);
    let line = |line: &str, kind| refused(format!("{line}\r\nHost: a\r\n\r\n"), kind);
    for bad in [
        "GET /a\tb HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a\0 HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 x",
        "GET / HTTP/1.1 ",
        "GET / HTTP/1.10",
        "GET / HTTP/1",
        "GET / http/1.1",
        "GET / XTTP/1.1",
        "GET / HTTP/1,1",
        "GET /",
        "GET",
        "G(T / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET * HTTP/1.1",
        "GET a HTTP/1.1",
        "CONNECT a:443 HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET http:///x HTTP/1.1",
        "GET http://u@a/ HTTP/1.1",
    ] {
        line(bad, BadRequest);
    }
    for newer in ["GET / HTTP/2.0", "GET / HTTP/3.0", "GET / HTTP/2", "GET / HTTP/0.9"] {
        line(newer, HttpVersion);
    }
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HttpVersion);
}

#[test]
fn a_length_of_63_bits_is_read_for_what_it_is() {
    for (length, value) in
        [("9223372036854775807", i64::MAX as u64), ("18446744073709551615", u64::MAX)]
    {
        let head = taken(&with(&format!("Content-Length: {length}\r\n")));
        assert_eq!(head.body, BodyLength::Exact(value));
    }
}

#[test]
fn what_cannot_become_a_request_is_refused_at_its_first_bytes() {
    let tls = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01];
    refused(tls, Kind::BadRequest);
    refused(&tls[..1], Kind::BadRequest);
    refused(b"\0", Kind::BadRequest);
    refused(b"SSH-2.0-OpenSSH_9.9\r\n", Kind::BadRequest);
    refused([b'A'; 33], Kind::BadRequest);
    refused(b"\n", Kind::BadRequest);
    refused(b"\r\n\r\n", Kind::BadRequest);
    refused(b"\rG", Kind::BadRequest);
    refused(b"GET /\n", Kind::BadRequest);
    refused(b"GET / HTTP/1.1\r\nHost: a\n", Kind::BadRequest);
}

#[test]
fn one_leading_line_end_is_tolerated() {
    assert_eq!(taken(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").method, Method::Get);
    refused(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest);
    refused(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Kind::BadRequest);
}

#[test]
fn the_limits_hold_exactly() {
    let limits = HeadLimits { head_max: 200, headers_max: 3, target_max: 20 };
    let check = |bytes: &[u8]| request_head(bytes, &mut 0, &limits).map(|head| head.is_some());
    let kind = |bytes: &[u8]| check(bytes).expect_err("refused").kind();

    let sized = |size: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n";
        frame.replace("X: ", &format!("X: {}", "x".repeat(size - frame.len()))).into_bytes()
    };
    assert!(check(&sized(200)).unwrap());
    assert_eq!(kind(&sized(201)), Kind::HeadTooLarge);
    assert!(!check(&sized(201)[..199]).unwrap());
    assert_eq!(kind(&sized(201)[..200]), Kind::HeadTooLarge, "no need to wait for the rest");

    let target =
        |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(length - 1));
    assert!(check(target(20).as_bytes()).unwrap());
    assert_eq!(kind(target(21).as_bytes()), Kind::TargetTooLong);
    assert_eq!(kind(&target(30).as_bytes()[..25]), Kind::TargetTooLong);

    let many =
        |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a:b\r\n".repeat(count - 1));
    assert!(check(many(3).as_bytes()).unwrap());
    assert_eq!(kind(many(4).as_bytes()), Kind::HeadTooLarge);
}

#[test]
fn a_header_line_of_200_megabytes_is_refused_at_the_limit() {
    let mut bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
    bytes.resize(LIMITS.head_max, b'x');
    refused(bytes, Kind::HeadTooLarge);
}

#[test]
fn http_10_may_lack_host_and_closes_unless_told_otherwise() {
    let head = taken(b"GET / HTTP/1.0\r\n\r\n");
    assert!(!head.http11 && !head.keep_alive);
    assert!(taken(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
    assert!(!taken(b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n").keep_alive);
    assert!(!taken(b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue);
    refused(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Kind::BadRequest);
}

#[test]
fn a_higher_minor_version_is_read_as_http_11() {
    assert!(taken(b"GET / HTTP/1.2\r\nHost: a\r\n\r\n").http11);
}

#[test]
fn connection_and_expect_are_understood_whatever_their_case() {
    assert!(!taken(&with("Connection: foo, CLOSE\r\n")).keep_alive);
    assert!(taken(&with("Connection: upgrade\r\n")).keep_alive);
    assert!(taken(&with("Expect: 100-Continue\r\n")).expects_continue);
    refused(with("Expect: 200-ok\r\n"), Kind::Expectation);
    assert_eq!(taken(&with("TRANSFER-ENCODING: Chunked\r\n")).body, BodyLength::Chunked);
}

#[test]
fn an_absolute_target_is_reduced_and_its_authority_is_the_host() {
    let check = |line: &str, target: &str, host: &str| {
        let head = taken(format!("{line} HTTP/1.1\r\nHost: other\r\nA: b\r\n\r\n").as_bytes());
        assert_eq!((&*head.target, head.headers.get_str("host")), (target, Some(host)), "{line}");
        assert_eq!((head.headers.len(), head.headers.get_str("a")), (2, Some("b")));
    };
    check("GET http://a:80/b?c", "/b?c", "a:80");
    check("GET HTTPS://[::1]?c", "/?c", "[::1]");
    check("GET http://a", "/", "a");
    check("OPTIONS http://a", "*", "a");
    check("OPTIONS *", "*", "other");
    check("GET //a/b", "//a/b", "other");
    let head = taken(b"GET http://a/ HTTP/1.0\r\n\r\n");
    assert_eq!(head.headers.get_str("host"), Some("a"));
    refused(b"GET http://a/ HTTP/1.1\r\n\r\n", Kind::BadRequest);
}

#[test]
fn a_head_that_comes_byte_by_byte_is_read_as_if_it_came_whole() {
    let mut bytes = b"\r\n".to_vec();
    bytes.extend(with("Content-Length: 3\r\nX: y\r\n"));
    let end = bytes.len();
    bytes.extend(b"abc");
    let mut scanned = 0;
    for length in 0..end {
        let head = request_head(&bytes[..length], &mut scanned, &LIMITS).unwrap();
        assert!(head.is_none(), "{length}");
    }
    let (head, used) = request_head(&bytes, &mut scanned, &LIMITS).unwrap().expect("complete");
    assert_eq!((used, head.body), (end, BodyLength::Exact(3)));
}
