//! Who is let in on WebSocket: tokens, keys, devices that are paired, and those that are not any more.

use std::process::Output;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::logs::hex;
use crate::support::daemon::{Daemon, Start, command};
use crate::support::sandbox::Sandbox;
use crate::support::wire::Wire;
use crate::support::ws::room::{self, TOKEN};
use crate::support::ws::{Client, Hello, Keys, Refused, Ws};

fn run(sandbox: &Sandbox, daemon: &Daemon, args: &[&str]) -> Output {
    command(sandbox).arg("devices").args(args).arg("--config").arg(&daemon.config).output().unwrap()
}

/// What a command says; fails the test when it fails.
fn said(sandbox: &Sandbox, daemon: &Daemon, args: &[&str]) -> String {
    let output = run(sandbox, daemon, args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {text}\n{}", daemon.log());
    String::from_utf8(output.stdout).unwrap()
}

fn listed(sandbox: &Sandbox, daemon: &Daemon) -> Value {
    serde_json::from_str(&said(sandbox, daemon, &["--json"])).unwrap()
}

fn refused(daemon: &Daemon, hello: &Hello<'_>) -> Refused {
    match hello.connect(daemon.addr) {
        Ok(client) => panic!("let in: {}", client.hello),
        Err(refused) => refused,
    }
}

/// The code in the details of a refusal.
fn code(daemon: &Daemon, hello: &Hello<'_>) -> String {
    let refused = refused(daemon, hello);
    assert_eq!(refused.close.as_ref().map(|close| close.0), Some(1008), "{refused:?}");
    refused.error["details"]["code"].as_str().unwrap_or_default().to_owned()
}

fn let_in(daemon: &Daemon, hello: &Hello<'_>) -> Client {
    hello.connect(daemon.addr).unwrap_or_else(|refused| panic!("{refused:?}\n{}", daemon.log()))
}

/// An operator who may pair.
fn pairer(daemon: &Daemon) -> Client {
    Client::operator(daemon, Some(TOKEN), &["operator.pairing", "operator.write"])
}

fn token_of(client: &Client) -> String {
    let token = client.hello["auth"]["deviceToken"].as_str();
    token.unwrap_or_else(|| panic!("no token: {}", client.hello)).to_owned()
}

#[test]
fn a_node_is_approved_on_the_command_line_and_is_known_after_a_kill() {
    let sandbox = Sandbox::new();
    let conf = room::conf(&sandbox, "");
    let keys = Keys::new(1);
    let hello = Hello::node(&["camera.snap"]).token(TOKEN).keys(&keys);
    let token = {
        let daemon = Daemon::start(&sandbox, &conf);
        let mut operator = pairer(&daemon);
        assert!(said(&sandbox, &daemon, &[]).contains("no devices are paired"));
        let refused = refused(&daemon, &hello);
        assert_eq!(refused.error["code"], "NOT_PAIRED");
        let details = &refused.error["details"];
        assert_eq!(
            (&details["code"], &details["reason"]),
            (&json!("PAIRING_REQUIRED"), &json!("not-paired"))
        );
        assert_eq!(details["pauseReconnect"], false, "it tries again by itself");
        let told = operator.next_event("device.pair.requested");
        assert_eq!(
            (&told["deviceId"], &told["requestId"]),
            (&json!(keys.id()), &details["requestId"])
        );
        let list = said(&sandbox, &daemon, &["list"]);
        assert!(list.contains("camera.snap") && list.contains("devices approve"), "{list}");
        let request = details["requestId"].as_str().unwrap();
        let done = said(&sandbox, &daemon, &["approve", &request[..8]]);
        assert!(done.contains("is let in as node"), "{done}");
        let told = operator.next_event("device.pair.resolved");
        assert_eq!((&told["decision"], &told["requestId"]), (&json!("approved"), &json!(request)));
        let client = let_in(&daemon, &hello);
        assert_eq!(client.hello["auth"]["role"], "node");
        let token = token_of(&client);
        let list = listed(&sandbox, &daemon);
        assert_eq!(
            (&list["devices"][0]["id"], &list["devices"][0]["connections"]),
            (&json!(keys.id()), &json!(1))
        );
        assert!(!list.to_string().contains(&token) && !daemon.log().contains(&token));
        daemon.signal(Signal::KILL);
        token
    };
    let daemon = Daemon::start(&sandbox, &conf);
    let own = Hello::node(&["camera.snap"]).device_token(&token).keys(&keys);
    let client = let_in(&daemon, &own);
    assert!(client.hello["auth"]["deviceToken"].is_null(), "it has it already");
    assert_eq!(code(&daemon, &own.clone().keys(&Keys::new(2))), "AUTH_DEVICE_TOKEN_MISMATCH");
    let again = let_in(&daemon, &hello);
    assert_eq!(again.hello["protocol"], 4);
}

#[test]
fn what_is_taken_away_ends_its_connections_at_once() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, ""));
    let mut operator = pairer(&daemon);
    let keys = Keys::new(1);
    let mut node = room::pair(&daemon, &mut operator, &keys, &["camera.snap"]);
    let own = Hello::node(&["camera.snap"]).keys(&keys).device_token(&token_of(&node));
    let mut by_token = let_in(&daemon, &own);
    // The token alone: who came by the shared one stays.
    let id = keys.id();
    let done = operator.request("device.token.revoke", json!({"deviceId": id, "role": "node"}));
    assert!(done.unwrap()["revokedAtMs"].is_u64());
    assert_eq!(by_token.closed().unwrap().0, 1008);
    assert_eq!(code(&daemon, &own), "AUTH_DEVICE_TOKEN_MISMATCH");
    node.request("node.event", json!({"event": "node.presence.alive"})).ok();
    // It gets another, which the command line can replace and print.
    let hello = Hello::node(&["camera.snap"]).token(TOKEN).keys(&keys);
    let second = token_of(&let_in(&daemon, &hello));
    let mut by_second = let_in(&daemon, &Hello::node(&[]).keys(&keys).device_token(&second));
    let third = said(&sandbox, &daemon, &["rotate", &id[..6], "node"]).trim().to_owned();
    assert_eq!(by_second.closed().unwrap().0, 1008);
    let by_third = let_in(&daemon, &Hello::node(&[]).keys(&keys).device_token(&third));
    assert!(!daemon.log().contains(&third));
    // The pairing: everybody who stood on it.
    let done = operator.request("device.pair.remove", json!({"deviceId": id})).unwrap();
    assert_eq!(done, json!({"deviceId": id}));
    for mut client in [node, by_third] {
        assert_eq!(client.closed().unwrap(), (1008, "device pairing removed".to_owned()));
    }
    assert_eq!(code(&daemon, &hello), "PAIRING_REQUIRED");
    let unknown = operator.request("device.pair.remove", json!({"deviceId": id})).unwrap_err();
    assert_eq!(unknown["message"], "unknown deviceId");
    let gone = run(&sandbox, &daemon, &["remove", &id[..6]]);
    assert_eq!(gone.status.code(), Some(65), "{gone:?}");
    assert!(String::from_utf8_lossy(&gone.stderr).contains("there is no device"), "{gone:?}");
    operator.request("health", json!({})).ok();
}

