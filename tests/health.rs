//! How the process is: threads that hang, checks, the status, and what is tried when it is bad.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start};
use crate::support::patience;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{self, Answer};

fn ops(daemon: &Daemon, path: &str) -> Answer {
    wire::ask(daemon.ops, ask::get(path))
}

fn health(daemon: &Daemon) -> Value {
    serde_json::from_str(&ops(daemon, "/health").text()).unwrap()
}

/// Waits for longer than `assert_eventually!` does.
fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience(limit), "never held: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

#[test]
fn a_worker_that_hangs_is_named_with_what_it_blocks_on_while_the_others_answer() {
    let sandbox = Sandbox::new();
    let env = vec![("TIDEGATE_DRILLS".to_owned(), "1".to_owned())];
    let start = Start { env, ..Start::default() };
    let conf =
        Conf::new().server("workers = 2").text("[recovery]\nafter = \"1s\"\nsettle = \"1s\"");
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    let mut hung = daemon.connect();
    hung.send(ask::chat(Dialect::OpenAi, "echo/drill-deadlock", "hi", false));
    let told =
        || daemon.log().lines().find(|line| line.contains("thread_stalled")).map(str::to_owned);
    let took = within(Duration::from_secs(30), "a stall is told", || {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", true));
        assert_eq!(answer.status(), 200);
        told().is_some()
    });
    eprintln!("a worker that hangs was told after {took:?}");
    let line = told().unwrap();
    assert!(line.contains("data-") && line.contains("a lock of rank Drill"), "{line}");
    if cfg!(target_os = "linux") {
        assert!(line.contains("state=S"), "{line}");
    }
    let verbose = ops(&daemon, "/readyz?verbose").text();
    assert!(verbose.contains("[+]threads degraded: data-"), "{verbose}");
    assert_eq!(ops(&daemon, "/livez").status(), 200, "the others go on");
    let health_now = health(&daemon);
    assert_eq!((&health_now["status"], &health_now["ok"]), (&"degraded".into(), &true.into()));
    assert!(health_now["threads"]["late"][0]["why"].as_str().unwrap().contains("rank Drill"));
    assert_eq!(daemon.metrics().sum("tidegate_health_status", &[]), Some(1.0));
    let state = daemon.metrics().sum("tidegate_check_state", &[("check", "threads")]);
    assert_eq!(state, Some(1.0));

    // Another one takes its place.
    within(Duration::from_secs(10), "the worker is replaced", || {
        let log = daemon.log();
        log.contains("recovery_step subject=hard") && log.contains("recovery_outcome subject=hard")
    });
    let helped = [("step", "hard"), ("outcome", "helped")];
    assert_eq!(daemon.metrics().sum("tidegate_recovery_steps_total", &helped), Some(1.0));

    // And all is well again when it goes on.
    let released = daemon.ask(ask::chat(Dialect::OpenAi, "echo/drill-release", "hi", false));
    assert_eq!(released.status(), 200);
    assert_eq!(hung.answer().unwrap().status(), 200);
    within(Duration::from_secs(10), "it is told that the thread goes on", || {
        daemon.log().contains("thread_went_on") && health(&daemon)["status"] == "healthy"
    });
    assert_eq!(daemon.log().matches("thread_stalled").count(), 1);
}

#[test]
fn without_leave_there_are_no_drills() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo/drill-deadlock", "hi", false));
    assert_eq!(answer.status(), 200, "a name like any other");
}

/// A server that answers every request with the status that it is told.
struct Peer {
    port: u16,
    status: Arc<AtomicU16>,
    over: Arc<AtomicBool>,
}

impl Peer {
    fn start() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (status, over) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicBool::new(false)));
        let (says, ends) = (Arc::clone(&status), Arc::clone(&over));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let _ = stream.read(&mut [0; 4096]);
                let status = says.load(SeqCst);
                let body = format!("all is {}", if status == 200 { "well" } else { "lost" });
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Peer { port, status, over }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn check(name: &str, kind: &str, lines: &str) -> String {
    format!(
        "[[check]]\nname = \"{name}\"\nkind = \"{kind}\"\ninterval = \"1s\"\ntimeout = \"1s\"\n{lines}\n"
    )
}

