//! A client that leaves, in every phase of its request: its upstream connection is closed within
//! 50 ms (median) and 250 ms (worst of 100), and nothing stays behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::mute::{Full, Mute};
use crate::support::peers::{Call, FakeUpstream, Gate, Step, answers};
use crate::support::process;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{Body, Wire};

/// Runs of each phase.
const RUNS: usize = 100;
const MEDIAN: Duration = Duration::from_millis(50);
const WORST: Duration = Duration::from_millis(250);

const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    /// Closes: FIN.
    Close,
    /// Closes with a reset.
    Reset,
    /// Shuts down its sending side: after a complete request that means gone, as nginx takes it.
    HalfClose,
    /// Sends the start of another request and closes: bytes are waiting in front of the FIN.
    CloseBehindBytes,
}

impl Leave {
    fn nth(n: usize) -> Leave {
        [Leave::Close, Leave::Reset, Leave::HalfClose, Leave::CloseBehindBytes][n % 4]
    }

    /// Leaves, and gives the moment, and the connection if it is still half open.
    fn go(self, mut wire: Wire) -> (Instant, Option<Wire>) {
        if matches!(self, Leave::CloseBehindBytes) {
            wire.send("GET /api/ver");
        }
        let now = Instant::now();
        match self {
            Leave::Close | Leave::CloseBehindBytes => drop(wire),
            Leave::Reset => wire.reset(),
            Leave::HalfClose => {
                wire.finish_sending();
                return (now, Some(wire));
            }
        }
        (now, None)
    }
}

/// Prints the figures and fails when they are too large.
fn judge(daemon: &Daemon, phase: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, worst) = (times[times.len() / 2], *times.last().unwrap());
    eprintln!("client gone, {phase}: median {median:.1?}, worst {worst:.1?} of {}", times.len());
    assert!(median < daemon.allow(MEDIAN), "{phase}: median {median:?}");
    assert!(worst < daemon.allow(WORST), "{phase}: worst {worst:?}");
}

/// Runs `one` 100 times, four at a time.
fn runs(one: impl Fn(usize) -> Duration + Sync) -> Vec<Duration> {
    let next = AtomicUsize::new(0);
    let times = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= RUNS {
                        return;
                    }
                    let time = one(n);
                    times.lock().unwrap().push(time);
                }
            });
        }
    });
    let times = times.into_inner().unwrap();
    assert_eq!(times.len(), RUNS);
    times
}

/// A phase in which the upstream holds the request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Head,
    HeadSent,
    FirstToken,
    Flowing,
    BetweenEvents,
    Whole,
    HalfOfWhole,
}

const PHASES: [Phase; 7] = [
    Phase::Head,
    Phase::HeadSent,
    Phase::FirstToken,
    Phase::Flowing,
    Phase::BetweenEvents,
    Phase::Whole,
    Phase::HalfOfWhole,
];

impl Phase {
    fn stream(self) -> bool {
        !matches!(self, Phase::Whole | Phase::HalfOfWhole)
    }

    fn named(name: &str) -> Phase {
        PHASES.into_iter().find(|phase| format!("{phase:?}") == name).unwrap()
    }

    fn script(self, call: &Call) -> Vec<Step> {
        let head = Step::Send(answers::stream_head(call.dialect));
        let opening = Step::Send(answers::chunk(&answers::opening(call)));
        let word = answers::chunk(&answers::text(call, "word "));
        match self {
            Phase::Head | Phase::Whole => vec![Step::Silence],
            Phase::HeadSent => vec![head, Step::Silence],
            Phase::FirstToken => vec![head, opening, Step::Silence],
            Phase::Flowing => vec![head, opening, Step::Repeat(word, Duration::from_millis(5))],
            Phase::BetweenEvents => vec![head, opening, Step::Send(word), Step::Silence],
            Phase::HalfOfWhole => {
                let body = answers::whole_json(call, "text").to_string();
                let bytes = answers::whole(200, "", body.as_bytes());
                vec![Step::Send(bytes[..bytes.len() - 10].to_vec()), Step::Silence]
            }
        }
    }
}

