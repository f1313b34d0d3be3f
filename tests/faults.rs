//! Every fault of an upstream, with every dialect on both sides, streamed and whole, before and
//! after the commit point: before it the fallback answers and the client sees one normal answer;
//! after it the client sees an in-band error within the deadline, and no terminator.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::faults::{self, ANSWER_MAX, Fault};
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::{Answer, Wire};

const LINE_MAX: usize = 64 * 1024;
/// First token, answer and idle.
const DEADLINE: Duration = Duration::from_millis(400);
const CONNECT: Duration = Duration::from_millis(300);
/// What the spec allows on top of a deadline.
const GRACE: Duration = Duration::from_millis(250);
/// How many cases run at once.
const ABREAST: usize = 16;

const BAD_WORDS: [&str; 3] = ["one", " two", " three"];
const GOOD_TEXT: &str = "the fallback answers";

const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

#[derive(Clone, Copy, Debug)]
struct Case {
    fault: Fault,
    upstream: Dialect,
    fallback: Dialect,
    client: Dialect,
    stream: bool,
    after: bool,
}

impl Case {
    fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for fault in faults::ALL {
            for upstream in DIALECTS {
                for fallback in DIALECTS {
                    for client in DIALECTS {
                        for stream in [true, false] {
                            for after in [false, true] {
                                let case =
                                    Case { fault, upstream, fallback, client, stream, after };
                                // A whole answer has no commit point, and some faults are always first.
                                if !after || (stream && fault.after_commit()) {
                                    cases.push(case);
                                }
                            }
                        }
                    }
                }
            }
        }
        cases
    }

    /// The model that a client asks for; also what the upstream knows, so that it knows the case.
    fn model(&self) -> String {
        let short = |dialect| if dialect == Dialect::OpenAi { "oa" } else { "ol" };
        let when = if self.after { "after" } else { "before" };
        let (up, fall, client) = (short(self.upstream), short(self.fallback), short(self.client));
        let how = if self.stream { "streamed" } else { "whole" };
        format!("{}-{up}-{fall}-{client}-{how}-{when}", self.fault.name())
    }

    fn upstream_name(&self) -> &'static str {
        let later = self.after || !self.fault.waits();
        match (self.fault, self.upstream, later) {
            (Fault::Refuse, Dialect::OpenAi, _) => "refuse-openai",
            (Fault::Refuse, Dialect::Ollama, _) => "refuse-ollama",
            (_, Dialect::OpenAi, false) => "bad-openai",
            (_, Dialect::Ollama, false) => "bad-ollama",
            (_, Dialect::OpenAi, true) => "later-openai",
            (_, Dialect::Ollama, true) => "later-ollama",
        }
    }
}

fn deadlines() -> String {
    deadlines_with(DEADLINE)
}

fn deadlines_with(first: Duration) -> String {
    format!(
        "connect_timeout = \"{}ms\"\nfirst_token_timeout = \"{}ms\"\nanswer_timeout = \"{}ms\"\nidle_timeout = \"{d}ms\"\n\
         stream_line_max = {LINE_MAX}\nanswer_max = {ANSWER_MAX}\nconcurrency_max = 64",
        CONNECT.as_millis(),
        first.as_millis(),
        first.as_millis(),
        d = DEADLINE.as_millis()
    )
}

/// An upstream that fails as the name of the model says.
fn bad(dialect: Dialect) -> FakeUpstream {
    FakeUpstream::start(dialect, |call| {
        let mut parts = call.model().split('-');
        let Some(fault) = parts.next().and_then(Fault::named) else {
            return answers::good(call, "not a case");
        };
        let words: Vec<String> = if call.model().ends_with("after") {
            BAD_WORDS.map(str::to_owned).to_vec()
        } else {
            Vec::new()
        };
        fault.script(call, &words, LINE_MAX)
    })
}

struct House {
    // Dropped in this order: the daemon first.
    daemon: Daemon,
    bad: [FakeUpstream; 2],
    good: [FakeUpstream; 2],
    _sandbox: Sandbox,
}

