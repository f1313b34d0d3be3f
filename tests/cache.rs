//! Answers that are kept: one call for many who want the same, replays in every form, old answers
//! while an upstream is away, and what is never kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command};
use crate::support::peers::{Call, FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::{Answer, Wire};

const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

/// Long enough that nothing expires during a test.
const HOUR: &str = "[cache]\nttl = \"1h\"\nstale_for = \"1h\"";

fn embed(model: &str, text: &str) -> Value {
    json!({"model": model, "input": text})
}

fn embeddings(model: &str, text: &str) -> Vec<u8> {
    ask::post("/v1/embeddings", &embed(model, text))
}

fn chat_with(header: &str, model: &str, prompt: &str, stream: bool) -> Vec<u8> {
    let body = ask::chat_body(model, prompt, stream).to_string();
    ask::post_with("/v1/chat/completions", header, body.as_bytes())
}

fn origin(answer: &Answer) -> &str {
    answer.header("x-tidegate-cache").unwrap_or("none")
}

#[track_caller]
fn assert_origin(answer: &Answer, expected: &str) {
    assert_eq!((answer.status(), origin(answer)), (200, expected), "{}", answer.text());
}

/// How many requests ended with this result.
fn count(daemon: &Daemon, namespace: &str, result: &str) -> u64 {
    let labels = [("namespace", namespace), ("result", result)];
    daemon.metrics().sum("tidegate_cache_requests_total", &labels).unwrap() as u64
}

/// Embedding calls that an upstream saw.
fn embed_calls(upstream: &FakeUpstream) -> usize {
    upstream.seen().iter().filter(|seen| seen.call.path.contains("embed")).count()
}

/// Sends the same request on so many connections.
fn crowd(daemon: &Daemon, size: usize, request: &[u8]) -> Vec<Wire> {
    let all = (0..size).map(|_| {
        let mut wire = daemon.connect().wait_at_most(Duration::from_secs(60));
        wire.send(request);
        wire
    });
    all.collect()
}

fn waiting(daemon: &Daemon) -> u64 {
    daemon.limit_now("cache.waiting_max")
}

/// An upstream whose answers wait for gates, the n-th call for the n-th gate; without one they do
/// not wait.
fn gated(gates: Vec<Arc<Gate>>) -> FakeUpstream {
    let calls = AtomicUsize::new(0);
    FakeUpstream::start(Dialect::OpenAi, move |call| {
        if answers::catalog(call).is_some() {
            return answers::good(call, "");
        }
        let gate = gates.get(calls.fetch_add(1, Ordering::SeqCst)).cloned();
        let mut steps: Vec<Step> = gate.map(Step::Until).into_iter().collect();
        steps.extend(answers::good(call, "a good answer"));
        steps
    })
}

#[test]
fn ten_a_hundred_and_a_thousand_at_once_make_one_call_for_a_missing_and_for_an_expired_answer() {
    let now = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }).unwrap();
    let sandbox = Sandbox::new();
    let gates: Vec<_> = (0..6).map(|_| Gate::new()).collect();
    let upstream = gated(gates.clone());
    // Whatever is kept is expired before the next round begins.
    let conf = Conf::new()
        .server("queue_max = 4096")
        .fake("u", &upstream, "")
        .text("[cache]\nttl = \"1ms\"\nstale_for = \"0s\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let mut rounds = 0;
    for size in [10, 100, 1000] {
        for missing in [true, false] {
            let context = format!("{size} at once, missing: {missing}");
            let mut wires = crowd(&daemon, size, &embeddings("u/m", &format!("text {size}")));
            assert_eventually!(waiting(&daemon) == size as u64 - 1, "{context}");
            gates[rounds].open();
            rounds += 1;
            let mut origins: Vec<String> = wires
                .iter_mut()
                .map(|wire| {
                    let answer = wire.answer().unwrap();
                    assert_eq!(answer.status(), 200, "{context}: {}", answer.text());
                    assert_eq!(answer.json()["data"][0]["embedding"], json!([0.25, -0.5, 1.0]));
                    origin(&answer).to_owned()
                })
                .collect();
            origins.sort();
            let mut expected = vec!["coalesced".to_owned(); size - 1];
            expected.push("miss".to_owned());
            assert_eq!(origins, expected, "{context}");
            assert_eq!(embed_calls(&upstream), rounds, "{context}: calls");
        }
    }
    assert_eq!(count(&daemon, "embeddings", "miss"), 6);
    assert_eq!(count(&daemon, "embeddings", "coalesced"), 2 * (9 + 99 + 999));
    assert_eq!(count(&daemon, "embeddings", "hit"), 0);
    assert_eventually!(waiting(&daemon) == 0 && daemon.limit_now("cache.flights_max") == 0);
    daemon.assert_well("after the crowds");
}

