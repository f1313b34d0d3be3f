//! Requests that are no proper HTTP/1.1, and the ways to smuggle one request inside another: each is
//! refused with a status, the connection ends, and nothing that it carried is ever served.

use std::time::{Duration, Instant};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{Fault, Wire};

/// What has to come of a row.
#[derive(Clone, Debug)]
enum Expect {
    /// One answer with one of these statuses, then the connection ends.
    Refused(&'static [u16]),
    /// These statuses in this order, and the connection goes on.
    Served(&'static [u16]),
}

use Expect::{Refused, Served};

struct Row {
    name: String,
    bytes: Vec<u8>,
    expect: Expect,
}

fn row(name: &str, bytes: impl AsRef<[u8]>, expect: Expect) -> Row {
    Row { name: name.to_owned(), bytes: bytes.as_ref().to_vec(), expect }
}

const BAD: Expect = Refused(&[400]);

/// A `GET` with this further text behind the Host line (each line with its CRLF).
fn get_with(lines: &str) -> String {
    format!("GET /api/version HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

/// A chat to `echo` with these header lines instead of `Content-Length`, and this body as it is.
fn chat_with(lines: &str, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n{body}"
    )
}

/// A body that is a good chat.
const BODY: &str = r#"{"model":"echo","messages":[{"role":"user","content":"hi"}]}"#;

fn chunked(size_line: &str, body: &str, rest: &str) -> String {
    chat_with("Transfer-Encoding: chunked\r\n", &format!("{size_line}\r\n{body}\r\n{rest}"))
}

fn good_size() -> String {
    format!("{:x}", BODY.len())
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn content_length_rows() -> Vec<Row> {
    let huge: &[u16] = &[400, 413];
    let mut rows = vec![
        row(
            "a length of i64::MAX",
            chat_with("Content-Length: 9223372036854775807\r\n", "x"),
            Refused(&[413]),
        ),
        row(
            "a length of u64::MAX",
            chat_with("Content-Length: 18446744073709551615\r\n", "x"),
            Refused(huge),
        ),
        row(
            "a length past u64",
            chat_with("Content-Length: 99999999999999999999\r\n", "helloGET /second"),
            Refused(huge),
        ),
        row(
            "lengths that differ",
            chat_with("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
            BAD,
        ),
        row(
            "the same length twice",
            chat_with("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
            BAD,
        ),
        row("a list of lengths", chat_with("Content-Length: 5, 5\r\n", "hello"), BAD),
        row(
            "length and coding",
            chat_with(
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                &format!("0\r\n\r\n{SMUGGLED}"),
            ),
            BAD,
        ),
        row(
            "coding and length",
            chat_with(
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                &format!("0\r\n\r\n{SMUGGLED}"),
            ),
            BAD,
        ),
        row(
            "length nought and a body",
            format!(
                "{}{SMUGGLED}",
                chat_with("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "")
            ),
            BAD,
        ),
    ];
    for value in
        ["abc", "-1", "+5", "5x", "0x5", "5_0", "", "5 5", "5.0", "1e1", "\"5\"", "5;", "٥"]
    {
        let lines = format!("Content-Length: {value}\r\n");
        rows.push(row(&format!("a length of {value:?}"), chat_with(&lines, "hello"), BAD));
    }
    let lines = format!("Content-Length: \t {} \t\r\n", BODY.len());
    rows.push(row("a length with white space around it", chat_with(&lines, BODY), Served(&[200])));
    let lines = format!("CONTENT-length: {}\r\n", BODY.len());
    rows.push(row("a length in another case", chat_with(&lines, BODY), Served(&[200])));
    let zeros = format!("Content-Length: 000{}\r\n", BODY.len());
    rows.push(row("a length with leading noughts", chat_with(&zeros, BODY), Served(&[200])));
    rows
}

fn coding_rows() -> Vec<Row> {
    let refused: &[u16] = &[400, 501];
    let mut rows = Vec::new();
    let odd = [
        "identity",
        "xchunked",
        "chunked, chunked",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "gzip",
        "chunked;q=1",
        "\"chunked\"",
        "chunk",
        "chunkedd",
        "",
        ",chunked",
        "chunked,",
        "x chunked",
        "\u{b}chunked",
    ];
    for value in odd {
        let lines = format!("Transfer-Encoding: {value}\r\n");
        let text = chat_with(&lines, &format!("{:x}\r\n{BODY}\r\n0\r\n\r\n{SMUGGLED}", BODY.len()));
        rows.push(row(&format!("a coding of {value:?}"), text, Refused(refused)));
    }
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
    rows.push(row(
        "the coding twice",
        chat_with(twice, &format!("0\r\n\r\n{SMUGGLED}")),
        Refused(refused),
    ));
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n";
    rows.push(row(
        "two codings",
        chat_with(twice, &format!("0\r\n\r\n{SMUGGLED}")),
        Refused(refused),
    ));
    let hidden = [
        "Transfer-Encoding : chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "X: x\nTransfer-Encoding: chunked\r\n",
        "X: x\rTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding: chunked\n",
        "\u{1}Transfer-Encoding: chunked\r\n",
    ];
    for lines in hidden {
        let text =
            chat_with(&format!("Content-Length: 4\r\n{lines}"), &format!("0\r\n\r\n{SMUGGLED}"));
        rows.push(row(&format!("a coding hidden as {lines:?}"), text, Refused(refused)));
    }
    let old = "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    rows.push(row("a coding in HTTP/1.0", format!("{old}{SMUGGLED}"), Refused(refused)));
    rows.push(row("a good chunked body", chunked(&good_size(), BODY, "0\r\n\r\n"), Served(&[200])));
    rows
}

fn chunk_rows() -> Vec<Row> {
    let size = good_size();
    let mut rows = Vec::new();
    let end = format!("0\r\n\r\n{SMUGGLED}");
    let sizes = [
        format!("+{size}"),
        format!("-{size}"),
        format!("0x{size}"),
        format!(" {size}"),
        String::new(),
        ";x=1".into(),
        "g".into(),
        format!("0000000000000000{size}"),
        "10000000000000000".into(),
        format!("{size}\n"),
        format!("{size}\r"),
        format!("{size}\0"),
    ];
    for text in sizes {
        rows.push(row(&format!("a chunk size of {text:?}"), chunked(&text, BODY, &end), BAD));
    }
    rows.push(row(
        "a chunk size of u64::MAX",
        chunked("ffffffffffffffff", BODY, &end),
        Refused(&[400, 413]),
    ));
    rows.push(row(
        "a chunk size of 2^63",
        chunked("8000000000000000", BODY, &end),
        Refused(&[400, 413]),
    ));
    let bare = chat_with("Transfer-Encoding: chunked\r\n", &format!("{size}\n{BODY}\r\n{end}"));
    rows.push(row("a bare LF behind the size", bare, BAD));
    let bare = chat_with("Transfer-Encoding: chunked\r\n", &format!("{size}\r\n{BODY}\n{end}"));
    rows.push(row("a bare LF behind the data", bare, BAD));
    let long = format!("{:x}", BODY.len() + 2);
    rows.push(row("a size that is too large by two", chunked(&long, BODY, &end), BAD));
    let short = format!("{:x}", BODY.len() - 1);
    rows.push(row("a size that is too small by one", chunked(&short, BODY, &end), BAD));
    rows.push(row("malformed chunk, then a request", chunked("zz", BODY, SMUGGLED), BAD));
    let extension = format!("{size};name=value;other=\"x y\"");
    rows.push(row("a chunk extension", chunked(&extension, BODY, "0\r\n\r\n"), Served(&[200])));
    let extension = format!("{size};{}", "x".repeat(100_000));
    rows.push(row(
        "an endless chunk extension",
        chunked(&extension, BODY, &end),
        Refused(&[400, 413, 431]),
    ));
    let trailers = "0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n";
    rows.push(row("trailers", chunked(&size, BODY, trailers), Served(&[200])));
    let trailers = format!("0\r\n{}\r\n{SMUGGLED}", "X-Sum: 1\r\n".repeat(20_000));
    rows.push(row("endless trailers", chunked(&size, BODY, &trailers), Refused(&[400, 413, 431])));
    let trailers = format!("0\r\nX-Sum : 1\r\nHost\n\r\n{SMUGGLED}");
    rows.push(row("bad trailers", chunked(&size, BODY, &trailers), BAD));
    let upper = size.to_uppercase();
    rows.push(row("a chunk size in capitals", chunked(&upper, BODY, "0\r\n\r\n"), Served(&[200])));
    let many: String = BODY.bytes().map(|byte| format!("1\r\n{}\r\n", byte as char)).collect();
    let many = chat_with("Transfer-Encoding: chunked\r\n", &format!("{many}0\r\n\r\n"));
    rows.push(row("a byte in each chunk", many, Served(&[200])));
    rows
}

fn head_rows() -> Vec<Row> {
    let mut rows = vec![
        row("no Host", "GET /api/version HTTP/1.1\r\n\r\n", BAD),
        row(
            "two Hosts",
            "GET /api/version HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
            BAD,
        ),
        row(
            "two Hosts that differ",
            "GET /api/version HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
            BAD,
        ),
        row("an empty Host", "GET /api/version HTTP/1.1\r\nHost:\r\n\r\n", Refused(&[400, 403])),
        row("a Host with a space", "GET /api/version HTTP/1.1\r\nHost: local host\r\n\r\n", BAD),
        row(
            "a Host with a path",
            "GET /api/version HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
            Refused(&[400, 403]),
        ),
        row(
            "a Host with a user",
            "GET /api/version HTTP/1.1\r\nHost: x@localhost\r\n\r\n",
            Refused(&[400, 403]),
        ),
        row(
            "a Host with a bad port",
            "GET /api/version HTTP/1.1\r\nHost: localhost:99999\r\n\r\n",
            Refused(&[400, 403]),
        ),
        row(
            "a list of Hosts",
            "GET /api/version HTTP/1.1\r\nHost: localhost, localhost\r\n\r\n",
            Refused(&[400, 403]),
        ),
        row(
            "HTTP/1.0 without a Host",
            "GET /api/version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            Served(&[200]),
        ),
        row("one leading CRLF", format!("\r\n{}", get_with("")), Served(&[200])),
        row("many leading CRLFs", format!("\r\n\r\n\r\n\r\n{}", get_with("")), BAD),
        row("a leading LF", format!("\n{}", get_with("")), BAD),
        row("a leading space", format!(" {}", get_with("")), BAD),
        row("lines that end in LF", "GET /api/version HTTP/1.1\nHost: localhost\n\n", BAD),
        row(
            "one line that ends in LF",
            "GET /api/version HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
            BAD,
        ),
        row("a head that ends in LF", "GET /api/version HTTP/1.1\r\nHost: localhost\r\n\n", BAD),
        row("an empty field name", get_with(": x\r\n"), BAD),
        row("a line without a colon", get_with("just words\r\n"), BAD),
        row("a folded line", get_with("X-A: b\r\n c\r\n"), BAD),
        row(
            "a folded first line",
            "GET /api/version HTTP/1.1\r\n X: y\r\nHost: localhost\r\n\r\n",
            BAD,
        ),
        row("a tab at the start of a line", get_with("X-A: b\r\n\tc\r\n"), BAD),
        row(
            "two spaces in the request line",
            "GET  /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
            BAD,
        ),
        row("a space at its end", "GET /api/version HTTP/1.1 \r\nHost: localhost\r\n\r\n", BAD),
        row(
            "a word behind the version",
            "GET /api/version HTTP/1.1 x\r\nHost: localhost\r\n\r\n",
            BAD,
        ),
        row("a space in the target", "GET /v1/ modsion HTTP/1.1\r\nHost: localhost\r\n\r\n", BAD),
        row(
            "a tab in the request line",
            "GET\t/api/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
            BAD,
        ),
        row("no version", "GET /api/version\r\nHost: localhost\r\n\r\n", BAD),
        row("no target", "GET HTTP/1.1\r\nHost: localhost\r\n\r\n", BAD),
        row("no method", "/api/version HTTP/1.1\r\nHost: localhost\r\n\r\n", BAD),
        row("a target without a slash", "GET v1/modsion HTTP/1.1\r\nHost: localhost\r\n\r\n", BAD),
        row(
            "a method that is no token",
            "G(T /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
            BAD,
        ),
        row("an asterisk for GET", "GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", BAD),
        row(
            "a tunnel",
            "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
            Refused(&[400, 403, 405, 501]),
        ),
        row(
            "another host in the target",
            "GET http://evil.example/api/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
            Refused(&[400, 403]),
        ),
        row(
            "a file in the target",
            "GET file:///etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            Refused(&[400, 403, 404]),
        ),
        row(
            "a fragment in the target",
            "GET /api/version#x HTTP/1.1\r\nHost: localhost\r\n\r\n",
            Refused(&[400, 404]),
        ),
        row(
            "the absolute form",
            "GET http://localhost/api/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
            Served(&[200]),
        ),
        row("white space around a value", get_with("X-A: \t b \t \r\n"), Served(&[200])),
        row("an empty value", get_with("X-A:\r\n"), Served(&[200])),
        row("a tab in a value", get_with("X-A: b\tc\r\n"), Served(&[200])),
        row("two good requests in one piece", get_with("").repeat(2), Served(&[200, 200])),
        row(
            "an upgrade with a body",
            get_with("Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n") + "hello",
            Served(&[200]),
        ),
        row("a GET with a body", get_with("Content-Length: 5\r\n") + "hello", Served(&[200])),
        row(
            "an expectation that nobody can meet",
            chat_with("Expect: tea\r\nContent-Length: 1\r\n", "x"),
            Refused(&[417]),
        ),
    ];
    for version in ["HTTP/2.0", "HTTP/3.0", "HTTP/2", "HTTP/0.9"] {
        let text = format!("GET /api/version {version}\r\nHost: localhost\r\n\r\n");
        rows.push(row(&format!("version {version}"), text, Refused(&[400, 505])));
    }
    for version in [
        "http/1.1",
        "HTTP/1.1.1",
        "HTTP/11",
        "HTTP/1.",
        "HTTP/1",
        "HTTP/01.1",
        "HTTPS/1.1",
        "HTTP/1.01",
    ] {
        let text = format!("GET /api/version {version}\r\nHost: localhost\r\n\r\n");
        rows.push(row(&format!("version {version}"), text, Refused(&[400, 505])));
    }
    rows.push(row(
        "the preface of HTTP/2",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Refused(&[400, 505]),
    ));
    for name in [
        "X(A)", "X A", "X-A ", "X-A\t", "X\"A", "X/A", "X[A]", "X{A}", "X@A", "X=A", "X;A", "X,A",
        "Ä",
    ] {
        rows.push(row(
            &format!("a field named {name:?}"),
            get_with(&format!("{name}: b\r\n")),
            BAD,
        ));
    }
    for value in ["b\0c", "b\rc", "b\nc", "b\u{1}c", "b\u{7f}c", "b\u{b}c", "b\u{1b}c", "b\u{e9}"] {
        rows.push(row(
            &format!("a value of {value:?}"),
            get_with(&format!("X-A: {value}\r\n")),
            BAD,
        ));
    }
    let mut latin = get_with("X-A: b").into_bytes();
    latin.truncate(latin.len() - 2);
    latin.extend_from_slice(b"\xe9\r\n\r\n");
    rows.push(row("a value in Latin-1", latin, BAD));
    for byte in [0u8, 1, b'\t', 0x7f, 0x80, 0xe9, 0xff, b'\r', b'\n'] {
        let mut text = b"GET /api/ver".to_vec();
        text.push(byte);
        text.extend_from_slice(b"sion HTTP/1.1\r\nHost: localhost\r\n\r\n");
        rows.push(row(&format!("a target with the byte {byte:#04x}"), text, BAD));
    }
    for method in ["get", "Get", "BREW", "X"] {
        let text = format!("{method} /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n");
        rows.push(row(&format!("a method {method}"), text, Served(&[405])));
    }
    rows
}

/// Sends the bytes in pieces of this size (0: in one).
fn send(wire: &mut Wire, bytes: &[u8], piece: usize) {
    // A refusal may come before all was sent, so that sending fails; the answer counts.
    if piece == 0 {
        let _ = wire.try_send(bytes);
        return;
    }
    for part in bytes.chunks(piece) {
        if wire.try_send(part).is_err() {
            return;
        }
    }
}

fn statuses(expect: &Expect) -> &'static [u16] {
    match expect {
        Refused(statuses) | Served(statuses) => statuses,
    }
}

/// Tries a row; says what is wrong.
fn try_row(daemon: &Daemon, row: &Row, piece: usize) -> Result<(), String> {
    let mut wire = daemon.connect().wait_at_most(Duration::from_secs(5));
    send(&mut wire, &row.bytes, piece);
    let begun = Instant::now();
    match row.expect {
        Refused(_) => {
            match wire.answer() {
                Ok(answer) => {
                    if !statuses(&row.expect).contains(&answer.status()) {
                        return Err(format!("answered with {} {}", answer.status(), answer.text()));
                    }
                    if !answer.clean {
                        return Err("the refusal itself is cut".into());
                    }
                    if answer.header("connection") != Some("close") {
                        return Err(format!("does not say that it closes: {:?}", answer.head));
                    }
                    if answer.head.reason.is_empty() {
                        return Err(format!("no reason phrase: {:?}", answer.head));
                    }
                    if answer.header("x-request-id").is_none() {
                        return Err(format!("no x-request-id: {:?}", answer.head));
                    }
                }
                Err(fault) => return Err(format!("no answer: {fault:?}")),
            }
            let more = wire.rest(Duration::ZERO);
            if more.starts_with(b"HTTP/") {
                return Err(format!("a second answer: {}", String::from_utf8_lossy(&more)));
            }
            if !wire.closes_within(Duration::from_secs(3)) {
                return Err("the connection stays open".into());
            }
        }
        Served(statuses) => {
            for (index, status) in statuses.iter().enumerate() {
                let answer = wire.answer().map_err(|fault| format!("answer {index}: {fault:?}"))?;
                if answer.status() != *status {
                    return Err(format!("answered with {} {}", answer.status(), answer.text()));
                }
            }
            // The connection is still in step: the next request is understood.
            wire.try_send(ask::get("/api/version")).map_err(|e| format!("cannot go on: {e}"))?;
            let next = wire.answer().map_err(|fault| format!("does not go on: {fault:?}"))?;
            if next.status() != 200 || next.json().get("version").is_none() {
                return Err(format!("out of step: {} {}", next.status(), next.text()));
            }
        }
    }
    if begun.elapsed() > Duration::from_secs(4) {
        return Err(format!("took {:?}", begun.elapsed()));
    }
    Ok(())
}

fn check(rows: &[Row]) {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let mut faults = Vec::new();
    for row in rows {
        for piece in [0, 7, 1] {
            if piece == 1 && row.bytes.len() > 2000 {
                continue;
            }
            if let Err(fault) = try_row(&daemon, row, piece) {
                faults.push(format!("{} (pieces of {piece}): {fault}", row.name));
                break;
            }
            assert!(daemon.process().alive(), "{} killed it", row.name);
        }
    }
    daemon.assert_well("after all rows");
    assert!(faults.is_empty(), "{} of {} rows:\n{}", faults.len(), rows.len(), faults.join("\n"));
    let metrics = daemon.metrics();
    assert_eq!(metrics.limit("now", "server.bodies_total_max"), 0, "body budget is given back");
}

#[test]
fn lengths_that_are_no_numbers_or_not_one_number_are_refused() {
    check(&content_length_rows());
}

#[test]
fn codings_other_than_chunked_are_refused() {
    check(&coding_rows());
}

#[test]
fn chunks_that_are_not_well_formed_end_the_connection() {
    check(&chunk_rows());
}

#[test]
fn heads_that_are_not_well_formed_are_refused() {
    check(&head_rows());
}

/// A body that a handler never looks at must not be read as the next request.
#[test]
fn a_body_that_nobody_reads_is_never_taken_for_a_request() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let inner = SMUGGLED;
    let size = inner.len();
    let bodies = [
        (format!("Content-Length: {size}\r\n"), inner.to_owned()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{size:x}\r\n{inner}\r\n0\r\n\r\n")),
    ];
    for (lines, body) in &bodies {
        for path in ["/nowhere", "/api/version", "/api/version", "/"] {
            for method in ["POST", "PUT", "DELETE", "OPTIONS", "GET"] {
                let mut wire = daemon.connect().wait_at_most(Duration::from_secs(3));
                let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
                wire.send(format!("{head}{body}"));
                let first = wire.answer().unwrap();
                // Either it closes, or it is in step; a 404 for /smuggled is the failure.
                let _ = wire.try_send(ask::get("/api/version"));
                match wire.answer() {
                    Ok(next) => assert_eq!(
                        next.status(),
                        200,
                        "{method} {path}: {first:?} then {}",
                        next.text()
                    ),
                    Err(Fault::Closed(_)) => assert_eq!(first.header("connection"), Some("close")),
                    Err(fault) => panic!("{method} {path}: {fault:?}"),
                }
            }
        }
    }
    assert!(!daemon.log().contains("/smuggled"), "a smuggled request was served");
}

/// An upstream never sees anything of a request that did not come whole.
#[test]
fn a_request_that_is_cut_short_never_reaches_an_upstream() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "hello"));
    let daemon =
        Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").model("m", "u/x", &[]));
    let whole = ask::chat(Dialect::OpenAi, "m", "hi", false);
    let body = ask::chat_body("m", "hi", false).to_string();
    let chunks = [
        format!("{:x}\r\n{}", body.len() + 50, body),
        format!("{:x}\r\n{body}\r\n", body.len()),
        format!("{:x}\r\n{body}\r\n0\r\n", body.len()),
        format!("{:x}\r\n{body}\r\n0", body.len()),
    ];
    let mut texts: Vec<Vec<u8>> = chunks
        .iter()
        .map(|body| chat_with("Transfer-Encoding: chunked\r\n", body).into_bytes())
        .collect();
    texts
        .extend([1, 10, body.len() / 2, body.len()].map(|cut| whole[..whole.len() - cut].to_vec()));
    texts.extend([1, 3, 20, 60].map(|length| whole[..length].to_vec()));
    for text in &texts {
        let mut wire = daemon.connect().wait_at_most(Duration::from_secs(3));
        wire.send(text);
        wire.finish_sending();
        match wire.answer() {
            Ok(answer) => assert_eq!(answer.status(), 400, "{}", String::from_utf8_lossy(text)),
            Err(Fault::Closed(rest)) => assert_eq!(rest, ""),
            Err(fault) => panic!("{fault:?} for {}", String::from_utf8_lossy(text)),
        }
    }
    assert_eq!(upstream.seen().len(), 0, "an upstream was asked: {:#?}", upstream.seen());
    assert_eq!(upstream.torn(), 0, "an upstream saw half a request");
    // The same request, whole, is fine.
    assert_eq!(daemon.ask(&whole).status(), 200);
    assert_eq!(upstream.seen().len(), 1);
    assert_eventually!(daemon.limit_now("server.bodies_total_max") == 0);
}

/// What is sure to be no HTTP is refused at once, not after the deadline of heads.
#[test]
fn bytes_that_are_no_http_are_refused_at_once() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("head_timeout = \"60s\""));
    let hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03].repeat(4);
    let cases: [&[u8]; 5] = [
        &hello,
        &[0; 64],
        &[0xff; 64],
        b"\x04\x01\x00\x50\x7f\x00\x00\x01",
        b"{\"model\": 1}\r\n\r\n",
    ];
    for bytes in cases {
        let begun = Instant::now();
        let mut wire = daemon.connect();
        wire.send(bytes);
        match wire.answer() {
            Ok(answer) => assert_eq!(answer.status(), 400, "{bytes:?}"),
            Err(Fault::Closed(rest)) => assert_eq!(rest, "", "{bytes:?}"),
            Err(fault) => panic!("{fault:?} for {bytes:?}"),
        }
        assert!(wire.closes_within(Duration::from_secs(2)));
        assert!(begun.elapsed() < Duration::from_secs(2), "{bytes:?} took {:?}", begun.elapsed());
    }
    daemon.assert_well("after garbage");
}

