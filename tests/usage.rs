//! Tokens and cost: who is charged what, for every way in which an answer can come or end.

use serde_json::{Value, json};

use crate::logs::hex;
use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{self, Daemon};
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{self, Body};

const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

/// Answers are made anew each time, so that a test sees what was entered last.
const FRESH: &str = "[usage]\ncache_ttl = \"0s\"";

/// A millionth for each token of a prompt, ten for each of an answer.
const PRICES: &str = "[[price]]\nmodel = \"*\"\ninput = 1\noutput = \"10.0\"\ncached = 0.5";

fn usage(daemon: &Daemon, query: &str) -> Value {
    let answer = wire::ask(daemon.ops, ask::get(&format!("/usage?{query}")));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.json()
}

/// The rows, once so many requests are in the books: each is entered when its answer was sent.
fn rows(daemon: &Daemon, by: &str, requests: u64) -> Vec<Value> {
    let query = format!("by={by}");
    assert_eventually!(
        usage(daemon, &query)["totals"]["requests"] == requests,
        "{}",
        usage(daemon, &query)
    );
    usage(daemon, &query)["rows"].as_array().unwrap().clone()
}

/// Those members of a row that are not 0, null or false.
fn told(row: &Value) -> Value {
    let mut row = row.clone();
    let nothing = [json!(0), json!(0.0), Value::Null];
    row.as_object_mut().unwrap().retain(|name, value| {
        !nothing.contains(value) && !["totalCost", "totalTokens", "lastUsed"].contains(&&**name)
    });
    row
}

fn with_field(request: Vec<u8>, line: &str) -> Vec<u8> {
    let text = String::from_utf8(request).unwrap();
    text.replacen("\r\n", &format!("\r\n{line}\r\n"), 1).into_bytes()
}

#[test]
fn streamed_and_whole_answers_in_both_dialects_are_charged_as_the_upstream_told_them() {
    let sandbox = Sandbox::new();
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "a b")));
    let conf = Conf::new()
        .fake("oa", &upstreams[0], "")
        .fake("ol", &upstreams[1], "")
        .text(PRICES)
        .text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    for upstream in ["oa/m", "ol/m"] {
        for dialect in DIALECTS {
            for stream in [false, true] {
                let answer = daemon.ask(ask::chat(dialect, upstream, "hi", stream));
                assert_eq!(answer.status(), 200, "{}", answer.text());
            }
        }
    }
    let rows = rows(&daemon, "model", 8);
    assert_eq!(rows.len(), 2, "{rows:?}");
    for row in rows {
        let model = row["model"].clone();
        // Five tokens in and two out, each time.
        let expected = json!({
            "model": model, "answeredBy": model, "requests": 4, "input": 20, "output": 8,
            "costMicros": 4 * 25,
        });
        assert_eq!(told(&row), expected);
    }
    let metrics = daemon.metrics();
    assert_eq!(metrics.sum("tidegate_cost_micro_total", &[("upstream", "oa")]), Some(100.0));
    assert_eq!(metrics.sum("tidegate_usage_missing_price_total", &[]), Some(0.0));
}

#[test]
fn embeddings_are_charged_and_where_no_tokens_are_told_they_are_estimated() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, ""));
    let conf = Conf::new().fake("ol", &upstream, "").text(PRICES).text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    // Each another text, so that none is answered with what was made for another one.
    for (path, member, text) in [
        ("/v1/embeddings", "input", "moins"),
        ("/api/embed", "input", "salut"),
        ("/api/embeddings", "prompt", "hello"),
    ] {
        let body = json!({"model": "ol/e", member: text});
        assert_eq!(daemon.ask(ask::post(path, &body)).status(), 200, "{path}");
    }
    // Twice three tokens as told; "hello" with its quotes is 7 bytes, which are taken as two tokens.
    let expected = json!({
        "model": "ol/e", "answeredBy": "ol/e", "requests": 3, "estimated": 1, "input": 8,
        "costMicros": 8,
    });
    assert_eq!(told(&rows(&daemon, "model", 3)[0]), expected);
}

