//! How the gateway is, and who is connected to it.

use serde_json::{Value, json};

use super::{Call, Done, Method, Needs, Outcome};
use crate::base::clock;
use crate::nodes::health;
use crate::nodes::who::Scope;

pub(super) const METHODS: &[Method] = &[
    Method { name: "health", needs: Needs::Scope(Scope::Read), run: health },
    Method { name: "status", needs: Needs::Scope(Scope::Read), run: status },
    Method { name: "system-presence", needs: Needs::Scope(Scope::Read), run: presence },
    Method { name: "last-heartbeat", needs: Needs::Scope(Scope::Read), run: heartbeat },
];

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
    let mut status = health::full(nodes.parts(), now, call.peer.may(Scope::Admin));
    let more = json!({
        "runtimeVersion": env!("CARGO_PKG_VERSION"),
        "uptimeMs": u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        "heartbeat": {"defaultAgentId": health::AGENT, "agents": []},
        "channelSummary": [],
        "queuedSystemEvents": [],
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

/// There are no heartbeats here, so there was no last one.
fn heartbeat(_call: &Call<'_>) -> Outcome {
    Done::json(&Value::Null)
}
