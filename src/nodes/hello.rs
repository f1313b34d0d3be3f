//! Whole messages, on a method thread: the first one is the handshake, and is answered with
//! `hello-ok`; those behind it are requests.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::frame::{self, Incoming};
use super::handshake::{Context, Refused, Secrets, Step, Welcome};
use super::line::{Line, Message};
use super::methods::{self, Needs};
use super::outbox::Event;
use super::refusal::Refusal;
use super::who::{Identity, Role, Scope};
use super::{Nodes, health};
use crate::base::clock;
use crate::base::health::Phase;
use crate::config::Config;

/// When it makes sense to come again.
const AGAIN: Duration = Duration::from_secs(1);

/// Events that operators may get.
const OPERATOR_EVENTS: [&str; 17] = [
    "connect.challenge",
    "tick",
    "shutdown",
    "presence",
    "health",
    "node.presence",
    "agent",
    "chat",
    "sessions.changed",
    "session.message",
    "config.changed",
    "device.pair.requested",
    "device.pair.resolved",
    "device.pair.changed",
    "node.pair.requested",
    "node.pair.resolved",
    "heartbeat",
];

/// Events that nodes may get.
const NODE_EVENTS: [&str; 7] = [
    "connect.challenge",
    "tick",
    "shutdown",
    "node.invoke.request",
    "node.invoke.cancel",
    "agent",
    "chat",
];

/// Deals with one message.
pub(super) fn message(nodes: &Arc<Nodes>, line: &Arc<Line>, message: &Message) {
    let peer = &line.peer;
    if peer.identity().is_none() {
        return first(nodes, line, &message.text);
    }
    // It is being closed, perhaps since it may no longer ask: what it asks for now is not done.
    if peer.outbox().closed() {
        return;
    }
    match Incoming::parse(&message.text) {
        Ok(Incoming::Request { id, method, params }) => {
            methods::run(nodes, peer, (&id, &method, params), message.came);
        }
        // The answer comes all the same: nothing here takes long, and what does has an end.
        Ok(Incoming::Cancel { .. }) => {}
        Err(why) => {
            peer.answer("invalid", &Err(Refusal::invalid(why)));
        }
    }
}

fn first(nodes: &Arc<Nodes>, line: &Arc<Line>, text: &str) {
    let peer = &line.peer;
    let Some(handshake) = line.handshake() else { return };
    // Before anything is looked at: what changes from here on is found below.
    let (config, secrets) = (nodes.config(), nodes.secrets());
    let context = Context {
        host: &*nodes.parts().host,
        devices: nodes.devices(),
        secrets: &secrets,
        address: peer.address,
        now_ms: now_ms(),
    };
    let step = match early(nodes, text) {
        Some(refused) => Step::Refuse(Box::new(refused)),
        None => handshake.step(text, &context),
    };
    let refused = match step {
        Step::Welcome(welcome) => match welcomed(nodes, line, *welcome, (&config, &secrets)) {
            Ok(()) => return,
            Err(refused) => refused,
        },
        Step::Refuse(refused) => *refused,
    };
    announce(nodes, &refused.announce);
    nodes.counts().turned_away(refused.outcome);
    crate::log_limited!(
        log::Level::Info,
        "node_refused",
        conn = &*peer.conn,
        peer = peer.address.to_string(),
        outcome = refused.outcome,
        code = refused.code
    );
    if let Some(frame) = refused.frame {
        peer.outbox().frame(frame);
    }
    line.refuse();
    peer.outbox().close(refused.code, refused.reason);
}

/// Tells those who decide on devices.
fn announce(nodes: &Nodes, events: &[Event]) {
    for event in events {
        nodes.broadcast(event, |peer| peer.may(Scope::Pairing));
    }
}

/// A gateway that is not ready yet, or not any more, lets nobody in.
fn early(nodes: &Nodes, text: &str) -> Option<Refused> {
    let (code, reason, why) = match nodes.parts().board.phase() {
        Phase::Starting => (1013, "gateway starting", "startup-sidecars"),
        Phase::Ready => return None,
        Phase::Draining | Phase::Stopping => (1012, "service restart", "draining"),
    };
    let refused = |frame| Refused { frame, code, reason, outcome: why, announce: Vec::new() };
    let Ok(Incoming::Request { id, .. }) = Incoming::parse(text) else {
        return Some(refused(None));
    };
    let refusal = Refusal::unavailable(reason).with(json!({"reason": why})).retry(AGAIN);
    Some(refused(Some(frame::refused(&id, &refusal))))
}