#[test]
fn what_is_given_again_is_a_request_that_costs_nothing_and_misses_no_price() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, ""));
    let daemon = Daemon::start(&sandbox, &Conf::new().fake("oa", &upstream, "").text(FRESH));
    let body = json!({"model": "oa/e", "input": "again"});
    for from in ["miss", "hit", "hit"] {
        let answer = daemon.ask(ask::post("/v1/embeddings", &body));
        assert_eq!(answer.header("x-tidegate-cache"), Some(from), "{}", answer.text());
    }
    let expected = json!({
        "model": "oa/e", "answeredBy": "oa/e", "requests": 3, "fromCache": 2, "input": 3,
        "missingCostEntries": 1,
    });
    assert_eq!(told(&rows(&daemon, "model", 3)[0]), expected);
}

/// The head, one event with this text, and then this.
fn begun(call: &Call, text: &str, then: Step) -> Vec<Step> {
    answers::catalog(call).unwrap_or_else(|| {
        vec![
            Step::Send(answers::stream_head(call.dialect)),
            Step::Send(answers::chunk(&answers::text(call, text))),
            then,
        ]
    })
}

#[test]
fn a_stream_that_is_cut_is_charged_by_estimate_and_marked() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS.map(|dialect| {
        FakeUpstream::start(dialect, |call| begun(call, "twelve bytes", Step::Close))
    });
    let conf = Conf::new()
        .fake("oa", &upstreams[0], "")
        .fake("ol", &upstreams[1], "")
        .text(PRICES)
        .text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    for model in ["oa/m", "ol/m"] {
        daemon.ask(ask::chat(Dialect::OpenAi, model, "hi", true));
    }
    for row in rows(&daemon, "model", 2) {
        let model = row["model"].clone();
        let expected = json!({
            "model": model, "answeredBy": model, "requests": 1, "cut": 1, "estimated": 1,
            "input": 1, "output": 3, "costMicros": 31,
        });
        assert_eq!(told(&row), expected);
    }
}

#[test]
fn a_client_that_leaves_is_charged_for_what_was_made_until_then() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| match call.model() {
        "flowing" => begun(call, "twelve bytes", Step::Silence),
        _ => answers::catalog(call).unwrap_or_else(|| vec![Step::Silence]),
    });
    let conf = Conf::new().fake("u", &upstream, "").text(PRICES).text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    for (model, stream) in [("flowing", true), ("mute", true), ("mute", false)] {
        let mut wire = daemon.connect();
        let prompt = format!("{model} {stream}");
        wire.send(ask::chat(Dialect::OpenAi, &format!("u/{model}"), &prompt, stream));
        upstream.wait_seen(&prompt);
        if model == "flowing" {
            let head = wire.head().unwrap();
            let mut body = Body::of(&head, "POST").unwrap();
            wire.piece(&mut body).unwrap().unwrap();
        }
        drop(wire);
    }
    let rows: Vec<Value> = rows(&daemon, "model", 3).iter().map(told).collect();
    // The request of a client that was not answered stands for itself, its prompt where it went.
    for expected in [
        json!({"model": "u/flowing", "answeredBy": "u/flowing", "requests": 1, "cancelled": 1,
            "estimated": 1, "input": 4, "output": 3, "costMicros": 34}),
        json!({"model": "u/mute", "requests": 2, "cancelled": 2}),
        json!({"model": "u/mute", "answeredBy": "u/mute", "estimated": 2, "input": 6,
            "costMicros": 6}),
    ] {
        assert!(rows.contains(&expected), "{expected} is not in {rows:#?}");
    }
}

#[test]
fn tokens_go_to_the_upstream_that_made_them() {
    let sandbox = Sandbox::new();
    let first = FakeUpstream::start(Dialect::OpenAi, |call| {
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}});
        answers::catalog(call).unwrap_or_else(|| match call.model() {
            "down" => answers::json_answer(500, &json!({"error": {"message": "down"}})),
            _ => vec![
                Step::Send(answers::stream_head(call.dialect)),
                Step::Send(answers::chunk(&answers::event(call.dialect, &usage))),
                Step::Close,
            ],
        })
    });
    let second = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "a b"));
    let conf = Conf::new()
        .fake("first", &first, "")
        .fake("second", &second, "")
        .model("chain", "first/down", &["second/good"])
        .model("spent", "first/told", &["second/good"])
        .model("none", "first/down", &[])
        .text("[[price]]\nmodel = \"second/*\"\ninput = 1\noutput = 10")
        .text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    for (model, status) in [("chain", 200), ("spent", 200), ("none", 500)] {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, model, "hi", true));
        assert_eq!(answer.status(), status, "{model}");
    }
    let rows: Vec<Value> = rows(&daemon, "model", 3).iter().map(told).collect();
    let expected = [
        json!({"model": "chain", "answeredBy": "second/good", "requests": 1, "input": 5,
            "output": 2, "costMicros": 25}),
        json!({"model": "spent", "answeredBy": "second/good", "requests": 1, "input": 5,
            "output": 2, "costMicros": 25}),
        json!({"model": "none", "requests": 1, "failed": 1}),
        json!({"model": "spent", "answeredBy": "first/told", "input": 9,
            "missingCostEntries": 1}),
    ];
    assert_eq!(rows.len(), expected.len(), "{rows:#?}");
    for expected in expected {
        assert!(rows.contains(&expected), "{expected} is not in {rows:#?}");
    }
}

