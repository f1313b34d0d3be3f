//! Requests in a row on one connection: anything may follow anything, wherever in the gateway it is
//! answered, and each answer is its own request's.

use std::time::Duration;

use serde_json::json;

use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::random::Random;
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::Wire;
use crate::support::{ask, patience};

/// Answers with the prompt, or as the prompt says.
fn obedient(call: &Call) -> Vec<Step> {
    if let Some(catalog) = answers::catalog(call) {
        return catalog;
    }
    let prompt = call.prompt();
    match prompt.split(' ').next() {
        Some("fail") => answers::json_answer(500, &json!({"error": {"message": "told to"}})),
        Some("refuse") => answers::json_answer(400, &json!({"error": {"message": "told to"}})),
        Some("hang") => vec![Step::Silence],
        Some("long") => answers::good(call, &format!("{prompt} {}", "x ".repeat(200_000))),
        Some("close") => {
            let body = answers::whole_json(call, prompt).to_string();
            let bytes = answers::whole(200, "Connection: close\r\n", body.as_bytes());
            vec![Step::Send(bytes), Step::Close]
        }
        Some("cut") => {
            let body = answers::whole_json(call, prompt).to_string();
            let mut bytes = answers::whole(200, "", body.as_bytes());
            bytes.truncate(bytes.len() - 9);
            vec![Step::Send(bytes), Step::Close]
        }
        Some("pieces") => {
            let body = answers::whole_json(call, prompt).to_string();
            let bytes = answers::whole(200, "", body.as_bytes());
            let pieces = bytes.chunks(37).map(<[u8]>::to_vec);
            pieces
                .flat_map(|piece| [Step::Send(piece), Step::Pause(Duration::from_millis(1))])
                .collect()
        }
        _ => answers::good(call, prompt),
    }
}

/// A kind of request, and the prompt that makes it one.
const KINDS: &[&str] = &[
    "whole", "whole", "whole", "stream", "list", "bad", "unknown", "fail", "refuse", "long",
    "close", "cut", "pieces", "large", "embed",
];

/// Asks for one of `KINDS` and checks the answer.
fn ask_for(wire: &mut Wire, kind: &str, number: u64, dialect: Dialect) {
    let prompt = format!("{kind} {number}");
    let text = |answer: &crate::support::wire::Answer| {
        assert_eq!(answer.status(), 200, "{prompt}: {}", answer.text());
        ask::whole_text(dialect, &answer.json()).to_owned()
    };
    match kind {
        "stream" => {
            let answer = wire.ask(ask::chat(dialect, "m", &prompt, true));
            assert_eq!(Stream::of(dialect, &answer).content(), prompt);
        }
        "list" => assert_eq!(wire.ask(ask::get("/v1/models")).status(), 200),
        "bad" => {
            let answer = wire.ask(ask::post(ask::chat_path(dialect), &json!({"model": 7})));
            assert_eq!(answer.status(), 400, "{}", answer.text());
        }
        "unknown" => {
            assert_eq!(wire.ask(ask::chat(dialect, "nobody", &prompt, false)).status(), 404);
        }
        "refuse" => assert_eq!(wire.ask(ask::chat(dialect, "m", &prompt, false)).status(), 400),
        // The fallback does as it is told, too.
        "fail" => assert_eq!(wire.ask(ask::chat(dialect, "m", &prompt, false)).status(), 500),
        "cut" => assert_eq!(wire.ask(ask::chat(dialect, "m", &prompt, false)).status(), 502),
        "long" => {
            let answer = wire.ask(ask::chat(dialect, "m", &prompt, false));
            assert!(text(&answer).starts_with(&prompt) && answer.body().len() > 400_000);
        }
        "large" => {
            let prompt = format!("{prompt} {}", "y".repeat(300_000));
            let answer = wire.ask(ask::chat(dialect, "m", &prompt, false));
            assert_eq!(text(&answer), prompt);
        }
        "embed" => {
            let body = json!({"model": "m", "input": prompt});
            let answer = wire.ask(ask::post("/v1/embeddings", &body));
            assert_eq!(answer.status(), 200, "{}", answer.text());
        }
        _ => assert_eq!(text(&wire.ask(ask::chat(dialect, "m", &prompt, false))), prompt),
    }
}