#[test]
fn operators_come_in_by_token_password_or_key_and_wrong_ones_are_locked_out() {
    let sandbox = Sandbox::new();
    let word = sandbox.write("nodes.password", "the-password");
    let lines = format!("password_file = {word:?}\n");
    let conf = room::conf(&sandbox, &lines)
        .text("[auth]\nfailures_max = 4\nwindow = \"60s\"\nlockout = \"2s\"")
        .text(&format!("[[key]]\nname = \"one\"\nsha256 = \"{}\"", hex("key-one")))
        .text(&format!(
            "[[key]]\nname = \"two\"\nsha256 = \"{}\"\nscopes = [\"operator.pairing\"]",
            hex("key-two")
        ));
    let daemon = Daemon::start(&sandbox, &conf);
    let scopes = |client: &Client| client.hello["auth"]["scopes"].clone();
    let admin = Hello::operator(&["operator.admin"]);
    assert_eq!(scopes(&let_in(&daemon, &admin.clone().token(TOKEN))), json!(["operator.admin"]));
    let by_word = admin.clone().with("auth", json!({"password": "the-password"}));
    assert_eq!(scopes(&let_in(&daemon, &by_word)), json!(["operator.admin"]));
    let plain = scopes(&let_in(&daemon, &admin.clone().token("key-one")));
    assert_eq!(plain, json!(["operator.read", "operator.write"]), "what the key may have");
    assert_eq!(
        scopes(&let_in(&daemon, &admin.clone().token("key-two"))),
        json!(["operator.pairing"])
    );
    assert_eq!(code(&daemon, &admin), "AUTH_TOKEN_MISSING");
    for wrong in ["a", "b", "c"] {
        assert_eq!(code(&daemon, &admin.clone().token(wrong)), "AUTH_TOKEN_MISMATCH");
    }
    let wrong = admin.clone().with("auth", json!({"password": "d"}));
    assert_eq!(code(&daemon, &wrong), "AUTH_PASSWORD_MISMATCH");
    let locked = refused(&daemon, &admin.clone().token("e"));
    assert_eq!(locked.error["details"]["code"], "AUTH_RATE_LIMITED", "{locked:?}");
    assert!(locked.error["retryAfterMs"].as_u64() > Some(0), "{locked:?}");
    // HTTP and WebSocket count together; what was right from here before goes on being right.
    let_in(&daemon, &admin.clone().token(TOKEN));
    let_in(&daemon, &by_word);
    assert_eq!(scopes(&let_in(&daemon, &admin.clone().token("key-one"))), plain);
    assert_eventually!(code(&daemon, &admin.clone().token("f")) == "AUTH_TOKEN_MISMATCH");
    for secret in [TOKEN, "the-password", "key-one"] {
        assert!(!daemon.log().contains(secret), "{secret}");
    }
}

