//! The control socket: who may use it, what hostile input does to it, and every command on it, with its
//! effect seen from outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start, command};
use crate::support::patience;
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire;

/// The socket of the daemon in this sandbox.
fn socket(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("state/control/tidegate.sock")
}

/// What comes back for these bytes, until the daemon closes the connection.
fn exchange(sandbox: &Sandbox, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket(sandbox)).unwrap();
    stream.set_read_timeout(Some(patience(Duration::from_secs(20)))).unwrap();
    // The answer may come, and the connection go, before everything is written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn status_of(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

/// Runs a command against the daemon of this sandbox.
fn run(sandbox: &Sandbox, daemon: &Daemon, args: &[&str]) -> Output {
    command(sandbox).args(args).arg("--config").arg(&daemon.config).output().unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_the_daemon() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &Conf::new());
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket(&sandbox)), 0o600);
    assert_eq!(mode(&sandbox.path("state/control")), 0o700);
    let answer = exchange(&sandbox, &ask::get("/limits"));
    assert_eq!(status_of(&answer), 200);
    assert!(daemon.stop().success());
    assert!(!socket(&sandbox).exists());
    let late = run(&sandbox, &daemon, &["stop"]);
    assert_eq!(late.status.code(), Some(69), "{late:?}");
}

#[test]
fn reload_reopen_and_stop_are_orders_with_an_outcome_and_an_event() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &Conf::new());
    assert!(run(&sandbox, &daemon, &["reopen"]).status.success());
    daemon.rewrite(&Conf::new().model("added", "echo/x", &[]));
    let reloaded = json(&run(&sandbox, &daemon, &["reload", "--json"]));
    assert_eq!(reloaded["reloaded"], true);
    let list = daemon.ask(ask::get("/v1/models")).text();
    assert!(list.contains("added"), "{list}");
    // A configuration that is refused: its exit code, its reason, and the old one runs on.
    daemon.rewrite(&Conf::new().server("queue_max = \"many\""));
    let refused = run(&sandbox, &daemon, &["reload"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(65), "{text}");
    assert!(text.contains("queue_max"), "{text}");
    assert!(daemon.ask(ask::get("/v1/models")).text().contains("added"));
    let told = |what: &str| {
        daemon.log().lines().any(|line| line.contains("control_order") && line.contains(what))
    };
    for what in ["/reopen", "/reload", "code=invalid_config"] {
        assert_eventually!(told(what), "no event {what}: {}", daemon.log());
    }
    assert!(run(&sandbox, &daemon, &["stop"]).status.success());
    let ended = daemon.wait_exit(Duration::from_secs(10)).expect("it stops");
    assert!(ended.success());
}

#[test]
fn what_is_only_shown_comes_over_the_socket_or_from_the_ops_plane() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let over_the_socket = json(&run(&sandbox, &daemon, &["limits", "--json"]));
    std::fs::remove_file(socket(&sandbox)).unwrap();
    let from_the_plane = json(&run(&sandbox, &daemon, &["limits", "--json"]));
    let names = |document: &Value| -> Vec<String> {
        let rows = document["limits"].as_array().unwrap();
        rows.iter().map(|row| row["limit"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&over_the_socket), names(&from_the_plane));
    let answer = wire::ask(daemon.ops, ask::post("/stop", &serde_json::json!({})));
    assert_ne!(answer.status(), 200, "the write side is not on the ops plane");
    daemon.assert_well("after that");
}

/// The status that `/readyz` has.
fn readyz(daemon: &Daemon) -> u16 {
    daemon.readyz().map_or(0, |answer| answer.status())
}

fn echo(daemon: &Daemon, prompt: &str) -> wire::Answer {
    daemon.ask(ask::chat(Dialect::OpenAi, "echo", prompt, false))
}

