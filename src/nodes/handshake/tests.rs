//! Every way in, and every way that is none.

use std::cell::RefCell;
use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};

use super::*;
use crate::base::clock;
use crate::base::metrics::{Limit, Registry};
use crate::nodes::device;
use crate::nodes::pairing::{self, Request};
use crate::store::{Store, Tools};

const NOW_MS: u64 = 1_800_000_000_000;
const NONCE: &str = "the-nonce";

/// A gateway with a key `laptop`, or none; it locks out at the third wrong secret.
struct Gate {
    keys: bool,
    wrong: crate::base::lock::Locked<RefCell<Vec<String>>>,
}

impl Host for Gate {
    fn open(&self, shown: Option<&str>, address: IpAddr) -> Result<Opened, Error> {
        match shown {
            _ if !self.keys => Ok(Opened::Open),
            Some("laptop-key") => Ok(Opened::Key { name: "laptop".into(), scopes: Scopes::USE }),
            None => Err(Error::new(Kind::Unauthorized, "no key")),
            Some(shown) => {
                self.listens(shown, address)?;
                self.failed(shown, address);
                Err(Error::new(Kind::Unauthorized, "no such key"))
            }
        }
    }

    fn failed(&self, shown: &str, _: IpAddr) {
        self.wrong.with(|wrong| wrong.borrow_mut().push(shown.to_owned()));
    }

    fn listens(&self, _: &str, _: IpAddr) -> Result<(), Error> {
        if self.wrong.with(|wrong| wrong.borrow().len()) < 3 {
            return Ok(());
        }
        let error = Error::new(Kind::LockedOut, "wait");
        Err(error.retry_after(Some(Duration::from_secs(30))))
    }
}

/// A gateway and its devices.
struct Room {
    gate: Gate,
    devices: Devices,
    secrets: Secrets,
    address: IpAddr,
    _folder: tempfile::TempDir,
}

impl Room {
    fn new(keys: bool, token: Option<&str>, password: Option<&str>) -> Room {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path()), &settings::Store::default(), Tools::bare());
        let mut room = Room::over(&store, folder);
        room.gate.keys = keys;
        let digest = |secret: Option<&str>| secret.map(Digest::of);
        room.secrets = Secrets { token: digest(token), password: digest(password) };
        room
    }

    fn over(store: &Arc<Store>, folder: tempfile::TempDir) -> Room {
        let events = crate::base::events::Events::new(Arc::new(Registry::default()));
        let (devices, pairings) = (Limit::detached(256), Limit::detached(64));
        let wrong =
            crate::base::lock::Locked::new(crate::base::lock::Rank::Leaf, RefCell::default());
        Room {
            gate: Gate { keys: false, wrong },
            devices: Devices::new(&devices, &pairings, &events, store),
            secrets: Secrets::default(),
            address: IpAddr::from([127, 0, 0, 1]),
            _folder: folder,
        }
    }

    fn step(&self, client: &Guest) -> Step {
        let ctx = Context {
            host: &self.gate,
            devices: &self.devices,
            secrets: &self.secrets,
            address: self.address,
            now_ms: NOW_MS,
        };
        Handshake::new(NOW_MS, NONCE).step(&client.frame(), &ctx)
    }

    fn welcome(&self, client: &Guest) -> Welcome {
        match self.step(client) {
            Step::Welcome(welcome) => *welcome,
            Step::Refuse(refused) => panic!("{refused:?}"),
        }
    }

    /// The error's details and the close code.
    fn refused(&self, client: &Guest) -> (Value, u16) {
        match self.step(client) {
            Step::Welcome(welcome) => panic!("{:?}", welcome.identity),
            Step::Refuse(refused) => {
                let frame: Value = serde_json::from_str(&refused.frame.unwrap()).unwrap();
                assert_eq!((&frame["id"], &frame["ok"]), (&"c1".into(), &false.into()));
                (frame["error"].clone(), refused.code)
            }
        }
    }

    fn code(&self, client: &Guest) -> String {
        let (error, close) = self.refused(client);
        assert_eq!(close, 1008);
        error["details"]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn pair(&self, client: &Guest) -> Request {
        let (error, close) = self.refused(client);
        assert_eq!((&error["code"], close), (&"NOT_PAIRED".into(), 1008), "{error}");
        let id = error["details"]["requestId"].as_str().unwrap();
        self.devices.approve(id).unwrap().0
    }
}

