//! SIGHUP: a good file takes force without a failed request, a bad one changes nothing and is logged
//! with its line.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::{Body, Wire};

fn models(daemon: &Daemon) -> Vec<String> {
    let list = daemon.ask(ask::get("/v1/models")).json();
    let ids = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap().to_owned());
    ids.collect()
}

fn hup(daemon: &Daemon) {
    daemon.signal(Signal::HUP);
}

/// The line (from 1) on which this text stands in the config file.
fn line_of(daemon: &Daemon, text: &str) -> usize {
    let file = std::fs::read_to_string(&daemon.config).unwrap();
    file.lines().position(|line| line.contains(text)).unwrap() + 1
}

/// The first log line with this text.
fn logged(daemon: &Daemon, text: &str) -> String {
    assert_eventually!(daemon.log().contains(text), "{text:?} is never logged:\n{}", daemon.log());
    daemon.log().lines().find(|line| line.contains(text)).unwrap().to_owned()
}

/// Whether a number stands in a line as a word of its own.
fn says_number(line: &str, number: usize) -> bool {
    line.split(|c: char| !c.is_ascii_digit()).any(|word| word == number.to_string())
}

#[test]
fn two_hundred_reloads_under_load_fail_no_request_and_a_third_are_refused_with_their_line() {
    const RELOADS: usize = 200;
    let sandbox = Sandbox::alone();
    let upstreams = [Dialect::OpenAi, Dialect::Ollama]
        .map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "a good answer")));
    let base = || {
        Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "").model(
            "stable",
            "oa/x",
            &["ol/x"],
        )
    };
    let daemon = Daemon::start(&sandbox, &base());
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let (daemon, over, asked) = (&daemon, &over, &asked);
            scope.spawn(move || {
                let mut kept = Wire::connect(daemon.addr);
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    let client = if lane % 2 == 0 { Dialect::OpenAi } else { Dialect::Ollama };
                    let request = ask::chat(client, "stable", "hi", n % 2 == 0);
                    // One lane connects each time; on the others the connection must live through reloads.
                    if lane == 3 {
                        kept = Wire::connect(daemon.addr);
                    }
                    let answer = kept.ask(&request);
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                    if n % 2 == 0 {
                        Stream::of(client, &answer).assert_normal(
                            "stable",
                            "a good answer",
                            "under reloads",
                        );
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let run = std::panic::AssertUnwindSafe(|| {
            let mut in_force = None;
            let mut figures = None;
            for n in 0..RELOADS {
                if n % 3 == 2 {
                    let bad = match n % 9 {
                        2 => format!("[bogus_{n}]\n"),
                        5 => format!(
                            "[[model]]\nname = \"bogus_{n}\"\nprimary = \"nowhere/bogus_{n}\"\n"
                        ),
                        _ => {
                            format!("[[model]]\nname = \"x\"\nprimary = \"oa/x\"\nbogus_{n} = 3\n")
                        }
                    };
                    daemon.rewrite(&base().model(&format!("gen-{n}"), "oa/x", &[]).text(&bad));
                    hup(&daemon);
                    let line = logged(&daemon, &format!("bogus_{n}"));
                    let (first, last) = (
                        line_of(&daemon, &format!("bogus_{n}")),
                        line_of(&daemon, &format!("gen-{n}")),
                    );
                    let near = (first..=first + 2).any(|number| says_number(&line, number));
                    assert!(
                        near && first > last,
                        "reload {n}: no line number near {first} in {line:?}"
                    );
                    let now = models(&daemon);
                    assert!(
                        !now.contains(&format!("gen-{n}")),
                        "a part of a refused file is in force"
                    );
                    if let Some(old) = &in_force {
                        assert!(now.contains(old), "the old config is gone: {now:?}");
                    }
                } else {
                    let name = format!("gen-{n}");
                    daemon.rewrite(&base().model(&name, "oa/x", &["ol/y"]));
                    hup(&daemon);
                    assert_eventually!(
                        models(&daemon).contains(&name),
                        "reload {n} is not in force"
                    );
                    if let Some(old) = in_force.replace(name) {
                        assert!(!models(&daemon).contains(&old), "an old model is still there");
                    }
                }
                if n == 20 {
                    let process = daemon.process();
                    figures = Some((process.fds(), process.threads().len(), process.rss_kib()));
                }
            }
            figures.unwrap()
        });
        let result = std::panic::catch_unwind(run);
        over.store(true, Ordering::Relaxed);
        let (fds, threads, rss) = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let process = daemon.process();
        assert!(process.fds() <= fds + 16, "{fds} descriptors became {:?}", process.fd_targets());
        assert!(
            process.threads().len() <= threads + 4,
            "{threads} threads became {:?}",
            process.threads()
        );
        assert!(process.rss_kib() < rss + 16 * 1024, "{rss} KiB became {} KiB", process.rss_kib());
    });
    eprintln!("{} requests during {RELOADS} reloads", asked.load(Ordering::Relaxed));
    assert!(asked.load(Ordering::Relaxed) > 200, "there was no load");
    daemon.assert_well("after reloads");
}

