//! An OpenClaw client: the handshake, requests and their answers, events in order.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Frame, Keys, Message, Ws};
use crate::support::daemon::Daemon;
use crate::support::patience;
use crate::support::wire::Fault;

/// How a client says who it is. Everything in it can be changed before it is sent.
#[derive(Clone)]
pub struct Hello<'a> {
    /// `params` of `connect`, without `device`.
    pub params: Value,
    keys: Option<&'a Keys>,
    version: u8,
    path: &'a str,
    headers: String,
}

impl<'a> Hello<'a> {
    /// An operator's.
    pub fn operator(scopes: &[&str]) -> Self {
        Hello::new("operator", "cli", "cli", 4).with("scopes", json!(scopes))
    }

    /// A node's.
    pub fn node(commands: &[&str]) -> Self {
        Hello::new("node", "node-host", "node", 3).with("commands", json!(commands))
    }

    fn new(role: &str, id: &str, mode: &str, protocol_min: u64) -> Self {
        let client = json!({"id": id, "version": "1.0.0", "platform": "Linux", "mode": mode});
        let params = json!({
            "minProtocol": protocol_min, "maxProtocol": 4, "client": client, "caps": [],
            "role": role, "scopes": [],
        });
        Hello { params, keys: None, version: 3, path: "/", headers: String::new() }
    }

    /// With another member of `params`.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.params[key] = value;
        self
    }

    /// With a shared token, or a `[[key]]`.
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        self.with("auth", json!({"token": token}))
    }

    /// With the token of a paired device.
    #[must_use]
    pub fn device_token(self, token: &str) -> Self {
        self.with("auth", json!({"deviceToken": token}))
    }

    /// As a device, with its signature.
    #[must_use]
    pub fn keys(mut self, keys: &'a Keys) -> Self {
        self.keys = Some(keys);
        self
    }

    /// With the older form of the signed string.
    #[must_use]
    pub fn signed_as_v2(mut self) -> Self {
        self.version = 2;
        self
    }

    /// With further lines of the HTTP request.
    #[must_use]
    pub fn headers(mut self, lines: &str) -> Self {
        self.headers.push_str(lines);
        self
    }

    /// On another path than `/`.
    #[must_use]
    pub fn path(mut self, path: &'a str) -> Self {
        self.path = path;
        self
    }

    /// The request for a challenge's payload.
    pub fn request(&self, challenge: &Value) -> Value {
        let mut params = self.params.clone();
        if let Some(keys) = self.keys {
            let (nonce, ts) = (&challenge["nonce"], &challenge["ts"]);
            params["device"] = json!({
                "id": keys.id(), "publicKey": keys.public(), "signedAt": ts, "nonce": nonce,
                "signature": keys.sign(&self.signed(keys, challenge)),
            });
        }
        json!({"type": "req", "id": "hello", "method": "connect", "params": params})
    }

    /// The string that is signed.
    pub fn signed(&self, keys: &Keys, challenge: &Value) -> String {
        let params = &self.params;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let scopes = params["scopes"].as_array().cloned().unwrap_or_default();
        let scopes: Vec<String> = scopes.iter().map(word).collect();
        let (client, auth) = (&params["client"], &params["auth"]);
        let token = auth.get("token").or(auth.get("deviceToken")).map(word).unwrap_or_default();
        let mut parts = vec![format!("v{}", self.version), keys.id(), word(&client["id"])];
        parts.extend([word(&client["mode"]), word(&params["role"]), scopes.join(",")]);
        parts.extend([challenge["ts"].to_string(), token, word(&challenge["nonce"])]);
        if self.version == 3 {
            let platform = word(&client["platform"]).to_ascii_lowercase();
            parts.extend([platform, word(&client["deviceFamily"]).to_ascii_lowercase()]);
        }
        parts.join("|")
    }

    /// Opens a connection and says it.
    pub fn connect(&self, to: SocketAddr) -> Result<Client, Refused> {
        self.say(Ws::connect(to, self.path, &self.headers))
    }

    /// Says it on an open connection.
    pub fn say(&self, mut ws: Ws) -> Result<Client, Refused> {
        let challenge = event_of(&mut ws, "connect.challenge");
        ws.text(&self.request(&challenge["payload"]).to_string());
        let answer = match ws.message() {
            Ok(Message::Text(text)) => serde_json::from_str::<Value>(&text).unwrap(),
            other => panic!("no answer to connect: {other:?}"),
        };
        assert_eq!((&answer["type"], &answer["id"]), (&json!("res"), &json!("hello")), "{answer}");
        if answer["ok"] == false {
            let error = answer["error"].clone();
            return Err(Refused { error, close: ws.closed().ok() });
        }
        let hello = answer["payload"].clone();
        assert_eq!(hello["type"], "hello-ok", "{answer}");
        Ok(Client::new(ws, hello))
    }
}

