//! Devices and requests as the protocol shows them. Never a token.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::record::{Device, Grant, Request, Seen, Why};
use super::{Wish, unix_ms};
use crate::nodes::frame;
use crate::nodes::outbox::{Class, Event};
use crate::nodes::who::{Client, Role, Scopes};

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The device is let in.
    Approved,
    /// It is not, or a later request took the place of this one.
    Rejected,
    /// What it was paired as is taken away.
    Removed,
}

impl Decision {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Approved => "approved",
            Decision::Rejected => "rejected",
            Decision::Removed => "removed",
        }
    }
}

/// What operators are told of a wish.
pub fn wished(wish: &Wish) -> Vec<Event> {
    let old = wish.instead_of.as_ref().map(|old| resolved(old, Decision::Rejected));
    let new = wish.new.then(|| requested(&wish.request));
    old.into_iter().chain(new).collect()
}

/// Somebody asks to be paired.
pub fn requested(request: &Request) -> Event {
    match request.ask.why {
        Why::Commands => event("node.pair.requested", &node_request(request)),
        _ => event("device.pair.requested", &device_request(request)),
    }
}

/// A request is settled.
pub fn resolved(request: &Request, decision: Decision) -> Event {
    let (id, device) = (&*request.id, &*request.ask.device);
    match request.ask.why {
        Why::Commands => node_resolved(id, device, decision),
        _ => {
            let (decision, ts) = (decision.as_str(), unix_ms());
            let document =
                json!({"requestId": id, "deviceId": device, "decision": decision, "ts": ts});
            event("device.pair.resolved", &document)
        }
    }
}

/// A node's request is settled, or what it was paired as taken away (without a request).
pub fn node_resolved(request: &str, node: &str, decision: Decision) -> Event {
    let (decision, ts) = (decision.as_str(), unix_ms());
    let document = json!({"requestId": request, "nodeId": node, "decision": decision, "ts": ts});
    event("node.pair.resolved", &document)
}

/// Something about the paired devices has changed.
pub fn changed() -> Event {
    event("device.pair.changed", &json!({}))
}

fn event(name: &'static str, payload: &Value) -> Event {
    let payload: Arc<str> = frame::text(payload).into();
    Event { name, payload, class: Class::Telemetry, version: None }
}

/// A request, as `device.pair.list` and `device.pair.requested` have it.
pub fn device_request(request: &Request) -> Value {
    let ask = &request.ask;
    let mut row = Map::new();
    row.insert("requestId".into(), (&*request.id).into());
    row.insert("deviceId".into(), (&*ask.device).into());
    row.insert("publicKey".into(), crate::nodes::device::encoded(&ask.key).into());
    client(&mut row, &ask.client);
    row.insert("role".into(), ask.role.as_str().into());
    row.insert("roles".into(), json!([ask.role.as_str()]));
    row.insert("scopes".into(), words(ask.scopes));
    row.insert("remoteIp".into(), ask.address.to_string().into());
    row.insert("silent".into(), false.into());
    row.insert("isRepair".into(), (ask.why != Why::NotPaired).into());
    row.insert("ts".into(), request.asked_ms.into());
    Value::Object(row)
}

/// A request of a node, as `node.pair.list` and `node.pair.requested` have it.
pub fn node_request(request: &Request) -> Value {
    let ask = &request.ask;
    let mut row = Map::new();
    row.insert("requestId".into(), (&*request.id).into());
    row.insert("nodeId".into(), (&*ask.device).into());
    of_node(&mut row, &ask.client);
    row.insert("caps".into(), json!(ask.caps));
    row.insert("commands".into(), json!(ask.commands));
    row.insert("remoteIp".into(), ask.address.to_string().into());
    row.insert("silent".into(), false.into());
    row.insert("isRepair".into(), (ask.why != Why::NotPaired).into());
    row.insert("ts".into(), request.asked_ms.into());
    Value::Object(row)
}