impl House {
    fn new(cases: &[Case], fallbacks: bool) -> House {
        let sandbox = Sandbox::alone();
        let bad = DIALECTS.map(bad);
        let good = DIALECTS
            .map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, GOOD_TEXT)));
        let lines = deadlines();
        // Only a fault that is a silence is met by a deadline; a busy machine holds up the others.
        let later = deadlines_with(DEADLINE * 25);
        let mut conf = Conf::new()
            .server("request_timeout = \"20s\"\nearly_head = \"10s\"")
            .upstream(
                "refuse-openai",
                "openai",
                &format!("http://127.0.0.1:{}/v1", free_port()),
                &lines,
            )
            .upstream(
                "refuse-ollama",
                "ollama",
                &format!("http://127.0.0.1:{}", free_port()),
                &lines,
            )
            .fake("bad-openai", &bad[0], &lines)
            .fake("bad-ollama", &bad[1], &lines)
            .fake("later-openai", &bad[0], &later)
            .fake("later-ollama", &bad[1], &later)
            .fake("good-openai", &good[0], "")
            .fake("good-ollama", &good[1], "");
        for case in cases {
            let model = case.model();
            let fallback = match case.fallback {
                Dialect::OpenAi => format!("good-openai/{model}"),
                Dialect::Ollama => format!("good-ollama/{model}"),
            };
            let primary = format!("{}/{model}", case.upstream_name());
            let fallbacks: &[&str] = if fallbacks { &[&fallback] } else { &[] };
            conf = conf.model(&model, &primary, fallbacks);
        }
        let daemon = Daemon::start(&sandbox, &conf);
        House { daemon, bad, good, _sandbox: sandbox }
    }

    fn asked(upstreams: &[FakeUpstream; 2], model: &str) -> usize {
        upstreams
            .iter()
            .flat_map(FakeUpstream::seen)
            .filter(|seen| seen.call.model() == model)
            .count()
    }

    fn ask(&self, case: &Case) -> (Answer, Duration) {
        let begun = std::time::Instant::now();
        let mut wire = Wire::connect(self.daemon.addr);
        let answer = wire.ask(ask::chat(case.client, &case.model(), &case.model(), case.stream));
        (answer, begun.elapsed())
    }

    fn run(&self, case: &Case) {
        let model = case.model();
        let (before_bad, before_good) =
            (House::asked(&self.bad, &model), House::asked(&self.good, &model));
        let (answer, took) = self.ask(case);
        // An upstream notes a call once its own thread has read it, which on a busy machine may be
        // after the gateway has given it up. A call that was never made is never noted.
        let asked = || {
            let bad = House::asked(&self.bad, &model) - before_bad;
            (bad, House::asked(&self.good, &model) - before_good)
        };
        let assert_asked = |expected: (usize, usize)| {
            assert_eventually!(
                asked() == expected,
                "calls of (failed, fallback): {:?}, not {expected:?}",
                asked()
            );
        };
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!(answer.clean, "the HTTP message itself must end well");
        let text = answer.text();
        assert!(!text.contains("never"), "half-good text was sent: {text}");
        if case.after {
            let stream = Stream::of(case.client, &answer);
            let wait = stream.assert_broken_off(&model, &BAD_WORDS.concat(), &model);
            let grace = self.daemon.allow(GRACE);
            let limit = if case.fault.waits() { DEADLINE + grace } else { grace };
            assert!(wait <= limit, "the error came after {wait:?}");
            if case.fault.waits() {
                // We may have been late to see what came before the silence.
                let late = Duration::from_millis(50) + self.daemon.late();
                assert!(wait + late >= DEADLINE, "too early: {wait:?}");
            }
            assert_asked((1, 0));
            return;
        }
        if case.stream {
            Stream::of(case.client, &answer).assert_normal(&model, GOOD_TEXT, &model);
        } else {
            let json = answer.json();
            assert_eq!(ask::whole_text(case.client, &json), GOOD_TEXT, "{json}");
            assert_eq!(json["model"], model.as_str());
            assert!(json.get("error").is_none());
        }
        let expected_bad = usize::from(case.fault != Fault::Refuse);
        assert_asked((expected_bad, 1));
        let limit = DEADLINE + CONNECT + self.daemon.allow(GRACE);
        assert!(took <= limit, "the fallback answered after {took:?}");
    }
}