/// 60 requests of HTTP/2.0 left 60 threads behind in the server that this project does not use.
#[test]
fn refused_requests_leave_no_thread_and_no_descriptor_behind() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    daemon.assert_well("warm");
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
    let (threads, fds) = (daemon.process().threads().len(), daemon.process().fds());
    for version in ["HTTP/2.0", "HTTP/3.0", "HTTP/1.1 x"] {
        for _ in 0..60 {
            let answer = daemon.ask(format!("GET / {version}\r\nHost: localhost\r\n\r\n"));
            assert!(matches!(answer.status(), 400 | 505));
        }
    }
    assert_eventually!(daemon.process().fds() <= fds, "{:?}", daemon.process().fd_targets());
    assert!(daemon.process().threads().len() <= threads, "{:?}", daemon.process().threads());
}

/// The answer of an early refusal arrives although the client is still sending.
#[test]
fn an_early_refusal_arrives_although_the_client_still_sends() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("body_max = \"64KiB\""));
    for _ in 0..20 {
        let mut wire = daemon.connect();
        wire.send("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n");
        for _ in 0..200 {
            if wire.try_send([b'x'; 1000]).is_err() {
                break;
            }
        }
        let answer = wire.answer().expect("the refusal must arrive");
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.code(), "body_too_large");
        assert_eq!(answer.header("connection"), Some("close"));
    }
}

