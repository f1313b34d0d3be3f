//! Circuit breakers and cool-downs: what a failing upstream still costs, and how it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command};
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::{Dialect, Stream};
use crate::support::wire;

const API: Dialect = Dialect::OpenAi;

/// How long a breaker of these tests stays open; a fifth less at the shortest.
const OPEN: Duration = Duration::from_millis(400);
const OPEN_SHORTEST: Duration = Duration::from_millis(320);
const BREAKER: &str = "breaker_open_time = \"400ms\"\nbreaker_open_time_max = \"400ms\"";
/// One that stays open for the rest of its test.
const BREAKER_LONG: &str = "breaker_open_time = \"10m\"\nbreaker_open_time_max = \"10m\"";

fn failing(call: &Call) -> Vec<Step> {
    answers::catalog(call).unwrap_or_else(|| {
        let body = serde_json::json!({"error": {"message": "out of memory", "type": "x"}});
        answers::json_answer(500, &body)
    })
}

fn hello(stream: bool) -> Vec<u8> {
    ask::chat(API, "m", "hello", stream)
}

/// The breaker of this model, as the ops plane shows it.
fn breaker(daemon: &Daemon, model: Option<&str>) -> Value {
    let answer = wire::ask(daemon.ops, ask::get("/breakers"));
    assert_eq!(answer.status(), 200);
    let document = answer.json();
    let find = |row: &&Value| row["upstream"] == "up" && row["model"].as_str() == model;
    document["breakers"].as_array().unwrap().iter().find(find).cloned().unwrap()
}

fn assert_refused(answer: &wire::Answer, cause: &str) {
    assert_eq!((answer.status(), answer.code().as_str()), (503, "upstream_unavailable"));
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(answer.header("x-should-retry"), None, "it was not even tried");
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(cause), "{message}");
    assert!(!message.contains("out of memory"), "an upstream's own words: {message}");
}

#[test]
fn a_dead_upstream_under_load_costs_only_its_probes_and_its_recovery_is_seen() {
    const CLIENTS: usize = 4;
    let sandbox = Sandbox::new();
    let dead = Arc::new(AtomicBool::new(true));
    let is_dead = Arc::clone(&dead);
    let upstream = FakeUpstream::start(API, move |call| {
        if is_dead.load(Ordering::SeqCst) { failing(call) } else { answers::good(call, "back") }
    });
    let conf = Conf::new().fake("up", &upstream, BREAKER).model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let revived = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut wire = daemon.connect();
                while !stop.load(Ordering::SeqCst) {
                    let answer = wire.ask(hello(false));
                    assert!(matches!(answer.status(), 200 | 500 | 503), "{}", answer.status());
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        std::thread::sleep(6 * OPEN);
        let revived = Instant::now();
        dead.store(false, Ordering::SeqCst);
        assert_eventually!(breaker(&daemon, Some("x"))["state"] == "closed");
        stop.store(true, Ordering::SeqCst);
        revived
    });
    let seen = upstream.seen();
    let first = seen[0].at;
    let died: Vec<_> = seen.iter().filter(|seen| seen.at < revived).collect();
    // Enough for a rate, and what was under way when it opened; then one in each open time.
    let intervals = revived.duration_since(first).as_millis() / OPEN_SHORTEST.as_millis();
    let most = 10 + CLIENTS + intervals as usize + 1;
    assert!(died.len() <= most, "{} calls, {most} are allowed", died.len());
    let asked = asked.into_inner();
    assert!(asked > 4 * most, "only {asked} requests: no load");
    // The first call after its recovery came within one open time of the one before it.
    let back = seen.iter().find(|seen| seen.at >= revived).unwrap();
    let gap = back.at.duration_since(died.last().unwrap().at);
    assert!(gap < daemon.allow(OPEN.mul_f64(1.2) + Duration::from_millis(250)), "{gap:?}");
    let metrics = daemon.metrics();
    let changes = |to| {
        let name = "tidegate_upstream_breaker_changes_total";
        metrics.sum(name, &[("upstream", "up"), ("to", to)]).unwrap()
    };
    assert!(changes("open") >= 2.0 && changes("half_open") >= 2.0, "{metrics:?}");
    assert_eq!(changes("closed"), 1.0);
    let state = "tidegate_upstream_breaker_state";
    assert_eq!(metrics.sum(state, &[("upstream", "up"), ("model", "x")]), Some(0.0));
    let skipped = metrics.sum("tidegate_upstream_skipped_total", &[("reason", "open")]).unwrap();
    assert!(skipped > 0.0 && skipped as usize + seen.len() == asked, "{skipped} of {asked}");
    let events = metrics.sum("tidegate_events_total", &[("kind", "breaker_opened")]);
    assert_eq!(events, Some(changes("open")));
}