#[test]
fn a_change_of_a_restart_setting_is_refused_whole_and_named() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("workers = 8\nqueue_max = 100"));
    daemon.rewrite(&Conf::new().server("workers = 9\nqueue_max = 101\nbody_max = \"1KiB\"").model(
        "fresh",
        "echo/echo",
        &[],
    ));
    hup(&daemon);
    logged(&daemon, "server.workers");
    logged(&daemon, "server.queue_max");
    assert!(!models(&daemon).contains(&"fresh".to_owned()), "a part of it is in force");
    let big = ask::chat(Dialect::OpenAi, "echo", &"x".repeat(4000), false);
    assert_eq!(daemon.ask(big).status(), 200, "body_max of the refused file is in force");
}

#[test]
fn a_log_folder_that_cannot_be_used_refuses_the_reload_until_it_can() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().model("old", "echo", &[]));
    let blocked = sandbox.write("blocked", "a file");
    let logs = blocked.join("logs");
    let next = Conf::new().log(&format!("dir = {logs:?}")).model("new", "echo", &[]);
    daemon.rewrite(&next);
    hup(&daemon);
    let line = logged(&daemon, "reload_refused");
    assert!(line.contains("log.dir") && line.contains("os error"), "{line}");
    assert_eq!(models(&daemon), ["old", "echo"]);
    // The same file is taken over as soon as the folder can be used.
    std::fs::remove_file(&blocked).unwrap();
    hup(&daemon);
    assert_eventually!(models(&daemon) == ["new", "echo"]);
    assert_eventually!(logs.join("tidegate_rCURRENT.log").exists());
}

/// The upstreams of which there are series, and what they may hold.
fn exported(daemon: &Daemon) -> BTreeSet<(String, u64)> {
    let metrics = daemon.metrics();
    let named = metrics.samples.iter().filter_map(|sample| {
        let upstream = match sample.labels.get("limit") {
            Some(limit) if !limit.starts_with("upstream.") => None,
            Some(_) => sample.labels.get("owner"),
            None => sample.labels.get("upstream"),
        };
        upstream.cloned()
    });
    let names: BTreeSet<String> = named.collect();
    let max = |name: &str| {
        let labels = [("limit", "upstream.concurrency_max"), ("owner", name)];
        metrics.sum("tidegate_limit_max", &labels).unwrap_or_default() as u64
    };
    names.into_iter().map(|name| (name.clone(), max(&name))).collect()
}

#[test]
fn an_upstream_that_is_not_in_force_has_no_series() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        let mut steps = answers::good(call, "one two three");
        // After the first content: to wait, and to cut the stream there.
        if call.prompt() == "hi" {
            steps.truncate(3);
            steps.push(Step::Until(held.clone()));
        }
        steps
    });
    let base =
        || Conf::new().upstream("u", "echo", "", "concurrency_max = 7").model("m", "u/x", &[]);
    let with = |name: &str| base().fake(name, &upstream, "").model("n", &format!("{name}/x"), &[]);
    let daemon = Daemon::start(&sandbox, &with("old"));
    let set = |all: &[(&str, u64)]| -> BTreeSet<(String, u64)> {
        all.iter().map(|(name, max)| ((*name).to_owned(), *max)).collect()
    };
    assert_eq!(exported(&daemon), set(&[("echo", 1024), ("old", 64), ("u", 7)]));
    // A stream of the old configuration ends, and counts, after its upstream has left.
    let mut wire = daemon.connect();
    wire.send(ask::chat(Dialect::OpenAi, "n", "hi", true));
    let head = wire.head().unwrap();
    let mut body = Body::of(&head, "POST").unwrap();
    wire.piece(&mut body).unwrap();
    daemon.rewrite(&base());
    hup(&daemon);
    assert_eventually!(exported(&daemon) == set(&[("echo", 1024), ("u", 7)]));
    let cut = || daemon.metrics().sum("tidegate_streams_cut_total", &[]);
    assert_eq!(cut(), Some(0.0));
    gate.open();
    while let Ok(Some(_)) = wire.piece(&mut body) {}
    assert_eventually!(cut() == Some(1.0));
    assert_eq!(exported(&daemon), set(&[("echo", 1024), ("u", 7)]));
    // A reload that is refused after its upstreams were built leaves nothing of them.
    let blocked = sandbox.write("blocked", "a file").join("logs");
    let refused = Conf::new()
        .upstream("u", "echo", "", "concurrency_max = 9")
        .fake("new", &upstream, "")
        .log(&format!("dir = {blocked:?}"));
    daemon.rewrite(&refused);
    hup(&daemon);
    logged(&daemon, "reload_refused");
    assert_eq!(exported(&daemon), set(&[("echo", 1024), ("u", 7)]));
}