/// Lets it in: from here on it gets events.
fn welcomed(
    nodes: &Arc<Nodes>,
    line: &Arc<Line>,
    welcome: Welcome,
    seen: (&Config, &Secrets),
) -> Result<(), Refused> {
    let Welcome { id, identity, auth, announce: events } = welcome;
    let peer = &line.peer;
    if let Some(account) = &identity.account {
        let Some(share) = nodes.share(account) else {
            let text = "too many connections of this key (nodes.connections_per_key_max)";
            let refusal = Refusal::unavailable(text).retry(AGAIN);
            return Err(Refused {
                frame: Some(frame::refused(&id, &refusal)),
                code: 1013,
                reason: "too many connections",
                outcome: "connections_per_key_max",
                announce: events,
            });
        };
        line.keep(share);
    }
    peer.identify(identity);
    let Some(who) = peer.identity() else { return Ok(()) };
    peer.outbox().welcome(frame::answer(&id, &hello(nodes, &peer.conn, who, &auth)));
    nodes.joined(peer);
    // Its pairing may have been taken away since it was looked at: now it would be found.
    if !nodes.devices().stands(who) {
        peer.outbox().close(1008, "device pairing removed");
    }
    // Or what let it in: a reload dismisses those who are there, and it was not.
    if !nodes.valid(who, seen) {
        peer.outbox().close(1008, "credentials changed");
    }
    peer.outbox().wake();
    announce(nodes, &events);
    Ok(())
}

/// `hello-ok`.
fn hello(nodes: &Nodes, conn: &str, who: &Identity, auth: &Value) -> String {
    let config = nodes.config();
    let settings = &config.nodes;
    let node = who.role == Role::Node;
    let offered = |needs: Needs| match needs {
        Needs::Nothing => true,
        Needs::Node => node,
        Needs::Scope(_) => !node,
    };
    let methods: Vec<&str> =
        methods::all().filter(|method| offered(method.needs)).map(|method| method.name).collect();
    let events: &[&str] = if node { &NODE_EVENTS } else { &OPERATOR_EVENTS };
    let version = nodes.state_version();
    // Devices are told of nobody else.
    let presence = if node { Vec::new() } else { nodes.presence_list() };
    let mut snapshot = json!({
        "presence": presence,
        "health": health::summary(nodes.parts(), clock::now()),
        "stateVersion": {"presence": version.presence, "health": version.health},
        "uptimeMs": millis(clock::now().saturating_duration_since(nodes.started())),
        "authMode": auth_mode(&config),
    });
    if !node {
        snapshot["sessionDefaults"] = json!({
            "defaultAgentId": "main",
            "mainKey": "main",
            "mainSessionKey": "agent:main:main",
        });
    }
    // Paths of the machine are for those who may change it.
    if who.role == Role::Operator && who.scopes.allow(Scope::Admin) {
        for (key, path) in [("configPath", &config.path), ("stateDir", &config.state_dir)] {
            if let Some(path) = path {
                snapshot[key] = path.display().to_string().into();
            }
        }
    }
    let hello = json!({
        "type": "hello-ok",
        "protocol": who.protocol,
        "server": {"version": env!("CARGO_PKG_VERSION"), "connId": conn},
        "features": {"methods": methods, "events": events},
        "snapshot": snapshot,
        "auth": auth,
        "policy": {
            "maxPayload": settings.payload_max,
            "maxBufferedBytes": settings.buffered_max,
            "tickIntervalMs": millis(settings.tick_interval),
        },
    });
    frame::text(&hello)
}

/// How operators show who they are.
fn auth_mode(config: &Config) -> &'static str {
    let nodes = &config.nodes;
    match (config.keys.is_empty() && nodes.token.is_none(), &nodes.password) {
        (false, _) => "token",
        (true, Some(_)) => "password",
        (true, None) => "none",
    }
}

fn now_ms() -> u64 {
    millis(clock::unix())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