#[test]
fn an_open_breaker_refuses_with_the_true_cause_and_shows_it() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, failing);
    let conf = Conf::new().fake("up", &upstream, BREAKER_LONG).model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..5 {
        assert_eq!(daemon.ask(hello(false)).status(), 500);
    }
    for stream in [false, true] {
        let answer = daemon.ask(hello(stream));
        assert_refused(&answer, "it answered 500 (upstream_error)");
        assert_eq!(answer.header("retry-after"), Some("60"), "no longer than clients wait");
    }
    assert_eq!(upstream.seen().len(), 5);
    // Another model of the same upstream is asked.
    assert_eq!(daemon.ask(ask::chat(API, "up/y", "hello", false)).status(), 500);
    let row = breaker(&daemon, Some("x"));
    assert_eq!(row["state"], "open");
    assert_eq!(row["last_failure"]["code"], "upstream_error");
    assert_eq!(row["last_failure"]["count"], 5);
    let message = row["last_failure"]["message"].as_str().unwrap();
    assert!(message.contains("out of memory"), "the operator sees all of it: {message}");
    assert_eq!(breaker(&daemon, None)["state"], "closed", "its address is well");
    let output = command(&sandbox).args(["breaker", "--ops"]).arg(daemon.ops.to_string()).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let line = text.lines().find(|line| line.contains(" x ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("open") && line.contains("upstream_error"), "{text}");
}

#[test]
fn an_address_that_cannot_be_reached_is_left_alone_for_every_model_and_the_chain_goes_on() {
    let sandbox = Sandbox::new();
    let url = format!("http://127.0.0.1:{}/v1", free_port());
    let conf = Conf::new().upstream("up", "openai", &url, BREAKER_LONG).text("").model(
        "m",
        "up/x",
        &["echo/echo"],
    );
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..20 {
        let answer = daemon.ask(hello(false));
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("x-tidegate-upstream"), Some("echo"));
    }
    let answer = daemon.ask(ask::chat(API, "up/other", "hello", false));
    assert_refused(&answer, "(upstream_connect)");
    assert_eq!(breaker(&daemon, None)["state"], "open");
    assert_eq!(breaker(&daemon, Some("x"))["state"], "closed", "its models have done nothing");
    let metrics = daemon.metrics();
    let labels = [("upstream", "up"), ("outcome", "upstream_connect")];
    let tried = metrics.sum("tidegate_upstream_attempts_total", &labels);
    assert_eq!(tried, Some(5.0), "the others skipped it at once");
    let skipped = metrics.sum("tidegate_upstream_skipped_total", &[("upstream", "up")]);
    assert_eq!(skipped, Some(16.0));
}

#[test]
fn streams_that_break_after_their_first_content_open_it() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, |call| {
        answers::catalog(call).unwrap_or_else(|| {
            vec![
                Step::Send(answers::stream_head(call.dialect)),
                Step::Send(answers::chunk(&answers::text(call, "word"))),
                // Long enough to flow on a pump.
                Step::Pause(Duration::from_millis(20)),
                Step::Send(answers::chunk(&answers::text(call, " word"))),
                Step::Close,
            ]
        })
    });
    let conf = Conf::new().fake("up", &upstream, BREAKER_LONG).model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..5 {
        let answer = daemon.ask(hello(true));
        let stream = Stream::of(API, &answer);
        assert_eq!((stream.content().as_str(), stream.errors().len()), ("word word", 1));
    }
    assert_eventually!(breaker(&daemon, Some("x"))["state"] == "open");
    assert_refused(&daemon.ask(hello(true)), "(upstream_cut)");
    assert_eq!(upstream.seen().len(), 5);
}