/// A client that says these things.
#[derive(Clone)]
struct Guest {
    protocol: (i64, i64),
    role: Option<&'static str>,
    mode: &'static str,
    scopes: Option<Vec<&'static str>>,
    commands: Vec<&'static str>,
    auth: Value,
    device: Option<u8>,
    nonce: &'static str,
    signed_at: u64,
    version: &'static str,
    spoil: bool,
}

fn operator(auth: Value) -> Guest {
    Guest {
        protocol: (4, 4),
        role: Some("operator"),
        mode: "backend",
        scopes: Some(vec!["operator.admin"]),
        commands: Vec::new(),
        auth,
        device: None,
        nonce: NONCE,
        signed_at: NOW_MS,
        version: "v3",
        spoil: false,
    }
}

fn node(auth: Value, seed: u8) -> Guest {
    let (role, scopes) = (Some("node"), Some(Vec::new()));
    let (mode, device, commands) = ("node", Some(seed), vec!["camera.snap"]);
    Guest { protocol: (3, 4), role, mode, scopes, device, commands, ..operator(auth) }
}

impl Guest {
    fn id(&self) -> String {
        let key = SigningKey::from_bytes(&[self.device.unwrap(); 32]).verifying_key();
        device::id(&key.to_bytes())
    }

    fn frame(&self) -> String {
        let mut params = json!({
            "minProtocol": self.protocol.0, "maxProtocol": self.protocol.1,
            "client": {"id": "gateway-client", "version": "1", "platform": "Linux", "mode": self.mode},
            "caps": ["x"], "commands": self.commands, "auth": self.auth,
        });
        if let Some(role) = self.role {
            params["role"] = role.into();
        }
        if let Some(scopes) = &self.scopes {
            params["scopes"] = json!(scopes);
        }
        if let Some(seed) = self.device {
            params["device"] = self.signed(seed);
        }
        json!({"type": "req", "id": "c1", "method": "connect", "params": params}).to_string()
    }

    fn signed(&self, seed: u8) -> Value {
        let signing = SigningKey::from_bytes(&[seed; 32]);
        let key = signing.verifying_key().to_bytes();
        let scopes = self.scopes.clone().unwrap_or_default().join(",");
        let token = ["token", "deviceToken"].iter().find_map(|key| self.auth[key].as_str());
        let (id, mode, at, nonce) = (device::id(&key), self.mode, self.signed_at, self.nonce);
        let (role, token) = (self.role.unwrap_or("operator"), token.unwrap_or_default());
        let rest = format!("{id}|gateway-client|{mode}|{role}|{scopes}|{at}|{token}|{nonce}");
        let text = match self.version {
            "v3" => format!("v3|{rest}|linux|"),
            _ => format!("v2|{rest}"),
        };
        let mut signature = signing.sign(text.as_bytes()).to_bytes();
        if self.spoil {
            signature[5] ^= 1;
        }
        json!({
            "id": id, "publicKey": device::encoded(&key), "signedAt": at, "nonce": nonce,
            "signature": device::encoded(&signature),
        })
    }
}

#[test]
fn the_challenge_is_as_the_protocol_has_it() {
    let frame: Value = serde_json::from_str(&Handshake::new(7, "n").challenge()).unwrap();
    let expected =
        json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 7}});
    assert_eq!(frame, expected);
}

#[test]
fn the_shared_token_gives_what_is_asked_and_a_key_what_it_has() {
    let room = Room::new(true, Some("shared"), Some("word"));
    let who = room.welcome(&operator(json!({"token": "shared"}))).identity;
    assert_eq!((who.how, who.account.as_deref()), (How::Token, Some("nodes")));
    assert_eq!(who.scopes.words().collect::<Vec<_>>(), ["operator.admin"]);
    let welcome = room.welcome(&operator(json!({"token": "laptop-key"})));
    let who = welcome.identity;
    assert_eq!((who.how, who.account.as_deref()), (How::Key, Some("laptop")));
    assert_eq!(who.scopes, Scopes::USE);
    let expected = json!({"role": "operator", "scopes": ["operator.read", "operator.write"]});
    assert_eq!(welcome.auth, expected);
    let who = room.welcome(&operator(json!({"password": "word"}))).identity;
    assert_eq!((who.how, who.scopes.allow(crate::nodes::who::Scope::Admin)), (How::Password, true));
    let silent = Guest { scopes: None, ..operator(json!({"token": "shared"})) };
    assert_eq!(room.welcome(&silent).identity.scopes, Scopes::USE);
    let silent = Guest { scopes: Some(Vec::new()), ..silent };
    assert_eq!(room.welcome(&silent).identity.scopes, Scopes::NONE);
}

