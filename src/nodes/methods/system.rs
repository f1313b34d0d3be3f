//! How the gateway is, and who is connected to it.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Done, Method, Needs, Outcome};
use crate::base::clock;
use crate::nodes::health;
use crate::nodes::refusal::Refusal;
use crate::nodes::sessions::{MAIN, SessionId};
use crate::nodes::who::Scope;

pub(super) const METHODS: &[Method] = &[
    Method { name: "health", needs: Needs::Scope(Scope::Read), run: health },
    Method { name: "status", needs: Needs::Scope(Scope::Read), run: status },
    Method { name: "system-presence", needs: Needs::Scope(Scope::Read), run: presence },
    Method { name: "system-event", needs: Needs::Scope(Scope::Admin), run: told },
    Method { name: "last-heartbeat", needs: Needs::Scope(Scope::Read), run: heartbeat },
];

/// Longest text of an event, in bytes: it goes into what a model is told.
const EVENT_BYTES_MAX: usize = 4096;

/// `probe` changes nothing: checks are run by threads of their own, and asking never runs one.
fn health(call: &Call<'_>) -> Outcome {
    let reasons = call.peer.may(Scope::Admin);
    Done::json(&health::full(call.nodes.parts(), clock::now(), reasons))
}

/// The whole on one screen. The members that the protocol's own gateway has for chat channels and
/// heartbeats, of which there are none here, are there and empty: clients read them.
fn status(call: &Call<'_>) -> Outcome {
    let (nodes, now) = (call.nodes, clock::now());
    let uptime = now.saturating_duration_since(nodes.started());
    let (connected, pending) = nodes.fleet().count();
    let sees = |id: &SessionId| call.peer.sees(id.account.as_deref());
    let sessions =
        nodes.runs().with(|table| table.sessions.iter().filter(|(id, _)| sees(id)).count());
    let mut status = health::full(nodes.parts(), now, call.peer.may(Scope::Admin));
    let more = json!({
        "runtimeVersion": env!("CARGO_PKG_VERSION"),
        "uptimeMs": u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        "heartbeat": {"defaultAgentId": health::AGENT, "agents": []},
        "channelSummary": [],
        "queuedSystemEvents": [],
        "sessions": {
            "paths": [], "count": sessions, "recent": [], "byAgent": [],
            "defaults": {"model": null, "contextTokens": null},
        },
        "nodes": {"connected": connected, "pending": pending},
        "connections": nodes.peers().len(),
    });
    if let (Some(all), Value::Object(more)) = (status.as_object_mut(), more) {
        all.extend(more);
    }
    Done::json(&status)
}

fn presence(call: &Call<'_>) -> Outcome {
    Done::json(&call.nodes.presence_list())
}

/// Something has happened, and a session is to hear of it with its next turn. A client's own account of
/// how it is (`Node: …`) is nobody's to hear: what the gateway sees of its connection stands in presence.
fn told(call: &Call<'_>) -> Outcome {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Told {
        text: String,
        session_key: Option<String>,
        wake: Option<bool>,
    }
    let Told { text, session_key, wake } = call.params()?;
    let text = text.trim();
    if text.is_empty() || text.len() > EVENT_BYTES_MAX {
        return Err(Refusal::invalid(format!("text must have 1 to {EVENT_BYTES_MAX} bytes")));
    }
    if wake == Some(true) {
        return Err(Refusal::invalid("wake is not supported here; use the method wake"));
    }
    if !text.starts_with("Node:") {
        let key = session_key.as_deref().unwrap_or(MAIN);
        let session = SessionId::parse(call.who.account.as_ref(), key, true)?;
        call.nodes.runs().remind(&session, text)?;
    }
    Done::json(&json!({"ok": true}))
}

/// There are no heartbeats here, so there was no last one.
fn heartbeat(_call: &Call<'_>) -> Outcome {
    Done::json(&Value::Null)
}
