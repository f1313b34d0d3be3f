//! A storm: twice as many clients as there is room for, and an upstream that fails and stalls.
//!
//! `TIDEGATE_STORM_SECONDS` makes it longer than the few seconds that it has among the other tests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::random::percent_of;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::Wire;
use crate::support::{ask, patience};

/// Clients at once; the upstream takes half as many.
const CLIENTS: usize = 64;
const PERMITS: usize = CLIENTS / 2;

/// What a good answer takes.
const SERVICE: Duration = Duration::from_millis(40);

/// How long the primary is waited for: what a stalled attempt costs.
const ANSWER: Duration = Duration::from_millis(400);

/// The request's own deadline, and what the machine may add to it.
const REQUEST: Duration = Duration::from_secs(5);
const SLACK: Duration = Duration::from_secs(1);

fn seconds() -> Duration {
    let text = std::env::var("TIDEGATE_STORM_SECONDS").ok();
    Duration::from_secs(text.and_then(|text| text.parse().ok()).unwrap_or(6))
}

/// Fails a fifth of the calls and stalls a twentieth, by their prompt.
fn faulty(call: &Call) -> Vec<Step> {
    if let Some(catalog) = answers::catalog(call) {
        return catalog;
    }
    match percent_of(call.prompt()) {
        0..20 => answers::json_answer(500, &serde_json::json!({"error": {"message": "storm"}})),
        20..25 => vec![Step::Silence],
        _ => slowly(call),
    }
}

fn slowly(call: &Call) -> Vec<Step> {
    if let Some(catalog) = answers::catalog(call) {
        return catalog;
    }
    let mut steps = vec![Step::Pause(SERVICE)];
    steps.extend(answers::good(call, "an answer"));
    steps
}

/// What the clients of one phase saw.
#[derive(Default)]
struct Seen {
    /// Times of the answered.
    times: Vec<Duration>,
    /// Refusals by status and code.
    refused: BTreeMap<(u16, String), usize>,
    worst: Duration,
    stalled_or_failed: usize,
}

impl Seen {
    fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.times.len() + self.refused.values().sum::<usize>()
    }
}

