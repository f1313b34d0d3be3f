//! Commands from hand to hand, without sockets.

use std::net::{IpAddr, Ipv4Addr};

use crossbeam_channel::{Receiver, bounded};
use serde_json::Value;

use super::*;
use crate::net::websocket::Bell;
use crate::nodes::outbox::{Bounds, Item, Outbox};
use crate::nodes::who::{Client, How, Identity, Scopes};

const ROOM: u64 = 64 * 1024;

fn peer(registry: &Registry, number: u64, device: &str, platform: &str) -> Arc<Peer> {
    let total = registry.limit("total", "", 1 << 20, "closed");
    let bounds = Bounds { bytes: ROOM, telemetry: ROOM / 2 };
    let outbox = Outbox::new(Bell::new().unwrap(), bounds, &total);
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let peer = Peer::new(&format!("c{number}"), number, address, 0, outbox);
    let client = Client { id: "node-host".into(), platform: platform.into(), ..Client::default() };
    peer.identify(Identity {
        role: Role::Node,
        scopes: Scopes::NONE,
        how: How::Device,
        account: None,
        device: Some(device.into()),
        protocol: 4,
        client,
        caps: Box::default(),
        commands: ["camera.snap", "system.notify"].map(Into::into).into(),
    });
    Arc::new(peer)
}

struct Room {
    registry: Registry,
    fleet: Fleet,
}

impl Room {
    fn new() -> Self {
        let registry = Registry::default();
        let fleet = Fleet::new(&registry, &Settings::default());
        Room { registry, fleet }
    }

    fn join(&self, number: u64, device: &str, platform: &str) -> Arc<Peer> {
        let peer = peer(&self.registry, number, device, platform);
        self.fleet.joined(&peer);
        peer
    }

    fn invoke(&self, command: &str, params: Option<&str>) -> Receiver<Outcome> {
        let (sender, receiver) = bounded(1);
        let command = Command { node: "phone", command, params, timeout: None, key: "k" };
        let peer = self.fleet.ready("phone", command.command).unwrap();
        self.fleet.invoke(&peer, &command, Asker::Owner(sender), None);
        receiver
    }

    fn count(&self, outcome: &str) -> u64 {
        let name = "tidegate_nodes_invocations_total";
        self.registry.counter(name, "", &[("outcome", outcome)]).value()
    }
}

