//! `GET /nodes`: which nodes there are, which of them are connected, and how much goes on.

use serde_json::{Value, json};

use super::Parts;
use crate::net::http::Response;
use crate::nodes::catalogue;

/// The answer: `{"nodes": […], "connections": …, …}`, connected ones first.
pub(super) fn answer(parts: &Parts) -> Response {
    Response::json(200, document(parts).to_string()).with("cache-control", "no-store")
}

fn document(parts: &Parts) -> Value {
    let mut document = summary(parts);
    let rows = parts.nodes.as_ref().map(|nodes| catalogue::all(nodes)).unwrap_or_default();
    document["nodes"] = json!(rows);
    document
}

/// What there is on WebSocket, in numbers.
pub(super) fn summary(parts: &Parts) -> Value {
    let limits = parts.registry.limits();
    let limit = |name: &str| {
        let found = limits.iter().find(|limit| limit.name == name && limit.owner.is_empty());
        found.map(|found| (found.limit.now(), found.limit.max()))
    };
    let (connections, connections_max) = limit("nodes.connections_max").unzip();
    let now = |name: &str| limit(name).map(|(now, _)| now);
    json!({
        "enabled": parts.nodes.as_ref().map(|nodes| nodes.config().nodes.enabled),
        "connections": connections,
        "connections_max": connections_max,
        "connected": now("nodes.connected_max"),
        "pending": now("nodes.pending_max"),
        "runs": now("nodes.runs_max"),
        "pairings": now("nodes.pairings_max"),
    })
}