#[test]
fn when_the_one_who_asks_leaves_another_asks() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstream = gated(vec![gate.clone(), gate.clone()]);
    let daemon = Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").text(HOUR));
    let request = embeddings("u/m", "x");
    let leader = crowd(&daemon, 1, &request);
    assert_eventually!(embed_calls(&upstream) == 1);
    let mut others = crowd(&daemon, 20, &request);
    assert_eventually!(waiting(&daemon) == 20);
    drop(leader);
    assert_eventually!(embed_calls(&upstream) == 2);
    gate.open();
    let answers: Vec<_> = others.iter_mut().map(|wire| wire.answer().unwrap()).collect();
    let misses = answers.iter().filter(|answer| origin(answer) == "miss").count();
    let coalesced = answers.iter().filter(|answer| origin(answer) == "coalesced").count();
    assert_eq!((misses, coalesced), (1, 19));
    assert_eq!(embed_calls(&upstream), 2);
    assert_eq!(waiting(&daemon), 0);
}

#[test]
fn one_who_waits_may_leave_and_nothing_of_it_stays() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstream = gated(vec![gate.clone()]);
    let daemon = Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").text(HOUR));
    let request = embeddings("u/m", "x");
    let mut leader = crowd(&daemon, 1, &request);
    assert_eventually!(embed_calls(&upstream) == 1);
    let followers = crowd(&daemon, 5, &request);
    assert_eventually!(waiting(&daemon) == 5);
    drop(followers);
    assert_eventually!(waiting(&daemon) == 0);
    gate.open();
    assert_origin(&leader[0].answer().unwrap(), "miss");
    assert_eq!(count(&daemon, "embeddings", "coalesced"), 0);
    assert_eventually!(daemon.limit_now("cache.flights_max") == 0);
}

#[test]
fn a_failure_makes_one_other_ask_and_a_refusal_is_told_to_all() {
    let sandbox = Sandbox::new();
    let (gate, calls) = (Gate::new(), AtomicUsize::new(0));
    let open = gate.clone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        if answers::catalog(call).is_some() {
            return answers::good(call, "");
        }
        let mut steps = vec![Step::Until(open.clone())];
        steps.extend(if call.json["input"] == "refused" {
            answers::json_answer(422, &json!({"error": {"message": "too long"}}))
        } else if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            answers::json_answer(500, &json!({"error": {"message": "out of memory"}}))
        } else {
            answers::good(call, "")
        });
        steps
    });
    let daemon = Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").text(HOUR));
    let mut failing = crowd(&daemon, 10, &embeddings("u/m", "x"));
    let mut refused = crowd(&daemon, 10, &embeddings("u/m", "refused"));
    assert_eventually!(waiting(&daemon) == 18);
    gate.open();
    let answers: Vec<_> = failing.iter_mut().map(|wire| wire.answer().unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| answer.status() == 500).count(), 1);
    assert_eq!(answers.iter().filter(|answer| origin(answer) == "coalesced").count(), 8);
    for wire in &mut refused {
        let answer = wire.answer().unwrap();
        assert_eq!((answer.status(), answer.code().as_str()), (422, "upstream_rejected"));
        assert!(answer.text().contains("too long"), "{}", answer.text());
    }
    assert_eq!(embed_calls(&upstream), 3, "two for the failure, one for the refusal");
    // Failures are not kept.
    assert_origin(&daemon.ask(embeddings("u/m", "x")), "hit");
    assert_eq!(daemon.ask(embeddings("u/m", "refused")).status(), 422);
    assert_eq!(embed_calls(&upstream), 4);
}