/// Requests that are none, or that are meant to do harm.
fn hostile() -> Vec<Vec<u8>> {
    let head = |line: &str| format!("POST /reopen HTTP/1.1\r\nhost: x\r\n{line}\r\n").into_bytes();
    let mut all = vec![
        head("content-length: 9223372036854775807\r\n"),
        head("content-length: 18446744073709551615\r\n"),
        head("content-length: 99999999999999999999\r\n"),
        head("content-length: -1\r\n"),
        head("content-length: 5\r\ncontent-length: 6\r\n"),
        head("content-length: 5\r\ntransfer-encoding: chunked\r\n"),
        head("transfer-encoding: identity\r\n"),
        [head("transfer-encoding: chunked\r\n"), b"+5\r\nhello\r\n0\r\n\r\n".to_vec()].concat(),
        [head("transfer-encoding: chunked\r\n"), b"\r\n\r\n".to_vec()].concat(),
        head(&format!("x: {}\r\n", "y".repeat(64 * 1024))),
        head(&"x: y\r\n".repeat(1000)),
        head("x-tidegate-caller: 0 1\r\nx: a\0b\r\n"),
        head("expect: the-unexpected\r\n"),
        b"GET / HTTP/2.0\r\nhost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /limits\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"?\r\n\r\n".to_vec(),
        vec![0; 4096],
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(32 * 1024)).into_bytes(),
    ];
    all.push(ask::post_with("/reload", "", &[b'['; 100_000]));
    all
}

#[test]
fn nothing_that_is_sent_to_the_socket_harms_the_daemon() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for bytes in hostile() {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let status = status_of(&exchange(&sandbox, &bytes));
        assert!((400..=505).contains(&status) && status != 500, "{shown:?}: {status}");
    }
    // Clients that leave in the middle, and one that asks on behalf of another.
    for bytes in [
        &b"POST /reload HTT"[..],
        b"POST /reload HTTP/1.1\r\ncontent-length: 9\r\nhost: x\r\n\r\n{",
    ] {
        UnixStream::connect(socket(&sandbox)).unwrap().write_all(bytes).unwrap();
    }
    let forged = ask::post_with("/reopen", "x-tidegate-caller: 4711 4712\r\n", b"");
    assert_eq!(status_of(&exchange(&sandbox, &forged)), 200);
    assert_eventually!(daemon.log().contains("control_order"));
    assert!(!daemon.log().contains("4711"), "{}", daemon.log());
    daemon.assert_well("after hostile input");
}

#[test]
fn connections_that_say_nothing_leave_room_for_others_or_are_refused() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let max = 32;
    let idle: Vec<_> = (0..max).map(|_| UnixStream::connect(socket(&sandbox)).unwrap()).collect();
    assert_eventually!(daemon.limit_now("control.connections_max") == max);
    let refused = exchange(&sandbox, &ask::get("/limits"));
    assert_eq!(status_of(&refused), 503);
    drop(idle);
    assert_eventually!(status_of(&exchange(&sandbox, &ask::get("/limits"))) == 200);
}

#[test]
fn without_descriptors_the_socket_falls_silent_and_comes_back_by_itself() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let pid = Pid::from_raw(i32::try_from(daemon.process().0).unwrap());
    let ask_soon = || {
        let mut stream = UnixStream::connect(socket(&sandbox)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(&ask::get("/livez")).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200")
    };
    let before = daemon.process().fds() as u64;
    // As many free ones as each step of a request takes, so that each of them fails once: the gate's
    // own, its connection to tiny_http, that connection's other end and its copy.
    for free in 0..5 {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let tight = Rlimit { current: Some(before + free), maximum };
        let was = prlimit(pid, Resource::Nofile, tight).unwrap();
        ask_soon();
        ask_soon();
        prlimit(pid, Resource::Nofile, was).unwrap();
        assert_eventually!(ask_soon(), "not back after {free} descriptors: {}", daemon.log());
    }
    let rebuilt = daemon.metrics().sum("tidegate_control_rebuilt_total", &[]).unwrap();
    assert!(rebuilt >= 1.0, "tiny_http never lost its accept loop: nothing was tested");
    assert_eq!(echo(&daemon, "still here").status(), 200);
}

#[test]
fn another_user_is_refused_even_where_the_folder_is_open() {
    if !rustix::process::geteuid().is_root() {
        // Only root can be somebody else.
        return;
    }
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let as_nobody = |open: bool| {
        let path = socket(&sandbox);
        if open {
            for folder in [sandbox.dir(), &sandbox.path("state"), &sandbox.path("state/control")] {
                std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
            }
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        }
        std::thread::spawn(move || {
            // Of this thread only.
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            let mut stream = UnixStream::connect(path)?;
            // The refusal comes before anything is read.
            let _ = stream.write_all(&ask::post("/stop", &json!({})));
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            Ok::<_, std::io::Error>(answer)
        })
        .join()
        .unwrap()
    };
    let closed = as_nobody(false).unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::PermissionDenied);
    let refused = as_nobody(true).unwrap();
    assert_eq!(status_of(&refused), 403);
    assert!(String::from_utf8_lossy(&refused).contains("foreign_user"));
    daemon.assert_well("after another user");
}