#[test]
fn a_device_that_is_not_who_it_says_is_told_why() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, ""));
    let keys = Keys::new(1);
    let hello = Hello::node(&[]).token(TOKEN).keys(&keys);
    assert_eq!(code(&daemon, &Hello::node(&[]).token(TOKEN)), "DEVICE_IDENTITY_REQUIRED");
    assert_eq!(code(&daemon, &hello.clone().signed_as_v2()), "PAIRING_REQUIRED");
    // Signed for the challenge of another connection.
    let mut ws = Ws::connect(daemon.addr, "/", "");
    let first: Value = match ws.message().unwrap() {
        crate::support::ws::Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    };
    let mut other = Ws::connect(daemon.addr, "/ws", "");
    other.message().unwrap();
    other.text(&hello.request(&first["payload"]).to_string());
    let answer = format!("{:?}", other.message().unwrap());
    assert!(answer.contains("DEVICE_AUTH_NONCE_MISMATCH"), "{answer}");
    assert_eq!(other.closed().unwrap(), (1008, "device nonce mismatch".to_owned()));
    // Too old by a minute.
    let mut old = first["payload"].clone();
    old["ts"] = json!(old["ts"].as_u64().unwrap() - 11 * 60 * 1000);
    ws.text(&hello.request(&old).to_string());
    let answer = format!("{:?}", ws.message().unwrap());
    assert!(answer.contains("DEVICE_AUTH_SIGNATURE_EXPIRED"), "{answer}");
    // Versions that do not meet.
    let old = Hello::operator(&[])
        .token(TOKEN)
        .with("minProtocol", json!(3))
        .with("maxProtocol", json!(3));
    let refused = refused(&daemon, &old);
    assert_eq!(refused.close.unwrap().0, 1002);
    assert_eq!(refused.error["details"]["expectedProtocol"], 4);
    let probe =
        old.with("client", json!({"id": "x", "version": "1", "platform": "x", "mode": "probe"}));
    assert_eq!(let_in(&daemon, &probe).hello["protocol"], 3);
}