/// A paired device, as `device.pair.list` has it.
pub fn device(device: &Device, seen: &Seen, connected: bool) -> Value {
    let operator = device.grant(Role::Operator);
    let mut row = Map::new();
    row.insert("deviceId".into(), (&*device.id).into());
    row.insert("publicKey".into(), device.public_key().into());
    client(&mut row, &device.client);
    if let Some(label) = &device.label {
        row.insert("operatorLabel".into(), (&**label).into());
    }
    let last = device.grants.iter().max_by_key(|grant| grant.approved_ms);
    if let Some(grant) = last {
        row.insert("role".into(), grant.role.as_str().into());
    }
    let roles: Vec<&str> = device.grants.iter().map(|grant| grant.role.as_str()).collect();
    row.insert("roles".into(), json!(roles));
    row.insert("scopes".into(), words(operator.map_or(Scopes::NONE, |grant| grant.scopes)));
    if let Some(address) = seen.address {
        row.insert("remoteIp".into(), address.to_string().into());
    }
    row.insert("createdAtMs".into(), device.created_ms.into());
    row.insert("approvedAtMs".into(), device.approved_ms.into());
    if seen.ms > 0 {
        row.insert("lastSeenAtMs".into(), seen.ms.into());
        row.insert("lastSeenReason".into(), seen.reason.into());
    }
    row.insert("connected".into(), connected.into());
    let tokens: Vec<Value> = device.grants.iter().filter_map(token).collect();
    row.insert("tokens".into(), tokens.into());
    Value::Object(row)
}

/// What may be said of a token.
fn token(grant: &Grant) -> Option<Value> {
    let mut row = Map::new();
    row.insert("role".into(), grant.role.as_str().into());
    match (&grant.token, grant.revoked_ms) {
        (Some(token), _) => {
            row.insert("scopes".into(), words(token.scopes));
            row.insert("createdAtMs".into(), token.issued_ms.into());
        }
        (None, Some(revoked)) => {
            row.insert("scopes".into(), words(grant.scopes));
            row.insert("createdAtMs".into(), grant.approved_ms.into());
            row.insert("revokedAtMs".into(), revoked.into());
        }
        (None, None) => return None,
    }
    Some(Value::Object(row))
}

/// A paired node, as `node.pair.list` has it; none for a device that is none.
pub fn node(device: &Device, seen: &Seen) -> Option<Value> {
    let grant = device.grant(Role::Node)?;
    let mut row = Map::new();
    row.insert("nodeId".into(), (&*device.id).into());
    of_node(&mut row, &device.client);
    if let Some(label) = &device.label {
        row.insert("displayName".into(), (&**label).into());
    }
    row.insert("caps".into(), json!(grant.caps));
    row.insert("commands".into(), json!(grant.commands));
    if let Some(address) = seen.address {
        row.insert("remoteIp".into(), address.to_string().into());
    }
    row.insert("createdAtMs".into(), device.created_ms.into());
    row.insert("approvedAtMs".into(), grant.approved_ms.into());
    if seen.ms > 0 {
        row.insert("lastConnectedAtMs".into(), seen.ms.into());
    }
    Some(Value::Object(row))
}

/// Scopes as words.
pub fn words(scopes: Scopes) -> Value {
    scopes.words().collect::<Vec<_>>().into()
}

fn client(row: &mut Map<String, Value>, client: &Client) {
    optional(row, "displayName", client.display_name.as_deref());
    optional(row, "platform", Some(&client.platform));
    optional(row, "deviceFamily", client.device_family.as_deref());
    optional(row, "clientId", Some(&client.id));
    optional(row, "clientMode", Some(&client.mode));
}

fn of_node(row: &mut Map<String, Value>, client: &Client) {
    optional(row, "displayName", client.display_name.as_deref());
    optional(row, "platform", Some(&client.platform));
    optional(row, "version", Some(&client.version));
    optional(row, "deviceFamily", client.device_family.as_deref());
    optional(row, "modelIdentifier", client.model_identifier.as_deref());
}

fn optional(row: &mut Map<String, Value>, key: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        row.insert(key.to_owned(), value.into());
    }
}