#[test]
fn an_old_answer_stands_in_while_the_upstream_is_away() {
    let sandbox = Sandbox::new();
    let away = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&away);
    let upstream =
        FakeUpstream::start(Dialect::OpenAi, move |call| match flag.load(Ordering::SeqCst) {
            true => vec![Step::Close],
            false => answers::good(call, "a good answer"),
        });
    let conf = Conf::new()
        .fake("u", &upstream, "")
        .text("[[model]]\nname = \"chat\"\nprimary = \"u/m\"\ncache = \"1ms\"")
        .text("[cache]\nttl = \"1ms\"\nstale_for = \"1h\"");
    let daemon = Daemon::start(&sandbox, &conf);
    assert_origin(&daemon.ask(embeddings("u/m", "x")), "miss");
    let chat = |stream| chat_with("", "chat", "hello", stream);
    assert_origin(&daemon.ask(chat(false)), "miss");
    away.store(true, Ordering::SeqCst);
    let answer = daemon.ask(embeddings("u/m", "x"));
    assert_origin(&answer, "stale");
    assert_eq!(answer.json()["data"][0]["embedding"], json!([0.25, -0.5, 1.0]));
    let streamed = daemon.ask(chat(true));
    assert_origin(&streamed, "stale");
    let stream = Stream::of(Dialect::OpenAi, &streamed);
    stream.assert_normal("chat", "a good answer", "an old answer, streamed");
    let calls = upstream.seen().len();
    assert_origin(&daemon.ask(embeddings("u/m", "x")), "stale");
    assert_eq!(upstream.seen().len(), calls, "not every request pays for an upstream that is away");
    // Who wants a new answer is told that there is none, and what was never known is an error.
    let refresh = ask::post_with(
        "/v1/embeddings",
        "Cache-Control: no-cache\r\n",
        embed("u/m", "x").to_string().as_bytes(),
    );
    assert_eq!(daemon.ask(refresh).status(), 502);
    assert_eq!(daemon.ask(embeddings("u/m", "y")).status(), 502);
}

/// How a client asks for a chat.
const CHATS: [(Dialect, bool); 4] = [
    (Dialect::OpenAi, true),
    (Dialect::OpenAi, false),
    (Dialect::Ollama, true),
    (Dialect::Ollama, false),
];

fn assert_chat(answer: &Answer, dialect: Dialect, stream: bool, model: &str, context: &str) {
    if stream {
        Stream::of(dialect, answer).assert_normal(model, "a good answer", context);
    } else {
        let json = answer.json();
        assert_eq!(ask::whole_text(dialect, &json), "a good answer", "{context}");
        assert_eq!(json["model"], model, "{context}");
        let tokens = match dialect {
            Dialect::OpenAi => &json["usage"]["completion_tokens"],
            Dialect::Ollama => &json["eval_count"],
        };
        assert_eq!(*tokens, 3, "{context}: {json}");
    }
}

#[test]
fn a_chat_asked_for_in_one_form_is_given_again_in_every_form() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS
        .map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "a good answer")));
    let mut conf = Conf::new().text(HOUR);
    for (upstream, dialect) in upstreams.iter().zip(DIALECTS) {
        let name = format!("{dialect:?}").to_lowercase();
        conf = conf.fake(&name, upstream, "").text(&format!(
            "[[model]]\nname = \"chat-{name}\"\nprimary = \"{name}/m\"\ncache = \"1h\""
        ));
    }
    let daemon = Daemon::start(&sandbox, &conf);
    for (upstream, dialect) in upstreams.iter().zip(DIALECTS) {
        let model = format!("chat-{dialect:?}").to_lowercase();
        for (first, streams) in CHATS {
            let prompt = format!("as {first:?}, streamed: {streams}");
            let answer = daemon.ask(ask::chat(first, &model, &prompt, streams));
            assert_origin(&answer, "miss");
            for (again, stream) in CHATS {
                let context = format!("from {model}, {prompt}, again as {again:?} {stream}");
                let answer = daemon.ask(ask::chat(again, &model, &prompt, stream));
                assert_eq!(origin(&answer), "hit", "{context}: {}", answer.text());
                assert_chat(&answer, again, stream, &model, &context);
                assert_eq!(answer.header("x-tidegate-model"), Some("m"), "{context}");
            }
            assert_eq!(upstream.seen_with(&prompt).len(), 1, "{prompt}");
        }
    }
    assert_eq!(count(&daemon, "chat", "hit"), 32);
    assert_eq!(count(&daemon, "chat", "miss"), 8);
    let log = daemon.log();
    let lines = |cache: &str| log.lines().filter(|line| line.contains(cache)).count();
    assert_eq!((lines("cache=hit"), lines("cache=miss")), (32, 8));
}