#[test]
fn web_pages_come_only_from_origins_that_are_allowed() {
    let sandbox = Sandbox::new();
    let conf = room::conf(&sandbox, "").server("allowed_origins = [\"https://mine.example\"]");
    let daemon = Daemon::start(&sandbox, &conf);
    let upgrade = |origin: &str| {
        let wire = Wire::connect(daemon.addr);
        Ws::upgrade(wire, "/", &format!("Origin: {origin}\r\n"))
    };
    assert!(upgrade("https://mine.example").is_ok());
    let Err(answer) = upgrade("https://evil.example") else { panic!("a page got in") };
    assert_eq!(answer.status(), 403);
}

#[test]
fn nobody_gives_away_more_than_he_has() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, ""));
    let mut reader = Client::operator(&daemon, Some(TOKEN), &["operator.read"]);
    let error = reader.request("device.pair.list", json!({})).unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.pairing");
    let mut operator = pairer(&daemon);
    let (ordinary, dangerous) = (Keys::new(1), Keys::new(2));
    let hello = Hello::node(&["camera.snap"]).token(TOKEN).keys(&ordinary);
    assert_eq!(code(&daemon, &hello), "PAIRING_REQUIRED");
    assert_eq!(
        code(&daemon, &Hello::node(&["system.run"]).token(TOKEN).keys(&dangerous)),
        "PAIRING_REQUIRED"
    );
    let list = operator.request("device.pair.list", json!({})).unwrap();
    let request = |keys: &Keys| {
        let pending = list["pending"].as_array().unwrap();
        let found = pending.iter().find(|row| row["deviceId"] == keys.id().as_str());
        json!({"requestId": found.unwrap()["requestId"]})
    };
    let error = operator.request("node.pair.approve", request(&dangerous)).unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.admin");
    let mut weak = Client::operator(&daemon, Some(TOKEN), &["operator.pairing"]);
    let error = weak.request("node.pair.approve", request(&ordinary)).unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.write");
    let node = operator.request("node.pair.approve", request(&ordinary)).unwrap();
    assert_eq!(node["node"]["commands"], json!(["camera.snap"]));
    room::admin(&daemon).request("node.pair.approve", request(&dangerous)).unwrap();
    let error = operator.request("device.pair.approve", json!({"requestId": "x"})).unwrap_err();
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("INVALID_REQUEST"), &json!("unknown requestId"))
    );
    // A name, and a rejection.
    let named = json!({"deviceId": ordinary.id(), "label": " Hall "});
    assert_eq!(operator.request("device.pair.rename", named).unwrap()["label"], "Hall");
    let list = operator.request("node.pair.list", json!({})).unwrap();
    let names: Vec<&Value> =
        list["paired"].as_array().unwrap().iter().map(|row| &row["displayName"]).collect();
    assert!(names.contains(&&json!("Hall")), "{list}");
    let third = Keys::new(3);
    let refused = refused(&daemon, &Hello::node(&[]).token(TOKEN).keys(&third));
    let request = json!({"requestId": refused.error["details"]["requestId"]});
    let done = operator.request("device.pair.reject", request).unwrap();
    assert_eq!(done["deviceId"], third.id());
    assert_eq!(operator.next_event("device.pair.resolved")["decision"], "approved");
}