fn assert_nothing_held(daemon: &Daemon) {
    let limits = [
        "server.exchanges_max",
        "upstream.concurrency_max",
        "upstream.waiting_max",
        "server.connections_max",
    ];
    assert_eventually!(
        limits.iter().all(|limit| daemon.limit_now(limit) == 0),
        "still held: {:?}",
        daemon.metrics().held()
    );
}

#[test]
fn a_client_that_leaves_in_any_phase_frees_its_upstream_at_once() {
    let sandbox = Sandbox::alone();
    let upstreams = DIALECTS.map(|dialect| {
        FakeUpstream::start(dialect, |call| {
            answers::catalog(call).unwrap_or_else(|| Phase::named(call.model()).script(call))
        })
    });
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    for phase in PHASES {
        let times = runs(|n| {
            let upstream = n / 4 % 2;
            let client = DIALECTS[n / 8 % 2];
            let model = format!("{}/{phase:?}", ["oa", "ol"][upstream]);
            let prompt = format!("{phase:?} {n}");
            let mut wire = daemon.connect();
            wire.send(ask::chat(client, &model, &prompt, phase.stream()));
            upstreams[upstream].wait_seen(&prompt);
            if matches!(phase, Phase::Flowing | Phase::BetweenEvents) {
                let head = wire.head().unwrap();
                let mut body = Body::of(&head, "POST").unwrap();
                wire.piece(&mut body).unwrap().unwrap();
            } else {
                // Give the gateway the time to be in this phase, not at its door.
                std::thread::sleep(Duration::from_millis(10));
            }
            let leave = Leave::nth(n);
            let (left, still) = leave.go(wire);
            let closed = upstreams[upstream].wait_closed(&prompt);
            let closed =
                closed.unwrap_or_else(|| panic!("{phase:?} {leave:?}: the upstream runs on"));
            if let Some(mut wire) = still {
                assert!(
                    wire.closes_within(Duration::from_secs(2)),
                    "the half-closed client is left hanging"
                );
            }
            closed.saturating_duration_since(left)
        });
        judge(&daemon, &format!("{phase:?}"), times);
    }
    assert_nothing_held(&daemon);
    assert_eq!(
        upstreams.iter().map(|u| u.seen().len()).sum::<usize>(),
        PHASES.len() * RUNS,
        "asked again"
    );
    daemon.assert_well("after all left");
}

#[test]
fn a_client_that_leaves_while_it_waits_for_a_permit_is_forgotten_at_once() {
    let sandbox = Sandbox::alone();
    let gate = Gate::new();
    let opener = gate.clone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        [vec![Step::Until(gate.clone())], answers::good(call, "hello")].concat()
    });
    let conf = Conf::new().server("waiting_timeout = \"60s\"").fake(
        "u",
        &upstream,
        "concurrency_max = 1\nfirst_token_timeout = \"60s\"\nanswer_timeout = \"60s\"",
    );
    let daemon = Daemon::start(&sandbox, &conf);
    let mut holder = daemon.connect();
    holder.send(ask::chat(Dialect::OpenAi, "u/x", "holder", false));
    upstream.wait_seen("holder");
    let mut times = Vec::new();
    for n in 0..RUNS {
        let mut wire = daemon.connect();
        wire.send(ask::chat(DIALECTS[n / 4 % 2], "u/x", &format!("waiter {n}"), n % 3 == 0));
        assert_eventually!(daemon.limit_now("upstream.waiting_max") == 1, "it does not wait");
        let (left, still) = Leave::nth(n).go(wire);
        assert_eventually!(
            daemon.limit_now("upstream.waiting_max") == 0,
            "it waits on after its client left"
        );
        times.push(left.elapsed());
        drop(still);
    }
    judge(&daemon, "waiting for a permit", times);
    opener.open();
    assert_eq!(holder.answer().unwrap().status(), 200);
    drop(holder);
    assert_nothing_held(&daemon);
    assert_eq!(
        upstream.seen().len(),
        1,
        "a client that left reached the upstream: {:#?}",
        upstream.seen()
    );
}