/// Runs the cases side by side; fails with all that failed.
fn run_all(cases: &[Case], run: impl Fn(&Case) + Sync) {
    let next = AtomicUsize::new(0);
    let failures = std::sync::Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = std::panic::AssertUnwindSafe(|| run(case));
                    if let Err(panic) = std::panic::catch_unwind(run) {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text.or(panic.downcast_ref::<&str>().map(ToString::to_string));
                        failures.lock().unwrap().insert(case.model(), text.unwrap_or_default());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let shown: Vec<String> =
        failures.iter().map(|(case, text)| format!("{case}: {text}")).collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        shown.join("\n")
    );
}

/// What must be as before when no request runs: no permit, no exchange, no client.
fn assert_nothing_held(daemon: &Daemon) {
    let gone = [
        "server.exchanges_max",
        "server.waiting_max",
        "server.queue_max",
        "server.bodies_total_max",
        "server.connections_max",
        "upstream.concurrency_max",
        "upstream.waiting_max",
    ];
    assert_eventually!(
        gone.iter().all(|limit| daemon.limit_now(limit) == 0),
        "still held: {:?}",
        daemon.metrics().held()
    );
}

#[test]
fn every_fault_before_commit_moves_on_and_after_it_ends_as_an_error() {
    let cases = Case::all();
    let house = House::new(&cases, true);
    let process = house.daemon.process();
    run_all(&cases, |case| house.run(case));
    assert_nothing_held(&house.daemon);
    // The first round grew the pools; the second one must leave nothing on top.
    let (threads, fds) = (process.threads().len(), process.fds());
    run_all(&cases, |case| house.run(case));
    assert_nothing_held(&house.daemon);
    assert_eventually!(
        process.fds() <= fds + 4,
        "{fds} descriptors became {:?}",
        process.fd_targets()
    );
    assert!(
        process.threads().len() <= threads + 4,
        "{threads} threads became {:?}",
        process.threads()
    );
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for seen in house.bad.iter().flat_map(FakeUpstream::seen) {
        *calls.entry(seen.call.model().to_owned()).or_default() += 1;
    }
    let twice = |case: &&Case| case.fault != Fault::Refuse;
    let expected = cases.iter().filter(twice).map(|case| (case.model(), 2)).collect();
    assert_eq!(calls, expected, "each round asks each of them once");
    // Every connection to an upstream that failed is closed; idle ones of good answers may stay.
    assert_eventually!(
        house.bad.iter().map(FakeUpstream::open).sum::<usize>() <= 2 * 64,
        "connections to the failed upstreams stay open"
    );
    house.daemon.assert_well("after the matrix");
}

#[test]
fn a_chain_that_fails_whole_answers_with_its_last_cause() {
    let mut cases = Case::all();
    cases.retain(|case| !case.after && case.fallback == Dialect::OpenAi);
    let house = House::new(&cases, false);
    run_all(&cases, |case| {
        let model = case.model();
        let (answer, took) = house.ask(case);
        let text = answer.text();
        assert_eq!(answer.status(), case.fault.status(), "{text}");
        assert_eq!(answer.header("x-should-retry"), Some("false"), "{:?}", answer.head);
        assert_eq!(
            answer.header("content-type").map(|t| t.starts_with("application/json")),
            Some(true)
        );
        assert!(answer.header("x-request-id").is_some());
        let json = answer.json();
        let message = match case.client {
            Dialect::OpenAi => {
                for key in ["message", "type", "code"] {
                    assert!(json["error"][key].is_string(), "no {key}: {json}");
                }
                assert!(json["error"].get("param").is_some(), "no param: {json}");
                json["error"]["message"].as_str()
            }
            Dialect::Ollama => json["error"].as_str(),
        };
        assert!(message.is_some_and(|message| !message.is_empty()), "{json}");
        let due = matches!(answer.status(), 429 | 503);
        let retry_after = answer.header("retry-after").map(|value| value.parse::<u64>().unwrap());
        if due || retry_after.is_some() {
            assert!(
                retry_after.is_some_and(|seconds| (1..=60).contains(&seconds)),
                "{:?}",
                answer.head
            );
        }
        if case.fault == Fault::RateLimited {
            assert_eq!(retry_after, Some(7), "the upstream's own wait");
        }
        assert!(took <= DEADLINE + CONNECT + house.daemon.allow(GRACE), "after {took:?}");
        if case.fault != Fault::Refuse {
            assert_eventually!(House::asked(&house.bad, &model) == 1, "asked exactly once");
        }
    });
    assert_nothing_held(&house.daemon);
}