#[test]
fn a_path_in_use_or_too_long_costs_the_socket_and_not_the_gateway() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("state/control")).unwrap();
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(sandbox.path("state"), private.clone()).unwrap();
    std::fs::set_permissions(sandbox.path("state/control"), private).unwrap();
    std::fs::write(socket(&sandbox), "notes").unwrap();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let ready = daemon.readyz().unwrap().text();
    assert!(ready.contains("control degraded") && ready.contains("no socket of ours"), "{ready}");
    assert_eq!(std::fs::read_to_string(socket(&sandbox)).unwrap(), "notes");
    assert_eq!(echo(&daemon, "x").status(), 200);
    drop(daemon);
    std::fs::remove_file(socket(&sandbox)).unwrap();
    // A killed daemon's socket is taken over, a living one's is not.
    let first = Daemon::start(&sandbox, &Conf::new());
    let second = Daemon::start(&sandbox, &Conf::new());
    let ready = second.readyz().unwrap().text();
    assert!(ready.contains("another tidegate"), "{ready}");
    drop((first, second));
    assert!(socket(&sandbox).exists(), "it was killed");
    let daemon = Daemon::start(&sandbox, &Conf::new());
    assert_eq!(json(&run(&sandbox, &daemon, &["status", "--json"]))["phase"], "ready");
    drop(daemon);
    let long = sandbox.path(&"x".repeat(100));
    let conf = Conf::new().text(&format!("[state]\ndir = {:?}", long.display().to_string()));
    let daemon = Daemon::start(&sandbox, &conf);
    let ready = daemon.readyz().unwrap().text();
    assert!(ready.contains("set a shorter state.dir"), "{ready}");
    let refused = run(&sandbox, &daemon, &["reload"]);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
}

#[test]
fn a_cleared_cache_asks_again() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "x"));
    let conf = Conf::new().fake("a", &upstream, "").text("[cache]\nttl = \"1h\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let origin = || {
        let body = json!({"model": "a/m", "input": "hello"});
        let answer = daemon.ask(ask::post("/v1/embeddings", &body));
        answer.header("x-tidegate-cache").unwrap_or("none").to_owned()
    };
    assert_eq!((origin().as_str(), origin().as_str()), ("miss", "hit"));
    let cleared = json(&run(&sandbox, &daemon, &["cache", "clear", "embeddings", "--json"]));
    assert_eq!(cleared["cleared"][0], json!({"namespace": "embeddings", "entries": 1}));
    assert_eq!(origin(), "miss");
    let all = json(&run(&sandbox, &daemon, &["cache", "clear", "--json"]));
    assert_eq!(all["cleared"].as_array().unwrap().len(), 2);
    let unknown = run(&sandbox, &daemon, &["cache", "clear", "nonsense"]);
    assert_eq!(unknown.status.code(), Some(65), "{unknown:?}");
    let shown = json(&run(&sandbox, &daemon, &["cache", "--json"]));
    assert!(shown["namespaces"].is_array());
}

#[test]
fn a_breaker_that_is_forced_holds_and_comes_back_by_itself() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "x"));
    let daemon = Daemon::start(&sandbox, &Conf::new().fake("a", &upstream, ""));
    let status = || daemon.ask(ask::chat(Dialect::OpenAi, "a/m", "hello", false)).status();
    assert_eq!(status(), 200);
    let opened = run(&sandbox, &daemon, &["breaker", "open", "a", "--for", "1h"]);
    assert!(opened.status.success(), "{opened:?}");
    assert_eq!(status(), 503);
    let shown = json(&run(&sandbox, &daemon, &["breaker", "--json"]));
    let left = shown["breakers"][0]["forced_seconds"].as_u64().unwrap();
    assert!((3500..=3600).contains(&left), "{shown}");
    assert!(run(&sandbox, &daemon, &["breaker", "auto", "a"]).status.success());
    assert_eq!(status(), 200);
    assert!(run(&sandbox, &daemon, &["breaker", "open", "a/m", "--for", "1s"]).status.success());
    assert_eq!(status(), 503);
    assert_eventually!(status() == 200, "a forced breaker did not end by itself");
    let unknown = run(&sandbox, &daemon, &["breaker", "close", "nobody"]);
    assert_eq!(unknown.status.code(), Some(65), "{unknown:?}");
    let wrong = run(&sandbox, &daemon, &["breaker", "open", "a", "--for", "0s"]);
    assert_eq!(wrong.status.code(), Some(64), "{wrong:?}");
}