#[test]
fn a_config_file_that_is_gone_changes_nothing() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().model("old", "echo/echo", &[]));
    let file = std::fs::read(&daemon.config).unwrap();
    let before = daemon.log().lines().count();
    std::fs::remove_file(&daemon.config).unwrap();
    hup(&daemon);
    assert_eventually!(
        daemon.log().lines().skip(before).any(|line| line.contains("tidegate.toml")),
        "{}",
        daemon.log()
    );
    assert!(models(&daemon).contains(&"old".to_owned()));
    assert_eq!(daemon.readyz().unwrap().status(), 200);
    // Garbage instead of text.
    std::fs::write(&daemon.config, [0xff; 5000]).unwrap();
    hup(&daemon);
    std::thread::sleep(Duration::from_millis(100));
    assert!(models(&daemon).contains(&"old".to_owned()));
    // And back.
    let text = String::from_utf8(file).unwrap().replace("\"old\"", "\"new\"");
    std::fs::write(&daemon.config, text).unwrap();
    hup(&daemon);
    assert_eventually!(models(&daemon).contains(&"new".to_owned()));
}

#[test]
fn a_stream_in_flight_lives_on_when_its_upstream_leaves_the_config() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let opener = gate.clone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        let mut steps = answers::good(call, "one two three");
        if call.prompt() == "slowly" {
            steps.insert(3, Step::Until(gate.clone()));
        }
        steps
    });
    let daemon =
        Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").model("m", "u/x", &[]));
    let mut wire = daemon.connect();
    wire.send(ask::chat(Dialect::OpenAi, "m", "slowly", true));
    let head = wire.head().unwrap();
    let mut body = Body::of(&head, "POST").unwrap();
    let mut pieces = vec![wire.piece(&mut body).unwrap().unwrap()];
    daemon.rewrite(&Conf::new().model("other", "echo/echo", &[]));
    hup(&daemon);
    assert_eventually!(models(&daemon).contains(&"other".to_owned()));
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "m", "hi", false)).status(), 404);
    opener.open();
    while let Some(piece) = wire.piece(&mut body).unwrap() {
        pieces.push(piece);
    }
    Stream::from_pieces(Dialect::OpenAi, &pieces).assert_normal(
        "m",
        "one two three",
        "over a reload",
    );
    assert_eventually!(upstream.open() == 0, "connections to an upstream that is gone stay open");
}

#[test]
fn live_settings_are_in_force_at_once() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let big = ask::chat(Dialect::OpenAi, "echo", &"x".repeat(4000), false);
    assert_eq!(daemon.ask(&big).status(), 200);
    daemon.rewrite(&Conf::new().server(
        "body_max = \"2KiB\"\nhead_max = \"1KiB\"\nallowed_hosts = [\"gate.example\"]\nconnections_max = 77\nexchanges_max = 33",
    ));
    hup(&daemon);
    assert_eventually!(daemon.ask(&big).status() == 413);
    assert_eq!(
        daemon
            .ask(format!(
                "GET /api/version HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
                "x".repeat(2000)
            ))
            .status(),
        431
    );
    assert_eq!(daemon.ask("GET /api/version HTTP/1.1\r\nHost: gate.example\r\n\r\n").status(), 200);
    let metrics = daemon.metrics();
    assert_eq!(metrics.limit("max", "server.connections_max"), 77);
    assert_eq!(metrics.limit("max", "server.exchanges_max"), 33);
}
