//! WebSocket connections: how they begin, live and end.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::logs::hex;
use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::patience;
use crate::support::sandbox::Sandbox;
use crate::support::wire::Wire;
use crate::support::ws::{Client, Frame, Hello, Message, PING, Ws};

const MS: Duration = Duration::from_millis(1);

fn start(settings: &str) -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().text(&format!("[nodes]\n{settings}\n")));
    (sandbox, daemon)
}

fn operator(daemon: &Daemon) -> Client {
    let hello = Hello::operator(&["operator.read"]);
    let mut params = hello.params["client"].clone();
    params["mode"] = "ui".into();
    hello.with("client", params).connect(daemon.addr).unwrap()
}

fn connections(daemon: &Daemon) -> Option<f64> {
    let labels = [("limit", "nodes.connections_max")];
    daemon.metrics().sum("tidegate_limit_now", &labels)
}

fn ended(daemon: &Daemon, why: &str) -> f64 {
    daemon.metrics().sum("tidegate_nodes_ended_total", &[("reason", why)]).unwrap_or_default()
}

#[test]
fn an_operator_is_told_where_it_is_and_what_it_may_do() {
    let (_sandbox, daemon) = start("tick_interval = \"7s\"");
    for path in ["/", "/ws"] {
        let hello = Hello::operator(&["operator.read", "operator.admin"]).path(path);
        let mut client = hello.connect(daemon.addr).unwrap();
        let hello = client.hello.clone();
        assert_eq!(hello["protocol"], 4);
        assert_eq!(hello["policy"]["tickIntervalMs"], 7000);
        assert_eq!(hello["policy"]["maxPayload"], 25 * 1024 * 1024);
        assert_eq!(hello["policy"]["maxBufferedBytes"], 8 * 1024 * 1024);
        assert_eq!(hello["auth"]["role"], "operator");
        assert_eq!(hello["snapshot"]["authMode"], "none");
        assert_eq!(hello["snapshot"]["presence"][0]["mode"], "gateway");
        assert!(hello["snapshot"].get("configPath").is_none(), "{hello}");
        assert!(!hello["server"]["connId"].as_str().unwrap().is_empty());
        let error = client.request("no.such.method", json!({})).unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST");
        assert_eq!(error["message"], "unknown method: no.such.method");
    }
    let answer = daemon.ask(ask::get("/"));
    assert_eq!((answer.status(), answer.text()), (200, "Ollama is running".to_owned()));
    assert_eq!(daemon.ask(ask::get("/ws")).status(), 400);
    assert_eventually!(connections(&daemon) == Some(0.0), "{:?}", connections(&daemon));
    daemon.assert_well("after two operators");
}

#[test]
fn pings_are_sent_and_ticks_come_in_step() {
    let (_sandbox, daemon) =
        start("ping_interval = \"300ms\"\npong_timeout = \"200ms\"\ntick_interval = \"100ms\"");
    let mut client = operator(&daemon);
    let began = Instant::now();
    for _ in 0..10 {
        assert!(client.next_event("tick")["ts"].as_u64().unwrap() > 0);
    }
    let took = began.elapsed();
    assert!(took >= 800 * MS, "{took:?}");
    assert_eq!(client.missed, 0);
    let pings = || daemon.metrics().sum("tidegate_nodes_pongs_total", &[]).unwrap_or_default();
    assert!(pings() >= 2.0, "{}", pings());
    assert_eq!(ended(&daemon, "dead"), 0.0);
}

#[test]
fn a_peer_that_falls_silent_is_cut_off_after_ping_and_pong() {
    let (_sandbox, daemon) = start("ping_interval = \"600ms\"\npong_timeout = \"400ms\"");
    let mut silent = operator(&daemon);
    silent.ws().leave_pings();
    let lively = operator(&daemon).idle();
    let began = Instant::now();
    let end = silent.listen(patience(Duration::from_secs(10)));
    let took = began.elapsed();
    assert!(end.is_err(), "it was left open");
    assert!(took >= 900 * MS && took < patience(2000 * MS), "{took:?}");
    assert_eq!(ended(&daemon, "dead"), 1.0);
    let mut lively = lively.back();
    assert!(lively.request("no", json!({})).is_err(), "its neighbour lives");
    assert_eventually!(connections(&daemon) == Some(1.0), "{:?}", connections(&daemon));
}

