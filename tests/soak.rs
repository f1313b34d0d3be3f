//! A soak: mixed traffic with faults, cancels, reloads and cache churn, after which nothing is left
//! over and nothing has grown.
//!
//! `TIDEGATE_SOAK_SECONDS` makes it longer than the half minute that it has among the other tests;
//! `make soak` gives it ten minutes of a release build.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::process::Process;
use crate::support::random::{Random, percent_of};
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::Wire;
use crate::support::{ask, patience};

/// Clients at once.
const CLIENTS: usize = 12;

/// Between two reloads.
const RELOAD: Duration = Duration::from_millis(1500);

/// Growth from one end of the soak to the other that is taken for noise. In half a minute it matters
/// when the last large bodies were there, whose memory goes back some seconds later.
const RSS_KIB: f64 = 6.0 * 1024.0;
const RSS_KIB_SHORT: f64 = 20.0 * 1024.0;
const SHORT: Duration = Duration::from_secs(300);
const THREADS: f64 = 6.0;
const DESCRIPTORS: f64 = 6.0;

fn time() -> Duration {
    let text = std::env::var("TIDEGATE_SOAK_SECONDS").ok();
    Duration::from_secs(text.and_then(|text| text.parse().ok()).unwrap_or(30))
}

/// An upstream with a bad day: what it does depends on the prompt alone.
fn moody(call: &Call) -> Vec<Step> {
    if let Some(catalog) = answers::catalog(call) {
        return catalog;
    }
    let error =
        |status, text: &str| answers::json_answer(status, &json!({"error": {"message": text}}));
    let mut good = answers::good(call, "one two three four five six seven eight");
    match percent_of(&format!("{}{}", call.path, call.prompt())) {
        0..4 => error(500, "a bad day"),
        4..6 => error(429, "too much"),
        6..8 => vec![Step::Close],
        8..10 => vec![Step::Reset],
        10..12 => {
            good.truncate(good.len().div_ceil(2));
            good.push(Step::Reset);
            good
        }
        12..13 => {
            good.truncate(good.len().div_ceil(2));
            good.push(Step::Silence);
            good
        }
        13..14 => vec![Step::Silence],
        14..16 => vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong".to_vec())],
        16..30 => [vec![Step::Pause(Duration::from_millis(30))], good].concat(),
        _ => good,
    }
}

/// What the config is after `round` reloads: upstreams come and go, limits change, and one in three
/// is broken.
fn conf(upstreams: &[FakeUpstream; 2], round: u64) -> Conf {
    let settings = "first_token_timeout = \"300ms\"\nanswer_timeout = \"300ms\"\nidle_timeout = \"300ms\"\nbreaker = true";
    let more = format!("{settings}\nconcurrency_max = {}", 40 + round % 5);
    let mut conf = Conf::new()
        .server(&format!("exchanges_max = {}\nearly_head = \"200ms\"", 200 + round % 7))
        .fake("a", &upstreams[0], settings)
        .fake("b", &upstreams[1], &more)
        .model("m", "a/x", &["b/y"])
        .model("n", "b/x", &["a/y"]);
    if round % 2 == 1 {
        conf = conf.fake(&format!("guest-{}", round % 50), &upstreams[0], "");
    }
    match round % 6 {
        2 => conf.text("nonsense = true"),
        5 => conf.text("[[model]]\nname = \"broken\"\nprimary = \"nobody/x\""),
        _ => conf,
    }
}

/// One request of many kinds; says which, and what came of it.
fn one(daemon: &Daemon, wire: &mut Option<Wire>, random: &mut Random) -> (&'static str, u16) {
    let dialect = if random.below(2) == 0 { Dialect::OpenAi } else { Dialect::Ollama };
    let model = if random.below(2) == 0 { "m" } else { "n" };
    let prompt = format!("p{}", random.number());
    let mut open = wire.take().unwrap_or_else(|| Wire::connect(daemon.addr));
    let (kind, request) = match random.below(100) {
        0..30 => ("whole", ask::chat(dialect, model, &prompt, false)),
        30..62 => ("stream", ask::chat(dialect, model, &prompt, true)),
        62..72 => {
            // Few texts, so that some are asked for again, and many, so that others must go.
            let text = format!("e{}", random.below(400));
            ("embed", ask::post("/v1/embeddings", &json!({"model": model, "input": text})))
        }
        72..78 => ("list", ask::get("/v1/models")),
        78..82 => ("bad", ask::post("/v1/chat/completions", &json!({"model": 7}))),
        82..84 => ("unknown", ask::chat(dialect, &prompt, "hello", false)),
        84..85 => ("large", ask::chat(dialect, model, &"x".repeat(2_000_000), false)),
        85..90 => {
            let head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
            open.send(head);
            return ("torn", 0);
        }
        90..95 => {
            open.send(ask::chat(dialect, model, &prompt, true));
            return ("left at once", 0);
        }
        _ => {
            open.send(ask::chat(dialect, model, &prompt, true));
            let _ = open.head();
            return ("left within", 0);
        }
    };
    open.send(&request);
    let answer = match open.answer() {
        Ok(answer) => answer,
        Err(fault) => panic!("{kind}: no answer: {fault:?}"),
    };
    if kind == "stream" && answer.status() == 200 {
        let stream = Stream::of(dialect, &answer);
        assert!(stream.rest.is_empty(), "half an event: {:?}", stream.rest);
    }
    if answer.header("connection") != Some("close") {
        *wire = Some(open);
    }
    (kind, answer.status())
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    rss_kib: f64,
    threads: f64,
    descriptors: f64,
}