/// `Expect: 100-continue` is answered before the body comes, or the request refused before it.
#[test]
fn a_client_that_waits_for_100_continue_gets_it_or_a_refusal() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("body_max = \"64KiB\""));
    let mut wire = daemon.connect();
    let lines = format!("Expect: 100-continue\r\nContent-Length: {}\r\n", BODY.len());
    wire.send(chat_with(&lines, ""));
    assert_eq!(wire.head().unwrap().status, 100);
    wire.send(BODY);
    assert_eq!(wire.answer().unwrap().status(), 200);

    let mut wire = daemon.connect();
    wire.send(chat_with("Expect: 100-continue\r\nContent-Length: 65537\r\n", ""));
    assert_eq!(wire.head().unwrap().status, 413, "too large: no 100 before the refusal");

    let mut wire = daemon.connect();
    wire.send("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(wire.head().unwrap().status, 404);

    // HTTP/1.0 knows no 100.
    let mut wire = daemon.connect();
    let old = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    wire.send(old);
    assert_eq!(wire.head().unwrap().status, 200);
}

/// Requests that were sent at once are answered in their order, each with its own body.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let mut wire = daemon.connect();
    let mut text = Vec::new();
    for n in 0..20 {
        text.extend_from_slice(&ask::chat(
            Dialect::OpenAi,
            "echo",
            &format!("number {n}"),
            n % 2 == 0,
        ));
        text.extend_from_slice(&ask::get("/nowhere"));
    }
    wire.send(&text);
    for n in 0..20 {
        let answer = wire.answer().unwrap();
        assert_eq!(answer.status(), 200);
        let text = answer.text();
        let content = if n % 2 == 0 {
            crate::support::stream::Stream::of(Dialect::OpenAi, &answer).content()
        } else {
            ask::whole_text(Dialect::OpenAi, &answer.json()).to_owned()
        };
        assert_eq!(content, format!("number {n}"), "{text}");
        assert_eq!(wire.answer().unwrap().status(), 404);
    }
}