#[test]
fn a_client_that_leaves_while_the_gateway_connects_ends_the_attempt() {
    let sandbox = Sandbox::alone();
    let full = Full::start();
    let mute = Mute::start();
    let lines = "connect_timeout = \"30s\"";
    let conf = Conf::new()
        .upstream("full", "openai", &format!("http://{}/v1", full.addr()), lines)
        .upstream("mute", "openai", &format!("https://{}/v1", mute.addr()), lines);
    let daemon = Daemon::start(&sandbox, &conf);
    let port = full.addr().port();
    let attempts = |upstream: &str| {
        let labels = [("limit", "upstream.concurrency_max"), ("owner", upstream)];
        daemon.metrics().sum("tidegate_limit_now", &labels).unwrap_or(0.0)
    };
    let mut times = Vec::new();
    for n in 0..RUNS {
        let mut wire = daemon.connect();
        wire.send(ask::chat(DIALECTS[n / 4 % 2], "full/x", "hi", n % 3 == 0));
        assert_eventually!(
            attempts("full") == 1.0 && process::connecting_to(port),
            "it does not connect"
        );
        let (left, still) = Leave::nth(n).go(wire);
        assert_eventually!(attempts("full") == 0.0, "it connects on after its client left");
        times.push(left.elapsed());
        drop(still);
    }
    judge(&daemon, "connecting (TCP)", times);
    // The catalog tries for a few seconds at most; nobody else is left.
    assert_eventually!(!process::connecting_to(port), "a socket still tries to connect");
    let mut times = Vec::new();
    for n in 0..RUNS {
        // The catalog connects now and then, too: those before do not count.
        let before = mute.taken().len();
        let mut wire = daemon.connect();
        wire.send(ask::chat(DIALECTS[n / 4 % 2], "mute/x", "hi", n % 3 == 0));
        assert_eventually!(mute.taken()[before..].iter().any(|taken| taken.spoke_at.is_some()));
        std::thread::sleep(Duration::from_millis(3));
        let (left, still) = Leave::nth(n).go(wire);
        let closed = || mute.taken()[before..].iter().filter_map(|taken| taken.closed_at).min();
        assert_eventually!(closed().is_some(), "the handshake goes on without its client");
        times.push(closed().unwrap().saturating_duration_since(left));
        drop(still);
    }
    judge(&daemon, "connecting (TLS)", times);
    assert_nothing_held(&daemon);
}

#[test]
fn a_client_that_leaves_echo_ends_it_too() {
    let sandbox = Sandbox::alone();
    let conf = Conf::new().upstream("slow", "echo", "", "word_delay = \"100ms\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let prompt = "word ".repeat(600);
    let mut times = Vec::new();
    for n in 0..20 {
        let mut wire = daemon.connect();
        wire.send(ask::chat(DIALECTS[n / 4 % 2], "slow/echo", &prompt, true));
        let head = wire.head().unwrap();
        wire.piece(&mut Body::of(&head, "POST").unwrap()).unwrap();
        assert_eventually!(daemon.limit_now("server.exchanges_max") == 1);
        let (left, still) = Leave::nth(n).go(wire);
        assert_eventually!(
            daemon.limit_now("server.exchanges_max") == 0,
            "echo talks on to nobody"
        );
        times.push(left.elapsed());
        drop(still);
    }
    judge(&daemon, "echo", times);
}

/// What was used until then is told, by estimate, and nobody is blamed for it.
#[test]
fn a_client_that_left_is_logged_as_that_and_not_as_a_failure() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        answers::catalog(call).unwrap_or_else(|| Phase::Flowing.script(call))
    });
    let fallback = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "no"));
    let conf = Conf::new()
        .log("format = \"json\"")
        .fake("u", &upstream, "")
        .fake("f", &fallback, "")
        .model("m", "u/x", &["f/x"]);
    let daemon = Daemon::start(&sandbox, &conf);
    let mut wire = daemon.connect();
    wire.send(ask::chat(Dialect::OpenAi, "m", "leaver", true));
    let head = wire.head().unwrap();
    let mut body = Body::of(&head, "POST").unwrap();
    for _ in 0..5 {
        wire.piece(&mut body).unwrap().unwrap();
    }
    drop(wire);
    assert_eventually!(daemon.log().contains("client_gone"), "{}", daemon.log());
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains("\"access\""))
        .unwrap_or_else(|| panic!("no access line: {log}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["outcome"], json!("client_gone"), "{line}");
    assert_eq!(fallback.seen().len(), 0, "a client that left must not move on along the chain");
}
