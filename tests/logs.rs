//! Logs: one access line per request, nothing secret, bounded files, and no fault of a disk or a
//! terminal that ever stops the daemon.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start};
use crate::support::peers::faults::Fault;
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;

/// The access line of a request, from a log in JSON.
fn access(daemon: &Daemon, id: &str) -> Value {
    let find = || {
        let log = daemon.log();
        let lines = log.lines().filter(|line| line.contains("access") && line.contains(id));
        let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() <= 1, "two access lines: {lines:#?}");
        lines.into_iter().next()
    };
    assert_eventually!(find().is_some(), "no access line of {id}:\n{}", daemon.log());
    find().unwrap()
}

/// Whether some member of the line has this value (numbers and words alike), or holds it as a part.
fn says(line: &Value, what: &str) -> bool {
    line.as_object().unwrap().values().any(|value| match value {
        Value::String(text) => text.contains(what),
        other => other.to_string().contains(what),
    })
}

fn with_id(request: Vec<u8>, id: &str) -> Vec<u8> {
    let text = String::from_utf8(request).unwrap();
    text.replacen("\r\n", &format!("\r\nx-request-id: {id}\r\n"), 1).into_bytes()
}

#[test]
fn every_request_has_one_access_line_that_tells_what_happened() {
    let sandbox = Sandbox::new();
    let bad =
        FakeUpstream::start(Dialect::OpenAi, |call| Fault::Unavailable.script(call, &[], 1 << 20));
    let good = FakeUpstream::start(Dialect::Ollama, |call| {
        answers::good(call, "seven words are in this good answer")
    });
    let conf = Conf::new()
        .log("format = \"json\"")
        .fake("first-up", &bad, "")
        .fake("second-up", &good, "")
        .model("asked-model", "first-up/one-model", &["second-up/two-model"]);
    let daemon = Daemon::start(&sandbox, &conf);

    let answer =
        daemon.ask(with_id(ask::chat(Dialect::OpenAi, "asked-model", "hi", true), "id-of-stream"));
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("x-request-id"), Some("id-of-stream"));
    let line = access(&daemon, "id-of-stream");
    for what in [
        "POST",
        "/v1/chat/completions",
        "200",
        "asked-model",
        "second-up",
        "two-model",
        "first-up",
        "upstream_error",
    ] {
        assert!(says(&line, what), "{what:?} is not in {line:#}");
    }
    assert_eq!(line["outcome"], "ok", "{line:#}");
    let bytes = answer.body().len();
    let told = line.as_object().unwrap().iter().filter(|(key, _)| key.contains("bytes"));
    let told: Vec<u64> = told.filter_map(|(_, value)| value.as_u64()).collect();
    assert!(
        told.iter().any(|told| *told >= bytes as u64),
        "the {bytes} bytes of the answer are not in {line:#}"
    );
    let times: Vec<&String> =
        line.as_object().unwrap().keys().filter(|key| key.contains("ms")).collect();
    assert!(times.len() >= 2, "first-token and total time: {line:#}");

    // Refusals have theirs too.
    let cases = [
        (ask::get("/nowhere"), "id-404", "404"),
        (
            ask::post(
                "/v1/chat/completions",
                &serde_json::json!({"model": "no-such", "messages": [{"role": "user", "content": "x"}]}),
            ),
            "id-no-model",
            "404",
        ),
        (ask::post_with("/v1/chat/completions", "", b"{"), "id-json", "400"),
        (ask::get("/api/version"), "id-version", "200"),
        (ask::get("/v1/chat/completions"), "id-405", "405"),
    ];
    for (request, id, status) in cases {
        daemon.ask(with_id(request, id));
        assert!(says(&access(&daemon, id), status), "{id}");
    }
    // So has a request that is no HTTP at all.
    let before = daemon.log().lines().count();
    daemon.ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eventually!(
        daemon.log().lines().skip(before).any(|line| line.contains("bad_request")),
        "{}",
        daemon.log()
    );
}

