//! Commands for nodes: from an operator's connection to a node's and back, and everything that can go
//! wrong between them.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, command};
use crate::support::patience;
use crate::support::sandbox::Sandbox;
use crate::support::ws::room::{TOKEN, admin, conf, pair};
use crate::support::ws::{Client, Hello, Keys};

const SNAP: &str = "camera.snap";

/// A daemon, an administrator and a node.
struct Room {
    sandbox: Sandbox,
    daemon: Daemon,
    operator: Client,
    node: Client,
    keys: Keys,
}

impl Room {
    fn new(lines: &str) -> Self {
        let sandbox = Sandbox::new();
        let daemon = Daemon::start(&sandbox, &conf(&sandbox, lines));
        let mut operator = admin(&daemon);
        let keys = Keys::new(1);
        let node = pair(&daemon, &mut operator, &keys, &[SNAP, "device.info"]);
        Room { sandbox, daemon, operator, node, keys }
    }

    /// Asks the node for a command; the request's id.
    fn ask(&mut self, key: &str, more: Value) -> String {
        let params = invocation(&self.keys, key, more);
        self.operator.ask("node.invoke", params)
    }

    /// The next command that the node is asked for.
    fn asked(&mut self) -> Value {
        self.node.next_event("node.invoke.request")
    }

    fn count(&self, outcome: &str) -> u64 {
        let metrics = self.daemon.metrics();
        let name = "tidegate_nodes_invocations_total";
        metrics.sum(name, &[("outcome", outcome)]).unwrap_or_default() as u64
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = command(&self.sandbox);
        command.args(args).arg("--config").arg(&self.daemon.config).output().unwrap()
    }
}

fn invocation(keys: &Keys, key: &str, more: Value) -> Value {
    let mut params = json!({"nodeId": keys.id(), "command": SNAP, "idempotencyKey": key});
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    params
}

/// The node's answer to a call; what the gateway says to that.
fn say(node: &mut Client, asked: &Value, more: Value) -> Result<Value, Value> {
    let mut params = json!({"id": asked["id"], "nodeId": asked["nodeId"], "ok": true});
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    node.request("node.invoke.result", params)
}

fn code(error: &Value) -> (&str, &str) {
    let details = &error["details"];
    let node = details["nodeError"]["code"].as_str().or(details["code"].as_str());
    (error["code"].as_str().unwrap(), node.unwrap_or_default())
}

#[test]
fn a_command_reaches_its_node_and_the_result_comes_back_as_the_node_said_it() {
    let mut room = Room::new("");
    let id = room.ask("k1", json!({"params": {"size": [1, 2.50]}, "timeoutMs": 7000}));
    let asked = room.asked();
    let expected = json!({
        "id": asked["id"], "nodeId": room.keys.id(), "command": SNAP, "idempotencyKey": "k1",
        "paramsJSON": asked["paramsJSON"], "timeoutMs": 7000,
    });
    assert_eq!(asked, expected);
    let params: Value = serde_json::from_str(asked["paramsJSON"].as_str().unwrap()).unwrap();
    assert_eq!(params, json!({"size": [1, 2.50]}));
    let said = say(&mut room.node, &asked, json!({"payload": {"jpeg": "é\n"}}));
    assert_eq!(said, Ok(json!({"ok": true})));
    let answer = room.operator.answer(&id).unwrap();
    let expected = json!({
        "ok": true, "nodeId": room.keys.id(), "command": SNAP, "payload": {"jpeg": "é\n"},
        "payloadJSON": null,
    });
    assert_eq!(answer, expected);
    // As a text with JSON in it, which is taken apart for those who want it so.
    for (text, value) in [
        ("{\"a\": [1]}", json!({"a": [1]})),
        ("not json", json!({"payloadJSON": "not json"})),
        (" ", Value::Null),
    ] {
        let id = room.ask(text, json!({}));
        let asked = room.asked();
        assert!(asked.get("paramsJSON").is_none(), "{asked}");
        say(&mut room.node, &asked, json!({"payloadJSON": text})).unwrap();
        let answer = room.operator.answer(&id).unwrap();
        assert_eq!((&answer["payload"], &answer["payloadJSON"]), (&value, &json!(text)));
    }
    // What the node says of a failure.
    let id = room.ask("k2", json!({}));
    let asked = room.asked();
    let error = json!({"code": "NO_CAMERA", "message": "there is none"});
    say(&mut room.node, &asked, json!({"ok": false, "error": error})).unwrap();
    let refused = room.operator.answer(&id).unwrap_err();
    assert_eq!(
        (code(&refused), &refused["message"]),
        (("UNAVAILABLE", "NO_CAMERA"), &json!("there is none"))
    );
    assert_eq!((room.count("done"), room.count("refused")), (4, 1));
}

