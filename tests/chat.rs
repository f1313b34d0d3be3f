//! Chats over WebSocket: runs, their events, sessions, and the same chain, guards and accounts as
//! over HTTP.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::ws::{Client, Hello, room};

const USE: &[&str] = &["operator.read", "operator.write"];

fn sandbox_and(conf: impl FnOnce(&Sandbox) -> Conf) -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    let conf = conf(&sandbox);
    let daemon = Daemon::start(&sandbox, &conf);
    (sandbox, daemon)
}

/// A daemon that asks nobody for a key, with one model behind `upstream`.
fn with(upstream: &FakeUpstream, nodes: &str) -> (Sandbox, Daemon) {
    sandbox_and(|_| {
        let conf = Conf::new().fake("fake", upstream, "").model("default", "fake/m", &[]);
        conf.text(&format!("[nodes]\n{nodes}\n"))
    })
}

fn operator(daemon: &Daemon) -> Client {
    Client::operator(daemon, None, USE)
}

fn say(client: &mut Client, text: &str, key: &str) -> Result<Value, Value> {
    let params = json!({"sessionKey": "main", "message": text, "idempotencyKey": key});
    client.request("chat.send", params)
}

/// Reads `chat` events of a run to its end: the text that the deltas add up to, and the last one.
fn follow(client: &mut Client, run: &str) -> (String, Value) {
    let mut text = String::new();
    let mut seq = 0;
    loop {
        let event = client.next_event("chat");
        if event["runId"] != run {
            continue;
        }
        assert!(event["seq"].as_u64().unwrap() > seq, "{event}");
        seq = event["seq"].as_u64().unwrap();
        if event["state"] != "delta" {
            return (text, event);
        }
        if event["replace"] == true {
            text.clear();
        }
        text.push_str(event["deltaText"].as_str().unwrap());
    }
}

fn text_of(message: &Value) -> &str {
    message["content"][0]["text"].as_str().unwrap_or_default()
}

/// An upstream that sends this many words and then waits.
fn stalling() -> FakeUpstream {
    FakeUpstream::start(Dialect::OpenAi, |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        let mut steps = vec![Step::Send(answers::stream_head(call.dialect))];
        steps.push(Step::Send(answers::chunk(&answers::opening(call))));
        steps.push(Step::Send(answers::chunk(&answers::text(call, "half of it"))));
        steps.push(Step::Silence);
        steps
    })
}

#[test]
fn a_chat_streams_its_deltas_and_ends_with_the_whole() {
    let upstream =
        FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "one two three"));
    let (_sandbox, daemon) = with(&upstream, "");
    let mut client = operator(&daemon);
    let started = say(&mut client, "hello", "run-1").unwrap();
    assert_eq!(started, json!({"runId": "run-1", "status": "started"}));
    let (text, last) = follow(&mut client, "run-1");
    assert_eq!(last["state"], "final", "{last}");
    assert_eq!((text.as_str(), text_of(&last["message"])), ("one two three", "one two three"));
    assert_eq!(
        (&last["sessionKey"], &last["stopReason"]),
        (&json!("agent:main:main"), &json!("stop"))
    );
    assert!(last["usage"]["totalTokens"].as_u64().unwrap() > 0, "{last}");
    let mut phases = Vec::new();
    while let Some(event) = client.event_within("agent", Duration::from_millis(50)) {
        phases.push(format!("{}{}", event["stream"], event["data"]["phase"]));
    }
    assert_eq!(phases.first().map(String::as_str), Some("\"lifecycle\"\"start\""), "{phases:?}");
    assert_eq!(phases.last().map(String::as_str), Some("\"lifecycle\"\"end\""), "{phases:?}");

    // The next turn hears what was said; the same key again is the same run.
    let again = say(&mut client, "hello", "run-1").unwrap();
    assert_eq!((&again["status"], upstream.calls()), (&json!("ok"), 1));
    say(&mut client, "and?", "run-2").unwrap();
    follow(&mut client, "run-2");
    let messages = upstream.seen()[1].call.json["messages"].clone();
    let texts: Vec<&str> =
        messages.as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(texts, ["hello", "one two three", "and?"]);

    let history = client.request("chat.history", json!({"sessionKey": "main"})).unwrap();
    let roles: Vec<&Value> =
        history["messages"].as_array().unwrap().iter().map(|m| &m["role"]).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert_eq!(
        (&history["hasMore"], &history["sessionInfo"]["hasActiveRun"]),
        (&json!(false), &json!(false))
    );
    let page = client.request("chat.history", json!({"sessionKey": "main", "limit": 1})).unwrap();
    assert_eq!((&page["hasMore"], &page["nextOffset"]), (&json!(true), &json!(1)));
    let list = client.request("sessions.list", json!({"includeLastMessage": true})).unwrap();
    assert_eq!(list["sessions"][0]["lastMessagePreview"], "one two three");
    assert_eq!(list["sessions"][0]["key"], "agent:main:main");
}