/// How a client asks for vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Numbers,
    Base64,
    Ollama,
}

fn vectors(daemon: &Daemon, form: Form, model: &str, text: &str, context: &str) -> String {
    let mut body = embed(model, text);
    if form == Form::Base64 {
        body["encoding_format"] = "base64".into();
    }
    let path = if form == Form::Ollama { "/api/embed" } else { "/v1/embeddings" };
    let answer = daemon.ask(ask::post(path, &body));
    assert_eq!(answer.status(), 200, "{context}: {}", answer.text());
    let json = answer.json();
    let vector = match form {
        Form::Ollama => &json["embeddings"][0],
        _ => &json["data"][0]["embedding"],
    };
    if form == Form::Base64 {
        assert_eq!(*vector, "AACAPgAAAL8AAIA/", "{context}");
    } else {
        let numbers: Vec<f64> =
            vector.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        assert_eq!(numbers, [0.25, -0.5, 1.0], "{context}");
    }
    assert_eq!(json["model"], model, "{context}");
    origin(&answer).to_owned()
}

#[test]
fn vectors_asked_for_in_one_form_are_given_again_in_every_form() {
    let sandbox = Sandbox::new();
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "")));
    let conf = Conf::new().fake("a", &upstreams[0], "").fake("b", &upstreams[1], "").text(HOUR);
    let daemon = Daemon::start(&sandbox, &conf);
    const FORMS: [Form; 3] = [Form::Numbers, Form::Base64, Form::Ollama];
    for (upstream, model) in upstreams.iter().zip(["a/m", "b/m"]) {
        for (n, first) in FORMS.into_iter().enumerate() {
            let text = format!("as {first:?}");
            assert_eq!(vectors(&daemon, first, model, &text, &text), "miss");
            for again in FORMS {
                let context = format!("{model}, {text}, again as {again:?}");
                assert_eq!(vectors(&daemon, again, model, &text, &context), "hit", "{context}");
            }
            assert_eq!(embed_calls(upstream), n + 1, "{model} {text}");
        }
    }
}

#[test]
fn chat_is_kept_only_where_it_is_asked_for_and_for_each_key_by_itself() {
    let sandbox = Sandbox::new();
    let upstream =
        FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "a good answer"));
    let hex = |key: &str| {
        Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let mut conf = Conf::new()
        .fake("u", &upstream, "")
        .model("plain", "u/m", &[])
        .text("[[model]]\nname = \"kept\"\nprimary = \"u/m\"\ncache = \"1h\"");
    for name in ["one", "two"] {
        conf = conf.text(&format!("[[key]]\nname = \"{name}\"\nsha256 = \"{}\"", hex(name)));
    }
    let daemon = Daemon::start(&sandbox, &conf.text(HOUR));
    let chat = |key: &str, header: &str, model: &str| {
        let headers = format!("Authorization: Bearer {key}\r\n{header}");
        daemon.ask(chat_with(&headers, model, "hello", false))
    };
    for _ in 0..2 {
        assert_origin(&chat("one", "", "plain"), "none");
    }
    assert_origin(&chat("one", "", "kept"), "miss");
    assert_origin(&chat("one", "", "kept"), "hit");
    assert_origin(&chat("two", "", "kept"), "miss");
    // The same upstream and model under another name: the same answer, under that name.
    let answer = chat("one", "X-Tidegate-Cache: use\r\n", "plain");
    assert_origin(&answer, "hit");
    assert_eq!(answer.json()["model"], "plain");
    assert_origin(&chat("one", "X-Tidegate-Cache: bypass\r\n", "kept"), "none");
    assert_origin(&chat("one", "Cache-Control: no-store\r\n", "kept"), "none");
    assert_origin(&chat("one", "Cache-Control: no-cache\r\n", "kept"), "miss");
    assert_origin(&chat("one", "X-Tidegate-Cache: refresh\r\n", "kept"), "miss");
    assert_origin(&chat("one", "", "kept"), "hit");
    let answer = chat("one", "X-Tidegate-Cache: please\r\n", "kept");
    assert_eq!((answer.status(), answer.code().as_str()), (400, "invalid_field"));
    // Vectors are everybody's.
    let vectors = |key: &str| {
        let headers = format!("Authorization: Bearer {key}\r\n");
        let body = embed("u/m", "x").to_string();
        daemon.ask(ask::post_with("/v1/embeddings", &headers, body.as_bytes()))
    };
    assert_origin(&vectors("one"), "miss");
    assert_origin(&vectors("two"), "hit");
}