#[test]
fn whoever_does_not_say_who_it_is_is_closed_in_time() {
    let (_sandbox, daemon) = start("handshake_timeout = \"500ms\"");
    let mut ws = Ws::connect(daemon.addr, "/", "");
    assert_eq!(ws.closed(), Ok((1008, "handshake timeout".to_owned())));
    assert_eventually!(ended(&daemon, "handshake_timeout") == 1.0);
    // Nor may it say something else first.
    let mut ws = Ws::connect(daemon.addr, "/", "");
    ws.text(r#"{"type":"req","id":"1","method":"health"}"#);
    assert!(matches!(ws.message(), Ok(Message::Text(text)) if text.contains("connect.challenge")));
    let Ok(Message::Text(answer)) = ws.message() else { panic!("no answer") };
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["id"], &answer["ok"]), (&json!("1"), &json!(false)));
    assert_eq!(ws.closed().unwrap().0, 1008);
    // Nor say much.
    let mut ws = Ws::connect(daemon.addr, "/", "");
    ws.send(&Frame::text(&"x".repeat(65 * 1024)));
    assert_eq!(ws.closed().unwrap().0, 1009);
}

#[test]
fn connections_are_bounded_overall_and_by_address() {
    for (settings, names) in [
        ("connections_max = 2", "nodes.connections_max"),
        ("connections_per_address_max = 2", "nodes.connections_per_address_max"),
    ] {
        let (_sandbox, daemon) = start(settings);
        let two = [operator(&daemon), operator(&daemon)];
        let refused = Ws::upgrade(Wire::connect(daemon.addr), "/", "").err().unwrap();
        assert_eq!(refused.status(), 503);
        assert!(refused.head.header("retry-after").is_some());
        assert!(refused.text().contains(names), "{}", refused.text());
        drop(two);
        assert_eventually!(connections(&daemon) == Some(0.0));
        operator(&daemon);
    }
}

#[test]
fn presence_is_told_to_operators_when_somebody_comes_or_goes() {
    let (_sandbox, daemon) = start("");
    let mut first = operator(&daemon);
    let second = operator(&daemon);
    let there = |client: &mut Client, count: usize| {
        while client.next_event("presence")["presence"].as_array().unwrap().len() != count {}
    };
    there(&mut first, 3);
    assert_eq!(second.hello["snapshot"]["presence"].as_array().unwrap().len(), 2);
    drop(second);
    there(&mut first, 2);
}

#[test]
fn what_is_no_request_is_answered_and_what_is_no_text_ends_the_connection() {
    let (_sandbox, daemon) = start("");
    let mut client = operator(&daemon);
    client.ws().text("{nonsense");
    assert_eq!(client.answer("invalid").unwrap_err()["code"], "INVALID_REQUEST");
    assert_eq!(client.request("no", json!({})).unwrap_err()["code"], "INVALID_REQUEST");
    client.ws().send(&Frame::new(2, "bytes"));
    assert_eq!(client.ws().closed(), Ok((1003, "frames are text".to_owned())));
}

#[test]
fn a_stop_is_told_and_everybody_is_closed_one_after_another() {
    let (_sandbox, mut daemon) = start("");
    let mut clients: Vec<Client> = (0..20).map(|_| operator(&daemon)).collect();
    let shaking = Ws::connect(daemon.addr, "/", "");
    daemon.signal(Signal::TERM);
    for client in &mut clients {
        assert_eq!(client.next_event("shutdown")["reason"], "gateway stopping");
        assert_eq!(client.ws().closed(), Ok((1012, "service restart".to_owned())));
    }
    drop(shaking);
    let exit = daemon.wait_exit(patience(Duration::from_secs(10)));
    assert!(exit.unwrap().success());
}