#[test]
fn an_abort_lets_the_upstream_go_and_says_so() {
    let upstream = stalling();
    let (_sandbox, daemon) = with(&upstream, "");
    let mut client = operator(&daemon);
    say(&mut client, "hello", "a").unwrap();
    say(&mut client, "behind it", "b").unwrap();
    assert_eq!(client.next_event("chat")["deltaText"], "half of it");
    let history = client.request("chat.history", json!({"sessionKey": "main"})).unwrap();
    assert_eq!(history["inFlightRun"], json!({"runId": "a", "text": "half of it"}));
    let wrong = json!({"sessionKey": "other", "runId": "a"});
    assert_eq!(client.request("chat.abort", wrong).unwrap_err()["code"], "INVALID_REQUEST");
    let answer = client.request("chat.abort", json!({"sessionKey": "main"})).unwrap();
    assert_eq!(answer, json!({"ok": true, "aborted": true, "runIds": ["a", "b"]}));
    let mut states = Vec::new();
    for _ in 0..2 {
        let event = client.next_event("chat");
        assert_eq!((&event["state"], &event["stopReason"]), (&json!("aborted"), &json!("rpc")));
        states.push(event["runId"].as_str().unwrap().to_owned());
    }
    states.sort();
    assert_eq!(states, ["a", "b"]);
    assert_eventually!(upstream.seen()[0].closed_at.is_some(), "the upstream is still asked");
    assert_eq!(upstream.calls(), 1, "what waited was asked for");
    let history = client.request("chat.history", json!({"sessionKey": "main"})).unwrap();
    let last = history["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((text_of(&last), &last["stopReason"]), ("half of it", &json!("aborted")));
    assert_eventually!(daemon.limit_now("nodes.runs_max") == 0, "a run is left");
    assert_eventually!(daemon.limit_now("inward_max") == 0, "a connection is left");
}

#[test]
fn what_breaks_off_ends_as_an_error_and_never_as_an_answer() {
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        let mut steps = answers::good(call, "one two three four");
        match call.prompt() {
            "cut" => {
                steps.truncate(steps.len() / 2);
                steps.push(Step::Reset);
            }
            "busy" => {
                steps = answers::json_answer(429, &json!({"error": {"message": "slow down"}}))
            }
            _ => {}
        }
        steps
    });
    let (_sandbox, daemon) = with(&upstream, "");
    let mut client = operator(&daemon);
    for (prompt, kind) in [("cut", "unknown"), ("busy", "rate_limit")] {
        say(&mut client, prompt, prompt).unwrap();
        let (_, last) = follow(&mut client, prompt);
        assert_eq!((&last["state"], &last["errorKind"]), (&json!("error"), &json!(kind)), "{last}");
        assert!(!last["errorMessage"].as_str().unwrap().is_empty());
    }
    let error = say(&mut client, "cut", "cut").unwrap_err();
    assert_eq!(
        (&error["code"], &error["details"]["runId"]),
        (&json!("UNAVAILABLE"), &json!("cut"))
    );
    let row = client.request("sessions.describe", json!({"key": "main"})).unwrap();
    assert_eq!(row["session"]["status"], "failed");
    say(&mut client, "fine", "fine").unwrap();
    assert_eq!(follow(&mut client, "fine").1["state"], "final");
}

#[test]
fn a_run_that_takes_too_long_is_ended_and_its_upstream_let_go() {
    let upstream = stalling();
    let (_sandbox, daemon) = with(&upstream, "");
    let mut client = operator(&daemon);
    let params =
        json!({"sessionKey": "main", "message": "x", "idempotencyKey": "t", "timeoutMs": 200});
    client.request("chat.send", params).unwrap();
    let (_, last) = follow(&mut client, "t");
    assert_eq!((&last["state"], &last["errorKind"]), (&json!("error"), &json!("timeout")));
    assert_eventually!(upstream.seen()[0].closed_at.is_some(), "the upstream is still asked");
}