#[test]
fn further_commands_of_a_node_count_once_they_are_approved() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, ""));
    let (mut operator, keys) = (pairer(&daemon), Keys::new(1));
    drop(room::pair(&daemon, &mut operator, &keys, &["camera.snap"]));
    let more = Hello::node(&["camera.snap", "camera.clip"]).token(TOKEN).keys(&keys);
    let mut node = let_in(&daemon, &more);
    let told = operator.next_event("node.pair.requested");
    assert_eq!(told["commands"], json!(["camera.snap", "camera.clip"]));
    let request = json!({"requestId": told["requestId"]});
    operator.request("node.pair.approve", request).unwrap();
    assert_eq!(node.closed().unwrap().0, 1012, "it comes back by itself");
    drop(let_in(&daemon, &more));
    let list = operator.request("node.pair.list", json!({})).unwrap();
    assert_eq!(list["paired"][0]["commands"], json!(["camera.snap", "camera.clip"]));
    assert_eq!(list["pending"], json!([]));
}

#[test]
fn a_connected_device_asks_for_more_rights_and_gets_a_token_that_has_them() {
    let sandbox = Sandbox::new();
    let key = format!("[[key]]\nname = \"one\"\nsha256 = \"{}\"", hex("key-one"));
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, "").text(&key));
    let (mut admin, keys) = (room::admin(&daemon), Keys::new(1));
    let hello = Hello::operator(&["operator.read"]).token("key-one").keys(&keys);
    let mut client = let_in(&daemon, &hello);
    let ask = json!({"scopes": ["operator.admin"]});
    let asked = client.request("device.scopes.requestUpgrade", ask.clone()).unwrap();
    let waits = client.ask("device.scopes.waitUpgrade", asked.clone());
    let told = admin.next_event("device.pair.requested");
    assert_eq!((&told["requestId"], &told["scopes"]), (&asked["requestId"], &ask["scopes"]));
    admin.request("device.pair.approve", asked.clone()).unwrap();
    let done = client.answer(&waits).unwrap();
    assert_eq!((&done["status"], &done["scopes"]), (&json!("approved"), &ask["scopes"]));
    let token = done["deviceToken"].as_str().unwrap();
    let own = Hello::operator(&["operator.admin"]).keys(&keys).device_token(token);
    let mut own = let_in(&daemon, &own);
    own.request("device.pair.list", json!({})).unwrap();
    // And one that is not approved, and one that is not its own.
    let second = Keys::new(2);
    let other = Hello::operator(&["operator.read"]).token("key-one").keys(&second);
    let mut other = let_in(&daemon, &other);
    let asked = other.request("device.scopes.requestUpgrade", ask.clone()).unwrap();
    let waits = other.ask("device.scopes.waitUpgrade", asked.clone());
    client.request("device.scopes.waitUpgrade", asked.clone()).unwrap_err();
    // More than may wait are told so, and those who leave do not wait any more.
    let mut more: Vec<String> =
        (0..64).map(|_| other.ask("device.scopes.waitUpgrade", asked.clone())).collect();
    let late = more.pop().unwrap();
    assert_eq!(other.answer(&late).unwrap_err()["code"], "UNAVAILABLE");
    assert_eq!(daemon.limit_now("nodes.upgrades_max"), 64);
    admin.request("device.pair.reject", asked).unwrap();
    for waits in more.iter().chain([&waits]) {
        assert_eq!(other.answer(waits).unwrap()["status"], "rejected");
    }
    let asked = other.request("device.scopes.requestUpgrade", ask).unwrap();
    other.ask("device.scopes.waitUpgrade", asked);
    assert_eventually!(daemon.limit_now("nodes.upgrades_max") == 1);
    other.reset();
    assert_eventually!(daemon.limit_now("nodes.upgrades_max") == 0);
}

