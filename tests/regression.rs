//! Defects that were found by reading, one test for each.

use std::time::{Duration, Instant};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::{Dialect, Stream};

/// Many events at once: more than the gateway reads in one go, so that there is always more to read.
fn flood(call: &crate::support::peers::upstream::Call) -> Step {
    let event = answers::text(call, " x").repeat(1000);
    Step::Repeat(answers::chunk(&event), Duration::ZERO)
}

/// A deadline was only looked at when there was nothing to read.
#[test]
fn an_upstream_that_never_pauses_is_late_all_the_same() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        vec![Step::Send(answers::stream_head(call.dialect)), flood(call)]
    });
    let conf =
        Conf::new().fake("fast", &upstream, "total_timeout = \"500ms\"").model("m", "fast/m", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let began = Instant::now();
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", "hello", true));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let stream = Stream::of(Dialect::OpenAi, &answer);
    assert_eq!(stream.errors().len(), 1);
    assert_eq!(stream.terminators(), 0);
}

/// The message of an error was waited for until the first token's deadline.
#[test]
fn an_error_whose_body_does_not_come_moves_on_at_once() {
    let sandbox = Sandbox::new();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
                content-length: 1000\r\n\r\n{";
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |_| {
        vec![Step::Send(head.as_bytes().to_vec()), Step::Silence]
    });
    let conf = Conf::new().fake("mute", &upstream, "").model("m", "mute/m", &["echo/echo"]);
    let daemon = Daemon::start(&sandbox, &conf);
    for stream in [true, false] {
        let began = Instant::now();
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", "hello", stream));
        assert_eq!(answer.status(), 200);
        assert!(answer.text().contains("hello"), "{}", answer.text());
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

/// The most that a request lets the model say was charged to the upstream's minute as it stood, for up
/// to a year ahead: everybody else was refused until that request's end.
#[test]
fn one_request_for_endless_tokens_takes_no_more_than_a_minute_of_its_upstream() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let shut = gate.clone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| match call.prompt() {
        "greedy" => [vec![Step::Until(shut.clone())], answers::good(call, "hello")].concat(),
        _ => answers::good(call, "hello"),
    });
    let conf = Conf::new()
        .server("waiting_timeout = \"5m\"")
        .fake("up", &upstream, "tokens_per_minute = 60000")
        .model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let mut body = ask::chat_body("m", "greedy", false);
    body["max_tokens"] = 1_000_000_000_000_u64.into();
    let mut greedy = daemon.connect();
    greedy.send(ask::post(ask::chat_path(Dialect::OpenAi), &body));
    upstream.wait_seen("greedy");
    let mut other = daemon.connect();
    other.send(ask::chat(Dialect::OpenAi, "m", "other", false));
    // It waits for its moment, and is not told that there will be none.
    assert_eventually!(daemon.limit_now("upstream.rate_waiting_max") == 1);
    gate.open();
    assert_eq!(greedy.answer().unwrap().status(), 200);
    // What the first did not use is there again.
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "m", "third", false)).status(), 200);
}

/// A close that came together with the last bytes was not seen until the attempt's deadline.
#[test]
fn an_upstream_that_closes_within_its_head_is_seen_to_at_once() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        answers::catalog(call).unwrap_or_else(|| {
            vec![Step::Send(b"HTTP/1.1 200 OK\r\ncontent-ty".to_vec()), Step::Close]
        })
    });
    let conf =
        Conf::new().fake("cut", &upstream, "breaker = false").model("m", "cut/m", &["echo/echo"]);
    let daemon = Daemon::start(&sandbox, &conf);
    let began = Instant::now();
    let mut wire = daemon.connect();
    for _ in 0..50 {
        let answer = wire.ask(ask::chat(Dialect::OpenAi, "m", "hello", false));
        assert_eq!(answer.status(), 200);
    }
    assert!(began.elapsed() < daemon.allow(Duration::from_secs(10)), "{:?}", began.elapsed());
}

/// A client that asked for answers larger than `answer_max` opened the breaker for everybody.
#[test]
fn answers_that_are_too_large_for_us_open_no_breaker() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        let words = if call.prompt() == "much" { 2000 } else { 1 };
        answers::good(call, &"word ".repeat(words))
    });
    let conf = Conf::new()
        .fake("up", &upstream, "answer_max = \"4KiB\"\nbreaker_failures_max = 5")
        .model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..20 {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", "much", false));
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream_malformed"));
    }
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "m", "little", false)).status(), 200);
}

/// The probe of an address was over with its whole answer: until then every model was refused.
#[test]
fn an_upstream_that_is_back_is_asked_by_all_while_its_probe_waits_for_an_answer() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/v1");
    let lines = "breaker_open_time = \"100ms\"\nbreaker_open_time_max = \"100ms\"";
    let conf = Conf::new().upstream("up", "openai", &url, lines).model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let hello = |model| ask::chat(Dialect::OpenAi, model, "hello", false);
    assert_eventually!(daemon.ask(hello("m")).code() == "upstream_unavailable");
    // It is there again, and thinks.
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut thinking = Vec::new();
    let mut asking = Vec::new();
    assert_eventually!({
        let mut wire = daemon.connect();
        wire.send(hello(if asking.len() % 2 == 0 { "up/a" } else { "up/b" }));
        asking.push(wire);
        thinking.extend(listener.accept().ok());
        thinking.len() > 2
    });
}

/// Connecting for longer than a client's patience counted as no way to the upstream: a few such clients
/// opened the breaker of its address for everybody.
#[test]
fn impatient_clients_do_not_make_an_upstream_unreachable() {
    let sandbox = Sandbox::new();
    // It takes connections, and its time before it says anything.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}/v1", listener.local_addr().unwrap().port());
    let lines = "connect_timeout = \"1m\"\nbreaker_failures_max = 3";
    let conf = Conf::new().upstream("slow", "openai", &url, lines).model("m", "slow/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let body = ask::chat_body("m", "hello", false).to_string();
    let hurried = "x-stainless-read-timeout: 1\r\n";
    let path = ask::chat_path(Dialect::OpenAi);
    for _ in 0..5 {
        let answer = daemon.ask(ask::post_with(path, hurried, body.as_bytes()));
        assert_eq!(answer.status(), 504, "{}", answer.text());
    }
}

/// A call that a pump sent again counted as two requests: a quarter of all could be retries.
#[test]
fn a_request_that_is_sent_again_is_one_request_for_the_retry_budget() {
    const REQUESTS: usize = 200;
    let sandbox = Sandbox::new();
    let known = std::sync::Mutex::new(std::collections::HashSet::new());
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        answers::catalog(call).unwrap_or_else(|| {
            // A connection serves one call, and the next one finds it closed.
            match known.lock().unwrap().insert(call.connection) {
                true => answers::good(call, "hello"),
                false => vec![Step::Close],
            }
        })
    });
    let conf = Conf::new().fake("up", &upstream, "").model("m", "up/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let mut wire = daemon.connect();
    for _ in 0..REQUESTS {
        let answer = wire.ask(ask::chat(Dialect::OpenAi, "m", "hello", false));
        assert!(matches!(answer.status(), 200 | 502), "{}", answer.text());
    }
    let again = daemon.metrics().sum("tidegate_upstream_retries_total", &[("upstream", "up")]);
    let again = again.unwrap();
    assert!(again >= 10.0 && again <= REQUESTS as f64 / 5.0 + 3.0, "{again}");
}
