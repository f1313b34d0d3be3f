//! What an upstream is given: requests a minute, room, retries, and a limit that finds itself.

use std::time::{Duration, Instant};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::Dialect;

const API: Dialect = Dialect::OpenAi;

fn hello(prompt: &str) -> Vec<u8> {
    ask::chat(API, "m", prompt, false)
}

#[test]
fn requests_that_come_too_early_wait_for_their_moment_in_the_order_of_coming() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, |call| answers::good(call, "hello"));
    // Two a second, twelve at once.
    let conf =
        Conf::new().fake("up", &upstream, "requests_per_minute = 120").model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let begun = Instant::now();
    for n in 0..12 {
        assert_eq!(daemon.ask(hello(&n.to_string())).status(), 200);
    }
    let mut waiting = Vec::new();
    for n in 12..15 {
        let mut wire = daemon.connect();
        wire.send(hello(&n.to_string()));
        assert_eventually!(
            daemon.limit_now("upstream.rate_waiting_max") + upstream.seen().len() as u64 > n
        );
        waiting.push(wire);
    }
    for mut wire in waiting {
        assert_eq!(wire.answer().unwrap().status(), 200);
    }
    let seen = upstream.seen();
    let prompts: Vec<String> = seen.iter().map(|seen| seen.call.prompt().to_owned()).collect();
    assert_eq!(prompts, (0..15).map(|n| n.to_string()).collect::<Vec<_>>());
    // No earlier than the rate allows, whatever the machine does.
    for n in 12..15 {
        let least = Duration::from_millis(500 * (n - 11) - 10);
        let after = seen[n as usize].at.duration_since(begun);
        assert!(after >= least, "the {n}th came after {after:?}");
    }
    let metrics = daemon.metrics();
    let waits = metrics.sum("tidegate_upstream_rate_waits_total", &[("upstream", "up")]).unwrap();
    assert!((1.0..=3.0).contains(&waits), "{waits}");
    assert_eq!(metrics.sum("tidegate_wait_seconds_count", &[("for", "quota")]), Some(waits));
    assert_eventually!(daemon.log().contains(" waited_ms="));
}

#[test]
fn a_moment_that_is_too_far_away_goes_on_along_the_chain() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, |call| answers::good(call, "hello"));
    // One in ten seconds.
    let conf = Conf::new()
        .server("waiting_timeout = \"100ms\"")
        .fake("up", &upstream, "requests_per_minute = 6")
        .model("m", "up/x", &[])
        .model("two", "up/x", &["echo/echo"]);
    let daemon = Daemon::start(&sandbox, &conf);
    assert_eq!(daemon.ask(hello("first")).status(), 200);
    for _ in 0..5 {
        let answer = daemon.ask(hello("more"));
        assert_eq!((answer.status(), answer.code().as_str()), (503, "upstream_quota"));
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=10).contains(&seconds), "{seconds}");
        let answer = daemon.ask(ask::chat(API, "two", "more", false));
        assert_eq!(answer.header("x-tidegate-upstream"), Some("echo"));
    }
    assert_eq!(upstream.seen().len(), 1);
    let limited = daemon.metrics().sum("tidegate_upstream_rate_limited_total", &[]);
    assert_eq!(limited, Some(10.0));
}

#[test]
fn tokens_are_charged_by_what_answers_used() {
    let sandbox = Sandbox::new();
    // Each answer says that it used six tokens.
    let upstream = FakeUpstream::start(API, |call| answers::good(call, "hello"));
    let conf = Conf::new()
        .server("waiting_timeout = \"50ms\"")
        .fake("up", &upstream, "tokens_per_minute = 100")
        .model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    // Ten at once: the second fits by its estimate, and then they are used up.
    assert_eq!(daemon.ask(hello("a")).status(), 200);
    assert_eq!(daemon.ask(hello("b")).status(), 200);
    let answer = daemon.ask(hello("c"));
    assert_eq!((answer.status(), answer.code().as_str()), (503, "upstream_quota"));
}