/// The state of a check, as `/health` tells it.
fn state(daemon: &Daemon, name: &str) -> String {
    let health = health(daemon);
    let checks = health["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == *format!("check:{name}"));
    check.map_or_else(String::new, |check| check["state"].as_str().unwrap().to_owned())
}

fn runs(daemon: &Daemon, name: &str, outcome: &str) -> f64 {
    let labels = [("check", name), ("outcome", outcome)];
    daemon.metrics().sum("tidegate_check_runs_total", &labels).unwrap_or(0.0)
}

#[test]
fn checks_of_every_kind_turn_after_so_many_runs_and_count_as_they_are_told() {
    let sandbox = Sandbox::new();
    let (web, socket) = (Peer::start(), Peer::start());
    let flag = sandbox.write("flag", "");
    let fall = "rise = 2\nfall = 3\n";
    let conf = Conf::new()
        .text(&check(
            "web",
            "http",
            &format!(
                "url = \"http://127.0.0.1:{}/healthz\"\ncontains = \"well\"\naffects = \"readiness\"\n{fall}",
                web.port
            ),
        ))
        .text(&check("socket", "tcp", &format!("address = \"127.0.0.1:{}\"\n{fall}", socket.port)))
        .text(&check(
            "file",
            "command",
            &format!("command = [\"/usr/bin/test\", \"-e\", {flag:?}]\naffects = \"none\"\n{fall}"),
        ))
        .text(&check("self", "internal", "probe = \"data_plane\""));
    let daemon = Daemon::start(&sandbox, &conf);
    let names = ["web", "socket", "file"];
    assert_eq!(ops(&daemon, "/readyz/check:web").status(), 200, "ready means that it was run");
    let all = |wanted: &str| names.iter().all(|name| state(&daemon, name) == wanted);
    within(Duration::from_secs(10), "all are good", || all("ok") && state(&daemon, "self") == "ok");
    assert_eq!(health(&daemon)["status"], "healthy");

    web.status.store(500, SeqCst);
    let port = socket.port;
    drop(socket);
    std::fs::remove_file(&flag).unwrap();
    let mut turned = Vec::new();
    within(Duration::from_secs(20), "all are bad", || {
        for name in names {
            // The state first: a run may end in between.
            if state(&daemon, name) == "failed" && !turned.contains(&name) {
                let failed = runs(&daemon, name, "failed");
                assert!((3.0..=4.0).contains(&failed), "{name}: {failed} runs");
                turned.push(name);
            }
        }
        turned.len() == names.len()
    });
    let ready = ops(&daemon, "/readyz");
    assert_eq!(ready.status(), 503);
    let text = ready.text();
    assert!(text.contains("[-]check:web failed: the answer's status is 500 (checked "), "{text}");
    assert!(text.contains("[+]check:socket degraded: "), "{text}");
    assert!(text.contains("[+]check:file ok") && text.contains("which does not count"), "{text}");
    assert_eq!(ops(&daemon, "/readyz/check:web").status(), 503);
    assert_eq!(ops(&daemon, "/readyz?exclude=check:web").status(), 200);
    let now = health(&daemon);
    assert_eq!((&now["status"], &now["ok"]), (&"unhealthy".into(), &false.into()));
    assert_eq!(ops(&daemon, "/health").status(), 503);
    assert_eq!(daemon.ask(ask::get("/readyz")).status(), 503, "and on the data plane");
    // Brought up to date once a second.
    let shown = || daemon.metrics().sum("tidegate_check_state", &[("check", "check:web")]);
    assert_eventually!(shown() == Some(2.0), "{:?}", shown());

    web.status.store(200, SeqCst);
    std::fs::write(&flag, "").unwrap();
    let again = TcpListener::bind(("127.0.0.1", port)).unwrap();
    within(Duration::from_secs(20), "all are good again", || all("ok"));
    drop(again);
    assert_eq!(ops(&daemon, "/readyz").status(), 200);
    // The log writes a moment later.
    for name in names {
        let count = |kind| daemon.log().matches(&format!("{kind} subject={name}")).count();
        assert_eventually!(count("check_passed") == 2, "{name}: {}", daemon.log());
        assert_eq!(count("check_failed"), 1, "{name}");
    }
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children_and_checks_come_and_go_with_a_reload() {
    let sandbox = Sandbox::new();
    let pids = sandbox.path("pids");
    let script = format!("sleep 1000 & echo $! >> {}; echo hanging; wait", pids.display());
    let hangs = check(
        "hangs",
        "command",
        &format!("command = [\"/bin/sh\", \"-c\", {script:?}]\nfall = 1")
            .replace("1s\"\ntimeout", "1s\""),
    );
    let hangs = hangs.replace("timeout = \"1s\"", "timeout = \"300ms\"");
    let mut daemon = Daemon::start(&sandbox, &Conf::new().text(&hangs));
    within(Duration::from_secs(10), "two runs have failed", || {
        runs(&daemon, "hangs", "failed") >= 2.0
    });
    assert_eq!(state(&daemon, "hangs"), "failed");
    let text = ops(&daemon, "/health").text();
    assert!(text.contains("did not end in time and was killed: hanging"), "{text}");
    let alive = || {
        let pids = std::fs::read_to_string(&pids).unwrap();
        let alive = |pid: &&str| {
            // Not one that is dead and not waited for by whoever adopted it.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        pids.lines().filter(alive).count()
    };
    assert!(alive() <= 1, "the children of ended runs live");

    daemon.rewrite(&Conf::new());
    daemon.signal(Signal::HUP);
    assert_eventually!(state(&daemon, "hangs").is_empty(), "{}", health(&daemon));
    assert_eventually!(alive() == 0, "the last one's child lives");
    assert_eventually!(health(&daemon)["status"] == "healthy");
    assert_eq!(runs(&daemon, "hangs", "failed"), 0.0, "its series are gone");

    // One that hangs does not keep the daemon from ending.
    daemon.rewrite(&Conf::new().text(&hangs.replace("300ms", "3s")));
    daemon.signal(Signal::HUP);
    assert_eventually!(alive() == 1, "it runs again");
    let begun = Instant::now();
    assert!(daemon.stop().success());
    assert!(begun.elapsed() < daemon.allow(Duration::from_secs(3)), "{:?}", begun.elapsed());
    assert_eventually!(alive() == 0, "its child outlives the daemon");
}

#[test]
fn probes_of_the_data_plane_need_no_key_and_learn_one_word() {
    let sandbox = Sandbox::new();
    let key = format!("[[key]]\nname = \"a\"\nsha256 = \"{}\"", "ab".repeat(32));
    let daemon = Daemon::start(&sandbox, &Conf::new().text(&key));
    assert_eq!(daemon.ask(ask::get("/v1/models")).status(), 401);
    for (path, word) in
        [("/healthz", "live"), ("/health", "live"), ("/readyz", "ready"), ("/ready", "ready")]
    {
        let answer = daemon.ask(ask::get(path));
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.text(), format!("{{\"ok\":true,\"status\":\"{word}\"}}"));
        assert_eq!(daemon.ask(ask::post_with(path, "", b"{}")).status(), 405, "{path}");
    }
}

/// The recovery steps in the log, in their order.
fn steps(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let word = |line: &str| {
        let (_, rest) = line.split_once(" recovery_")?;
        let mut words = rest.split(' ');
        let kind = words.next()?;
        let subject = words.next()?.strip_prefix("subject=")?;
        Some(format!("{kind} {subject}"))
    };
    log.lines().filter_map(word).collect()
}

#[test]
fn memory_that_stays_short_is_met_step_by_step_up_to_the_operator_and_all_is_taken_back() {
    let sandbox = Sandbox::new();
    let recovery = "[recovery]\nafter = \"1s\"\nsettle = \"1s\"\ncalm = \"2s\"\n";
    let short = "[overload]\nmemory_max = \"1MiB\"\ncalm = \"1s\"\n";
    let daemon = {
        // It is critical before it is ready, so that it starts with enough.
        let daemon = Daemon::start(&sandbox, &Conf::new().text(recovery));
        daemon.rewrite(&Conf::new().text(recovery).text(short));
        daemon.signal(Signal::HUP);
        daemon
    };
    within(Duration::from_secs(15), "the operator is called", || {
        steps(&daemon).iter().any(|step| step == "operator memory")
    });
    assert_eq!(
        steps(&daemon),
        ["step soft", "outcome soft", "step medium", "outcome medium", "operator memory"]
    );
    let log = daemon.log();
    let operator = log.lines().find(|line| line.contains("recovery_operator")).unwrap();
    assert!(operator.contains("needs you: memory: memory is at "), "{operator}");
    assert!(operator.contains("recovery.restart is off"), "{operator}");
    let count = |step: &str, outcome: &str| {
        let labels = [("step", step), ("outcome", outcome)];
        daemon.metrics().sum("tidegate_recovery_steps_total", &labels).unwrap()
    };
    assert_eq!((count("soft", "taken"), count("medium", "did_not_help")), (1.0, 1.0));
    assert_eq!(count("hard", "taken"), 0.0, "nobody allowed a restart");
    let check = ops(&daemon, "/readyz?verbose").text();
    assert!(check.contains("[+]recovery degraded: needs you"), "{check}");

    daemon.rewrite(&Conf::new().text(recovery).text("[overload]\ncalm = \"1s\""));
    daemon.signal(Signal::HUP);
    within(Duration::from_secs(15), "all is taken back", || {
        let level = daemon.metrics().sum("tidegate_overload_level", &[]);
        level == Some(0.0) && health(&daemon)["status"] == "healthy"
    });
    let log = daemon.log();
    assert_eventually!(daemon.log().contains("recovery_over"), "{log}");
    assert!(daemon.log().contains("recovery_relaxed"), "{log}");
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi", false));
    assert_eq!(answer.status(), 200);
}

#[test]
fn where_a_restart_is_allowed_the_daemon_ends_with_the_code_that_asks_for_it() {
    let sandbox = Sandbox::new();
    let recovery = "[recovery]\nafter = \"1s\"\nsettle = \"1s\"\nrestart = true\n";
    // Drills are for those who will not wait ten minutes.
    let env = vec![("TIDEGATE_DRILLS".to_owned(), "1".to_owned())];
    let start = Start { env, ..Start::default() };
    let mut daemon = Daemon::start_with(&sandbox, &Conf::new().text(recovery), &start);
    daemon.rewrite(&Conf::new().text(recovery).text("[overload]\nmemory_max = \"1MiB\""));
    daemon.signal(Signal::HUP);
    let ended = daemon.wait_exit(Duration::from_secs(20)).expect("it ends");
    assert_eq!(ended.code(), Some(70), "{}", daemon.log());
    assert_eq!(
        steps(&daemon),
        ["step soft", "outcome soft", "step medium", "outcome medium", "step hard"]
    );
    assert!(daemon.log().contains("stopped"), "it drained");
}