/// What is the client's own fault does not move on: no fallback would do better.
#[test]
fn refusals_of_the_request_itself_do_not_move_on() {
    let sandbox = Sandbox::new();
    let refuse = |dialect| {
        FakeUpstream::start(dialect, move |call| {
            if let Some(catalog) = answers::catalog(call) {
                return catalog;
            }
            let status: u16 = call.model().rsplit('-').next().unwrap().parse().unwrap();
            let body = match dialect {
                Dialect::OpenAi => {
                    r#"{"error":{"message":"max_tokens is too large","type":"invalid_request_error","param":"max_tokens","code":"x"}}"#
                }
                Dialect::Ollama => r#"{"error":"max_tokens is too large"}"#,
            };
            vec![Step::Send(answers::whole(status, "", body.as_bytes()))]
        })
    };
    let first = DIALECTS.map(refuse);
    let fallback = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, GOOD_TEXT));
    let mut conf =
        Conf::new().fake("oa", &first[0], "").fake("ol", &first[1], "").fake("good", &fallback, "");
    for status in [400, 413, 422] {
        for upstream in ["oa", "ol"] {
            let model = format!("{upstream}-{status}");
            conf = conf.model(&model, &format!("{upstream}/{model}"), &[&format!("good/{model}")]);
        }
    }
    let daemon = Daemon::start(&sandbox, &conf);
    for status in [400, 413, 422] {
        for upstream in ["oa", "ol"] {
            for client in DIALECTS {
                for stream in [true, false] {
                    let model = format!("{upstream}-{status}");
                    let context = format!("{model} {client:?} stream={stream}");
                    let answer = daemon.ask(ask::chat(client, &model, "hi", stream));
                    assert!(
                        (400..500).contains(&answer.status()),
                        "{context}: {}",
                        answer.status()
                    );
                    assert_eq!(answer.header("x-should-retry"), Some("false"), "{context}");
                    assert!(
                        answer.text().contains("max_tokens is too large"),
                        "{context}: {}",
                        answer.text()
                    );
                }
            }
        }
    }
    assert_eq!(fallback.seen().len(), 0, "the fallback was asked");
    assert_eq!(first.iter().map(|u| u.seen().len()).sum::<usize>(), 24);
}

/// Two bad links and a good one; the answer is the third's, and each was asked once.
#[test]
fn a_chain_of_several_failures_still_ends_in_one_normal_answer() {
    let sandbox = Sandbox::new();
    let bad = DIALECTS.map(bad);
    let good = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, GOOD_TEXT));
    let lines = deadlines();
    let mut conf = Conf::new()
        .upstream("refuse", "openai", &format!("http://127.0.0.1:{}/v1", free_port()), &lines)
        .fake("a", &bad[0], &lines)
        .fake("b", &bad[1], &lines)
        .fake("good", &good, "");
    let faults = [
        Fault::RoleThenSilence,
        Fault::Cut,
        Fault::MalformedLine,
        Fault::InBandError,
        Fault::Unavailable,
    ];
    for fault in faults {
        let name = fault.name();
        let bad_model = format!("{name}-x-before");
        let links = [format!("a/{bad_model}"), format!("b/{bad_model}"), "good/x".to_owned()];
        let links: Vec<&str> = links.iter().map(String::as_str).collect();
        conf = conf.model(&name, "refuse/x", &links);
    }
    let daemon = Daemon::start(&sandbox, &conf);
    for fault in faults {
        let name = fault.name();
        for client in DIALECTS {
            let prompt = format!("{name} {client:?}");
            let answer = daemon.ask(ask::chat(client, &name, &prompt, true));
            assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
            Stream::of(client, &answer).assert_normal(&name, GOOD_TEXT, &name);
            for upstream in &bad {
                assert_eq!(upstream.seen_with(&prompt).len(), 1, "{name}: asked exactly once");
            }
            assert_eq!(good.seen_with(&prompt).len(), 1);
        }
    }
}