#[test]
fn what_is_not_whole_not_of_the_first_or_has_tools_is_never_kept() {
    let sandbox = Sandbox::new();
    let script = |call: &Call| {
        let good = answers::good(call, "a good answer");
        match call.prompt() {
            // The last event, with its terminator, does not come.
            "cut" if call.stream() => {
                let mut steps = good;
                steps.truncate(4);
                steps.push(Step::Close);
                steps
            }
            _ => good,
        }
    };
    let upstream = FakeUpstream::start(Dialect::OpenAi, script);
    let broken = FakeUpstream::start(Dialect::OpenAi, |call| {
        answers::catalog(call).unwrap_or_else(|| vec![Step::Close])
    });
    let conf = Conf::new()
        .fake("u", &upstream, "")
        .fake("broken", &broken, "")
        .text("[[model]]\nname = \"kept\"\nprimary = \"u/m\"\ncache = \"1h\"")
        .text("[[model]]\nname = \"second\"\nprimary = \"broken/m\"\nfallbacks = [\"u/m\"]\ncache = \"1h\"")
        .text(HOUR);
    let daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..2 {
        let answer = daemon.ask(chat_with("", "kept", "cut", true));
        assert_origin(&answer, "miss");
        let stream = Stream::of(Dialect::OpenAi, &answer);
        assert_eq!((stream.terminators(), stream.errors().len()), (0, 1));
    }
    for _ in 0..2 {
        assert_origin(&daemon.ask(chat_with("", "second", "fallback", false)), "miss");
    }
    assert_eq!(upstream.seen_with("fallback").len(), 2);
    let tools = json!({"model": "kept", "messages": [{"role": "user", "content": "tools"}],
        "tools": [{"type": "function", "function": {"name": "f"}}]});
    for _ in 0..2 {
        assert_origin(&daemon.ask(ask::post("/v1/chat/completions", &tools)), "none");
    }
    assert_eq!(daemon.limit_now("cache.entries_max"), 0);
}

#[test]
fn the_bounds_hold_and_a_reload_changes_them() {
    let sandbox = Sandbox::new();
    let upstream =
        FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, &"long ".repeat(300)));
    let base = || Conf::new().fake("u", &upstream, "");
    let daemon = Daemon::start(&sandbox, &base().text("[cache]\nentries_max = 2"));
    let kept = |n: usize| origin(&daemon.ask(embeddings("u/m", &n.to_string()))).to_owned();
    assert_eq!([1, 2, 1, 3, 1, 2].map(kept), ["miss", "miss", "hit", "miss", "hit", "miss"]);
    let metrics = daemon.metrics();
    assert_eq!(metrics.limit("now", "cache.entries_max"), 2);
    assert_eq!(metrics.limit("high_water", "cache.entries_max"), 2);
    let evicted = [("namespace", "embeddings"), ("change", "evicted")];
    assert_eq!(metrics.sum("tidegate_cache_entries_total", &evicted), Some(2.0));
    let bytes = metrics.limit("now", "cache.bytes_max");
    assert_eq!(metrics.sum("tidegate_cache_bytes", &[]), Some(bytes as f64));
    // A single answer has its bound too: this one is larger.
    daemon.rewrite(&base().text("[cache]\nentries_max = 1\nentry_max = \"1KiB\""));
    daemon.signal(Signal::HUP);
    assert_eventually!(daemon.metrics().limit("max", "cache.entries_max") == 1);
    assert_eq!(daemon.limit_now("cache.entries_max"), 1);
    let long = || daemon.ask(chat_with("X-Tidegate-Cache: use\r\n", "u/m", "long", false));
    assert_origin(&long(), "miss");
    assert_origin(&long(), "miss");
    assert_eq!(daemon.limit_now("cache.entries_max"), 1);
    daemon.rewrite(&base().text("[cache]\nenabled = false"));
    daemon.signal(Signal::HUP);
    assert_eventually!(daemon.limit_now("cache.entries_max") == 0);
    assert_eq!(kept(1), "none");
    assert_origin(&long(), "none");
}

