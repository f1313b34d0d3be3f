//! Signals: TERM and INT drain, a second one stops at once, USR1 opens the log files again.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::{Body, Fault, Piece, Wire};

const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

/// An upstream whose streams say a word every 20 ms for ever, or say three and wait for the gate.
fn upstream(dialect: Dialect, gate: &std::sync::Arc<Gate>) -> FakeUpstream {
    let gate = gate.clone();
    FakeUpstream::start(dialect, move |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        if call.model() == "endless" && call.stream() {
            return vec![
                Step::Send(answers::stream_head(dialect)),
                Step::Send(answers::chunk(&answers::opening(call))),
                Step::Repeat(answers::chunk(&answers::text(call, "w ")), Duration::from_millis(20)),
            ];
        }
        if call.model() == "endless" {
            return vec![Step::Silence];
        }
        let mut steps = answers::good(call, "one two three");
        let at = if call.stream() { 3 } else { 0 };
        steps.insert(at, Step::Until(gate.clone()));
        steps
    })
}

/// A stream that has begun.
struct Open {
    wire: Wire,
    body: Body,
    pieces: Vec<Piece>,
}

impl Open {
    fn begin(daemon: &Daemon, client: Dialect, model: &str) -> Open {
        let mut wire = daemon.connect();
        wire.send(ask::chat(client, model, "hi", true));
        let head = wire.head().unwrap();
        assert_eq!(head.status, 200);
        let mut body = Body::of(&head, "POST").unwrap();
        let first = wire.piece(&mut body).unwrap().unwrap();
        Open { wire, body, pieces: vec![first] }
    }

    /// Reads to the end; whether the HTTP message ended well.
    fn finish(&mut self) -> bool {
        loop {
            match self.wire.piece(&mut self.body) {
                Ok(Some(piece)) => self.pieces.push(piece),
                Ok(None) => return true,
                Err(Fault::Closed(_)) => return false,
                Err(fault) => panic!("{fault:?}"),
            }
        }
    }
}

#[test]
fn term_and_int_stop_an_idle_daemon_at_once_with_success() {
    for signal in [Signal::TERM, Signal::INT] {
        let sandbox = Sandbox::new();
        let mut daemon = Daemon::start(&sandbox, &Conf::new());
        // An idle client does not hold it up.
        let mut idle = daemon.connect();
        assert_eq!(idle.ask(ask::get("/api/version")).status(), 200);
        let silent = daemon.connect();
        let begun = Instant::now();
        daemon.signal(signal);
        let status = daemon.wait_exit(Duration::from_secs(3)).expect("it must stop");
        assert_eq!(status.code(), Some(0), "{signal:?}: {status} {}", daemon.log());
        assert!(
            begun.elapsed() < daemon.allow(Duration::from_secs(2)),
            "{signal:?} took {:?}",
            begun.elapsed()
        );
        assert!(idle.closes_within(Duration::from_millis(100)));
        drop(silent);
    }
}

#[test]
fn streams_and_answers_in_flight_finish_while_nothing_new_is_taken() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstreams = DIALECTS.map(|dialect| upstream(dialect, &gate));
    let conf = Conf::new().server("drain_timeout = \"20s\"").fake("oa", &upstreams[0], "").fake(
        "ol",
        &upstreams[1],
        "",
    );
    let mut daemon = Daemon::start(&sandbox, &conf);
    let mut open: Vec<(Dialect, &str, Open)> = Vec::new();
    for client in DIALECTS {
        for model in ["oa/gated", "ol/gated"] {
            open.push((client, model, Open::begin(&daemon, client, model)));
        }
    }
    let mut whole = daemon.connect();
    whole.send(ask::chat(Dialect::OpenAi, "oa/gated", "whole", false));
    upstreams[0].wait_seen("whole");
    let mut idle = daemon.connect();
    assert_eq!(idle.ask(ask::get("/api/version")).status(), 200);
    daemon.signal(Signal::TERM);
    // Readiness goes first, liveness stays.
    assert_eventually!(
        daemon.readyz().is_some_and(|answer| answer.status() == 503),
        "it still says that it is ready"
    );
    let live = crate::support::wire::ask(daemon.ops, ask::get("/livez"));
    assert_eq!(live.status(), 200);
    assert!(idle.closes_within(Duration::from_secs(2)), "an idle connection is held open");
    // New work: no connection, or a refusal that says when to come again.
    if let Ok(mut wire) = Wire::try_connect(daemon.addr)
        && wire.try_send(ask::chat(Dialect::OpenAi, "echo", "hi", false)).is_ok()
        && let Ok(answer) = wire.answer()
    {
        assert_eq!(answer.status(), 503, "new work is taken while draining");
        assert!(answer.header("retry-after").is_some());
    }
    assert!(daemon.process().alive(), "it did not wait for its streams");
    gate.open();
    for (client, model, open) in &mut open {
        assert!(open.finish());
        Stream::from_pieces(*client, &open.pieces).assert_normal(
            model,
            "one two three",
            "in flight at TERM",
        );
    }
    assert_eq!(ask::whole_text(Dialect::OpenAi, &whole.answer().unwrap().json()), "one two three");
    let status =
        daemon.wait_exit(Duration::from_secs(5)).expect("it must stop after the last stream");
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
}