#[test]
fn a_run_goes_on_without_the_client_that_asked_for_it() {
    let gate = Gate::new();
    let waits = std::sync::Arc::clone(&gate);
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        let mut steps = vec![Step::Until(std::sync::Arc::clone(&waits))];
        steps.extend(answers::good(call, "late words"));
        steps
    });
    let (_sandbox, daemon) = with(&upstream, "");
    let mut first = operator(&daemon);
    say(&mut first, "hello", "r").unwrap();
    first.reset();
    let mut second = operator(&daemon);
    let wait = second.ask("agent.wait", json!({"runId": "r"}));
    gate.open();
    assert_eq!(second.answer(&wait).unwrap()["status"], "ok");
    assert_eq!(follow(&mut second, "r").1["state"], "final");
    let unknown = second.request("agent.wait", json!({"runId": "nobody"})).unwrap_err();
    assert_eq!(unknown["code"], "INVALID_REQUEST");
}

#[test]
fn an_agent_answers_twice_and_waits_are_answered_in_time() {
    let upstream = stalling();
    let (_sandbox, daemon) = sandbox_and(|_| {
        let conf = Conf::new().fake("fake", &upstream, "");
        conf.model("default", "echo", &[]).model("slow", "fake/m", &[])
    });
    let mut client = operator(&daemon);
    let params =
        json!({"message": "good morning", "idempotencyKey": "a1", "extraSystemPrompt": "be kind"});
    let id = client.ask("agent", params);
    let accepted = client.answer(&id).unwrap();
    assert_eq!((&accepted["runId"], &accepted["status"]), (&json!("a1"), &json!("accepted")));
    let last = client.answer(&id).unwrap();
    assert_eq!((&last["status"], &last["summary"]), (&json!("ok"), &json!("completed")));
    assert_eq!(last["result"]["payloads"][0]["text"], "good morning");
    let params =
        json!({"message": "x", "idempotencyKey": "a2", "model": "slow", "sessionKey": "s"});
    let id = client.ask("agent", params);
    assert_eq!(client.answer(&id).unwrap()["status"], "accepted");
    let waited = client.request("agent.wait", json!({"runId": "a2", "timeoutMs": 50})).unwrap();
    assert_eq!(waited, json!({"runId": "a2", "status": "timeout"}));
    client.request("sessions.abort", json!({"key": "s"})).unwrap();
    assert_eq!(client.answer(&id).unwrap()["summary"], "aborted");
    let refused = json!({"message": "x", "idempotencyKey": "a3", "agentId": "work"});
    assert_eq!(
        client.request("agent", refused).unwrap_err()["details"]["code"],
        "UNKNOWN_AGENT_ID"
    );
    let agents = client.request("agents.list", json!({})).unwrap();
    assert_eq!(
        (&agents["defaultId"], &agents["agents"][0]["model"]["primary"]),
        (&json!("main"), &json!("default"))
    );
}

#[test]
fn a_chat_has_the_limits_the_models_and_the_accounts_of_its_key() {
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "an answer"));
    let digest = |key: &str| {
        use sha2::{Digest, Sha256};
        Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let (_sandbox, daemon) = sandbox_and(|_| {
        let conf = Conf::new().fake("fake", &upstream, "");
        let conf = conf.model("open", "fake/m", &[]).model("closed", "fake/n", &[]);
        conf.text(&format!(
            "[[key]]\nname = \"laptop\"\nsha256 = \"{}\"\nmodels = [\"open\"]\nrequests_per_minute = 4\n\
             [[key]]\nname = \"phone\"\nsha256 = \"{}\"\n",
            digest("sk-laptop"), digest("sk-phone")
        ))
    });
    let mut laptop = Client::operator(&daemon, Some("sk-laptop"), USE);
    let mut phone = Client::operator(&daemon, Some("sk-phone"), USE);
    say(&mut laptop, "hello", "r1").unwrap();
    follow(&mut laptop, "r1");
    // A model that the key may not ask for is refused by the chain, in its words.
    let params = json!({"message": "x", "idempotencyKey": "r2", "model": "closed"});
    let id = laptop.ask("agent", params);
    laptop.answer(&id).unwrap();
    let error = laptop.answer(&id).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("closed"), "{error}");
    assert_eq!(upstream.calls(), 1);
    let request = "GET /usage?by=session HTTP/1.1\r\nHost: localhost\r\n\
                   authorization: Bearer sk-laptop\r\n\r\n";
    let usage: Value = serde_json::from_slice(&daemon.ask(request).body()).unwrap();
    let row = &usage["rows"][0];
    assert_eq!(
        (&row["session"], &row["key"]),
        (&json!("agent:main:main"), &json!("laptop")),
        "{usage}"
    );
    // This request is the last one of this minute; the next is refused at once.
    say(&mut laptop, "hello", "r3").unwrap();
    follow(&mut laptop, "r3");
    let error = say(&mut laptop, "hello", "r4").unwrap_err();
    assert_eq!((&error["code"], &error["retryable"]), (&json!("UNAVAILABLE"), &json!(true)));
    assert_eq!(error["details"]["reason"], "rate_limited");
    let request = ask::post_with(
        "/v1/chat/completions",
        "authorization: Bearer sk-laptop\r\n",
        br#"{"model":"open","messages":[{"role":"user","content":"x"}]}"#,
    );
    assert_eq!(daemon.ask(request).status(), 429, "the limit is the key's, over both doors");
    // Sessions are the key's own.
    let list = phone.request("sessions.list", json!({})).unwrap();
    assert_eq!(list["count"], 0);
    assert!(phone.event_within("chat", Duration::from_millis(100)).is_none());
    assert!(daemon.log().contains("/v1/chat/completions"), "no access line");
}