#[test]
fn what_a_node_does_not_answer_ends_in_time_and_its_late_answer_is_ignored() {
    let mut room = Room::new("invoke_timeout = \"1s\"\n");
    let started = Instant::now();
    let id = room.ask("k1", json!({}));
    let asked = room.asked();
    assert_eq!(asked["timeoutMs"], 1000);
    let refused = room.operator.answer(&id).unwrap_err();
    assert_eq!(code(&refused), ("UNAVAILABLE", "TIMEOUT"));
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(room.node.next_event("node.invoke.cancel")["invokeId"], asked["id"]);
    let late = say(&mut room.node, &asked, json!({})).unwrap();
    assert_eq!(late, json!({"ok": true, "ignored": true}));
    // The key is as good as new: asked again it is sent again, and the node can tell by it.
    let id = room.ask("k1", json!({"timeoutMs": 60_000}));
    let again = room.asked();
    assert_eq!(again["idempotencyKey"], "k1");
    say(&mut room.node, &again, json!({"payload": 7})).unwrap();
    assert_eq!(room.operator.answer(&id).unwrap()["payload"], 7);
    assert_eq!(room.count("timeout"), 1);
    assert_eq!(room.daemon.limit_now("nodes.pending_max"), 0);
}

#[test]
fn a_node_that_vanishes_fails_its_calls_at_once() {
    let (mut room, keys) = (Room::new(""), Keys::new(1));
    for way in ["reset", "end", "close"] {
        let ids: Vec<String> =
            (0..3).map(|n| room.ask(&format!("{way}{n}"), json!({"timeoutMs": 600_000}))).collect();
        for _ in &ids {
            room.asked();
        }
        let hello = Hello::node(&[SNAP]).token(TOKEN).keys(&keys);
        let gone = std::mem::replace(&mut room.node, admin(&room.daemon));
        match way {
            "reset" => gone.reset(),
            "end" => drop(gone),
            _ => gone.leave(),
        }
        for id in &ids {
            let refused = room.operator.answer(id).unwrap_err();
            assert_eq!(code(&refused), ("UNAVAILABLE", "NOT_CONNECTED"), "{way}");
        }
        let unconnected = room.ask("later", json!({}));
        let refused = room.operator.answer(&unconnected).unwrap_err();
        assert_eq!(refused["message"], "node not connected");
        room.node = hello.connect(room.daemon.addr).unwrap();
    }
    assert_eq!((room.count("gone"), room.daemon.limit_now("nodes.pending_max")), (9, 0));
}

#[test]
fn a_call_with_the_same_key_is_one_call() {
    let mut room = Room::new("");
    let mut second = admin(&room.daemon);
    let first = room.ask("same", json!({}));
    let asked = room.asked();
    let joined = second.ask("node.invoke", invocation(&room.keys, "same", json!({})));
    // Its account is another one, and so its key is.
    let hello = Hello::operator(&["operator.write"]).token(TOKEN);
    let mut third = hello.connect(room.daemon.addr).unwrap();
    assert_eq!(third.hello["auth"]["scopes"], json!(["operator.write"]));
    assert!(room.node.event_within("node.invoke.request", Duration::from_millis(100)).is_none());
    say(&mut room.node, &asked, json!({"payload": 1})).unwrap();
    assert_eq!(room.operator.answer(&first).unwrap()["payload"], 1);
    assert_eq!(second.answer(&joined).unwrap()["payload"], 1);
    let again = third.request("node.invoke", invocation(&room.keys, "same", json!({})));
    assert_eq!(again.unwrap()["payload"], 1, "answered again");
    assert!(room.node.event_within("node.invoke.request", Duration::from_millis(100)).is_none());
    assert_eq!(room.count("done"), 1);
    // Who asked and left comes back for the answer.
    let _left = room.ask("left", json!({}));
    let asked = room.asked();
    let gone = std::mem::replace(&mut room.operator, second);
    gone.reset();
    let id = room.ask("left", json!({}));
    say(&mut room.node, &asked, json!({"payload": 2})).unwrap();
    assert_eq!(room.operator.answer(&id).unwrap()["payload"], 2);
}

