//! `node.pending.*`: what waits for nodes that sleep. `node.event`: what a node tells by itself.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Done, Method, Needs, Outcome};
use crate::base::id::RequestId;
use crate::nodes::connected::Activity;
use crate::nodes::fleet::unix_ms;
use crate::nodes::outbox::{Class, Event};
use crate::nodes::pairing::{SEEN_REASONS, Seen};
use crate::nodes::queue::{Priority, Type, WORK_TTL_MS, WORK_TTL_MS_MAX, Work};
use crate::nodes::refusal::Refusal;
use crate::nodes::sessions::SessionId;
use crate::nodes::who::{Role, Scope};

pub(super) const METHODS: &[Method] = &[
    Method { name: "node.pending.enqueue", needs: Needs::Scope(Scope::Write), run: enqueue },
    Method { name: "node.pending.drain", needs: Needs::Node, run: drain },
    Method { name: "node.pending.pull", needs: Needs::Node, run: pull },
    Method { name: "node.pending.ack", needs: Needs::Node, run: ack },
    Method { name: "node.event", needs: Needs::Node, run: event },
];

/// A device that says so more often is not noted each time. As the protocol's own gateway has it.
const ALIVE_EVERY_MS: u64 = 60_000;

/// The device that asks.
fn device<'a>(call: &Call<'a>) -> Result<&'a std::sync::Arc<str>, Refusal> {
    call.who.device.as_ref().ok_or_else(|| Refusal::invalid("a device identity is required"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Enqueue {
    node_id: String,
    #[serde(rename = "type")]
    kind: Type,
    #[serde(default)]
    priority: Priority,
    expires_in_ms: Option<u64>,
}

fn enqueue(call: &Call<'_>) -> Outcome {
    let asked: Enqueue = call.params()?;
    let device = call.nodes.devices().get(asked.node_id.trim());
    let Some(device) = device.filter(|device| device.grant(Role::Node).is_some()) else {
        return Err(Refusal::invalid("unknown nodeId"));
    };
    let now = unix_ms();
    let ttl = asked.expires_in_ms.unwrap_or(WORK_TTL_MS).clamp(1000, WORK_TTL_MS_MAX);
    let work = Work {
        id: RequestId::generate().as_str().into(),
        kind: asked.kind,
        // What is always asked for is nobody's to ask for.
        priority: asked.priority.min(Priority::Normal),
        created_at_ms: now,
        expires_at_ms: Some(now.saturating_add(ttl)),
    };
    let queued = call.nodes.fleet().queued(|queue| queue.enqueue(&device.id, work, now));
    let Some((revision, work)) = queued else {
        return Err(Refusal::unavailable("too much waits for nodes")
            .retry(std::time::Duration::from_secs(60)));
    };
    // There is no push service here that could wake it.
    Done::json(&json!({
        "nodeId": &*device.id, "revision": revision, "queued": work, "wakeTriggered": false,
    }))
}

fn drain(call: &Call<'_>) -> Outcome {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Drain {
        max_items: Option<usize>,
    }
    let (Drain { max_items }, device) = (call.params()?, device(call)?);
    let drained = call.nodes.fleet().queued(|queue| queue.drain(device, max_items, unix_ms()));
    Done::json(&json!({
        "nodeId": &**device, "revision": drained.revision, "items": drained.items,
        "hasMore": drained.more,
    }))
}

fn pull(call: &Call<'_>) -> Outcome {
    let device = device(call)?;
    let offered = |command: &str| call.who.commands.iter().any(|offered| **offered == *command);
    let actions = call.nodes.fleet().queued(|queue| queue.pull(device, offered, unix_ms()));
    Done::json(&json!({"nodeId": &**device, "actions": actions}))
}

fn ack(call: &Call<'_>) -> Outcome {
    #[derive(Deserialize)]
    struct Ack {
        ids: Vec<String>,
    }
    let (Ack { mut ids }, device) = (call.params()?, device(call)?);
    ids.retain_mut(|id| {
        *id = id.trim().to_owned();
        !id.is_empty()
    });
    ids.sort_unstable();
    ids.dedup();
    let left = call
        .nodes
        .fleet()
        .queued(|queue| queue.ack(device, ids.iter().map(String::as_str), unix_ms()));
    Done::json(&json!({"nodeId": &**device, "ackedIds": ids, "remainingCount": left}))
}

#[derive(Deserialize)]
struct Told {
    event: String,
    payload: Option<Value>,
    #[serde(rename = "payloadJSON")]
    payload_json: Option<String>,
}

fn event(call: &Call<'_>) -> Outcome {
    let told: Told = call.params()?;
    if told.event.is_empty() {
        return Err(Refusal::invalid("event required"));
    }
    let text = told.payload_json.as_deref();
    let payload = text.map_or(told.payload, |text| serde_json::from_str(text).ok());
    let (handled, reason) = match (&*told.event, &payload) {
        ("node.presence.alive", Some(Value::Object(_))) => alive(call, payload.as_ref())?,
        ("node.presence.activity", Some(Value::Object(_))) => activity(call, payload.as_ref()),
        ("node.presence.alive" | "node.presence.activity", _) => (false, "invalid_payload"),
        ("chat.subscribe", Some(Value::Object(_))) => hears(call, payload.as_ref(), true)?,
        ("chat.unsubscribe", Some(Value::Object(_))) => hears(call, payload.as_ref(), false)?,
        _ => (false, "unsupported_event"),
    };
    Done::json(&json!({"ok": true, "event": told.event, "handled": handled, "reason": reason}))
}

/// A device wants to hear what is said in a session of its account, or no longer. It ends with the
/// connection.
fn hears(
    call: &Call<'_>,
    payload: Option<&Value>,
    wants: bool,
) -> Result<(bool, &'static str), Refusal> {
    let key = payload.and_then(|payload| payload["sessionKey"].as_str()).unwrap_or_default();
    if key.trim().is_empty() {
        return Ok((false, "invalid_payload"));
    }
    let session = SessionId::parse(call.who.account.as_ref(), key, false)?;
    let number = call.peer.number;
    call.nodes.runs().with(|table| match wants {
        true => table.subscriptions.listen(number, session),
        false => {
            table.subscriptions.leave(number, &session);
            Ok(())
        }
    })?;
    Ok((true, if wants { "subscribed" } else { "unsubscribed" }))
}

/// A device says that it is there, without staying: noted once a minute.
fn alive(call: &Call<'_>, payload: Option<&Value>) -> Result<(bool, &'static str), Refusal> {
    let (device, now) = (device(call)?, unix_ms());
    let trigger = payload.and_then(|payload| payload["trigger"].as_str()).unwrap_or_default();
    let same = |known: &&&str| known.eq_ignore_ascii_case(trigger);
    // The first is ours to say, and the second is what any other word stands for.
    let triggers = &SEEN_REASONS[1..];
    let reason: &'static str = triggers.iter().find(same).copied().unwrap_or(triggers[0]);
    let devices = call.nodes.devices();
    let last = devices.last_seen(device);
    if triggers.contains(&last.reason)
        && last.reason != "connect"
        && now.saturating_sub(last.ms) < ALIVE_EVERY_MS
    {
        return Ok((true, "throttled"));
    }
    let address: Option<IpAddr> = Some(call.peer.address);
    devices.saw(device, Seen { ms: now, reason, address });
    Ok((true, "persisted"))
}

/// A device says how long ago somebody used it.
fn activity(call: &Call<'_>, payload: Option<&Value>) -> (bool, &'static str) {
    let (Some(payload), Some(device)) = (payload, &call.who.device) else {
        return (false, "invalid_payload");
    };
    let now = unix_ms();
    let before = call.nodes.fleet().line(device).and_then(|line| line.activity);
    let (activity, reason) = match (&payload["action"], payload["idleSeconds"].as_u64()) {
        (Value::String(action), _) if action == "clear" => {
            (None, if before.is_some() { "cleared" } else { "already_clear" })
        }
        (Value::Null, Some(idle)) => {
            let last = now.saturating_sub(idle.saturating_mul(1000));
            // A counter that is at its end says nothing newer than what is known.
            let known = before.map_or(0, |before| before.last_ms);
            let last = match payload["saturated"] == true && before.is_some() {
                true => known,
                false => last.max(known),
            };
            (Some(Activity { last_ms: last, told_ms: now }), "updated")
        }
        _ => return (false, "invalid_payload"),
    };
    if !call.nodes.fleet().active(call.peer, activity) {
        return (false, "stale_connection");
    }
    if reason != "already_clear" {
        let payload = json!({
            "nodeId": &**device,
            "lastActiveAtMs": activity.map(|activity| activity.last_ms),
            "presenceUpdatedAtMs": activity.map(|activity| activity.told_ms),
        });
        let payload = payload.to_string().into();
        let event =
            Event { name: "node.presence", payload, class: Class::Telemetry, version: None };
        call.nodes.broadcast(&event, |peer| peer.may(Scope::Read));
    }
    (true, reason)
}