#[test]
fn an_open_gateway_ignores_what_is_shown_and_gives_no_admin() {
    let room = Room::new(false, None, None);
    for auth in
        [json!(null), json!({"token": "x"}), json!({"password": "x"}), json!({"deviceToken": "x"})]
    {
        let client = Guest { device: Some(1), ..operator(auth) };
        let who = room.welcome(&client).identity;
        assert_eq!((who.how, who.account, who.scopes), (How::Open, None, Scopes::USE));
    }
    let room = Room::new(false, Some("shared"), None);
    assert_eq!(room.code(&operator(json!(null))), "AUTH_TOKEN_MISSING");
    assert_eq!(room.code(&operator(json!({"token": "x"}))), "AUTH_TOKEN_MISMATCH");
}

#[test]
fn wrong_secrets_are_told_apart_counted_and_locked_out() {
    let room = Room::new(true, Some("shared"), Some("word"));
    assert_eq!(room.code(&operator(json!(null))), "AUTH_TOKEN_MISSING");
    assert_eq!(room.code(&operator(json!({"token": "  "}))), "AUTH_TOKEN_MISSING");
    assert_eq!(room.gate.wrong.with(|wrong| wrong.borrow().len()), 0, "that guesses nothing");
    assert_eq!(room.code(&operator(json!({"token": "x"}))), "AUTH_TOKEN_MISMATCH");
    assert_eq!(room.code(&operator(json!({"password": "x"}))), "AUTH_PASSWORD_MISMATCH");
    let own = Guest { device: Some(1), ..operator(json!({"deviceToken": "x", "token": "x"})) };
    assert_eq!(room.code(&own), "AUTH_DEVICE_TOKEN_MISMATCH");
    assert_eq!(room.gate.wrong.with(|wrong| wrong.borrow().len()), 3, "each once");
    let (error, close) = room.refused(&operator(json!({"token": "shared"})));
    assert_eq!((&error["details"]["code"], close), (&"AUTH_RATE_LIMITED".into(), 1008));
    assert_eq!((&error["retryable"], &error["retryAfterMs"]), (&true.into(), &30_000.into()));
    assert_eq!(error["details"]["recommendedNextStep"], "wait_then_retry");
    room.gate.wrong.with(|wrong| wrong.borrow_mut().clear());
    assert_eq!(room.welcome(&operator(json!({"token": "shared"}))).identity.how, How::Token);
    let room = Room::new(true, None, Some("word"));
    assert_eq!(room.code(&operator(json!(null))), "AUTH_PASSWORD_MISSING");
}

#[test]
fn versions_are_negotiated_by_role() {
    let room = Room::new(false, None, None);
    let check = |client: &Guest, protocol: (i64, i64), expected: Result<u32, u16>| {
        let client = Guest { protocol, ..client.clone() };
        match (room.step(&client), expected) {
            (Step::Welcome(welcome), Ok(version)) => {
                assert_eq!(welcome.identity.protocol, version, "{protocol:?}");
            }
            (Step::Refuse(refused), Err(code)) => {
                assert_eq!(refused.code, code, "{protocol:?}");
                if code == 1002 {
                    let frame: Value = serde_json::from_str(&refused.frame.unwrap()).unwrap();
                    let details = &frame["error"]["details"];
                    assert_eq!(details["code"], "PROTOCOL_MISMATCH");
                    assert_eq!(
                        (&details["expectedProtocol"], &details["clientMaxProtocol"]),
                        (&4.into(), &protocol.1.into())
                    );
                }
            }
            (step, expected) => panic!("{protocol:?}: {step:?}, {expected:?}"),
        }
    };
    let plain = operator(json!(null));
    for (protocol, expected) in [
        ((4, 4), Ok(4)),
        ((1, 9), Ok(4)),
        ((3, 3), Err(1002)),
        ((5, 6), Err(1002)),
        ((5, 4), Err(1002)),
    ] {
        check(&plain, protocol, expected);
    }
    check(&Guest { mode: "probe", ..plain }, (3, 3), Ok(3));
    let node = node(json!(null), 1);
    room.pair(&node);
    check(&node, (3, 3), Ok(3));
    check(&node, (3, 4), Ok(4));
    check(&node, (2, 2), Err(1002));
}