#[test]
fn http_1_0_closes_unless_asked_to_stay_and_knows_no_chunks() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let mut wire = daemon.connect();
    wire.send("GET /api/version HTTP/1.0\r\nHost: localhost\r\n\r\n");
    assert_eq!(wire.answer().unwrap().status(), 200);
    assert!(wire.closes_within(Duration::from_secs(2)));
    // A stream for HTTP/1.0 has no chunks; its end is the end of the connection.
    let body = ask::chat_body("echo", "one two three", true).to_string();
    let mut wire = daemon.connect();
    wire.send(format!(
        "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let answer = wire.answer().unwrap();
    assert_eq!(answer.header("transfer-encoding"), None);
    let stream = crate::support::stream::Stream::of(Dialect::OpenAi, &answer);
    stream.assert_normal("echo", "one two three", "HTTP/1.0");
    // HTTP/1.1 with `Connection: close`.
    let mut wire = daemon.connect();
    let answer = wire.ask(get_with("Connection: close\r\n"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(wire.closes_within(Duration::from_secs(2)));
}

#[test]
fn head_has_the_length_of_get_and_no_body() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for path in ["/", "/api/version", "/api/tags", "/api/version", "/nowhere"] {
        let get = daemon.ask(ask::get(path));
        let mut wire = daemon.connect();
        let head = wire.ask(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(head.status(), get.status(), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        assert_eq!(wire.rest(Duration::from_millis(50)), b"", "{path}: a body");
        // In step.
        assert_eq!(wire.ask(ask::get("/api/version")).status(), 200);
    }
}

/// Refusals are answered by the thread that holds all waiting connections: a client that only sends
/// such requests must not take it for itself, nor its stack.
#[test]
fn endless_refusals_on_one_connection_neither_end_the_daemon_nor_hold_it_up() {
    const COUNT: usize = 20_000;
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for request in [ask::get("/nowhere"), b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()] {
        let mut wire = daemon.connect();
        let mut writer = wire.socket().try_clone().unwrap();
        let all = request.repeat(COUNT);
        let sender = std::thread::spawn(move || {
            use std::io::Write;
            let _ = writer.write_all(&all);
        });
        for n in 0..COUNT {
            match wire.answer() {
                Ok(answer) => assert!((400..500).contains(&answer.status())),
                Err(fault) => panic!("{n} answers, then {fault:?}"),
            }
            if n % 2000 == 0 {
                let begun = Instant::now();
                assert_eq!(daemon.ask(ask::get("/api/version")).status(), 200);
                assert!(
                    begun.elapsed() < Duration::from_secs(1),
                    "others wait {:?}",
                    begun.elapsed()
                );
            }
        }
        sender.join().unwrap();
    }
    daemon.assert_well("after endless refusals");
}