#[test]
fn a_client_that_leaves_while_it_waits_is_gone_from_the_queue_at_once() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, |call| answers::good(call, "hello"));
    let conf = Conf::new()
        .server("waiting_timeout = \"5m\"")
        .fake("up", &upstream, "requests_per_minute = 1")
        .model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    assert_eq!(daemon.ask(hello("first")).status(), 200);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let mut wire = daemon.connect();
            wire.send(hello("waits"));
            wire
        })
        .collect();
    assert_eventually!(daemon.limit_now("upstream.rate_waiting_max") == 3);
    drop(waiting);
    assert_eventually!(daemon.limit_now("upstream.rate_waiting_max") == 0);
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn those_who_wait_for_room_are_served_in_order_and_whoever_leaves_holds_nobody_up() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let shut = gate.clone();
    let upstream = FakeUpstream::start(API, move |call| {
        if call.prompt() == "holder" {
            [vec![Step::Until(shut.clone())], answers::good(call, "hello")].concat()
        } else {
            answers::good(call, "hello")
        }
    });
    let conf = Conf::new().fake("up", &upstream, "concurrency_max = 1").model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let mut holder = daemon.connect();
    holder.send(hello("holder"));
    upstream.wait_seen("holder");
    let mut waiting = Vec::new();
    for n in 1..=4 {
        let mut wire = daemon.connect();
        wire.send(hello(&n.to_string()));
        assert_eventually!(daemon.limit_now("upstream.waiting_max") == n);
        waiting.push(wire);
    }
    // The first and the third leave.
    drop(waiting.remove(2));
    drop(waiting.remove(0));
    assert_eventually!(daemon.limit_now("upstream.waiting_max") == 2);
    gate.open();
    assert_eq!(holder.answer().unwrap().status(), 200);
    for wire in &mut waiting {
        assert_eq!(wire.answer().unwrap().status(), 200);
    }
    let prompts: Vec<String> =
        upstream.seen().iter().map(|seen| seen.call.prompt().to_owned()).collect();
    assert_eq!(prompts, ["holder", "2", "4"]);
    let count = daemon.metrics().sum("tidegate_wait_seconds_count", &[("for", "upstream")]);
    assert_eq!(count, Some(4.0), "those who left waited too");
    for limit in ["upstream.concurrency_max", "upstream.waiting_max"] {
        assert_eventually!(daemon.limit_now(limit) == 0, "{limit}");
    }
}

#[test]
fn a_failed_connect_is_tried_again_once_and_only_within_the_budget() {
    const REQUESTS: usize = 30;
    let sandbox = Sandbox::new();
    let url = format!("http://127.0.0.1:{}/v1", free_port());
    let conf = Conf::new().upstream("up", "openai", &url, "").model("m", "up/x", &["echo/echo"]);
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..REQUESTS {
        assert_eq!(daemon.ask(hello("hi")).status(), 200);
    }
    let metrics = daemon.metrics();
    let sum = |name| metrics.sum(name, &[("upstream", "up")]).unwrap();
    let (again, refused) =
        (sum("tidegate_upstream_retries_total"), sum("tidegate_upstream_retries_refused_total"));
    // A fifth, and at least three in ten seconds.
    assert!(again >= 3.0 && again <= REQUESTS as f64 / 5.0 + 3.0, "{again}");
    assert_eq!(again + refused, REQUESTS as f64);
}

#[test]
fn an_upstream_that_says_it_is_overloaded_is_given_less_at_once() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(API, |call| {
        answers::catalog(call).unwrap_or_else(|| {
            answers::json_answer(503, &serde_json::json!({"error": {"message": "overloaded"}}))
        })
    });
    let lines = "concurrency_adaptive = true\nconcurrency_min = 2\nconcurrency_max = 10";
    let conf = Conf::new().fake("up", &upstream, lines).model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let limit = || {
        let labels = [("limit", "upstream.concurrency_max"), ("owner", "up")];
        daemon.metrics().sum("tidegate_limit_max", &labels).unwrap()
    };
    assert_eq!(limit(), 10.0);
    assert_eventually!({
        assert_eq!(daemon.ask(hello("hi")).status(), 503);
        limit() < 9.0
    });
    assert!(limit() >= 2.0);
}