#[test]
fn a_chat_is_answered_from_the_cache_as_a_request_over_http_is() {
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "an answer"));
    let (_sandbox, daemon) = sandbox_and(|_| {
        let model = "[[model]]\nname = \"kept\"\nprimary = \"fake/m\"\ncache = \"1h\"";
        Conf::new().fake("fake", &upstream, "").text(model)
    });
    let mut client = operator(&daemon);
    for session in ["a", "b"] {
        let params =
            json!({"sessionKey": session, "message": "the same", "idempotencyKey": session});
        client.request("chat.send", params).unwrap();
        let (_, last) = follow(&mut client, session);
        assert_eq!((&last["state"], text_of(&last["message"])), (&json!("final"), "an answer"));
    }
    assert_eq!(upstream.calls(), 1);
}

#[test]
fn administrators_see_others_sessions_under_keys_of_their_own() {
    let (_sandbox, daemon) = sandbox_and(|sandbox| room::conf(sandbox, ""));
    let mut admin = room::admin(&daemon);
    let params =
        json!({"key": "trip", "label": "the trip", "message": "pack", "idempotencyKey": "k"});
    let created = admin.request("sessions.create", params).unwrap();
    assert_eq!((&created["key"], &created["runId"]), (&json!("agent:main:trip"), &json!("k")));
    assert_eq!(follow(&mut admin, "k").1["message"]["content"][0]["text"], "pack");
    let resolved = admin.request("sessions.resolve", json!({"label": "the trip"})).unwrap();
    assert_eq!(resolved["key"], "agent:main:trip");
    let shown = admin.request("sessions.preview", json!({"keys": ["trip", "none"]})).unwrap();
    let statuses: Vec<&Value> =
        shown["previews"].as_array().unwrap().iter().map(|p| &p["status"]).collect();
    assert_eq!(statuses, ["ok", "missing"]);
    let patched = json!({"key": "trip", "model": "echo/other", "label": null});
    let patched = admin.request("sessions.patch", patched).unwrap();
    assert_eq!(patched["resolved"]["model"], "echo/other");
    assert!(admin.request("sessions.patch", json!({"key": "trip", "execHost": "x"})).is_err());
    let subscribed = admin.request("sessions.messages.subscribe", json!({"key": "trip"})).unwrap();
    assert_eq!(subscribed, json!({"subscribed": true, "key": "agent:main:trip"}));
    admin.request("sessions.subscribe", json!({})).unwrap();
    let sent = json!({"key": "trip", "message": "again", "idempotencyKey": "k2"});
    assert_eq!(admin.request("sessions.send", sent).unwrap()["messageSeq"], 3);
    let said = [admin.next_event("session.message"), admin.next_event("session.message")];
    assert_eq!((&said[0]["messageSeq"], &said[1]["messageSeq"]), (&json!(3), &json!(4)));
    assert_eq!(text_of(&said[1]["message"]), "again");
    assert_eq!(admin.next_event("sessions.changed")["sessionKey"], "agent:main:trip");
    admin.request("sessions.reset", json!({"key": "trip"})).unwrap();
    let history = admin.request("chat.history", json!({"sessionKey": "trip"})).unwrap();
    assert_eq!(history["messages"], json!([]));
    let deleted = admin.request("sessions.delete", json!({"key": "trip"})).unwrap();
    assert_eq!(deleted["deleted"], true);
    assert!(admin.request("sessions.delete", json!({"key": "main"})).is_err());
    assert!(admin.request("sessions.send", json!({"key": "trip", "message": "x"})).is_err());
    // With less than administration less is seen, and nothing reset.
    let hello = Hello::operator(USE).token(room::TOKEN);
    let mut other = hello.connect(daemon.addr).unwrap();
    let error = other.request("sessions.reset", json!({"key": "main"})).unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.admin");
}