#[test]
fn a_request_id_of_a_client_is_taken_over_only_when_it_is_sane() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let id = |value: &str| {
        let text = format!(
            "GET /api/version HTTP/1.1\r\nHost: localhost\r\nx-request-id: {value}\r\n\r\n"
        );
        daemon.ask(text).header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("abc-123"), "abc-123");
    let longest = "x".repeat(128);
    assert_eq!(id(&longest), longest);
    for odd in ["", "a b", "a\"b", "a\\b", &"x".repeat(129), "a\tb"] {
        let made = id(odd);
        assert!(made != odd && made.len() == 26, "{odd:?} gave {made:?}");
    }
    let one = daemon.ask(ask::get("/api/version")).header("x-request-id").unwrap().to_owned();
    let two = daemon.ask(ask::get("/api/version")).header("x-request-id").unwrap().to_owned();
    assert_ne!(one, two);
}

#[test]
fn nothing_secret_is_logged_even_when_everything_is() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| match call.model() {
        "denied" => Fault::WrongKey.script(call, &[], 1 << 20),
        "malformed" => Fault::MalformedLine.script(call, &["SECRET-ANSWER".to_owned()], 1 << 20),
        _ => answers::good(call, "SECRET-ANSWER of the model"),
    });
    let key = "SECRET-CLIENT-KEY";
    let digest = hex(key);
    let conf = Conf::new()
        .log("level = \"trace\"")
        .fake("u", &upstream, "api_key_env = \"UPSTREAM_KEY\"")
        .model("m", "u/denied", &["u/x"])
        .text(&format!("[[key]]\nname = \"laptop\"\nsha256 = \"{digest}\""));
    let start = Start {
        env: vec![("UPSTREAM_KEY".into(), "SECRET-UPSTREAM-KEY".into())],
        ..Start::default()
    };
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    for key in [key, "SECRET-WRONG-KEY"] {
        for (path, model) in [
            ("/v1/chat/completions", "m"),
            ("/api/chat", "u/malformed"),
            ("/v1/chat/completions", "u/x"),
        ] {
            for stream in [true, false] {
                let body = ask::chat_body(model, "SECRET-PROMPT", stream).to_string();
                let headers = format!("Authorization: Bearer {key}\r\nCookie: SECRET-COOKIE\r\n");
                let path = format!("{path}?token=SECRET-QUERY");
                let answer = daemon.ask(ask::post_with(&path, &headers, body.as_bytes()));
                assert!(!answer.text().contains("KEY"), "{}", answer.text());
            }
        }
    }
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.call.header("authorization") == Some("Bearer SECRET-UPSTREAM-KEY"))
    );
    assert!(
        upstream.seen().iter().all(|seen| !seen.call.head.contains("SECRET-COOKIE")),
        "a cookie went upstream"
    );
    assert!(upstream.seen().len() >= 6);
    daemon.signal(rustix::process::Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    let log = daemon.log();
    assert!(log.contains("laptop"), "the name of the key belongs into the access line:\n{log}");
    for line in log.lines() {
        assert!(!line.contains("SECRET"), "{line}");
        assert!(!line.contains(&digest), "{line}");
    }
    let metrics = crate::support::wire::ask(daemon.ops, ask::get("/metrics")).text();
    assert!(!metrics.contains("SECRET"));
}

/// SHA-256 in hexadecimal.
pub fn hex(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn nobody_can_forge_a_line() {
    for format in ["text", "json"] {
        let sandbox = Sandbox::new();
        let daemon = Daemon::start(
            &sandbox,
            &Conf::new().log(&format!("format = \"{format}\"\nlevel = \"trace\"")),
        );
        let evil = "x\n2026-01-01T00:00:00.000Z error FORGED\r\n\u{1b}[31mFORGED\u{2028}FORGED\" outcome=\"ok";
        for path in ["/v1/chat/completions", "/api/chat"] {
            daemon.ask(ask::chat(
                if path == "/api/chat" { Dialect::Ollama } else { Dialect::OpenAi },
                evil,
                "hi",
                true,
            ));
        }
        daemon.ask("GET /%0a%0dFORGED%1b[31m HTTP/1.1\r\nHost: localhost\r\n\r\n");
        daemon.ask("GET / HTTP/1.1\r\nHost: FORGED\u{1b}[31m\r\n\r\n");
        daemon.ask("BREW / HTTP/1.1\r\nHost: evil.example\r\nOrigin: FORGED\r\n\r\n");
        daemon.ask(ask::get("/last-one"));
        assert_eventually!(daemon.log().contains("/last-one"));
        for line in daemon.log().lines() {
            assert!(!line.starts_with("2026-01-01"), "{line}");
            assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
            if format == "json" {
                let json: Value =
                    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
                assert!(json.is_object());
            } else {
                let starts_with_a_time =
                    line.len() > 20 && line.as_bytes()[4] == b'-' && line.as_bytes()[10] == b'T';
                assert!(starts_with_a_time, "{line:?}");
            }
        }
    }
}

/// Lines that a remote can trigger are rate-limited, each site for itself.
#[test]
fn a_flood_of_refusals_does_not_flood_the_log() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let mut wire = daemon.connect();
    let before = daemon.log().lines().filter(|line| !line.contains(" access")).count();
    for _ in 0..2000 {
        let answer = wire.ask(ask::post_with("/v1/chat/completions", "", b"{"));
        assert_eq!(answer.status(), 400);
    }
    std::thread::sleep(Duration::from_millis(200));
    let after = daemon.log().lines().filter(|line| !line.contains(" access")).count();
    assert!(after - before < 200, "{} lines beside the access lines", after - before);
}

