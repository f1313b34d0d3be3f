//! Who hears of a run, and what: `chat` and `agent` events, what was said, and that a session has
//! changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::nodes::frame;
use crate::nodes::history::{Message, usage_shown};
use crate::nodes::outbox::{Class, Event, Put};
use crate::nodes::peer::Peer;
use crate::nodes::run::{Delta, Ended};
use crate::nodes::sessions::{AGENT, SessionId, clip};
use crate::nodes::subscriptions::Subscriptions;
use crate::nodes::who::{Role, Scope};

/// How often it is looked who listens to a run.
pub const FRESH: Duration = Duration::from_millis(250);

/// Up to here a listener that missed a delta gets the whole text with the next one; one of a longer
/// text waits for the end, which has it in any case. In bytes.
pub const REPLACE_BYTES_MAX: usize = 256 * 1024;

/// Longest text in the details of an error, in bytes: the protocol's 300 characters at most.
const DETAIL_BYTES_MAX: usize = 300;

/// The connections there are.
pub trait Peers: Send + Sync {
    /// Those that have been let in.
    fn peers(&self) -> Vec<Arc<Peer>>;
}

/// Whether a connection hears what happens in a session.
pub fn hears(peer: &Peer, session: &SessionId, subscriptions: &Subscriptions) -> bool {
    match peer.identity().map(|who| who.role) {
        Some(Role::Operator) => peer.may(Scope::Read) && peer.sees(session.account.as_deref()),
        Some(Role::Node) => subscriptions.hears(peer.number, session),
        None => false,
    }
}

/// Whether the session is its own, and not one that it may see.
fn owns(peer: &Peer, session: &SessionId) -> bool {
    peer.identity().is_some_and(|who| who.account == session.account)
}

/// Connections, and whether the session is theirs.
pub fn owning<'a>(
    peers: &'a [Arc<Peer>],
    session: &SessionId,
) -> impl Iterator<Item = (&'a Arc<Peer>, bool)> {
    peers.iter().map(|peer| (peer, owns(peer, session)))
}

/// The session's key as those who own it see it, and as others do.
pub struct Keys {
    own: String,
    foreign: String,
}

impl Keys {
    /// Of a session.
    pub fn of(session: &SessionId) -> Self {
        // No account has this name.
        Keys { own: session.key.to_string(), foreign: session.shown_to(Some("\u{0}")) }
    }

    fn pick(&self, own: bool) -> &str {
        if own { &self.own } else { &self.foreign }
    }
}

/// Sends an event to each, its payload made once for owners and once for others.
pub fn send<'a>(
    peers: impl Iterator<Item = (&'a Arc<Peer>, bool)>,
    (name, class): (&'static str, Class),
    keys: &Keys,
    payload: impl Fn(&str) -> Value,
) {
    let mut made: [Option<Arc<str>>; 2] = [None, None];
    for (peer, own) in peers {
        let payload = made[usize::from(own)]
            .get_or_insert_with(|| frame::text(&payload(keys.pick(own))).into());
        let payload = Arc::clone(payload);
        peer.event(Event { name, payload, class, version: None });
    }
}

/// One who listens to a run.
struct Listener {
    peer: Arc<Peer>,
    own: bool,
    /// It adds deltas up itself (version 4); others want the whole text each time.
    adds: bool,
    operator: bool,
    /// It missed a delta: the next one must be the whole.
    behind: bool,
}

/// Those who listen to one run.
pub struct Audience {
    keys: Keys,
    listeners: Vec<Listener>,
    looked: Option<Instant>,
}

impl Audience {
    /// Of a run in this session; nobody yet.
    pub fn new(session: &SessionId) -> Self {
        Audience { keys: Keys::of(session), listeners: Vec::new(), looked: None }
    }

    /// Whether it is time to look who listens.
    pub fn stale(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| looked + FRESH <= now)
    }

    /// These listen now. Whoever is new and comes late has missed what was `told`.
    pub fn adopt(&mut self, peers: Vec<Arc<Peer>>, session: &SessionId, told: bool, now: Instant) {
        let old = std::mem::take(&mut self.listeners);
        let listener = |peer: Arc<Peer>| {
            let known = old.iter().find(|known| known.peer.number == peer.number);
            let behind = known.map_or(told, |known| known.behind);
            let who = peer.identity();
            let adds = who.is_none_or(|who| who.protocol >= 4);
            let operator = who.is_some_and(|who| who.role == Role::Operator);
            Listener { own: owns(&peer, session), adds, operator, behind, peer }
        };
        self.listeners = peers.into_iter().map(listener).collect();
        self.looked = Some(now);
    }

    /// Tells what is new of an answer. What a slow listener does not take is not lost in silence: it
    /// gets the whole text next time.
    pub fn delta(&mut self, run: &str, seq: u64, delta: &Delta, text: &str) {
        let mut made: [Option<Arc<str>>; 6] = Default::default();
        for listener in &mut self.listeners {
            let form = match (listener.behind, listener.adds) {
                (true, _) if text.len() > REPLACE_BYTES_MAX => continue,
                (true, _) => 0,
                (false, true) => 1,
                (false, false) if delta.whole => 2,
                (false, false) => continue,
            };
            let place = 2 * form + usize::from(listener.own);
            let keys = &self.keys;
            let payload = made[place].get_or_insert_with(|| {
                let key = keys.pick(listener.own);
                let mut payload = json!({
                    "runId": run, "sessionKey": key, "agentId": AGENT, "seq": seq,
                    "state": "delta", "deltaText": if form == 0 { text } else { &delta.text },
                });
                if form == 0 {
                    payload["replace"] = true.into();
                }
                if form != 1 {
                    let content = json!([{"type": "text", "text": text}]);
                    payload["message"] = json!({"role": "assistant", "content": content});
                }
                frame::text(&payload).into()
            });
            let payload = Arc::clone(payload);
            let class = Class::Telemetry;
            let put = listener.peer.event(Event { name: "chat", payload, class, version: None });
            listener.behind = put == Put::Dropped || listener.behind && put != Put::Taken;
        }
    }

    /// Tells operators something of a run as an `agent` event.
    pub fn agent(&self, run: &str, seq: u64, stream: &str, ts: u64, class: Class, data: &Value) {
        let operators = self.listeners.iter().filter(|listener| listener.operator);
        let peers = operators.map(|listener| (&listener.peer, listener.own));
        send(
            peers,
            ("agent", class),
            &self.keys,
            |_| json!({"runId": run, "seq": seq, "stream": stream, "ts": ts, "data": data}),
        );
    }

    /// Tells how a run ended; the answer, or what there is of one, goes along.
    pub fn ended(&self, run: &str, seq: u64, ended: &Ended, end: &End<'_>) {
        let peers = self.listeners.iter().map(|listener| (&listener.peer, listener.own));
        send(peers, ("chat", Class::Control), &self.keys, |key| {
            let mut payload =
                json!({"runId": run, "sessionKey": key, "agentId": AGENT, "seq": seq});
            end.put(ended, &mut payload);
            payload
        });
    }

    /// How many listen.
    pub fn len(&self) -> usize {
        self.listeners.len()
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }
}