/// The payload of the next event for a node.
fn event(peer: &Peer, name: &str) -> Value {
    match peer.outbox().take() {
        Some(Item::Event(event, _)) => {
            assert_eq!(event.name, name);
            serde_json::from_str(&event.payload).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

fn refusal(receiver: &Receiver<Outcome>) -> Value {
    receiver.try_recv().unwrap().unwrap_err().shape()
}

fn said<'a>(id: &'a Value, outcome: Result<Payload<'a>, NodeError>) -> Said<'a> {
    Said { id: id.as_str().unwrap(), outcome }
}

#[test]
fn a_command_goes_to_its_node_and_the_result_comes_back_as_it_was() {
    let room = Room::new();
    let phone = room.join(1, "phone", "android");
    let receiver = room.invoke("camera.snap", Some(r#"{"n": "\u00e9\n"}"#));
    let asked = event(&phone, "node.invoke.request");
    assert_eq!(asked["paramsJSON"], r#"{"n": "\u00e9\n"}"#);
    assert_eq!((&asked["nodeId"], &asked["idempotencyKey"]), (&"phone".into(), &"k".into()));
    assert_eq!(asked["timeoutMs"], 30_000);
    assert_eq!(room.fleet.count(), (1, 1));
    let payload = Payload { value: Some("[1, 2.50]"), text: Some(r#""[1, 2.50]""#) };
    assert!(room.fleet.said(&phone, said(&asked["id"], Ok(payload))).unwrap());
    let text = receiver.try_recv().unwrap().unwrap();
    let expected = r#"{"ok":true,"nodeId":"phone","command":"camera.snap","payload":[1, 2.50],"payloadJSON":"[1, 2.50]"}"#;
    assert_eq!(text, expected);
    assert!(!room.fleet.said(&phone, said(&asked["id"], Ok(payload))).unwrap(), "twice");
    assert_eq!((room.fleet.count(), room.count("done")), ((1, 0), 1));
}

#[test]
fn what_a_node_says_of_a_failure_is_passed_on() {
    let room = Room::new();
    let phone = room.join(1, "phone", "android");
    let receiver = room.invoke("camera.snap", None);
    let asked = event(&phone, "node.invoke.request");
    assert!(asked.get("paramsJSON").is_none());
    let error = NodeError { code: Some("NO_CAMERA".into()), message: Some("none here".into()) };
    room.fleet.said(&phone, said(&asked["id"], Err(error))).unwrap();
    let shape = refusal(&receiver);
    assert_eq!((&shape["code"], &shape["message"]), (&"UNAVAILABLE".into(), &"none here".into()));
    assert_eq!(shape["details"]["nodeError"]["code"], "NO_CAMERA");
    assert!(shape.get("retryable").is_none());
}

#[test]
fn a_node_that_goes_fails_its_calls_at_once() {
    let room = Room::new();
    let phone = room.join(1, "phone", "android");
    let receiver = room.invoke("camera.snap", None);
    room.fleet.gone(&phone);
    let shape = refusal(&receiver);
    assert_eq!(shape["details"]["nodeError"]["code"], "NOT_CONNECTED");
    assert_eq!(shape["message"], "node disconnected (camera.snap)");
    let shape = room.fleet.ready("phone", "camera.snap").unwrap_err().shape();
    assert_eq!(shape["details"]["code"], "NOT_CONNECTED");
    room.fleet.gone(&phone);
    assert_eq!((room.fleet.count(), room.count("gone")), ((0, 0), 1));
}

#[test]
fn a_call_without_an_answer_ends_and_the_node_hears_it() {
    let room = Room::new();
    let phone = room.join(1, "phone", "android");
    let receiver = room.invoke("camera.snap", None);
    let asked = event(&phone, "node.invoke.request");
    room.fleet.tick(clock::now() + Duration::from_secs(29));
    assert!(receiver.try_recv().is_err());
    room.fleet.tick(clock::now() + Duration::from_secs(31));
    let shape = refusal(&receiver);
    assert_eq!(
        (&shape["code"], &shape["details"]["code"]),
        (&"UNAVAILABLE".into(), &"TIMEOUT".into())
    );
    assert_eq!(event(&phone, "node.invoke.cancel")["invokeId"], asked["id"]);
    assert!(!room.fleet.said(&phone, said(&asked["id"], Ok(Payload::default()))).unwrap());
}

#[test]
fn nobody_but_the_connection_that_was_asked_can_answer() {
    let room = Room::new();
    let phone = room.join(1, "phone", "android");
    let receiver = room.invoke("camera.snap", None);
    let asked = event(&phone, "node.invoke.request");
    // The same device, by a newer connection.
    let newer = room.join(2, "phone", "android");
    assert!(room.fleet.said(&newer, said(&asked["id"], Ok(Payload::default()))).is_err());
    assert!(room.fleet.under_way(&phone, asked["id"].as_str().unwrap()));
    assert!(receiver.try_recv().is_err());
    assert!(room.fleet.said(&phone, said(&asked["id"], Ok(Payload::default()))).unwrap());
    assert!(receiver.try_recv().unwrap().is_ok());
    // The newer one is asked now.
    let _receiver = room.invoke("system.notify", None);
    assert_eq!(event(&newer, "node.invoke.request")["command"], "system.notify");
}

#[test]
fn a_node_that_cannot_take_a_command_is_not_closed_for_it() {
    let room = Room::new();
    let phone = room.join(1, "phone", "android");
    let _first = room.invoke("camera.snap", None);
    let large = format!("\"{}\"", "x".repeat(64 * 1024));
    let second = room.invoke("camera.snap", Some(&large));
    assert_eq!(refusal(&second)["details"]["code"], "UNAVAILABLE");
    assert!(!phone.outbox().closed());
    event(&phone, "node.invoke.request");
    // Alone it goes, larger than the bound as it is.
    let third = room.invoke("camera.snap", Some(&large));
    assert!(third.try_recv().is_err());
    assert!(!phone.outbox().closed());
    assert_eq!(room.count("unsent"), 1);
}

#[test]
fn only_what_is_offered_and_approved_can_be_asked_for() {
    let room = Room::new();
    room.join(1, "phone", "android");
    let shape = room.fleet.ready("phone", "system.run").unwrap_err().shape();
    assert_eq!(shape["code"], "INVALID_REQUEST");
    assert_eq!(shape["details"]["command"], "system.run");
}

#[test]
fn a_command_that_ios_refuses_in_the_background_waits_for_it() {
    let room = Room::new();
    let phone = room.join(1, "phone", "iOS 26.1");
    let refuse = |asked: &Value| {
        let code = Some("NODE_BACKGROUND_UNAVAILABLE".to_owned());
        let error = NodeError { code, message: None };
        room.fleet.said(&phone, said(&asked["id"], Err(error))).unwrap();
    };
    let receiver = room.invoke("camera.snap", Some("{\"x\":1}"));
    refuse(&event(&phone, "node.invoke.request"));
    let shape = refusal(&receiver);
    assert_eq!(shape["details"]["code"], "QUEUED_UNTIL_FOREGROUND");
    let waiting = room.fleet.queued(|queue| queue.pull("phone", |_| true, unix_ms()));
    assert_eq!(shape["details"]["queuedActionId"], *waiting[0].id);
    assert_eq!(waiting[0].params_json.as_deref(), Some("{\"x\":1}"));
    // Not what can be done in the background.
    let receiver = room.invoke("system.notify", None);
    refuse(&event(&phone, "node.invoke.request"));
    assert!(refusal(&receiver)["details"].get("code").is_none());
    room.fleet.forget("phone");
    assert!(room.fleet.queued(|queue| queue.pull("phone", |_| true, unix_ms())).is_empty());
}

#[test]
fn who_waits_is_told_when_the_room_closes() {
    let room = Room::new();
    let _phone = room.join(1, "phone", "android");
    let receiver = room.invoke("camera.snap", None);
    room.fleet.close();
    assert_eq!(refusal(&receiver)["code"], "UNAVAILABLE");
}
