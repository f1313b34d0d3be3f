//! `GET /cache`: what the cache holds and did, by namespace.

use serde_json::{Value, json};

use crate::config::settings::Namespace;
use crate::gateway::cached::Answers;
use crate::net::http::Response;

/// The answer: `{"namespaces": […]}`. The catalog of models has a cache of its own, because its
/// questions are asked by the gateway itself and kept per upstream; its figures are metrics
/// (`tidegate_catalog_…`) and limits (`catalog.…`).
pub(super) fn answer(answers: Option<&Answers>) -> Response {
    let document = json!({ "namespaces": rows(answers) });
    Response::json(200, document.to_string()).with("cache-control", "no-store")
}

/// Its rows; none without a cache.
pub(super) fn rows(answers: Option<&Answers>) -> Vec<Value> {
    let rows = answers.map(|answers| Namespace::ALL.map(|namespace| row(answers, namespace)));
    rows.map(Vec::from).unwrap_or_default()
}

fn row(answers: &Answers, namespace: Namespace) -> Value {
    let stats = answers.stats(namespace);
    json!({
        "namespace": namespace.as_str(),
        "version": stats.version,
        "entries": stats.entries,
        "bytes": stats.bytes,
        "hits": stats.hits,
        "misses": stats.misses,
        "stale": stats.stale,
        "coalesced": stats.coalesced,
        "inserted": stats.inserted,
        "evicted": stats.evicted,
        "expired": stats.expired,
        "cleared": stats.cleared,
    })
}