/// `clients` ask one after another for `time`.
fn drive(daemon: &Daemon, name: &str, clients: usize, time: Duration) -> Seen {
    let end = Instant::now() + time;
    let all = std::thread::scope(|scope| {
        let client = |number: usize| {
            move || {
                let mut seen = Seen::default();
                let mut wire: Option<Wire> = None;
                for round in 0.. {
                    if Instant::now() >= end {
                        break;
                    }
                    let mut open = wire.take().unwrap_or_else(|| Wire::connect(daemon.addr));
                    let prompt = format!("{name} {number} {round}");
                    seen.stalled_or_failed += usize::from(percent_of(&prompt) < 25);
                    let begun = Instant::now();
                    open.send(ask::chat(Dialect::OpenAi, "m", &prompt, false));
                    let answer = open.answer().unwrap_or_else(|fault| {
                        panic!("no answer to {prompt} after {:?}: {fault:?}", begun.elapsed())
                    });
                    let took = begun.elapsed();
                    seen.worst = seen.worst.max(took);
                    if answer.status() == 200 {
                        let text = answer.json();
                        assert_eq!(ask::whole_text(Dialect::OpenAi, &text), "an answer");
                        seen.times.push(took);
                    } else {
                        let key = (answer.status(), answer.code());
                        if matches!(key.0, 429 | 503) {
                            let after = answer.header("retry-after").map(str::parse::<u64>);
                            assert!(matches!(after, Some(Ok(1..=60))), "{:?}", answer.head);
                        }
                        *seen.refused.entry(key).or_default() += 1;
                    }
                    if answer.header("connection") != Some("close") {
                        wire = Some(open);
                    }
                }
                seen
            }
        };
        let threads: Vec<_> = (0..clients).map(|number| scope.spawn(client(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut sum = Seen::default();
    for seen in all {
        sum.times.extend(seen.times);
        sum.worst = sum.worst.max(seen.worst);
        sum.stalled_or_failed += seen.stalled_or_failed;
        for (key, count) in seen.refused {
            *sum.refused.entry(key).or_default() += count;
        }
    }
    eprintln!(
        "{name}: {} answered, p50 {:?}, p99 {:?}, worst {:?}; refused {:?}",
        sum.times.len(),
        sum.percentile(50),
        sum.percentile(99),
        sum.worst,
        sum.refused
    );
    sum
}

#[test]
fn at_twice_the_capacity_everybody_is_answered_or_refused_in_time() {
    let sandbox = Sandbox::alone();
    let primary = FakeUpstream::start_forgetful(Dialect::OpenAi, faulty);
    let second = FakeUpstream::start_forgetful(Dialect::Ollama, slowly);
    let ms = ANSWER.as_millis();
    // With the breakers that people have.
    let settings =
        format!("concurrency_max = {PERMITS}\nanswer_timeout = \"{ms}ms\"\nbreaker = true");
    let conf = Conf::new()
        .server(&format!("request_timeout = \"{}s\"", REQUEST.as_secs()))
        .fake("primary", &primary, &settings)
        .fake("second", &second, &settings)
        .model("m", "primary/x", &["second/y"]);
    let daemon = Daemon::start(&sandbox, &conf);
    drive(&daemon, "warm", 4, Duration::from_millis(500));
    let alone = drive(&daemon, "unloaded", 8, seconds() / 2);

    let over = AtomicBool::new(false);
    let probes = AtomicUsize::new(0);
    let (seen, mut live) = std::thread::scope(|scope| {
        let prober = scope.spawn(|| {
            let mut times = Vec::new();
            let mut wire = Wire::connect(daemon.ops);
            while !over.load(Ordering::SeqCst) {
                let begun = Instant::now();
                assert_eq!(wire.ask(ask::get("/livez")).status(), 200);
                times.push(begun.elapsed());
                probes.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
            }
            times
        });
        let before = (primary.calls(), second.calls(), daemon.metrics());
        let seen = drive(&daemon, "storm", CLIENTS, seconds());
        over.store(true, Ordering::SeqCst);
        let after = (primary.calls(), second.calls(), daemon.metrics());
        let retries = |metrics: &crate::support::metrics::Metrics| {
            metrics.sum("tidegate_upstream_retries_total", &[]).unwrap_or(0.0)
        };
        let retried = retries(&after.2) - retries(&before.2);
        eprintln!(
            "storm: {} requests, {} calls at the primary, {} at the fallback, {retried} retries",
            seen.count(),
            after.0 - before.0,
            after.1 - before.1,
        );
        assert!(retried <= 0.2 * seen.count() as f64, "{retried} retries");
        // Each upstream is asked once for a request at most.
        let allowed = seen.count() + retried as usize + CLIENTS;
        assert!(after.0 - before.0 <= allowed, "the primary was asked again and again");
        assert!(after.1 - before.1 <= allowed, "the fallback was asked again and again");
        (seen, prober.join().unwrap())
    });
    assert!(probes.load(Ordering::SeqCst) > 10);
    live.sort_unstable();
    let live = (live[live.len() * 99 / 100], live[live.len() - 1]);
    eprintln!("storm: /livez p99 {:?}, worst {:?}", live.0, live.1);
    assert!(live.0 < daemon.allow(Duration::from_millis(10)), "/livez took {:?}", live.0);

    assert!(seen.worst < REQUEST + patience(SLACK), "somebody waited for {:?}", seen.worst);
    assert!(seen.times.len() > CLIENTS, "hardly anybody was answered");
    for (status, code) in seen.refused.keys() {
        assert!(matches!(status, 429 | 500 | 503 | 504), "{status} {code} is no clean refusal");
    }
    let bound = 2 * alone.percentile(99);
    let p99 = seen.percentile(99);
    assert!(p99 <= daemon.allow(bound), "p99 {p99:?}, unloaded {:?}", alone.percentile(99));
    for limit in ["upstream.concurrency_max", "upstream.waiting_max", "server.exchanges_max"] {
        assert_eventually!(daemon.limit_now(limit) == 0, "{limit} is still held");
    }
    daemon.assert_well("after the storm");
}