#[test]
fn a_price_that_is_missing_is_told_and_a_reload_keeps_the_books() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "a b"));
    let conf = Conf::new().fake("u", &upstream, "").text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    daemon.ask(ask::chat(Dialect::OpenAi, "u/m", "hi", false));
    daemon.ask(ask::chat(Dialect::OpenAi, "echo", "costs nothing", false));
    rows(&daemon, "day", 2);
    let all = usage(&daemon, "by=model");
    let cost = |row: &Value| (row["costMicros"].clone(), row["missingCostEntries"].clone());
    let row = |all: &Value, model: &str| {
        all["rows"].as_array().unwrap().iter().find(|row| row["model"] == model).unwrap().clone()
    };
    assert_eq!(cost(&row(&all, "u/m")), (Value::Null, json!(1)), "not known, and not nothing");
    assert_eq!(cost(&row(&all, "echo")), (json!(0), json!(0)));
    assert_eq!(all["missingPrices"], json!(["u/m"]));
    let missing = [("upstream", "u")];
    assert_eq!(daemon.metrics().sum("tidegate_usage_missing_price_total", &missing), Some(1.0));

    daemon.rewrite(&conf.text("[[price]]\nmodel = \"u/m\"\ninput = 1\noutput = 10"));
    daemon.signal(rustix::process::Signal::HUP);
    assert_eventually!(
        daemon.metrics().sum("tidegate_config_reloads_total", &[("outcome", "ok")]) == Some(1.0)
    );
    daemon.ask(ask::chat(Dialect::OpenAi, "u/m", "hi", false));
    rows(&daemon, "day", 3);
    let all = usage(&daemon, "by=model");
    assert_eq!(cost(&row(&all, "u/m")), (json!(25), json!(1)), "what it was then is not known");
    assert_eq!(row(&all, "u/m")["requests"], 2);
}

#[test]
fn a_key_sees_its_own_usage_and_nobody_else_s() {
    let sandbox = Sandbox::new();
    let keys = ["one", "two"]
        .map(|name| format!("[[key]]\nname = \"{name}\"\nsha256 = \"{}\"", hex(name)));
    let conf = Conf::new().text(&keys.join("\n")).text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    let with =
        |request: Vec<u8>, key: &str| with_field(request, &format!("Authorization: Bearer {key}"));
    let secret = ask::chat(Dialect::OpenAi, "echo/plans-of-two", "hi", false);
    let secret = with_field(secret, "X-Session-Id: session-of-two");
    assert_eq!(daemon.ask(with(secret, "two")).status(), 200);
    assert_eq!(
        daemon.ask(with(ask::chat(Dialect::OpenAi, "echo", "hi", false), "one")).status(),
        200
    );
    rows(&daemon, "key", 2);
    for by in ["day", "model", "key", "session"] {
        let answer = daemon.ask(with(ask::get(&format!("/usage?by={by}")), "one"));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_eq!(answer.json()["totals"]["requests"], 1, "{}", answer.text());
        assert!(!answer.text().contains("two"), "{}", answer.text());
    }
    for other in ["two", "nobody", ""] {
        let answer = daemon.ask(with(ask::get(&format!("/usage?key={other}")), "one"));
        assert_eq!((answer.status(), answer.code().as_str()), (403, "not_yours"), "{other}");
    }
    assert_eq!(daemon.ask(ask::get("/usage")).status(), 401);
    // The ops plane is for whoever runs it.
    assert_eq!(usage(&daemon, "key=two")["totals"]["requests"], 1);
}