#[test]
fn a_retry_after_is_kept_to_and_a_429_opens_nothing() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, |call| {
        answers::catalog(call).unwrap_or_else(|| {
            let body = br#"{"error":{"message":"slow down","type":"x"}}"#;
            let wait = if call.model() == "waits" { "Retry-After: 1\r\n" } else { "" };
            vec![Step::Send(answers::whole(429, wait, body))]
        })
    });
    let conf = Conf::new().fake("up", &upstream, BREAKER_LONG).model("m", "up/waits", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    // Without a time to wait there is nothing to keep to.
    for _ in 0..30 {
        assert_eq!(daemon.ask(ask::chat(API, "up/plain", "hello", false)).status(), 429);
    }
    assert_eq!(breaker(&daemon, Some("plain"))["state"], "closed");
    assert_eq!(daemon.ask(hello(false)).status(), 429);
    let calls = || upstream.seen().into_iter().filter(|seen| seen.call.model() == "waits");
    // Asking again and again does not put its end off.
    assert_eventually!({
        let answer = daemon.ask(hello(false));
        if answer.status() == 503 {
            assert_refused(&answer, "as it asked for");
        }
        calls().count() == 3
    });
    let times: Vec<Instant> = calls().map(|seen| seen.at).collect();
    for pair in times.windows(2) {
        let gap = pair[1].duration_since(pair[0]);
        // A call may be noted late, and the next one not.
        let late = Duration::from_millis(10) + daemon.late();
        assert!(gap + late >= Duration::from_secs(1), "{gap:?} after a Retry-After of a second");
        assert!(gap < daemon.allow(Duration::from_secs(2)), "{gap:?}");
    }
    let row = breaker(&daemon, Some("waits"));
    assert_eq!((&row["state"], &row["failed"]), (&"closed".into(), &0.into()));
}

#[test]
fn a_probe_whose_client_leaves_makes_room_for_the_next_one() {
    let sandbox = Sandbox::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let upstream = FakeUpstream::start(API, move |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            0..5 => failing(call),
            5 => vec![Step::Silence],
            _ => answers::good(call, "back"),
        }
    });
    let conf = Conf::new().fake("up", &upstream, BREAKER).model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..5 {
        assert_eq!(daemon.ask(hello(false)).status(), 500);
    }
    // The first that is let pass is the probe; it hears nothing.
    let mut probe;
    loop {
        probe = daemon.connect();
        probe.send(hello(true));
        let is_probe = upstream.wait_for(Duration::from_millis(100), |seen| {
            let calls = seen.iter().filter(|seen| seen.call.method == "POST").count();
            (calls == 6).then_some(())
        });
        if is_probe.is_some() {
            break;
        }
    }
    let refused = daemon.ask(hello(false));
    assert_refused(&refused, "(upstream_error)");
    assert_eq!(breaker(&daemon, Some("x"))["state"], "half_open");
    drop(probe);
    assert_eventually!(daemon.ask(hello(false)).status() == 200);
    assert_eq!(calls.load(Ordering::SeqCst), 7, "the next one was let pass, and closed it");
    assert_eq!(breaker(&daemon, Some("x"))["state"], "closed");
}

#[test]
fn without_breakers_every_request_asks() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, failing);
    let conf = Conf::new().fake("up", &upstream, "breaker = false").model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..30 {
        assert_eq!(daemon.ask(hello(false)).status(), 500);
    }
    assert_eq!(upstream.seen().len(), 30);
}

#[test]
fn more_models_than_breakers_take_no_more_room() {
    const MODELS: usize = 300;
    const BREAKERS_MAX: u64 = 256;
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, failing);
    let conf = Conf::new().fake("up", &upstream, BREAKER_LONG).model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let mut wire = daemon.connect();
    for n in 0..MODELS {
        assert_eq!(wire.ask(ask::chat(API, &format!("up/x{n}"), "hello", false)).status(), 500);
    }
    let metrics = daemon.metrics();
    assert_eq!(metrics.limit("now", "upstream.breakers_max"), BREAKERS_MAX);
    assert!(metrics.limit("refused_total", "upstream.breakers_max") >= 1);
    // Declared models keep theirs.
    for _ in 0..5 {
        assert_eq!(wire.ask(hello(false)).status(), 500);
    }
    assert_refused(&wire.ask(hello(false)), "(upstream_error)");
}