fn bytes_in(dir: &Path) -> (usize, u64) {
    let Ok(entries) = std::fs::read_dir(dir) else { return (0, 0) };
    let sizes: Vec<u64> =
        entries.flatten().map(|entry| entry.metadata().map_or(0, |m| m.len())).collect();
    (sizes.len(), sizes.iter().sum())
}

#[test]
fn log_files_rotate_by_size_and_only_so_many_are_kept() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path("logs");
    let size = 64 * 1024;
    let conf = Conf::new().log(&format!("dir = {dir:?}\nrotate_size = \"64KiB\"\nkeep_files = 3"));
    let mut daemon = Daemon::start(&sandbox, &conf);
    let check = |daemon: &Daemon, rounds: usize| {
        let mut wire = daemon.connect();
        for n in 0..rounds {
            let path = format!("/{}", "x".repeat(1000));
            wire.ask(ask::get(&path));
            if n % 100 == 99 {
                let (files, bytes) = bytes_in(&dir);
                assert!(files <= 4 + 1, "{files} files");
                assert!(bytes <= size * 5 + 64 * 1024, "{bytes} bytes in {files} files");
            }
        }
    };
    check(&daemon, 1500);
    let (files, _) = bytes_in(&dir);
    assert!(files >= 3, "it does not rotate: {files} files");
    // Nor do restarts add up.
    for _ in 0..4 {
        assert_eq!(daemon.stop().code(), Some(0));
        daemon = Daemon::start(&sandbox, &conf);
        check(&daemon, 100);
    }
    daemon.assert_well("after rotating");
}

/// Many requests, each with its access line; none may wait for the log.
fn serves_as_ever(daemon: &Daemon, name: &str) {
    let mut wire = daemon.connect();
    let begun = Instant::now();
    for n in 0..3000 {
        let answer = wire.ask(ask::get("/api/version"));
        assert_eq!(answer.status(), 200, "{name}: request {n}");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{name}: slowed down to {:?}",
        begun.elapsed()
    );
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", true));
    assert_eq!(answer.status(), 200);
    assert!(daemon.process().alive());
}