impl Held {
    fn now(process: Process) -> Held {
        Held {
            rss_kib: process.rss_kib() as f64,
            threads: process.threads().len() as f64,
            descriptors: process.fds() as f64,
        }
    }
}

/// The slope through evenly spaced values, times their number: the growth from one end to the
/// other. The median of all pairs' slopes (Theil and Sen), which single bursts do not move.
fn growth(values: &[f64]) -> f64 {
    let mut slopes = Vec::new();
    for (i, a) in values.iter().enumerate() {
        for (j, b) in values.iter().enumerate().skip(i + 1) {
            slopes.push((b - a) / (j - i) as f64);
        }
    }
    slopes.sort_unstable_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0) * values.len() as f64
}

#[test]
fn growth_is_the_trend_and_not_the_noise() {
    let flat: Vec<f64> = (0..100).map(|i| if i % 10 == 0 { 900.0 } else { 100.0 }).collect();
    assert_eq!(growth(&flat), 0.0);
    let steady: Vec<f64> = (0..100).map(|i| 100.0 + f64::from(i)).collect();
    assert!((growth(&steady) - 100.0).abs() < 1e-9);
}

#[test]
fn mixed_traffic_leaves_nothing_behind_and_nothing_grows() {
    let sandbox = Sandbox::alone();
    let upstreams = [
        FakeUpstream::start_forgetful(Dialect::OpenAi, moody),
        FakeUpstream::start_forgetful(Dialect::Ollama, moody),
    ];
    let daemon = Daemon::start(&sandbox, &conf(&upstreams, 0));
    let process = daemon.process();
    let end = Instant::now() + time();
    let over = AtomicBool::new(false);
    let (kinds, samples) = std::thread::scope(|scope| {
        let client = |number: u64| {
            let daemon = &daemon;
            move || {
                let mut random = Random::new(number);
                let mut wire = None;
                let mut kinds: BTreeMap<(&str, u16), usize> = BTreeMap::new();
                while Instant::now() < end {
                    let seen = one(daemon, &mut wire, &mut random);
                    *kinds.entry(seen).or_default() += 1;
                    if random.below(50) == 0 {
                        std::thread::sleep(Duration::from_millis(random.below(100)));
                    }
                }
                kinds
            }
        };
        let clients: Vec<_> = (0..CLIENTS as u64).map(|n| scope.spawn(client(n))).collect();
        let reloads = scope.spawn(|| {
            let mut round = 0;
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(RELOAD);
                round += 1;
                daemon.rewrite(&conf(&upstreams, round));
                daemon.signal(Signal::HUP);
            }
            round
        });
        let samples = scope.spawn(|| {
            let mut samples = Vec::new();
            while !over.load(Ordering::SeqCst) {
                samples.push(Held::now(process));
                std::thread::sleep(Duration::from_millis(500));
            }
            samples
        });
        let mut kinds: BTreeMap<(&str, u16), usize> = BTreeMap::new();
        for client in clients {
            for (kind, count) in client.join().unwrap() {
                *kinds.entry(kind).or_default() += count;
            }
        }
        over.store(true, Ordering::SeqCst);
        eprintln!("soak: {} reloads", reloads.join().unwrap());
        (kinds, samples.join().unwrap())
    });
    let requests: usize = kinds.values().sum();
    eprintln!("soak: {requests} requests in {:?}: {kinds:?}", time());
    for (kind, status) in kinds.keys() {
        // What an upstream's bad day may come to when its fallback has one too.
        assert!(
            matches!(status, 0 | 200 | 400 | 404 | 429 | 500 | 502 | 503 | 504),
            "{kind}: {status}"
        );
    }
    assert!(kinds[&("whole", 200)] > 10 && kinds[&("stream", 200)] > 10, "hardly any traffic");

    // The first part fills pools and caches.
    let settled = &samples[samples.len() / 3..];
    let (first, last) = (settled[0], settled[settled.len() - 1]);
    let trend = |value: fn(&Held) -> f64| growth(&settled.iter().map(value).collect::<Vec<_>>());
    let rss = trend(|held| held.rss_kib);
    let threads = trend(|held| held.threads);
    let descriptors = trend(|held| held.descriptors);
    eprintln!(
        "soak: growth over {} samples: {rss:.0} KiB, {threads:.1} threads, {descriptors:.1} descriptors; \
         first {first:?}, last {last:?}",
        settled.len()
    );
    let bound = if time() < SHORT { RSS_KIB_SHORT } else { RSS_KIB };
    assert!(rss < bound, "memory grows by {rss} KiB");
    assert!(threads < THREADS, "threads grow by {threads}");
    assert!(descriptors < DESCRIPTORS, "descriptors grow by {descriptors}");

    // Nothing is held by anybody any more.
    for limit in [
        "upstream.concurrency_max",
        "upstream.waiting_max",
        "server.exchanges_max",
        "server.waiting_max",
        "server.bodies_total_max",
        "server.queue_max",
    ] {
        let deadline = Instant::now() + patience(Duration::from_secs(15));
        while daemon.limit_now(limit) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(daemon.limit_now(limit), 0, "{limit} is still held");
    }
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
    let panics = daemon.metrics().sum("tidegate_panics_total", &[]).unwrap_or(0.0);
    assert!(panics == 0.0, "{panics} panics");
    assert!(process.alive());
}