#[test]
fn nobody_but_the_node_that_was_asked_can_answer() {
    let mut room = Room::new("");
    let other_keys = Keys::new(2);
    let mut other = pair(&room.daemon, &mut room.operator, &other_keys, &[SNAP]);
    let id = room.ask("k", json!({}));
    let asked = room.asked();
    let refused = say(&mut other, &asked, json!({"payload": "wrong"})).unwrap_err();
    assert_eq!(
        (&refused["code"], &refused["message"]),
        (&json!("INVALID_REQUEST"), &json!("nodeId mismatch"))
    );
    let own = json!({"nodeId": other_keys.id(), "payload": "wrong"});
    let refused = say(&mut other, &asked, own).unwrap_err();
    assert_eq!(refused["code"], "INVALID_REQUEST");
    let refused = say(&mut room.operator, &asked, json!({"payload": "wrong"})).unwrap_err();
    assert_eq!(refused["message"], "unauthorized role: operator");
    let refused = room.node.request("node.list", json!({})).unwrap_err();
    assert_eq!(refused["message"], "unauthorized role: node");
    say(&mut room.node, &asked, json!({"payload": "right"})).unwrap();
    assert_eq!(room.operator.answer(&id).unwrap()["payload"], "right");
    // Only what it offers and what was approved, and only by those who may.
    for (command, reason) in [
        ("system.run", "command not declared by node"),
        ("camera.clip", "command not declared by node"),
    ] {
        let asked = room.ask(command, json!({"command": command}));
        let refused = room.operator.answer(&asked).unwrap_err();
        assert_eq!(
            (&refused["code"], &refused["details"]["reason"]),
            (&json!("INVALID_REQUEST"), &json!(reason))
        );
    }
    let hello = Hello::operator(&["operator.read"]).token(TOKEN);
    let mut reader = hello.connect(room.daemon.addr).unwrap();
    let refused =
        reader.request("node.invoke", invocation(&room.keys, "r", json!({}))).unwrap_err();
    assert_eq!(refused["details"]["missingScope"], "operator.write");
    assert!(room.node.event_within("node.invoke.request", Duration::from_millis(100)).is_none());
}

#[test]
fn eight_mebibytes_go_there_and_come_back() {
    let mut room = Room::new("");
    let large = "0123456789abcdef".repeat(512 * 1024);
    let id = room.ask("large", json!({"params": {"data": large}}));
    let asked = room.asked();
    let params: Value = serde_json::from_str(asked["paramsJSON"].as_str().unwrap()).unwrap();
    assert_eq!(params["data"].as_str().unwrap().len(), large.len());
    say(&mut room.node, &asked, json!({"payload": large})).unwrap();
    let answer = room.operator.answer(&id).unwrap();
    assert!(answer["payload"].as_str() == Some(&large), "the payload is another one");
    // It was too large to be kept, and is not carried out twice.
    let again = room.ask("large", json!({}));
    assert_eq!(room.operator.answer(&again).unwrap_err()["details"]["reason"], "answer_not_kept");
    let after = room.ask("after", json!({}));
    let asked = room.asked();
    say(&mut room.node, &asked, json!({"payload": 1})).unwrap();
    assert_eq!(room.operator.answer(&after).unwrap()["payload"], 1);
    let limit = |name: &str| room.daemon.limit_now(name);
    assert_eventually!(
        limit("nodes.messages_total_max") + limit("nodes.buffered_total_max") == 0,
        "bytes are held for nothing"
    );
}