fn conf(upstreams: &[FakeUpstream; 2]) -> Conf {
    Conf::new().fake("a", &upstreams[0], "").fake("b", &upstreams[1], "").model(
        "m",
        "a/x",
        &["b/y"],
    )
}

fn upstreams() -> [FakeUpstream; 2] {
    [
        FakeUpstream::start_forgetful(Dialect::OpenAi, obedient),
        FakeUpstream::start_forgetful(Dialect::Ollama, obedient),
    ]
}

#[test]
fn anything_may_follow_anything_on_one_connection() {
    let sandbox = Sandbox::new();
    let upstreams = upstreams();
    let daemon = Daemon::start(&sandbox, &conf(&upstreams));
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let limit = patience(Duration::from_secs(20));
                let mut wire = daemon.connect().wait_at_most(limit);
                for number in 0..60 {
                    let kind = KINDS[random.below(KINDS.len() as u64) as usize];
                    let dialect =
                        if random.below(2) == 0 { Dialect::OpenAi } else { Dialect::Ollama };
                    ask_for(&mut wire, kind, seed * 1000 + number, dialect);
                }
            });
        }
    });
    for limit in ["upstream.concurrency_max", "server.exchanges_max", "server.bodies_total_max"] {
        assert_eventually!(daemon.limit_now(limit) == 0, "{limit} is still held");
    }
    daemon.assert_well("after many requests in a row");
}

#[test]
fn requests_that_come_before_the_answers_are_answered_in_their_order() {
    let sandbox = Sandbox::new();
    let upstreams = upstreams();
    let daemon = Daemon::start(&sandbox, &conf(&upstreams));
    let mut wire = daemon.connect().wait_at_most(patience(Duration::from_secs(20)));
    let requests: Vec<u8> = (0..300)
        .flat_map(|n| ask::chat(Dialect::OpenAi, "m", &format!("whole {n}"), n % 7 == 0))
        .collect();
    wire.send(&requests);
    for n in 0..300 {
        let answer = wire.answer().unwrap();
        let prompt = format!("whole {n}");
        if n % 7 == 0 {
            assert_eq!(Stream::of(Dialect::OpenAi, &answer).content(), prompt);
        } else {
            assert_eq!(ask::whole_text(Dialect::OpenAi, &answer.json()), prompt);
        }
    }
}

/// The second request of a connection is begun elsewhere than the first.
#[test]
fn a_client_that_leaves_within_its_second_request_frees_its_upstream() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, obedient);
    let daemon =
        Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").model("m", "u/x", &[]));
    for round in 0..20 {
        let mut wire = daemon.connect();
        ask_for(&mut wire, "whole", round, Dialect::OpenAi);
        let prompt = format!("hang {round}");
        wire.send(ask::chat(Dialect::OpenAi, "m", &prompt, false));
        upstream.wait_seen(&prompt);
        drop(wire);
        assert!(upstream.wait_closed(&prompt).is_some(), "{prompt} was not closed");
    }
    assert_eventually!(daemon.limit_now("server.exchanges_max") == 0);
    assert_eventually!(daemon.limit_now("upstream.concurrency_max") == 0);
}

/// Requests in a row wait for permits, too, wherever they are begun.
#[test]
fn requests_in_a_row_wait_for_their_permits() {
    let sandbox = Sandbox::new();
    let upstreams = upstreams();
    let conf = Conf::new()
        .server("exchanges_max = 3")
        .fake("a", &upstreams[0], "concurrency_max = 2")
        .model("m", "a/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    std::thread::scope(|scope| {
        for seed in 0..12 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut wire = daemon.connect().wait_at_most(patience(Duration::from_secs(20)));
                for number in 0..100 {
                    let kind = if number % 9 == 8 { "stream" } else { "whole" };
                    ask_for(&mut wire, kind, seed * 1000 + number, Dialect::OpenAi);
                }
            });
        }
    });
    let metrics = daemon.metrics();
    assert!(metrics.limit("high_water", "upstream.concurrency_max") <= 2);
    assert!(metrics.limit("high_water", "server.exchanges_max") <= 3);
    assert_eventually!(daemon.limit_now("server.exchanges_max") == 0);
}