/// A pooled connection that its server closed meanwhile is not an error of the upstream.
#[test]
fn a_stale_connection_is_replayed_once_on_a_fresh_one() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        let mut steps = answers::good(call, "hello");
        if call.prompt() == "close after" {
            steps.push(Step::Close);
        }
        steps
    });
    // The second kind of server answers once on a connection and drops the next request unanswered.
    let rude = FakeUpstream::start(Dialect::OpenAi, |call| {
        if call.prompt() == "second" && call.connection == 0 {
            return vec![Step::Close];
        }
        answers::good(call, "hello")
    });
    let conf = Conf::new().fake("u", &upstream, "").fake("r", &rude, "");
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..10 {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "u/x", "close after", false));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "u/x", "next", true));
        Stream::of(Dialect::OpenAi, &answer).assert_normal(
            "u/x",
            "hello",
            "after a stale connection",
        );
    }
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "r/x", "first", false)).status(), 200);
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "r/x", "second", false));
    assert_eq!(answer.status(), 200, "the replay must answer: {}", answer.text());
    assert!(rude.seen_with("second").len() <= 2, "replayed more than once");
}

/// An answer that comes while the body is still being sent is read: 413 survives EPIPE.
#[test]
fn an_upstream_that_refuses_a_large_body_early_is_heard() {
    use std::io::{Read, Write};
    let sandbox = Sandbox::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let mut head = [0; 1024];
            let _ = socket.read(&mut head);
            let body = r#"{"error":{"message":"too large for me","type":"invalid_request_error","param":null,"code":null}}"#;
            let _ =
                socket.write_all(&answers::whole(413, "Connection: close\r\n", body.as_bytes()));
            // Closed with most of the body unread: the gateway's writes meet a reset.
        }
    });
    let fallback = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, GOOD_TEXT));
    let conf = Conf::new().upstream("u", "openai", &url, "").fake("good", &fallback, "").model(
        "m",
        "u/x",
        &["good/x"],
    );
    let daemon = Daemon::start(&sandbox, &conf);
    let mut heard = 0;
    for _ in 0..10 {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", &"x".repeat(8 << 20), false));
        if answer.status() == 413 && answer.text().contains("too large for me") {
            heard += 1;
        }
    }
    assert_eq!(heard, 10, "the 413 was lost");
    assert_eq!(fallback.seen().len(), 0);
}

/// The request total cuts through all: a chain of slow links ends in time.
#[test]
fn the_request_total_ends_a_slow_chain() {
    let sandbox = Sandbox::new();
    let slow = FakeUpstream::start(Dialect::OpenAi, |_| vec![Step::Silence]);
    let drip = FakeUpstream::start(Dialect::OpenAi, |call| {
        vec![
            Step::Send(answers::stream_head(Dialect::OpenAi)),
            Step::Send(answers::chunk(&answers::opening(call))),
            Step::Repeat(answers::chunk(&answers::text(call, "x ")), Duration::from_millis(50)),
        ]
    });
    let conf = Conf::new()
        .server("request_timeout = \"1500ms\"")
        .fake(
            "slow",
            &slow,
            "first_token_timeout = \"60s\"\nidle_timeout = \"60s\"\ntotal_timeout = \"60s\"",
        )
        .fake(
            "drip",
            &drip,
            "first_token_timeout = \"60s\"\nidle_timeout = \"60s\"\ntotal_timeout = \"60s\"",
        )
        .model("whole", "slow/a", &["slow/b", "slow/c"])
        .model("endless", "drip/a", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for client in DIALECTS {
        for stream in [true, false] {
            let before = slow.seen().len();
            let begun = std::time::Instant::now();
            let answer = daemon.ask(ask::chat(client, "whole", "hi", stream));
            let took = begun.elapsed();
            assert_eq!(answer.status(), 504, "{client:?} stream={stream}: {}", answer.text());
            assert!(
                took < Duration::from_millis(1500) + daemon.allow(GRACE),
                "{client:?} stream={stream}: {took:?}"
            );
            assert!(took > Duration::from_millis(1000), "{client:?} stream={stream}: {took:?}");
            let asked = slow.seen().len() - before;
            assert_eq!(asked, 3, "the share of each attempt leaves time for the rest of the chain");
        }
        let begun = std::time::Instant::now();
        let answer = daemon.ask(ask::chat(client, "endless", "hi", true));
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(1500) + daemon.allow(GRACE), "{client:?}: {took:?}");
        let stream = Stream::of(client, &answer);
        assert_eq!(stream.errors().len(), 1, "{client:?}: {:?}", stream.events.last());
        assert_eq!(stream.terminators(), 0);
    }
    assert_nothing_held(&daemon);
}