#[test]
fn what_is_kept_of_sessions_is_bounded_and_told() {
    let (_sandbox, daemon) = sandbox_and(|_| {
        Conf::new().text("[nodes]\nsessions_max = 2\nsession_bytes_max = \"16KiB\"\nruns_max = 2\n")
    });
    let mut client = operator(&daemon);
    for n in 0..4 {
        let (text, key) = (format!("{n}{}", "x".repeat(6000)), format!("r{n}"));
        say(&mut client, &text, &key).unwrap();
        follow(&mut client, &key);
    }
    let history = client.request("chat.history", json!({"sessionKey": "main"})).unwrap();
    assert_eq!((&history["truncated"], &history["totalMessages"]), (&json!(true), &json!(8)));
    assert_eq!(history["messages"].as_array().unwrap().len(), 2);
    for key in ["a", "b", "c"] {
        let params = json!({"sessionKey": key, "message": "x", "idempotencyKey": key});
        client.request("chat.send", params).unwrap();
        follow(&mut client, key);
    }
    let list = client.request("sessions.list", json!({})).unwrap();
    let keys: Vec<&Value> =
        list["sessions"].as_array().unwrap().iter().map(|row| &row["key"]).collect();
    assert_eq!(keys, ["agent:main:c", "agent:main:b"]);
    assert_eq!(daemon.limit_now("nodes.sessions_max"), 2);
}

#[test]
fn more_runs_than_may_be_are_refused_and_pictures_go_to_the_model() {
    let upstream = stalling();
    let (_sandbox, daemon) = with(&upstream, "runs_max = 1");
    let mut client = operator(&daemon);
    let image = json!([{"mimeType": "image/png", "content": "iVBORw0KGgo="}]);
    let params = json!({"sessionKey": "main", "message": "look", "attachments": image, "idempotencyKey": "a"});
    client.request("chat.send", params).unwrap();
    let error = say(&mut client, "x", "b").unwrap_err();
    assert_eq!((&error["code"], &error["retryable"]), (&json!("UNAVAILABLE"), &json!(true)));
    assert_eventually!(upstream.calls() == 1, "it is not asked");
    let content = upstream.seen()[0].call.json["messages"][0]["content"].clone();
    assert_eq!(content[1]["image_url"]["url"], "data:image/png;base64,iVBORw0KGgo=");
    let file = json!([{"mimeType": "text/plain", "content": "aGk="}]);
    let params =
        json!({"sessionKey": "main", "message": "x", "attachments": file, "idempotencyKey": "c"});
    assert_eq!(client.request("chat.send", params).unwrap_err()["code"], "INVALID_REQUEST");
    let stopped = say(&mut client, "/stop", "d").unwrap();
    assert_eq!(stopped["runIds"], json!(["a"]));
}

#[test]
fn a_wake_is_told_with_the_next_turn_or_becomes_one() {
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "noted"));
    let (_sandbox, daemon) = with(&upstream, "");
    let mut client = operator(&daemon);
    client.request("wake", json!({"mode": "next-heartbeat", "text": "it rains"})).unwrap();
    say(&mut client, "hello", "r").unwrap();
    follow(&mut client, "r");
    assert_eq!(upstream.seen()[0].call.prompt(), "System: it rains\n\nhello");
    client.request("wake", json!({"mode": "now", "text": "it snows"})).unwrap();
    assert_eventually!(upstream.calls() == 2, "no turn was run");
    assert_eq!(upstream.seen()[1].call.prompt(), "System: it snows");
    assert!(client.request("wake", json!({"mode": "later", "text": "x"})).is_err());
}

#[test]
fn a_restart_ends_what_runs_with_an_error_and_sessions_begin_anew() {
    let upstream = stalling();
    let sandbox = Sandbox::new();
    let conf = Conf::new().fake("fake", &upstream, "").model("default", "fake/m", &[]);
    let conf = conf.server("drain_timeout = \"1s\"");
    let mut daemon = Daemon::start(&sandbox, &conf);
    let mut client = operator(&daemon);
    say(&mut client, "hello", "r").unwrap();
    assert_eq!(client.next_event("chat")["state"], "delta");
    assert!(daemon.stop().success());
    assert_eventually!(upstream.seen()[0].closed_at.is_some(), "the upstream is still asked");
    let daemon = Daemon::start(&sandbox, &conf);
    let mut client = operator(&daemon);
    let history = client.request("chat.history", json!({"sessionKey": "main"})).unwrap();
    assert_eq!((&history["messages"], &history["totalMessages"]), (&json!([]), &json!(0)));
}