#[test]
fn what_is_no_connect_is_refused() {
    let room = Room::new(false, None, None);
    let ctx = Context {
        host: &room.gate,
        devices: &room.devices,
        secrets: &room.secrets,
        address: room.address,
        now_ms: NOW_MS,
    };
    let step = |text: &str| match Handshake::new(NOW_MS, NONCE).step(text, &ctx) {
        Step::Refuse(refused) => (refused.code, refused.frame.is_some()),
        Step::Welcome(_) => panic!("{text}"),
    };
    assert_eq!(step("nonsense"), (1008, false));
    assert_eq!(step(r#"{"type":"event","event":"x"}"#), (1008, false));
    assert_eq!(step(r#"{"type":"req","id":"1","method":"health"}"#), (1008, true));
    assert_eq!(step(r#"{"type":"req","id":"1","method":"connect"}"#), (1008, true));
    let strange = Guest { role: Some("worker"), ..operator(json!(null)) };
    assert_eq!(step(&strange.frame()), (1008, true));
}

#[test]
fn a_device_has_to_prove_who_it_is() {
    let room = Room::new(true, Some("shared"), None);
    let good = node(json!({"token": "shared"}), 1);
    let check = |client: Guest, code: &str| assert_eq!(room.code(&client), code);
    check(Guest { spoil: true, ..good.clone() }, "DEVICE_AUTH_SIGNATURE_INVALID");
    check(Guest { nonce: "another", ..good.clone() }, "DEVICE_AUTH_NONCE_MISMATCH");
    check(Guest { nonce: "", ..good.clone() }, "DEVICE_AUTH_NONCE_REQUIRED");
    let signed_at = NOW_MS - device::SKEW_MS - 1;
    check(Guest { signed_at, ..good.clone() }, "DEVICE_AUTH_SIGNATURE_EXPIRED");
    check(Guest { device: None, ..good.clone() }, "DEVICE_IDENTITY_REQUIRED");
    check(operator(json!({"deviceToken": "x"})), "DEVICE_IDENTITY_REQUIRED");
    check(Guest { version: "v2", ..good.clone() }, "PAIRING_REQUIRED");
    check(good, "PAIRING_REQUIRED");
    let bad = Guest { spoil: true, device: Some(1), ..operator(json!({"token": "shared"})) };
    check(bad, "DEVICE_AUTH_SIGNATURE_INVALID");
}

#[test]
fn a_node_is_let_in_once_it_is_approved_and_then_by_its_own_token() {
    let room = Room::new(true, Some("shared"), None);
    let client = node(json!({"token": "shared"}), 1);
    let Step::Refuse(refused) = room.step(&client) else { panic!() };
    assert_eq!(refused.announce.len(), 1);
    let payload: Value = serde_json::from_str(&refused.announce[0].payload).unwrap();
    assert_eq!(refused.announce[0].name, "device.pair.requested");
    assert_eq!((&payload["deviceId"], &payload["role"]), (&client.id().into(), &"node".into()));
    let Step::Refuse(again) = room.step(&client) else { panic!() };
    assert!(again.announce.is_empty(), "told once");
    let request = room.pair(&client);
    assert_eq!(room.devices.requests().len(), 0);
    assert_eq!(*request.ask.commands, ["camera.snap".into()]);

    let welcome = room.welcome(&client);
    let token = welcome.auth["deviceToken"].as_str().unwrap().to_owned();
    assert!(welcome.auth["issuedAtMs"].is_u64());
    let who = welcome.identity;
    assert_eq!((who.how, who.role, who.scopes), (How::Token, Role::Node, Scopes::NONE));
    assert_eq!((who.device.as_deref(), who.protocol), (Some(&*client.id()), 4));
    assert!(room.welcome(&client).auth["deviceToken"].is_null(), "given once");

    for auth in [
        json!({"deviceToken": token}),
        json!({"token": token, "deviceToken": token}),
        json!({"token": token}),
    ] {
        let own = Guest { auth, ..client.clone() };
        let who = room.welcome(&own).identity;
        let account = format!("device:{}", &client.id()[..12]);
        assert_eq!((who.how, who.account.as_deref()), (How::Device, Some(&*account)));
    }
    let stolen = Guest { device: Some(2), auth: json!({"deviceToken": token}), ..client.clone() };
    assert_eq!(room.code(&stolen), "AUTH_DEVICE_TOKEN_MISMATCH");
    let operator =
        Guest { role: Some("operator"), auth: json!({"deviceToken": token}), ..client.clone() };
    assert_eq!(room.code(&operator), "AUTH_DEVICE_TOKEN_MISMATCH", "a token is for one role");
    let hint = Guest { auth: json!({"token": "old"}), ..client };
    let (error, _) = room.refused(&hint);
    assert_eq!(error["details"]["canRetryWithDeviceToken"], true);
}

#[test]
fn further_commands_of_a_node_wait_for_approval_while_it_is_connected() {
    let room = Room::new(true, Some("shared"), None);
    let client = node(json!({"token": "shared"}), 1);
    room.pair(&client);
    let more = Guest { commands: vec!["camera.snap", "system.run"], ..client.clone() };
    let welcome = room.welcome(&more);
    assert_eq!(*welcome.identity.commands, ["camera.snap".into()]);
    assert_eq!(welcome.announce[0].name, "node.pair.requested");
    let request = room.devices.requests().remove(0);
    assert_eq!(request.needs(), Some(crate::nodes::who::Scope::Admin));
    room.devices.approve(&request.id).unwrap();
    assert_eq!(room.welcome(&more).identity.commands.len(), 2);
    assert_eq!(*room.welcome(&client).identity.commands, ["camera.snap".into()], "what it offers");
}

#[test]
fn an_operator_device_with_its_token_gets_what_was_approved() {
    let room = Room::new(true, Some("shared"), None);
    let shared = Guest { device: Some(1), ..operator(json!({"token": "shared"})) };
    assert!(room.welcome(&shared).auth["deviceToken"].is_null(), "the token is enough");
    let request = room.devices.ask(ask(&shared, Scopes::USE)).unwrap().request;
    room.devices.approve(&request.id).unwrap();
    let token = room.welcome(&shared).auth["deviceToken"].as_str().unwrap().to_owned();
    let own = |scopes: Option<Vec<&'static str>>| Guest {
        scopes,
        auth: json!({"deviceToken": token}),
        ..shared.clone()
    };
    let who = room.welcome(&own(Some(vec!["operator.read"]))).identity;
    assert_eq!(who.scopes.words().collect::<Vec<_>>(), ["operator.read"]);
    assert_eq!(room.welcome(&own(None)).identity.scopes, Scopes::USE);
    let (error, _) = room.refused(&own(Some(vec!["operator.admin"])));
    assert_eq!(error["details"]["reason"], "scope-upgrade");
    assert_eq!(error["details"]["approvedScopes"], json!(["operator.read", "operator.write"]));
    room.devices.approve(error["details"]["requestId"].as_str().unwrap()).unwrap();
    assert_eq!(room.welcome(&own(Some(vec!["operator.admin"]))).identity.how, How::Device);
    let id = shared.id();
    let narrow = room.devices.rotate(&id, Role::Operator, Some(Scopes::USE)).unwrap();
    let auth = json!({"deviceToken": narrow.token});
    assert_eq!(room.code(&Guest { auth, ..shared.clone() }), "AUTH_SCOPE_MISMATCH");
    let node = node(json!({"token": "shared"}), 1);
    assert_eq!(room.refused(&node).0["details"]["reason"], "role-upgrade");
}

fn ask(client: &Guest, scopes: Scopes) -> Ask {
    let key = SigningKey::from_bytes(&[client.device.unwrap(); 32]).verifying_key().to_bytes();
    Ask {
        device: client.id().into(),
        key,
        role: Role::Operator,
        scopes,
        commands: Box::default(),
        caps: Box::default(),
        client: Client::default(),
        address: IpAddr::from([127, 0, 0, 1]),
        why: Why::NotPaired,
    }
}

#[test]
fn what_was_taken_away_does_not_open_any_more() {
    let room = Room::new(true, Some("shared"), None);
    let client = node(json!({"token": "shared"}), 1);
    room.pair(&client);
    let welcome = room.welcome(&client);
    let auth = json!({"deviceToken": welcome.auth["deviceToken"]});
    let own = Guest { auth, ..client.clone() };
    let who = room.welcome(&own).identity;
    assert!(room.devices.stands(&who) && pairing::concerns(&who, &client.id(), None));
    let lost = room.devices.revoke(&client.id(), Role::Node).unwrap();
    assert!(lost.kept.is_ok());
    assert_eq!(room.code(&own), "AUTH_DEVICE_TOKEN_MISMATCH");
    let again = room.welcome(&client);
    assert!(again.auth["deviceToken"].is_string(), "still paired, it gets another");
    assert!(room.devices.remove(&client.id(), Some(Role::Node)).unwrap().kept.is_ok());
    assert!(!room.devices.stands(&who));
    assert_eq!(room.code(&client), "PAIRING_REQUIRED");
}

#[test]
fn strangers_fill_nothing() {
    let mut room = Room::new(true, Some("shared"), None);
    room.address = IpAddr::from([192, 0, 2, 1]);
    for seed in 1..=40 {
        let Step::Refuse(refused) = room.step(&node(json!({"token": "shared"}), seed)) else {
            panic!()
        };
        assert_eq!(refused.outcome, if seed <= 16 { "pairing_required" } else { "pairings_full" });
    }
    assert_eq!(room.devices.requests().len(), 16, "a fourth of 64");
    room.address = IpAddr::from([192, 0, 2, 2]);
    let (error, _) = room.refused(&node(json!({"token": "shared"}), 99));
    assert!(error["details"]["requestId"].is_string(), "others can ask");
    assert_eq!(room.code(&node(json!({"token": "wrong"}), 100)), "AUTH_TOKEN_MISMATCH");
    assert_eq!(room.devices.requests().len(), 17, "whoever shows no secret asks for nothing");
    // An open gateway believes only its own machine.
    let mut open = Room::new(false, None, None);
    open.address = IpAddr::from([192, 0, 2, 1]);
    let (error, _) = open.refused(&node(json!(null), 1));
    assert!(error["details"]["requestId"].is_null());
    assert_eq!(open.devices.requests().len(), 0);
}

#[test]
fn without_a_store_nodes_stay_out_and_operators_come_in() {
    let room = Room::over(&Store::nowhere(), tempfile::tempdir().unwrap());
    let (error, close) = room.refused(&node(json!(null), 1));
    assert_eq!((&error["code"], close), (&"UNAVAILABLE".into(), 1013));
    assert_eq!(error["retryable"], true);
    let client = Guest { device: Some(1), ..operator(json!(null)) };
    assert_eq!(room.welcome(&client).identity.how, How::Open);
}

#[test]
fn a_known_device_needs_no_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(Some(folder.path()), &settings::Store::default(), Tools::bare());
    let room = Room::over(&store, folder);
    let (client, other) = (node(json!(null), 1), node(json!(null), 2));
    room.pair(&client);
    let token = room.welcome(&client).auth["deviceToken"].clone();
    let (error, _) = room.refused(&other);
    assert!(store.stop(clock::now() + Duration::from_secs(10)));
    let own = Guest { auth: json!({"deviceToken": token}), ..client.clone() };
    assert_eq!(room.welcome(&own).identity.how, How::Device);
    let request = error["details"]["requestId"].as_str().unwrap();
    assert!(room.devices.approve(request).is_err(), "nothing new while it is away");
    assert_eq!(room.devices.requests().len(), 1, "and the request waits on");
    assert_eq!(room.code(&other), "PAIRING_REQUIRED");
    let lost = room.devices.remove(&client.id(), None).unwrap();
    assert!(lost.kept.is_err(), "said, and done all the same");
    assert!(matches!(room.step(&own), Step::Refuse(_)));
}