#[test]
fn sessions_are_told_by_their_fields_and_the_oldest_make_room() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().text(&format!("{FRESH}\nsessions_max = 2"));
    let daemon = Daemon::start(&sandbox, &conf);
    let chat = |line: &str| {
        let request = ask::chat(Dialect::Ollama, "echo", "hi", true);
        daemon.ask(if line.is_empty() { request } else { with_field(request, line) });
    };
    for line in [
        "X-OpenClaw-Session-Key: agent:main",
        "x-session-id: one",
        "X-Tidegate-Session: two",
        "X-Tidegate-Session: two",
        "",
        "x-session-id: a name with blanks",
    ] {
        chat(line);
    }
    let rows = rows(&daemon, "session", 6);
    let told = |row: &Value| {
        let name = row["session"].as_str().unwrap_or("-").to_owned();
        (name, row["others"] == true, row["requests"].as_u64().unwrap())
    };
    let mut told: Vec<_> = rows.iter().map(told).collect();
    told.sort();
    assert_eq!(
        told,
        [
            ("-".into(), false, 2),
            ("-".into(), true, 1),
            ("one".into(), false, 1),
            ("two".into(), false, 2),
        ]
    );
    assert_eq!(daemon.metrics().sum("tidegate_usage_sessions_ignored_total", &[]), Some(1.0));
    let limit = |what: &str| daemon.metrics().limit(what, "usage.sessions_max");
    assert_eq!(["now", "max", "refused_total"].map(limit), [2, 2, 1]);
}

#[test]
fn what_is_refused_before_an_upstream_is_asked_is_no_usage() {
    let sandbox = Sandbox::new();
    let conf = Conf::new()
        .text("[[model]]\nname = \"plain\"\nprimary = { model = \"echo\", images = false }")
        .text(FRESH);
    let daemon = Daemon::start(&sandbox, &conf);
    let image = json!({"model": "plain", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]});
    assert_eq!(daemon.ask(ask::post("/v1/chat/completions", &image)).status(), 400);
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "nobody", "hi", false)).status(), 404);
    assert_eq!(daemon.ask(ask::post("/api/chat", &json!({}))).status(), 400);
    daemon.ask(ask::chat(Dialect::OpenAi, "plain", "hi", false));
    let rows = rows(&daemon, "model", 1);
    assert_eq!((rows.len(), &rows[0]["model"]), (1, &json!("plain")), "{rows:?}");
}

#[test]
fn a_question_that_is_none_is_refused_on_both_planes() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for address in [daemon.addr, daemon.ops] {
        for query in ["by=colour", "since=today", "sicne=2026-11-22", "by=session&since=2026-11-22"]
        {
            let answer = wire::ask(address, ask::get(&format!("/usage?{query}")));
            assert_eq!(
                (answer.status(), answer.code().as_str()),
                (400, "invalid_field"),
                "{query}"
            );
        }
        assert_eq!(wire::ask(address, ask::get("/usage")).status(), 200);
        let answer = wire::ask(address, ask::post("/usage", &json!({})));
        assert_eq!((answer.status(), answer.code().as_str()), (405, "method_not_allowed"));
    }
}

#[test]
fn the_command_shows_a_table_or_the_answer_as_it_is() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().text(FRESH));
    daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi there", false));
    rows(&daemon, "model", 1);
    let run = |args: &[&str]| {
        let mut command = daemon::command(&sandbox);
        let output = command.args(["usage", "--ops", &daemon.ops.to_string()]).args(args).output();
        let output = output.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (good, text) = run(&["--by", "model"]);
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(good && lines[0][..2] == ["MODEL", "ANSWERED"], "{text}");
    assert_eq!(lines[1][..3], ["echo", "echo/echo", "1"], "{text}");
    let (good, text) = run(&["--json", "--since", "2020-01-01"]);
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert!(good && answer["totals"]["requests"] == 1 && answer["since"] == "2020-01-01", "{text}");
    assert!(!run(&["--since", "yesterday"]).0);
}

#[test]
fn an_answer_about_usage_is_given_again_for_a_while() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().text("[usage]\ncache_ttl = \"1h\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let first = usage(&daemon, "by=key");
    daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi", false));
    assert_eventually!(daemon.limit_now("usage.rows_max") == 1);
    assert_eq!(usage(&daemon, "by=key"), first);
    assert_eq!(first["totals"]["requests"], 0);
    // Another question is not answered with it.
    assert_eq!(usage(&daemon, "by=model")["totals"]["requests"], 1);
    assert_eq!(daemon.limit_now("usage.reports_max"), 2);
}