/// What is told with the end of a run.
pub struct End<'a> {
    /// The answer as it was kept, and its id.
    pub said: Option<(String, u64, &'a Message)>,
    /// The model that was asked.
    pub model: &'a str,
    /// Why the model stopped.
    pub finish: Option<&'a str>,
    /// The tokens that it took.
    pub usage: Option<crate::llm::Usage>,
}

impl End<'_> {
    fn put(&self, ended: &Ended, payload: &mut Value) {
        if let Some((id, seq, message)) = &self.said {
            payload["message"] = message.shown(id, *seq, usize::MAX);
        }
        let usage = self.usage.map(usage_shown);
        match ended {
            Ended::Final => {
                payload["state"] = "final".into();
                if let Some(finish) = self.finish {
                    payload["stopReason"] = finish.into();
                }
                if let Some(usage) = usage {
                    payload["usage"] = usage;
                }
            }
            Ended::Aborted { reason } => {
                payload["state"] = "aborted".into();
                payload["stopReason"] = (*reason).into();
            }
            Ended::Failed { message, kind, status } => {
                payload["state"] = "error".into();
                payload["errorMessage"] = message.as_str().into();
                payload["errorKind"] = kind.as_str().into();
                let mut detail = json!({"model": clip(self.model, DETAIL_BYTES_MAX)});
                if let Some(status) = status {
                    detail["httpStatus"] = (*status).into();
                }
                payload["errorDetail"] = detail;
                if let Some(usage) = usage {
                    payload["usage"] = usage;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::base::metrics::{Limit, Registry};
    use crate::net::websocket::Bell;
    use crate::nodes::outbox::{Bounds, Item, Outbox};
    use crate::nodes::who::{Client, How, Identity, Scopes};

    fn peer(number: u64, account: &str, role: Role, protocol: u32, scopes: Scopes) -> Arc<Peer> {
        let bounds = Bounds { bytes: 1 << 20, telemetry: 2000 };
        let outbox = Outbox::new(Bell::new().unwrap(), bounds, &Limit::detached(1 << 30));
        let address = [127, 0, 0, 1].into();
        let peer = Peer::new(&format!("c{number}"), number, address, 0, outbox);
        peer.identify(Identity {
            role,
            scopes,
            how: How::Key,
            account: Some(account.into()),
            device: None,
            protocol,
            client: Client::default(),
            caps: Box::default(),
            commands: Box::default(),
        });
        Arc::new(peer)
    }

    fn payloads(peer: &Peer) -> Vec<Value> {
        let mut payloads = Vec::new();
        while let Some(item) = peer.outbox().take() {
            if let Item::Event(event, _) = item {
                payloads.push(serde_json::from_str(&event.payload).unwrap());
            }
        }
        payloads
    }

    fn session() -> SessionId {
        SessionId { account: Some("laptop".into()), key: "agent:main:main".into() }
    }

    #[test]
    fn the_details_of_an_error_are_as_short_as_the_protocol_has_them() {
        let model = "\u{fc}".repeat(400);
        let end = End { said: None, model: &model, finish: None, usage: None };
        let (message, kind) = ("no".to_owned(), crate::nodes::run::ErrorKind::Unknown);
        let mut payload = json!({});
        end.put(&Ended::Failed { message, kind, status: Some(400) }, &mut payload);
        let told = payload["errorDetail"]["model"].as_str().unwrap();
        assert_eq!((told.chars().count(), &payload["state"]), (150, &json!("error")));
    }

    #[test]
    fn a_session_is_heard_by_its_own_by_administrators_and_by_nodes_that_asked() {
        let mut subscriptions = Subscriptions::new(&Registry::default());
        subscriptions.listen(5, session()).unwrap();
        let admin = Scopes::of(["operator.admin"]);
        for (peer, expected) in [
            (peer(1, "laptop", Role::Operator, 4, Scopes::USE), true),
            (peer(2, "laptop", Role::Operator, 4, Scopes::NONE), false),
            (peer(3, "phone", Role::Operator, 4, Scopes::USE), false),
            (peer(4, "phone", Role::Operator, 4, admin), true),
            (peer(5, "laptop", Role::Node, 3, Scopes::NONE), true),
            (peer(6, "laptop", Role::Node, 3, Scopes::NONE), false),
        ] {
            assert_eq!(hears(&peer, &session(), &subscriptions), expected, "{}", peer.number);
        }
    }

    #[test]
    fn who_misses_a_delta_gets_the_whole_next_time_and_who_is_late_too() {
        let now = clock::now();
        let mine = peer(1, "laptop", Role::Operator, 4, Scopes::USE);
        let mut audience = Audience::new(&session());
        audience.adopt(vec![Arc::clone(&mine)], &session(), false, now);
        assert!(!audience.stale(now) && audience.stale(now + FRESH));
        let long = "x".repeat(3000);
        let delta = |text: &str| Delta { text: text.to_owned(), whole: true, ..Delta::default() };
        audience.delta("r", 1, &delta(&long), &long);
        audience.delta("r", 2, &delta("y"), "xy");
        assert_eq!(payloads(&mine)[0]["deltaText"], long.as_str());
        let late = peer(2, "phone", Role::Operator, 4, Scopes::ALL);
        let node = peer(3, "laptop", Role::Node, 3, Scopes::NONE);
        let all = vec![Arc::clone(&mine), Arc::clone(&late), Arc::clone(&node)];
        audience.adopt(all, &session(), true, now);
        audience.delta("r", 3, &delta("z"), "xyz");
        for (peer, key) in [(&mine, "agent:main:main"), (&late, "agent:main:account:laptop:main")] {
            let payload = payloads(peer).remove(0);
            assert_eq!((&payload["deltaText"], &payload["replace"]), (&json!("xyz"), &json!(true)));
            assert_eq!(payload["sessionKey"], key);
        }
        payloads(&node);
        audience.delta("r", 4, &delta("!"), "xyz!");
        let payload = payloads(&mine).remove(0);
        assert_eq!((&payload["deltaText"], payload.get("replace")), (&json!("!"), None));
        assert_eq!(payload.get("message"), None);
        let payload = payloads(&node).remove(0);
        assert_eq!(payload["message"]["content"][0]["text"], "xyz!");
        // Too long to be told again and again: the end tells it.
        let huge = "x".repeat(REPLACE_BYTES_MAX + 1);
        audience.delta("r", 5, &delta(&long), &huge);
        audience.delta("r", 6, &delta("y"), &huge);
        payloads(&mine);
        audience.delta("r", 7, &delta("z"), &huge);
        assert!(payloads(&mine).is_empty());
    }

    #[test]
    fn an_end_says_which() {
        let mine = peer(1, "laptop", Role::Operator, 4, Scopes::USE);
        let mut audience = Audience::new(&session());
        audience.adopt(vec![Arc::clone(&mine)], &session(), false, clock::now());
        let usage = Some(crate::llm::Usage { input: 3, output: 1, ..Default::default() });
        let message = Message::user("hi", Vec::new(), &"r".into(), 1);
        let said = Some(("s:1".to_owned(), 1, &message));
        let end = End { said, model: "m", finish: Some("stop"), usage };
        audience.ended("r", 9, &Ended::Final, &end);
        audience.ended("r", 9, &Ended::Aborted { reason: "rpc" }, &end);
        audience.ended("r", 9, &Ended::late(Duration::from_secs(1)), &end);
        audience.agent("r", 1, "lifecycle", 5, Class::Control, &json!({"phase": "end"}));
        let all = payloads(&mine);
        let states: Vec<_> = all.iter().take(3).map(|payload| &payload["state"]).collect();
        assert_eq!(states, ["final", "aborted", "error"]);
        assert_eq!(
            (&all[0]["usage"]["totalTokens"], &all[2]["errorKind"]),
            (&json!(4), &json!("timeout"))
        );
        let agent = json!({"runId": "r", "seq": 1, "stream": "lifecycle", "ts": 5, "data": {"phase": "end"}});
        assert_eq!(all[3], agent);
    }
}
