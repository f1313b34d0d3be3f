//! The nodes as operators see them: those that are paired, and those that are connected.

use std::sync::Arc;

use serde::Serialize;

use super::Nodes;
use super::connected::Line;
use super::pairing::{Device, Seen};
use super::peer::Peer;
use super::who::{Client, Role};

/// One node, as it stands on the wire. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the protocol")]
pub struct Node {
    pub node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_family: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_identifier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_ip: Option<String>,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_active_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_updated_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_at_ms: Option<u64>,
    pub paired: bool,
    pub connected: bool,
}

/// Every node that is known: connected ones first, then by name.
pub fn all(nodes: &Nodes) -> Vec<Node> {
    let mut lines = nodes.fleet().connected();
    let mut all = Vec::new();
    for (device, seen) in nodes.devices().all() {
        if device.grant(Role::Node).is_some() {
            let line = lines.iter().position(|(id, _)| *id == device.id);
            let line = line.map(|at| lines.swap_remove(at).1);
            all.push(row(Some((&device, &seen)), line.as_ref(), &device.id));
        }
    }
    // Whose pairing was taken away this moment.
    all.extend(lines.iter().map(|(id, line)| row(None, Some(line), id)));
    let key = |node: &Node| {
        let name = node.display_name.as_ref().unwrap_or(&node.node_id).to_lowercase();
        (!node.connected, name, node.node_id.clone())
    };
    all.sort_by_cached_key(key);
    all
}

/// One of them.
pub fn one(nodes: &Nodes, id: &str) -> Option<Node> {
    let devices = nodes.devices();
    let device = devices.get(id).filter(|device| device.grant(Role::Node).is_some());
    let line = nodes.fleet().line(id);
    if device.is_none() && line.is_none() {
        return None;
    }
    let seen = devices.last_seen(id);
    Some(row(device.as_deref().map(|device| (device, &seen)), line.as_ref(), id))
}

fn row(paired: Option<(&Device, &Seen)>, line: Option<&Line<Arc<Peer>>>, id: &str) -> Node {
    let mut node = Node { node_id: id.to_owned(), ..Node::default() };
    let mut seen = (0, "");
    if let Some((device, last)) = paired {
        let grant = device.grant(Role::Node);
        describe(&mut node, &device.client);
        node.paired = true;
        node.approved_at_ms = grant.map(|grant| grant.approved_ms);
        node.remote_ip = last.address.map(|address| address.to_string());
        if let Some(grant) = grant {
            (node.caps, node.commands) = (sorted(&grant.caps), sorted(&grant.commands));
        }
        seen = (last.ms, last.reason);
    }
    if let Some(line) = line {
        if let Some(who) = line.peer.identity() {
            describe(&mut node, &who.client);
            (node.caps, node.commands) = (sorted(&who.caps), sorted(&who.commands));
        }
        node.connected = true;
        node.connected_at_ms = Some(line.peer.since_ms);
        node.remote_ip = Some(line.peer.address.to_string());
        node.last_active_at_ms = line.activity.map(|activity| activity.last_ms);
        node.presence_updated_at_ms = line.activity.map(|activity| activity.told_ms);
        if line.peer.since_ms >= seen.0 {
            seen = (line.peer.since_ms, "connect");
        }
    }
    // An operator's name for it is above its own.
    if let Some(label) = paired.and_then(|(device, _)| device.label.as_deref()) {
        node.display_name = Some(label.to_owned());
    }
    if seen.0 > 0 {
        (node.last_seen_at_ms, node.last_seen_reason) = (Some(seen.0), Some(seen.1));
    }
    node
}

/// What a client says of itself; what it leaves out stays as it was.
fn describe(node: &mut Node, client: &Client) {
    let set = |place: &mut Option<String>, text: Option<&str>| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            *place = Some(text.to_owned());
        }
    };
    set(&mut node.display_name, client.display_name.as_deref());
    set(&mut node.platform, Some(&client.platform));
    set(&mut node.version, Some(&client.version));
    set(&mut node.client_id, Some(&client.id));
    set(&mut node.client_mode, Some(&client.mode));
    set(&mut node.device_family, client.device_family.as_deref());
    set(&mut node.model_identifier, client.model_identifier.as_deref());
}

fn sorted(words: &[Box<str>]) -> Vec<String> {
    let mut sorted: Vec<String> = words.iter().map(|word| String::from(&**word)).collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}
