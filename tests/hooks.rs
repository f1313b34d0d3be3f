//! Hooks for agents: who may use them, and what they start.

use serde_json::{Value, json};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::Answer;
use crate::support::ws::Client;

const TOKEN: &str = "the-token-of-the-hooks";

fn start(upstream: &FakeUpstream, hooks: &str) -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    let file = sandbox.write("hooks.token", TOKEN);
    let conf = Conf::new().fake("fake", upstream, "").model("default", "fake/m", &[]);
    let conf = conf.text(&format!("[hooks]\ntoken_file = {file:?}\n{hooks}\n"));
    let daemon = Daemon::start(&sandbox, &conf);
    (sandbox, daemon)
}

fn noting() -> FakeUpstream {
    FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "noted"))
}

fn post(daemon: &Daemon, path: &str, fields: &str, body: &Value) -> Answer {
    daemon.ask(ask::post_with(path, fields, body.to_string().as_bytes()))
}

fn bearer() -> String {
    format!("authorization: Bearer {TOKEN}\r\n")
}

fn value(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body()).unwrap_or_default()
}

#[test]
fn a_hook_runs_a_turn_once_and_a_wake_tells_a_session() {
    let upstream = noting();
    let (_sandbox, daemon) = start(&upstream, "");
    let mut client = Client::operator(&daemon, None, &["operator.read", "operator.write"]);
    let body = json!({"message": "a mail came", "name": "Mail", "sessionKey": "mail"});
    let key = format!("{}idempotency-key: mail-7\r\n", bearer());
    for _ in 0..2 {
        let answer = post(&daemon, "/hooks/agent", &key, &body);
        assert_eq!(
            (answer.status(), value(&answer)),
            (200, json!({"ok": true, "runId": "mail-7"}))
        );
    }
    loop {
        let event = client.next_event("chat");
        assert_eq!(
            (&event["runId"], &event["sessionKey"]),
            (&json!("mail-7"), &json!("agent:main:mail"))
        );
        if event["state"] == "final" {
            break;
        }
    }
    assert_eq!(upstream.calls(), 1, "the same key ran twice");
    let list = client.request("sessions.list", json!({})).unwrap();
    assert_eq!(list["sessions"][0]["label"], "Mail");

    let token = format!("x-openclaw-token: {TOKEN}\r\n");
    let body = json!({"text": "it rains", "mode": "next-heartbeat", "sessionKey": "mail"});
    let answer = post(&daemon, "/hooks/wake", &token, &body);
    let expected = json!({"ok": true, "mode": "next-heartbeat"});
    assert_eq!((answer.status(), value(&answer)), (200, expected));
    let answer =
        post(&daemon, "/hooks/wake", &token, &json!({"text": "it snows", "sessionKey": "mail"}));
    assert_eq!(answer.status(), 200);
    assert_eventually!(upstream.calls() == 2, "no turn was run");
    assert_eq!(upstream.seen()[1].call.prompt(), "System: it rains\n\nSystem: it snows");
}

#[test]
fn hooks_say_what_is_wrong_as_their_callers_know_it() {
    let upstream = noting();
    let (_sandbox, daemon) = start(&upstream, "body_max = \"1KiB\"");
    let body = json!({"message": "x"});
    let check = |path: &str, fields: &str, body: &Value, status: u16| {
        let answer = post(&daemon, path, fields, body);
        assert_eq!(answer.status(), status, "{path} {fields:?} {body}");
        answer
    };
    let answer = check("/hooks/agent", "", &body, 401);
    assert_eq!(answer.body(), b"Unauthorized");
    check("/hooks/agent", "authorization: Bearer wrong\r\n", &body, 401);
    let in_address = format!("/hooks/agent?token={TOKEN}");
    let answer = check(&in_address, &bearer(), &body, 400);
    assert_eq!(value(&answer)["ok"], false);
    let large = json!({"message": "x".repeat(1100)});
    let answer = check("/hooks/agent", &bearer(), &large, 413);
    assert_eq!(value(&answer), json!({"ok": false, "error": "payload too large"}));
    for wrong in [
        json!({}),
        json!({"message": " "}),
        json!({"message": "x", "deliver": true}),
        json!({"message": "x", "agentId": "work"}),
        json!({"message": "x", "idempotencyKey": "a\nb"}),
    ] {
        check("/hooks/agent", &bearer(), &wrong, 400);
    }
    check("/hooks/wake", &bearer(), &json!({"text": "x", "mode": "later"}), 400);
    check("/hooks/other", &bearer(), &body, 404);
    let answer = daemon.ask(ask::get("/hooks/agent"));
    assert_eq!(answer.status(), 405);
    assert!(answer.header("allow").unwrap().starts_with("POST"));
    assert_eq!(upstream.calls(), 0);
    assert!(!daemon.log().contains(TOKEN), "the token stands in the log");
}

#[test]
fn without_a_token_there_are_no_hooks_and_too_many_wrong_ones_lock_out() {
    let upstream = noting();
    let (_sandbox, daemon) = start(&upstream, "failures_max = 3\nlockout = \"1s\"");
    let body = json!({"text": "x", "mode": "next-heartbeat"});
    for n in 0..3 {
        let wrong = format!("authorization: Bearer wrong-{n}\r\n");
        assert_eq!(post(&daemon, "/hooks/wake", &wrong, &body).status(), 401);
    }
    let answer = post(&daemon, "/hooks/wake", &bearer(), &body);
    assert_eq!((answer.status(), answer.header("retry-after")), (429, Some("1")));
    assert_eventually!(
        post(&daemon, "/hooks/wake", &bearer(), &body).status() == 200,
        "locked out"
    );

    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let answer = post(&daemon, "/hooks/wake", &bearer(), &body);
    assert_eq!(answer.status(), 404);
    assert!(value(&answer)["error"].as_str().unwrap().contains("hooks.token_file"));
}