fn event_of(ws: &mut Ws, name: &str) -> Value {
    match ws.message() {
        Ok(Message::Text(text)) => {
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["event"], name, "{text}");
            value
        }
        other => panic!("no {name}: {other:?}"),
    }
}

/// A handshake that was refused.
#[derive(Debug)]
pub struct Refused {
    /// The error of the answer.
    pub error: Value,
    /// Code and reason of the close that followed; none when there was no close frame.
    pub close: Option<(u16, String)>,
}

/// A client that was let in.
pub struct Client {
    ws: Ws,
    /// What the gateway said of itself and of us.
    pub hello: Value,
    /// Whole events that nobody asked for yet, oldest first.
    pub events: VecDeque<Value>,
    /// Events that were left out, by the gaps in `seq`.
    pub missed: u64,
    seq: Option<u64>,
    answers: BTreeMap<String, Value>,
    next: u64,
}

impl Client {
    fn new(ws: Ws, hello: Value) -> Self {
        let (events, answers) = (VecDeque::new(), BTreeMap::new());
        Client { ws, hello, events, missed: 0, seq: None, answers, next: 1 }
    }

    /// An operator with a shared token or a key; fails the test when it is refused.
    pub fn operator(daemon: &Daemon, token: Option<&str>, scopes: &[&str]) -> Self {
        let hello = Hello::operator(scopes);
        let hello = token.map_or(hello.clone(), |token| hello.token(token));
        hello.connect(daemon.addr).unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// A paired node; fails the test when it is refused.
    pub fn node(daemon: &Daemon, keys: &Keys, token: Option<&str>, commands: &[&str]) -> Self {
        let hello = Hello::node(commands).keys(keys);
        let hello = token.map_or(hello.clone(), |token| hello.token(token));
        hello.connect(daemon.addr).unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// The connection below.
    pub fn ws(&mut self) -> &mut Ws {
        &mut self.ws
    }

    /// Changes how long it waits for what it is asked for.
    pub fn wait_at_most(&mut self, limit: Duration) {
        self.ws.wait_at_most(limit);
    }

    /// Asks, and gives the payload or the error of the answer.
    pub fn request(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let id = self.ask(method, params);
        self.answer(&id)
    }

    /// Asks, and gives the request's id.
    pub fn ask(&mut self, method: &str, params: Value) -> String {
        let id = self.next.to_string();
        self.next += 1;
        let frame = json!({"type": "req", "id": id, "method": method, "params": params});
        self.ws.text(&frame.to_string());
        id
    }

    /// The answer to an earlier request; fails the test when there is none in time.
    pub fn answer(&mut self, id: &str) -> Result<Value, Value> {
        let deadline = Instant::now() + self.ws.limit;
        while !self.answers.contains_key(id) {
            let read = self.read(deadline);
            read.unwrap_or_else(|fault| panic!("no answer to {id}: {fault:?}"));
        }
        let mut answer = self.answers.remove(id).unwrap();
        match answer["ok"].as_bool() {
            Some(true) => Ok(answer["payload"].take()),
            _ => Err(answer["error"].take()),
        }
    }

    /// The payload of the next event of this name, kept or to come; fails the test when there is
    /// none in time. Others are kept.
    pub fn next_event(&mut self, name: &str) -> Value {
        let limit = self.ws.limit;
        self.event_within(name, limit).unwrap_or_else(|| panic!("no event {name}"))
    }

    /// The same within a time of its own; none when it does not come.
    pub fn event_within(&mut self, name: &str, limit: Duration) -> Option<Value> {
        let deadline = Instant::now() + patience(limit);
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at).map(|mut event| event["payload"].take());
            }
            self.read(deadline).ok()?;
        }
    }

    /// Reads for a time, whatever comes; says how the connection ended if it did.
    pub fn listen(&mut self, time: Duration) -> Result<(), Fault> {
        let deadline = Instant::now() + time;
        loop {
            match self.read(deadline) {
                Ok(()) => {}
                Err(Fault::Timeout) => return Ok(()),
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Lets a thread read for it from here on, so that its pings are answered.
    pub fn idle(mut self) -> Idle {
        let over = Arc::<AtomicBool>::default();
        let stop = Arc::clone(&over);
        let listen = move || {
            while !stop.load(Ordering::Relaxed) {
                self.listen(Duration::from_millis(10))?;
            }
            Ok(self)
        };
        Idle { over, thread: Some(std::thread::spawn(listen)) }
    }

    /// Closes with a reset instead of a FIN.
    pub fn reset(self) {
        self.ws.reset();
    }

    /// The code and the reason that it is closed with; what comes before is thrown away.
    pub fn closed(&mut self) -> Result<(u16, String), Fault> {
        self.ws.closed()
    }

    /// Leaves as clients should.
    pub fn leave(mut self) {
        self.ws.send(&Frame::close(1000, ""));
        let code = self.ws.closed().unwrap_or_else(|fault| panic!("no close: {fault:?}"));
        assert_eq!(code.0, 1000, "{code:?}");
    }

    /// Takes one message in.
    fn read(&mut self, deadline: Instant) -> Result<(), Fault> {
        let text = match self.ws.message_until(deadline)? {
            Message::Text(text) => text,
            Message::Close(code, reason) => {
                return Err(Fault::Closed(format!("{code} {reason}")));
            }
            Message::Pong(_) => return Ok(()),
            Message::Binary(bytes) => panic!("a binary message: {bytes:?}"),
        };
        let frame: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        match frame["type"].as_str() {
            Some("res") => {
                let id = frame["id"].as_str().unwrap().to_owned();
                assert!(self.answers.insert(id, frame).is_none(), "a second answer: {text}");
            }
            Some("event") => {
                if let Some(seq) = frame["seq"].as_u64() {
                    let last = self.seq.unwrap_or(seq - 1);
                    assert!(seq > last, "after {last}: {text}");
                    self.missed += seq - last - 1;
                    self.seq = Some(seq);
                }
                self.events.push_back(frame);
            }
            _ => panic!("no frame of the protocol: {text}"),
        }
        Ok(())
    }
}

/// A client that a thread reads for.
pub struct Idle {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Client, Fault>>>,
}

impl Idle {
    /// The client again; fails the test when its connection has ended.
    pub fn back(mut self) -> Client {
        self.over.store(true, Ordering::Relaxed);
        let client = self.thread.take().unwrap().join().unwrap();
        client.unwrap_or_else(|fault| panic!("an idle client was cut off: {fault:?}"))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_a_device_signs_is_what_the_reference_client_signs() {
    let keys = Keys::new(7);
    let hello = Hello::operator(&["operator.read", "operator.write"]).token("secret").keys(&keys);
    let challenge = json!({"nonce": "abc", "ts": 1_700_000_000_000_u64});
    let id = keys.id();
    let common = "cli|cli|operator|operator.read,operator.write|1700000000000|secret|abc";
    assert_eq!(hello.signed(&keys, &challenge), format!("v3|{id}|{common}|linux|"));
    let older = hello.clone().signed_as_v2();
    assert_eq!(older.signed(&keys, &challenge), format!("v2|{id}|{common}"));
    let request = hello.request(&challenge);
    assert_eq!(request["params"]["device"]["nonce"], "abc");
    assert_eq!(request["params"]["device"]["signature"].as_str().unwrap().len(), 86);
}