#[test]
fn a_key_that_ends_takes_its_connections_with_it() {
    let sandbox = Sandbox::new();
    let conf = |lines: &str| {
        let key = format!("[[key]]\nname = \"guest\"\nsha256 = \"{}\"\n{lines}", hex("guest"));
        room::conf(&sandbox, "").text(&key)
    };
    let daemon = Daemon::start(&sandbox, &conf("expires = \"2999-01-01T00:00:00Z\""));
    let mut admin = room::admin(&daemon);
    let hello = Hello::operator(&["operator.read"]).token("guest");
    let mut guest = let_in(&daemon, &hello);
    daemon.rewrite(&conf("expires = \"2026-01-01T00:00:00Z\""));
    daemon.signal(Signal::HUP);
    assert_eq!(guest.closed().unwrap(), (1008, "credentials expired".to_owned()));
    assert_eq!(code(&daemon, &hello), "AUTH_TOKEN_MISMATCH");
    admin.request("device.pair.list", json!({})).unwrap();
}

#[test]
fn an_open_gateway_says_how_to_have_more_rights() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &crate::support::conf::Conf::new());
    let mut client = Client::operator(&daemon, None, &["operator.admin"]);
    assert_eq!(client.hello["auth"]["scopes"], json!(["operator.read", "operator.write"]));
    let error = client.request("device.pair.list", json!({})).unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.pairing");
    let text = error["message"].as_str().unwrap();
    assert!(
        text.starts_with("missing scope: operator.pairing") && text.contains("nodes.token_file"),
        "{text}"
    );
    // A node may ask to be paired here, and the owner approves it.
    let keys = Keys::new(1);
    let hello = Hello::node(&[]).keys(&keys);
    assert_eq!(code(&daemon, &hello), "PAIRING_REQUIRED");
    let list = listed(&sandbox, &daemon);
    said(&sandbox, &daemon, &["approve", list["requests"][0]["id"].as_str().unwrap()]);
    let own = token_of(&let_in(&daemon, &hello));
    drop(let_in(&daemon, &Hello::node(&[]).keys(&keys).device_token(&own)));
}

#[test]
fn bounds_of_devices_and_requests_hold_and_say_what_to_do() {
    let sandbox = Sandbox::new();
    let lines = "devices_max = 1\npairings_max = 8";
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, lines));
    let mut operator = pairer(&daemon);
    drop(room::pair(&daemon, &mut operator, &Keys::new(1), &[]));
    let ask = |number: u64| {
        let refused = refused(&daemon, &Hello::node(&[]).token(TOKEN).keys(&Keys::new(number)));
        assert_eq!(refused.error["details"]["code"], "PAIRING_REQUIRED");
        refused.error["details"].clone()
    };
    let second = ask(2);
    ask(3);
    let fourth = ask(4);
    assert!(fourth["requestId"].is_null(), "two of one address: {fourth}");
    assert!(fourth["remediationHint"].as_str().unwrap().contains("nodes.pairings_max"), "{fourth}");
    let approved = run(&sandbox, &daemon, &["approve", second["requestId"].as_str().unwrap()]);
    assert!(!approved.status.success());
    let text = String::from_utf8_lossy(&approved.stderr);
    assert!(text.contains("nodes.devices_max"), "{text}");
    assert_eq!(daemon.limit_now("nodes.devices_max"), 1);
    assert_eq!(daemon.limit_now("nodes.pairings_max"), 2);
    said(&sandbox, &daemon, &["remove", &Keys::new(1).id()]);
    said(&sandbox, &daemon, &["approve", second["requestId"].as_str().unwrap()]);
    assert_eq!(daemon.limit_now("nodes.pairings_max"), 1);
}

#[test]
fn without_a_state_directory_operators_come_in_and_devices_do_not() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("no-folder", "a file");
    let dir = file.join("state").display().to_string();
    let start = Start { env: vec![("STATE_DIRECTORY".to_owned(), dir)], ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &room::conf(&sandbox, ""), &start);
    drop(pairer(&daemon));
    let keys = Keys::new(1);
    let hello = Hello::node(&[]).token(TOKEN).keys(&keys);
    let refused = refused(&daemon, &hello);
    assert_eq!(
        (&refused.error["code"], &refused.error["retryable"]),
        (&json!("UNAVAILABLE"), &json!(true))
    );
    assert_eq!(refused.close.unwrap().0, 1013);
    daemon.assert_well("without a store");
}