#[test]
fn past_the_bound_on_those_who_wait_a_request_asks_by_itself() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstream = gated(vec![gate.clone(), gate.clone()]);
    let conf = Conf::new().fake("u", &upstream, "").text("[cache]\nwaiting_max = 1");
    let daemon = Daemon::start(&sandbox, &conf);
    let request = embeddings("u/m", "x");
    let mut wires = crowd(&daemon, 1, &request);
    assert_eventually!(embed_calls(&upstream) == 1);
    wires.extend(crowd(&daemon, 1, &request));
    assert_eventually!(waiting(&daemon) == 1);
    wires.extend(crowd(&daemon, 1, &request));
    assert_eventually!(embed_calls(&upstream) == 2);
    gate.open();
    let origins: Vec<_> =
        wires.iter_mut().map(|wire| origin(&wire.answer().unwrap()).to_owned()).collect();
    assert_eq!(origins, ["miss", "coalesced", "miss"]);
    assert_eq!(count(&daemon, "embeddings", "miss"), 2);
    assert_eq!(daemon.metrics().limit("refused_total", "cache.waiting_max"), 1);
}

#[test]
fn the_cache_is_shown_and_a_change_in_a_watched_folder_clears_it() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, ""));
    let folder = sandbox.path("documents");
    let watch = "[[cache.watch]]\npath = \"documents\"\nnamespace = \"embeddings\"";
    let conf = Conf::new().fake("u", &upstream, "").text(watch);
    // The folder comes later than the daemon, which is a change as well.
    let daemon = Daemon::start(&sandbox, &conf);
    let version = || -> u64 {
        let answer = crate::support::wire::ask(daemon.ops, ask::get("/cache"));
        answer.json()["namespaces"][0]["version"].as_u64().unwrap()
    };
    assert_eventually!(daemon.log().contains("cache_watch_failed"));
    let begun = version();
    std::fs::create_dir(&folder).unwrap();
    assert_eventually!(version() > begun);
    // Its own clearing may come after that of its coming.
    let mut n = 0;
    assert_eventually!({
        n += 1;
        let _ = daemon.ask(embeddings("u/m", "x"));
        let kept = origin(&daemon.ask(embeddings("u/m", "x"))) == "hit";
        let before = version();
        std::fs::write(folder.join("a"), n.to_string()).unwrap();
        let begun = std::time::Instant::now();
        while version() == before && begun.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(5));
        }
        kept && version() > before && origin(&daemon.ask(embeddings("u/m", "x"))) == "miss"
    });
    let shown = command(&sandbox)
        .args(["cache", "--ops", &daemon.ops.to_string()])
        .output()
        .map(|output| String::from_utf8(output.stdout).unwrap())
        .unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("NAMESPACE") && lines[0].ends_with("CLEARED"), "{shown}");
    assert!(lines[1].starts_with("embeddings") && lines[2].starts_with("chat"), "{shown}");
    // A reload ends the watch.
    daemon.rewrite(&Conf::new().fake("u", &upstream, ""));
    daemon.signal(Signal::HUP);
    assert_eventually!(!daemon.process().threads().contains(&"cache-watch".to_owned()));
    daemon.assert_well("after the watch");
}

/// A pump serves many: what takes it long is given by a worker.
#[test]
fn a_large_answer_that_is_kept_is_given_by_a_worker() {
    const ROUNDS: u64 = 20;
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        let words = if call.prompt() == "large" { 40_000 } else { 1 };
        answers::good(call, &"word ".repeat(words))
    });
    let conf = Conf::new()
        .fake("u", &upstream, "")
        .text("[[model]]\nname = \"kept\"\nprimary = \"u/m\"\ncache = \"1h\"")
        .text(HOUR);
    let daemon = Daemon::start(&sandbox, &conf);
    let large = chat_with("", "kept", "large", false);
    let mut wire = daemon.connect();
    assert_origin(&wire.ask(&large), "miss");
    let taken = || {
        let labels = [("engine", "data")];
        daemon.metrics().sum("tidegate_queue_wait_seconds_count", &labels).unwrap() as u64
    };
    let before = taken();
    for _ in 0..ROUNDS {
        // After an answer that was waited for on a pump the connection stays there.
        let call = chat_with("x-tidegate-cache: bypass\r\n", "kept", "small", false);
        assert_eq!(wire.ask(call).status(), 200);
        let answer = wire.ask(&large);
        assert_origin(&answer, "hit");
        assert!(answer.body().len() > 200_000);
    }
    assert!(taken() - before >= ROUNDS, "{} of {ROUNDS}", taken() - before);
}