#[test]
fn a_full_disk_behind_standard_error_changes_nothing_but_a_counter() {
    let sandbox = Sandbox::new();
    let start = Start { stderr: Some("/dev/full".into()), ..Start::default() };
    let mut daemon = Daemon::start_with(&sandbox, &Conf::new(), &start);
    serves_as_ever(&daemon, "/dev/full");
    let metrics = daemon.metrics();
    let errors =
        metrics.sum("tidegate_log_write_errors_total", &[]).expect("a counter of write errors");
    assert!(errors > 0.0);
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_closed_standard_error_changes_nothing() {
    let sandbox = Sandbox::new();
    let start = Start { stderr_closed: true, ..Start::default() };
    let mut daemon = Daemon::start_with(&sandbox, &Conf::new(), &start);
    serves_as_ever(&daemon, "closed");
    // A socket that took descriptor 2 must not be written to by the log.
    let answer = daemon.ask(ask::get("/api/version"));
    assert!(answer.json().is_object());
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_stalled_and_then_dead_standard_error_changes_nothing_but_a_counter() {
    let sandbox = Sandbox::new();
    // A FIFO with a reader that does not read: writes block once the pipe is full.
    let fifo = sandbox.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let start = Start { stderr: Some(fifo.clone()), ..Start::default() };
    // `pending_max` is small, so that the queue fills soon after the pipe.
    let mut daemon = Daemon::start_with(&sandbox, &Conf::new().log("pending_max = 256"), &start);
    serves_as_ever(&daemon, "stalled");
    let dropped = |daemon: &Daemon| {
        daemon.metrics().sum("tidegate_log_lines_dropped_total", &[]).unwrap_or(0.0)
    };
    assert_eventually!(dropped(&daemon) > 0.0, "3000 lines into a full pipe, and none was dropped");
    assert_eq!(daemon.readyz().unwrap().status(), 200);
    // Now nobody is there any more: EPIPE.
    drop(reader);
    serves_as_ever(&daemon, "dead");
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_stalled_log_does_not_hold_up_the_stop() {
    let sandbox = Sandbox::new();
    let fifo = sandbox.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let start = Start { stderr: Some(fifo), ..Start::default() };
    let mut daemon = Daemon::start_with(&sandbox, &Conf::new().log("pending_max = 256"), &start);
    serves_as_ever(&daemon, "stalled");
    let begun = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_log_folder_that_goes_away_is_survived() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path("logs");
    let conf = Conf::new().log(&format!("dir = {dir:?}\nrotate_size = \"64KiB\"\nkeep_files = 2"));
    let mut daemon = Daemon::start(&sandbox, &conf);
    daemon.ask(ask::get("/api/version"));
    assert_eventually!(bytes_in(&dir).1 > 0, "nothing is logged into the folder");
    std::fs::remove_dir_all(&dir).unwrap();
    serves_as_ever(&daemon, "folder gone");
    // A file stands where the folder was.
    File::create(&dir).unwrap().write_all(b"in the way").unwrap();
    daemon.signal(rustix::process::Signal::USR1);
    serves_as_ever(&daemon, "file in the way");
    std::fs::remove_file(&dir).unwrap();
    daemon.signal(rustix::process::Signal::USR1);
    daemon.ask(ask::get("/back-again"));
    let found = || {
        daemon.ask(ask::get("/back-again"));
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        entries
            .into_iter()
            .any(|e| std::fs::read_to_string(e.path()).unwrap_or_default().contains("/back-again"))
    };
    assert_eventually!(found(), "the log does not come back");
    assert_eq!(daemon.stop().code(), Some(0));
}

/// What is wrong at start is told on standard error, log folder or not.
#[test]
fn the_level_is_kept() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().log("level = \"error\""));
    for _ in 0..10 {
        daemon.ask(ask::get("/nowhere"));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(!daemon.log().contains("/nowhere"), "{}", daemon.log());
    // Live.
    daemon.rewrite(&Conf::new().log("level = \"info\""));
    daemon.signal(rustix::process::Signal::HUP);
    let told = || {
        daemon.ask(ask::get("/nowhere"));
        daemon.log().contains("/nowhere")
    };
    assert_eventually!(told(), "the new level is not in force:\n{}", daemon.log());
}

#[test]
fn the_resource_log_tells_what_the_process_holds() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().text("[resources]\nlog_interval = \"1s\""));
    for _ in 0..5 {
        daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", true));
    }
    let lines = || {
        let log = daemon.log();
        let lines = log.lines().filter(|line| line.contains(" info resources "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eventually!(lines().len() >= 2, "{}", daemon.log());
    let line = lines().pop().unwrap();
    let number = |key: &str| -> f64 {
        let value = line.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {key} in {line}")).parse().unwrap()
    };
    let rss = daemon.process().rss_kib() as f64 * 1024.0;
    assert!((0.5..2.0).contains(&(number("resident") / rss)), "{rss} {line}");
    assert!(number("anonymous") > 0.0 && number("anonymous") < number("resident"), "{line}");
    assert!(number("descriptors") >= 5.0 && number("threads") >= 8.0, "{line}");
    assert!(line.contains("heartbeats_max:"), "{line}");
    let metrics = daemon.metrics();
    let labels = [("measure", "memory")];
    assert_eq!(metrics.sum("tidegate_resource_growing", &labels), Some(0.0));
    assert!(metrics.sum("tidegate_process_anonymous_bytes", &[]).unwrap() > 0.0);
}