#[test]
fn a_feature_that_is_off_is_not_there() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().text("[features]\nnodes = false\n"));
    let refused = Ws::upgrade(Wire::connect(daemon.addr), "/", "").err().unwrap();
    assert_eq!(refused.status(), 404);
    assert!(refused.text().contains("features.nodes"), "{}", refused.text());
}

#[test]
fn those_whose_credentials_are_gone_are_closed_on_reload() {
    let sandbox = Sandbox::new();
    let token = sandbox.write("token", "right");
    let conf = |on: bool| {
        let token = if on { format!("token_file = {token:?}") } else { String::new() };
        Conf::new().text(&format!("[nodes]\n{token}\n"))
    };
    let daemon = Daemon::start(&sandbox, &conf(true));
    let mut client = Client::operator(&daemon, Some("right"), &["operator.admin"]);
    assert!(client.hello["snapshot"]["configPath"].is_string(), "{}", client.hello);
    let mut refused = Hello::operator(&[]).token("wrong").connect(daemon.addr).err().unwrap();
    assert_eq!(refused.close.take().unwrap().0, 1008);
    // What has nothing to do with it changes nothing.
    daemon.rewrite(&conf(true).text("[server]\nqueue_timeout = \"9s\"\n"));
    daemon.signal(Signal::HUP);
    assert!(client.listen(300 * MS).is_ok());
    daemon.rewrite(&conf(false));
    daemon.signal(Signal::HUP);
    assert_eq!(client.ws().closed(), Ok((1008, "credentials changed".to_owned())));
}

#[test]
fn a_flood_of_requests_is_answered_in_order() {
    let (_sandbox, daemon) = start("");
    let mut client = operator(&daemon);
    let ids: Vec<String> = (0..500).map(|_| client.ask("nothing", json!({}))).collect();
    for id in ids {
        assert_eq!(client.answer(&id).unwrap_err()["code"], "INVALID_REQUEST");
    }
    client.ws().send(&Frame::new(PING, "still"));
    assert_eq!(client.ws().message(), Ok(Message::Pong(b"still".to_vec())));
}

#[test]
fn a_second_signal_waits_for_nobody() {
    let (_sandbox, mut daemon) = start("");
    let mut deaf = operator(&daemon);
    daemon.signal(Signal::TERM);
    // It is told, and does not answer.
    assert_eq!(deaf.next_event("shutdown")["reason"], "gateway stopping");
    assert!(daemon.wait_exit(500 * MS).is_none(), "an answer to the Close is waited for");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_exit(patience(Duration::from_secs(3))).unwrap().success());
}

#[test]
fn one_key_has_so_many_connections_and_no_more_and_all_end_with_it() {
    let sandbox = Sandbox::new();
    let conf = |sha256: &str| {
        let key = format!("[[key]]\nname = \"a\"\nsha256 = \"{sha256}\"\n");
        Conf::new().text(&format!("[nodes]\nconnections_per_key_max = 1\n{key}"))
    };
    let right = hex("right");
    let daemon = Daemon::start(&sandbox, &conf(&right));
    let hello = Hello::operator(&["operator.read"]).token("right");
    let mut first = hello.connect(daemon.addr).unwrap();
    let refused = hello.connect(daemon.addr).err().unwrap();
    assert_eq!(refused.error["code"], "UNAVAILABLE");
    assert!(refused.error["retryAfterMs"].as_u64().unwrap() > 0, "{:?}", refused.error);
    assert_eq!(refused.close.unwrap().0, 1013);
    daemon.rewrite(&conf(&"ab".repeat(32)));
    daemon.signal(Signal::HUP);
    assert_eq!(first.ws().closed(), Ok((1008, "credentials changed".to_owned())));
}