#[test]
fn a_drained_upstream_is_sent_nothing_new_and_finishes_what_runs() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    let slow = FakeUpstream::start(Dialect::OpenAi, move |call| {
        let mut steps = answers::good(call, "slow");
        if call.prompt() == "hold" {
            steps.insert(0, Step::Until(Arc::clone(&held)));
        }
        steps
    });
    let other = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "other"));
    let conf = Conf::new().fake("a", &slow, "").fake("b", &other, "").model("m", "a/x", &["b/x"]);
    let daemon = Daemon::start(&sandbox, &conf);
    let chat = |prompt: &str| ask::chat(Dialect::OpenAi, "m", prompt, false);
    let text = |answer: &wire::Answer| ask::whole_text(Dialect::OpenAi, &answer.json()).to_owned();
    let mut running = daemon.connect();
    running.send(chat("hold"));
    slow.wait_seen("hold");
    assert!(run(&sandbox, &daemon, &["drain", "a"]).status.success());
    assert_eq!(text(&daemon.ask(chat("after"))), "other");
    let shown = json(&run(&sandbox, &daemon, &["status", "--json"]));
    let row = shown["upstreams"].as_array().unwrap().iter().find(|row| row["upstream"] == "a");
    assert_eq!((&row.unwrap()["drained"], &row.unwrap()["calls"]), (&json!(true), &json!(1)));
    gate.open();
    assert_eq!(text(&running.answer().unwrap()), "slow", "what runs is finished");
    // A reload does not forget it.
    assert!(run(&sandbox, &daemon, &["reload"]).status.success());
    assert_eq!(text(&daemon.ask(chat("still"))), "other");
    assert!(run(&sandbox, &daemon, &["drain", "a", "--undo"]).status.success());
    assert_eq!(text(&daemon.ask(chat("again"))), "slow");
    assert_eq!(run(&sandbox, &daemon, &["drain", "nobody"]).status.code(), Some(65));
}

#[test]
fn a_drained_gateway_stays_refuses_and_takes_work_again() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    assert!(run(&sandbox, &daemon, &["drain", "--stay"]).status.success());
    assert_eq!(readyz(&daemon), 503);
    let refused = echo(&daemon, "x");
    assert_eq!((refused.status(), refused.code().as_str()), (503, "draining"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(daemon.ask(ask::get("/v1/models")).status(), 200, "lists need no upstream's work");
    assert_eq!(json(&run(&sandbox, &daemon, &["status", "--json"]))["drained"], true);
    assert!(run(&sandbox, &daemon, &["drain", "--undo"]).status.success());
    assert_eq!((readyz(&daemon), echo(&daemon, "x").status()), (200, 200));
}

#[test]
fn a_drain_ends_the_process_after_what_runs_and_waits_for_that() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &Conf::new());
    assert!(run(&sandbox, &daemon, &["drain"]).status.success());
    // It has let go of its socket when the command ends; the process follows at once.
    assert!(daemon.wait_exit(Duration::from_secs(5)).expect("it ends").success());
    assert_eq!(run(&sandbox, &daemon, &["drain"]).status.code(), Some(69));
    assert_eq!(run(&sandbox, &daemon, &["status"]).status.code(), Some(69));
}