#[test]
fn one_call_too_many_is_refused_and_the_others_go_on() {
    let mut room = Room::new("pending_max = 2\n");
    let (first, second) = (room.ask("1", json!({})), room.ask("2", json!({})));
    let asked = [room.asked(), room.asked()];
    let third = room.ask("3", json!({}));
    let refused = room.operator.answer(&third).unwrap_err();
    assert_eq!((&refused["code"], &refused["retryable"]), (&json!("UNAVAILABLE"), &json!(true)));
    assert!(refused["message"].as_str().unwrap().contains("nodes.pending_max"), "{refused}");
    say(&mut room.node, &asked[1], json!({"payload": 2})).unwrap();
    let third = room.ask("3", json!({}));
    let asked_third = room.asked();
    say(&mut room.node, &asked_third, json!({"payload": 3})).unwrap();
    say(&mut room.node, &asked[0], json!({"payload": 1})).unwrap();
    for (id, payload) in [(first, 1), (second, 2), (third, 3)] {
        assert_eq!(room.operator.answer(&id).unwrap()["payload"], payload);
    }
    assert_eq!((room.count("unsent"), room.daemon.limit_now("nodes.pending_max")), (1, 0));
}

#[test]
fn a_newer_connection_of_a_node_is_asked_and_the_older_one_changes_nothing_when_it_goes() {
    let (mut room, keys) = (Room::new(""), Keys::new(1));
    let id = room.ask("old", json!({}));
    let asked_old = room.asked();
    let hello = Hello::node(&[SNAP]).token(TOKEN).keys(&keys);
    let mut newer = hello.connect(room.daemon.addr).unwrap();
    let second = room.ask("new", json!({}));
    let asked_new = newer.next_event("node.invoke.request");
    // Each answers what it was asked for, and nothing else.
    assert!(say(&mut newer, &asked_old, json!({})).is_err());
    say(&mut room.node, &asked_old, json!({"payload": "old"})).unwrap();
    assert_eq!(room.operator.answer(&id).unwrap()["payload"], "old");
    let old = std::mem::replace(&mut room.node, newer);
    old.reset();
    assert_eventually!(
        room.daemon.limit_now("nodes.connections_max") == 2,
        "the older connection does not end"
    );
    let node = json!({"nodeId": room.keys.id()});
    assert_eq!(room.operator.request("node.describe", node.clone()).unwrap()["connected"], true);
    say(&mut room.node, &asked_new, json!({"payload": "new"})).unwrap();
    assert_eq!(room.operator.answer(&second).unwrap()["payload"], "new");
    // A fifth one at a time: the oldest is closed for it.
    let mut more: Vec<Client> = (0..4).map(|_| hello.connect(room.daemon.addr).unwrap()).collect();
    let (code, reason) = room.node.closed().unwrap();
    assert_eq!((code, &*reason), (1008, "too many connections of this device"));
    let id = room.ask("newest", json!({}));
    let asked = more[3].next_event("node.invoke.request");
    say(&mut more[3], &asked, json!({"payload": 4})).unwrap();
    assert_eq!(room.operator.answer(&id).unwrap()["payload"], 4);
}