/// While nothing can be sent yet, the client hears that it is waited for, and may still get a fallback.
#[test]
fn early_head_keeps_the_client_and_does_not_commit_the_model() {
    let sandbox = Sandbox::new();
    let slow = FakeUpstream::start(Dialect::OpenAi, |_| vec![Step::Silence]);
    let good = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, GOOD_TEXT));
    let conf = Conf::new()
        .server("early_head = \"200ms\"")
        .fake("slow", &slow, "first_token_timeout = \"900ms\"\nanswer_timeout = \"900ms\"")
        .fake("good", &good, "")
        .model("m", "slow/x", &["good/x"])
        .model("lost", "slow/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for client in DIALECTS {
        let begun = std::time::Instant::now();
        let answer = daemon.ask(ask::chat(client, "m", "hi", true));
        assert_eq!(answer.status(), 200);
        let head = answer.head.at - begun;
        assert!(
            head < Duration::from_millis(200) + daemon.allow(GRACE),
            "{client:?}: head after {head:?}"
        );
        assert!(head > Duration::from_millis(150), "{client:?}: head after {head:?}");
        let stream = Stream::of(client, &answer);
        stream.assert_normal("m", GOOD_TEXT, "after an early head");
        let signs = match client {
            Dialect::OpenAi => stream.comments.len(),
            Dialect::Ollama => stream.events.len() - stream.content_events() - 1,
        };
        assert!(signs >= 3, "{client:?}: {signs} signs of life in 900 ms: {stream:#?}");

        // Too late for a status: the error is in-band, and nothing pretends to be an end.
        let answer = daemon.ask(ask::chat(client, "lost", "hi", true));
        assert_eq!(answer.status(), 200);
        assert!(answer.clean);
        let stream = Stream::of(client, &answer);
        assert_eq!(stream.errors().len(), 1, "{stream:#?}");
        assert_eq!(stream.terminators(), 0);
        // A whole answer has no early head: its status tells.
        let answer = daemon.ask(ask::chat(client, "lost", "hi", false));
        assert_eq!(answer.status(), 504, "{}", answer.text());
    }
}

/// openai-python says how long it waits for a byte; our silence stays below that.
#[test]
fn the_clients_own_read_timeout_bounds_our_silence() {
    let sandbox = Sandbox::new();
    let slow = FakeUpstream::start(Dialect::OpenAi, |_| vec![Step::Silence]);
    let conf = Conf::new().server("request_timeout = \"3s\"").fake("slow", &slow, "");
    let daemon = Daemon::start(&sandbox, &conf);
    let body = ask::chat_body("slow/x", "hi", true).to_string();
    let begun = std::time::Instant::now();
    let answer = daemon.ask(ask::post_with(
        "/v1/chat/completions",
        "x-stainless-read-timeout: 1.0\r\n",
        body.as_bytes(),
    ));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let head = answer.head.at - begun;
    assert!(
        head < daemon.allow(Duration::from_secs(1)),
        "the client would have given up: head after {head:?}"
    );
    let mut last = answer.head.at;
    for piece in &answer.pieces {
        assert!(
            piece.at - last < daemon.allow(Duration::from_secs(1)),
            "silent for {:?}",
            piece.at - last
        );
        last = piece.at;
    }
    assert_eq!(Stream::of(Dialect::OpenAi, &answer).errors().len(), 1);
}

/// Each event is on the client's socket when it is read: nothing is collected, nothing waits for Nagle.
#[test]
fn events_arrive_one_by_one_as_they_are_sent() {
    let sandbox = Sandbox::alone();
    let pace = Duration::from_millis(60);
    let upstreams = DIALECTS.map(|dialect| {
        FakeUpstream::start(dialect, move |call| {
            let mut steps = vec![Step::Send(answers::stream_head(dialect))];
            for n in 0..10 {
                steps.push(Step::Send(answers::chunk(&answers::text(call, &format!("{n} ")))));
                steps.push(Step::Pause(pace));
            }
            steps.push(Step::Send(answers::chunk(&answers::ending(call, 10))));
            steps.push(Step::Send(answers::LAST_CHUNK.to_vec()));
            steps
        })
    });
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    for upstream in ["oa/x", "ol/x"] {
        for client in DIALECTS {
            let answer = daemon.ask(ask::chat(client, upstream, "hi", true));
            let stream = Stream::of(client, &answer);
            assert_eq!(stream.content_events(), 10);
            let times: Vec<_> = stream
                .events
                .iter()
                .filter(|event| event.text.contains("0 ") || event.text.contains("9 "))
                .map(|event| event.at)
                .collect();
            let spread = *times.last().unwrap() - times[0];
            assert!(
                spread > pace * 8,
                "{upstream} {client:?}: collected, all came within {spread:?}"
            );
            let span = answer.end - answer.head.at;
            // A delayed acknowledgement for each of ten events would cost 430 ms.
            assert!(
                span < pace * 10 + Duration::from_millis(400),
                "{upstream} {client:?}: {span:?}"
            );
        }
    }
}