#[test]
fn at_the_drain_deadline_streams_end_with_an_in_band_error() {
    let sandbox = Sandbox::alone();
    let gate = Gate::new();
    let upstreams = DIALECTS.map(|dialect| upstream(dialect, &gate));
    let conf = Conf::new().server("drain_timeout = \"1s\"").fake("oa", &upstreams[0], "").fake(
        "ol",
        &upstreams[1],
        "",
    );
    let mut daemon = Daemon::start(&sandbox, &conf);
    let mut open: Vec<(Dialect, Open)> = Vec::new();
    for client in DIALECTS {
        for model in ["oa/endless", "ol/endless", "oa/gated", "ol/gated"] {
            open.push((client, Open::begin(&daemon, client, model)));
        }
    }
    let mut whole = daemon.connect();
    whole.send(ask::chat(Dialect::OpenAi, "oa/endless", "whole", false));
    upstreams[0].wait_seen("whole");
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    for (client, open) in &mut open {
        assert!(open.finish(), "{client:?}: the HTTP message itself must end well");
        let stream = Stream::from_pieces(*client, &open.pieces);
        let errors = stream.errors();
        assert_eq!(errors.len(), 1, "{client:?}: {:?}", stream.events.last());
        assert_eq!(stream.terminators(), 0, "{client:?}: it lies");
        let after = errors[0].1 - begun;
        assert!(
            after >= Duration::from_millis(900),
            "{client:?}: cut before the deadline: {after:?}"
        );
        assert!(
            after <= Duration::from_secs(1) + daemon.allow(Duration::from_millis(250)),
            "{client:?}: only after {after:?}"
        );
    }
    let answer = whole.answer().unwrap();
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    let status = daemon.wait_exit(Duration::from_secs(3)).expect("it must stop at the deadline");
    assert!(begun.elapsed() < daemon.allow(Duration::from_millis(2500)), "{:?}", begun.elapsed());
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    for upstream in &upstreams {
        assert_eventually!(upstream.open() == 0);
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    for (first, second) in
        [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)]
    {
        let sandbox = Sandbox::new();
        let gate = Gate::new();
        let upstream = upstream(Dialect::OpenAi, &gate);
        let conf = Conf::new().server("drain_timeout = \"60s\"").fake("oa", &upstream, "");
        let mut daemon = Daemon::start(&sandbox, &conf);
        let mut open = Open::begin(&daemon, Dialect::OpenAi, "oa/endless");
        daemon.signal(first);
        assert_eventually!(daemon.readyz().is_none_or(|answer| answer.status() == 503));
        assert!(daemon.process().alive());
        let begun = Instant::now();
        daemon.signal(second);
        let status = daemon.wait_exit(Duration::from_secs(2));
        assert!(status.is_some(), "{first:?} {second:?}: it still runs");
        assert!(begun.elapsed() < daemon.allow(Duration::from_secs(1)), "{:?}", begun.elapsed());
        // Whatever the client saw, it was no good end.
        open.finish();
        assert_eq!(Stream::from_pieces(Dialect::OpenAi, &open.pieces).terminators(), 0);
    }
}

#[test]
fn a_drain_timeout_of_nought_cuts_at_once() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstream = upstream(Dialect::Ollama, &gate);
    let conf = Conf::new().server("drain_timeout = \"0s\"").fake("ol", &upstream, "");
    let mut daemon = Daemon::start(&sandbox, &conf);
    let mut open = Open::begin(&daemon, Dialect::Ollama, "ol/endless");
    daemon.signal(Signal::TERM);
    open.finish();
    let stream = Stream::from_pieces(Dialect::Ollama, &open.pieces);
    assert_eq!(stream.terminators(), 0);
    assert!(daemon.wait_exit(Duration::from_secs(2)).is_some());
}

#[test]
fn usr1_and_hup_open_the_log_files_again() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path("logs");
    let conf = Conf::new().log(&format!("dir = {dir:?}"));
    let daemon = Daemon::start(&sandbox, &conf);
    let files = || -> Vec<std::path::PathBuf> {
        std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let find = |id: &str| {
        files()
            .into_iter()
            .find(|file| std::fs::read_to_string(file).unwrap_or_default().contains(id))
    };
    let request = |id: &str| {
        let text =
            format!("GET /api/version HTTP/1.1\r\nHost: localhost\r\nx-request-id: {id}\r\n\r\n");
        assert_eq!(daemon.ask(text).status(), 200);
    };
    request("first-line");
    assert_eventually!(find("first-line").is_some(), "no access line in {:?}", files());
    let current = find("first-line").unwrap();
    for (signal, id) in [(Signal::USR1, "after-usr1"), (Signal::HUP, "after-hup")] {
        // As logrotate does.
        let away = sandbox.path(&format!("away-{id}"));
        std::fs::rename(&current, &away).unwrap();
        daemon.signal(signal);
        assert_eventually!(current.exists(), "{signal:?}: the file is not made again");
        request(id);
        assert_eventually!(find(id).is_some(), "{signal:?}: lines still go to the old file");
        assert!(!std::fs::read_to_string(&away).unwrap().contains(id));
    }
    daemon.assert_well("after reopening");
}

#[test]
fn many_signals_at_once_do_no_harm() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &Conf::new());
    for _ in 0..200 {
        daemon.signal(Signal::HUP);
        daemon.signal(Signal::USR1);
        // A client that is gone sends SIGPIPE's cause; the signal itself must not matter either.
        daemon.signal(Signal::PIPE);
    }
    daemon.assert_well("after a storm of signals");
    assert_eq!(daemon.stop().code(), Some(0));
}