#[test]
fn nodes_are_listed_with_what_they_offer_while_they_are_there_and_after() {
    let mut room = Room::new("");
    let name = json!({"nodeId": room.keys.id(), "displayName": "kitchen"});
    room.operator.request("node.rename", name).unwrap();
    let list = room.operator.request("node.list", json!({})).unwrap();
    let row = &list["nodes"][0];
    assert_eq!(
        (list["nodes"].as_array().unwrap().len(), &row["nodeId"]),
        (1, &json!(room.keys.id()))
    );
    assert_eq!(
        (&row["connected"], &row["paired"], &row["displayName"]),
        (&json!(true), &json!(true), &json!("kitchen"))
    );
    assert_eq!(row["commands"], json!([SNAP, "device.info"]));
    assert!(row["connectedAtMs"].as_u64() > Some(0) && list["ts"].is_u64(), "{list}");
    assert_eq!(
        (&row["lastSeenReason"], &row["remoteIp"]),
        (&json!("connect"), &json!("127.0.0.1"))
    );
    let shown = room.run(&["nodes", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["nodes"][0]["nodeId"], &shown["connected"]), (&row["nodeId"], &json!(1)));
    // It tells that it lives, and that somebody is there.
    let event = |node: &mut Client, name: &str, payload: Value| {
        let told = node.request("node.event", json!({"event": name, "payload": payload})).unwrap();
        assert_eq!((&told["ok"], &told["event"]), (&json!(true), &json!(name)));
        (told["handled"].as_bool().unwrap(), told["reason"].as_str().unwrap().to_owned())
    };
    let node = &mut room.node;
    assert_eq!(
        event(node, "node.presence.activity", json!({"idleSeconds": 60})),
        (true, "updated".into())
    );
    let told = room.operator.next_event("node.presence");
    assert_eq!(told["nodeId"], room.keys.id());
    assert!(
        told["lastActiveAtMs"].as_u64().unwrap() + 60_000
            <= told["presenceUpdatedAtMs"].as_u64().unwrap()
    );
    assert_eq!(
        event(node, "node.presence.activity", json!({"action": "clear"})),
        (true, "cleared".into())
    );
    assert_eq!(event(node, "node.presence.activity", json!({})), (false, "invalid_payload".into()));
    assert_eq!(event(node, "weather.changed", json!({})), (false, "unsupported_event".into()));
    assert_eq!(
        event(node, "node.presence.alive", json!({"trigger": "silent_push"})),
        (true, "persisted".into())
    );
    assert_eq!(event(node, "node.presence.alive", json!({})), (true, "throttled".into()));
    let describe = json!({"nodeId": room.keys.id()});
    let before = room.operator.request("node.describe", describe.clone()).unwrap();
    assert_eq!(before["lastSeenReason"], "silent_push");
    let gone = std::mem::replace(&mut room.node, admin(&room.daemon));
    gone.leave();
    let deadline = Instant::now() + patience(Duration::from_secs(5));
    let after = loop {
        let after = room.operator.request("node.describe", describe.clone()).unwrap();
        if after["connected"] == false || Instant::now() > deadline {
            break after;
        }
    };
    assert_eq!((&after["connected"], &after["paired"]), (&json!(false), &json!(true)));
    assert!(after["lastSeenAtMs"].as_u64() >= before["lastSeenAtMs"].as_u64(), "{after}");
    assert_eq!(after["commands"], json!([SNAP, "device.info"]));
    let unknown = room.operator.request("node.describe", json!({"nodeId": "nobody"})).unwrap_err();
    assert_eq!(unknown["message"], "unknown nodeId");
}

#[test]
fn work_waits_for_a_node_that_sleeps() {
    let mut room = Room::new("");
    let mut enqueue = |kind: &str, priority: &str| {
        let asked = json!({"nodeId": room.keys.id(), "type": kind, "priority": priority});
        room.operator.request("node.pending.enqueue", asked).unwrap()
    };
    let first = enqueue("location.request", "high");
    assert_eq!((&first["revision"], &first["wakeTriggered"]), (&json!(1), &json!(false)));
    assert_eq!(enqueue("location.request", "normal")["queued"], first["queued"], "once is enough");
    let drained = room.node.request("node.pending.drain", json!({})).unwrap();
    assert_eq!(drained["items"][0], first["queued"]);
    assert_eq!(
        (&drained["items"][1]["id"], &drained["hasMore"]),
        (&json!("baseline-status"), &json!(false))
    );
    let again = room.node.request("node.pending.drain", json!({"maxItems": 9})).unwrap();
    assert_eq!(again["items"].as_array().unwrap().len(), 1);
    let nobody = json!({"nodeId": "nobody", "type": "status.request"});
    let refused = room.operator.request("node.pending.enqueue", nobody).unwrap_err();
    assert_eq!(refused["message"], "unknown nodeId");
    let nothing = room.node.request("node.pending.pull", json!({})).unwrap();
    assert_eq!(nothing["actions"], json!([]));
    let acked = room.node.request("node.pending.ack", json!({"ids": ["x", "x"]})).unwrap();
    assert_eq!((&acked["ackedIds"], &acked["remainingCount"]), (&json!(["x"]), &json!(0)));
}