/// Good connections to an upstream are kept and used again, each by one request at a time.
#[test]
fn connections_to_an_upstream_are_used_again() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS
        .map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "hello there")));
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    for (index, model) in ["oa/x", "ol/x"].into_iter().enumerate() {
        for n in 0..40 {
            let client = DIALECTS[n % 2];
            let answer = daemon.ask(ask::chat(client, model, "hi", n / 2 % 2 == 0));
            assert_eq!(answer.status(), 200);
        }
        let calls = upstreams[index].seen();
        let used: std::collections::BTreeSet<usize> =
            calls.iter().map(|seen| seen.call.connection).collect();
        assert!(
            used.len() <= 3,
            "{model}: {} connections for 40 requests, one after another",
            used.len()
        );
        // The catalog has its own.
        assert!(
            upstreams[index].connections() <= used.len() + 4,
            "{} connections",
            upstreams[index].connections()
        );
    }
}

/// The next in the chain is asked when the deadline has run out: not before, and not long after.
#[test]
fn the_next_in_the_chain_is_asked_at_the_deadline() {
    let sandbox = Sandbox::alone();
    let bad = FakeUpstream::start(Dialect::OpenAi, |call| {
        answers::catalog(call).unwrap_or_else(|| vec![Step::Silence])
    });
    let good = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, GOOD_TEXT));
    let conf = Conf::new()
        .fake("bad", &bad, "first_token_timeout = \"600ms\"\nanswer_timeout = \"300ms\"")
        .fake("good", &good, "")
        .model("m", "bad/x", &["good/x"]);
    let daemon = Daemon::start(&sandbox, &conf);
    for (stream, deadline) in [(true, 600), (false, 300)] {
        let prompt = format!("stream {stream}");
        assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "m", &prompt, stream)).status(), 200);
        let wait = good.wait_seen(&prompt).at - bad.wait_seen(&prompt).at;
        let deadline = Duration::from_millis(deadline);
        // The first one may note its call late.
        let late = Duration::from_millis(30) + daemon.late();
        assert!(
            wait + late > deadline && wait < deadline + daemon.allow(GRACE),
            "{stream}: {wait:?}"
        );
    }
}

/// A fallback that could not be asked does not hide why those before it failed.
#[test]
fn a_chain_is_told_by_what_went_wrong_and_not_by_a_fallback_that_was_not_asked() {
    let sandbox = Sandbox::new();
    let bad = bad(Dialect::OpenAi);
    let gate = Gate::new();
    let opener = gate.clone();
    let held = FakeUpstream::start(Dialect::Ollama, move |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        [vec![Step::Until(gate.clone())], answers::good(call, GOOD_TEXT)].concat()
    });
    let conf = Conf::new()
        .server("waiting_timeout = \"200ms\"")
        .fake("bad", &bad, "")
        .fake("held", &held, "concurrency_max = 1")
        .model("key", "bad/wrongkey", &["held/x"])
        .model("busy", "held/x", &["bad/wrongkey"]);
    let daemon = Daemon::start(&sandbox, &conf);
    // What Ollama has no field for, and so cannot be asked.
    let mut body = ask::chat_body("key", "hi", false);
    body["n"] = serde_json::json!(2);
    let answer = daemon.ask(ask::post("/v1/chat/completions", &body));
    assert_eq!((answer.status(), answer.code().as_str()), (401, "upstream_key_rejected"));
    let mut holder = daemon.connect();
    holder.send(ask::chat(Dialect::OpenAi, "held/x", "holder", false));
    held.wait_seen("holder");
    for model in ["key", "busy"] {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, model, "hi", false));
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (401, "upstream_key_rejected"),
            "{model}"
        );
    }
    opener.open();
    assert_eq!(holder.answer().unwrap().status(), 200);
}