#[test]
fn the_status_is_one_screen_and_says_what_is() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    echo(&daemon, "x");
    let shown = run(&sandbox, &daemon, &["status"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.lines().count() <= 24, "more than a screen:\n{text}");
    for part in ["ready", "load normal", "echo", &daemon.addr.to_string(), &daemon.ops.to_string()]
    {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let document = json(&run(&sandbox, &daemon, &["status", "--json"]));
    let from_the_plane = wire::ask(daemon.ops, ask::get("/status")).json();
    for same in ["version", "pid", "phase", "config", "listen", "level"] {
        assert_eq!(document[same], from_the_plane[same], "{same}");
    }
}

#[test]
fn the_log_is_shown_filtered_and_followed() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let lines = |args: &[&str]| {
        let shown = run(&sandbox, &daemon, args);
        assert!(shown.status.success(), "{shown:?}");
        String::from_utf8(shown.stdout).unwrap()
    };
    assert_eventually!(lines(&["logs", "-n", "1000"]).contains(" ready "));
    assert_eq!(lines(&["logs", "-n", "1"]).lines().count(), 1);
    assert_eq!(lines(&["logs", "--grep", "nowhere to be found"]), "");
    assert!(!lines(&["logs", "-n", "1000", "--level", "error"]).contains(" info "));
    let as_json = lines(&["logs", "-n", "1000", "--json"]);
    assert!(as_json.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{as_json}");
    let mut follower = command(&sandbox)
        .args(["logs", "--follow", "-n", "0", "--grep", "/api/version", "--config"])
        .arg(&daemon.config)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eventually!(daemon.limit_now("log.followers_max") == 1);
    daemon.ask(ask::get("/"));
    daemon.ask(ask::get("/api/version"));
    let mut line = String::new();
    BufReader::new(follower.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("path=/api/version"), "{line}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eventually!(daemon.limit_now("log.followers_max") == 0);
    assert_eventually!(daemon.limit_now("control.streams_max") == 0);
}

#[test]
fn a_follower_who_stops_reading_harms_nobody_and_hears_what_it_missed() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let mut follower = UnixStream::connect(socket(&sandbox)).unwrap();
    follower.set_read_timeout(Some(patience(Duration::from_secs(10)))).unwrap();
    follower.write_all(&ask::get("/logs/follow?n=0")).unwrap();
    assert_eventually!(daemon.limit_now("log.followers_max") == 1);
    // Until the buffers on the way are full and lines are dropped; each has some 300 bytes.
    let refused = || daemon.metrics().limit("refused_total", "log.follower_lines");
    let mut client = daemon.connect();
    let mut sent = 0;
    while refused() == 0 {
        for _ in 0..500 {
            assert_eq!(client.ask(ask::get("/api/version")).status(), 200);
        }
        sent += 500;
        assert!(sent < 40_000, "nothing was dropped");
    }
    let mut reader = BufReader::new(follower);
    let mut text = String::new();
    while !text.contains("\"dropped\":") {
        text.clear();
        assert!(reader.read_line(&mut text).unwrap() > 0, "the stream ended");
    }
    // And it goes on behind the gap.
    daemon.ask(ask::get("/api/nowhere"));
    while !text.contains("/api/nowhere") {
        text.clear();
        assert!(reader.read_line(&mut text).unwrap() > 0, "the stream ended");
    }
}

#[test]
fn the_service_manager_hears_of_ready_reload_and_stop_and_that_it_is_alive() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(patience(Duration::from_secs(10)))).unwrap();
    let env = |key: &str, value: String| (key.to_owned(), value);
    let start = Start {
        env: vec![
            env("NOTIFY_SOCKET", path.display().to_string()),
            env("WATCHDOG_USEC", "1000000".to_owned()),
        ],
        ..Start::default()
    };
    let mut daemon = Daemon::start_with(&sandbox, &Conf::new(), &start);
    let until = |wanted: &str| {
        let mut bytes = [0; 4096];
        loop {
            let length = manager.recv(&mut bytes).unwrap_or_else(|e| panic!("no {wanted}: {e}"));
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text.starts_with(wanted) {
                return text;
            }
        }
    };
    until("READY=1");
    until("WATCHDOG=1");
    until("WATCHDOG=1");
    daemon.signal(rustix::process::Signal::HUP);
    assert!(until("RELOADING=1").contains("MONOTONIC_USEC="));
    assert!(until("READY=1").contains("reloaded"));
    daemon.rewrite(&Conf::new().server("queue_max = \"many\""));
    daemon.signal(rustix::process::Signal::HUP);
    until("RELOADING=1");
    assert!(until("READY=1").contains("reload refused"));
    assert!(daemon.stop().success());
    assert!(until("STOPPING=1").contains("EXTEND_TIMEOUT_USEC="));
}