#[test]
fn the_owner_asks_nodes_from_the_command_line() {
    let mut room = Room::new("");
    let id = room.keys.id();
    let listed = String::from_utf8(room.run(&["nodes"]).stdout).unwrap();
    assert!(listed.contains(&id[..12]) && listed.contains("connected for"), "{listed}");
    let described = String::from_utf8(room.run(&["nodes", "describe", &id[..6]]).stdout).unwrap();
    assert!(described.contains("commands    camera.snap device.info"), "{described}");
    let mut asking = command(&room.sandbox);
    asking.args(["nodes", "invoke", &id[..8], SNAP, "--params", "{\"x\":1}", "--config"]);
    let child =
        asking.arg(&room.daemon.config).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let asked = room.asked();
    assert_eq!(asked["paramsJSON"], "{\"x\":1}");
    // Meanwhile other orders are carried out.
    assert!(room.run(&["reopen"]).status.success());
    say(&mut room.node, &asked, json!({"payload": {"y": 2}})).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), printed), (Some(0), json!({"y": 2})));
    let failed = room.run(&["nodes", "invoke", &id, SNAP, "--timeout", "200ms"]);
    let told = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!((failed.status.code(), told.contains("(TIMEOUT)")), (Some(75), true), "{told}");
    let wrong = room.run(&["nodes", "invoke", "nobody", SNAP]);
    assert_eq!(wrong.status.code(), Some(65), "{}", String::from_utf8_lossy(&wrong.stderr));
    let unoffered = room.run(&["nodes", "invoke", &id, "system.run"]);
    assert_eq!(unoffered.status.code(), Some(75));
    let status = String::from_utf8(room.run(&["status"]).stdout).unwrap();
    assert!(status.contains("nodes: 1 connected, 2 of 1024 connections"), "{status}");
}

#[test]
fn the_gateway_says_how_it_is() {
    let mut room = Room::new("");
    let health = room.operator.request("health", json!({"probe": true})).unwrap();
    assert_eq!((&health["ok"], &health["phase"]), (&json!(true), &json!("ready")), "{health}");
    assert!(health["reasons"].is_array() && health["ts"].is_u64());
    let status = room.operator.request("status", json!({})).unwrap();
    assert_eq!((&status["nodes"]["connected"], &status["connections"]), (&json!(1), &json!(2)));
    assert_eq!(room.operator.request("last-heartbeat", json!({})), Ok(Value::Null));
    let presence = room.operator.request("system-presence", json!({})).unwrap();
    let node = |entry: &&Value| entry["deviceId"] == room.keys.id();
    assert_eq!(presence.as_array().unwrap().iter().filter(node).count(), 1, "{presence}");
    // Reasons name what is inside: they are for administrators.
    let hello = Hello::operator(&["operator.read"]).token(TOKEN);
    let mut reader = hello.connect(room.daemon.addr).unwrap();
    assert!(reader.request("health", json!({})).unwrap()["reasons"].is_u64());
}

#[test]
fn a_node_hears_a_session_while_it_wants_to() {
    let echo =
        "[[upstream]]\nname = \"e\"\nkind = \"echo\"\n[[model]]\nname = \"m\"\nprimary = \"e/x\"\n";
    let mut room = Room::new(echo);
    let say = |operator: &mut Client, key: &str| {
        let text = json!({"sessionKey": "main", "message": "one two", "idempotencyKey": key});
        operator.request("chat.send", text).unwrap();
        let is_final = |event: &Value| event["state"] == "final";
        while !is_final(&operator.next_event("chat")) {}
    };
    let want = |node: &mut Client, event: &str, payload: Value| {
        let told =
            node.request("node.event", json!({"event": event, "payloadJSON": payload.to_string()}));
        told.unwrap()["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(want(&mut room.node, "chat.subscribe", json!({})), "invalid_payload");
    assert_eq!(want(&mut room.node, "chat.subscribe", json!({"sessionKey": "main"})), "subscribed");
    say(&mut room.operator, "k1");
    let heard = room.node.next_event("chat");
    assert_eq!(heard["sessionKey"], "agent:main:main", "{heard}");
    assert_eq!(
        want(&mut room.node, "chat.unsubscribe", json!({"sessionKey": "main"})),
        "unsubscribed"
    );
    room.node.events.clear();
    say(&mut room.operator, "k2");
    assert!(room.node.event_within("chat", Duration::from_millis(100)).is_none());
    // What happens is told with the next turn, and not to whoever may not change the gateway.
    let told = json!({"text": "the door opened"});
    assert_eq!(room.operator.request("system-event", told.clone()), Ok(json!({"ok": true})));
    let hello = Hello::operator(&["operator.write"]).token(TOKEN);
    let mut writer = hello.connect(room.daemon.addr).unwrap();
    let refused = writer.request("system-event", told).unwrap_err();
    assert_eq!(refused["details"]["missingScope"], "operator.admin");
    let status = room.operator.request("status", json!({})).unwrap();
    assert_eq!(status["sessions"]["count"], 1, "{status}");
}
