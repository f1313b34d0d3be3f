//! `GET /status`: the whole on one screen. Each part is shown in full elsewhere.

use std::time::Instant;

use serde_json::{Value, json};

use crate::base::events::Event;
use crate::base::health::Look;
use crate::base::metrics::NamedLimit;
use crate::base::time_format::rfc3339;
use crate::health::status;
use crate::net::http::Response;
use crate::observe::process;
use crate::upstream::breaker::Stand;
use crate::upstream::breakers::View;

use super::{Parts, nodes};

/// Events that are shown, the last ones; `snapshot` has them all.
const EVENTS_SHOWN: usize = 8;

/// The answer.
pub(super) fn answer(parts: &Parts, now: Instant) -> Response {
    Response::json(200, document(parts, now).to_string()).with("cache-control", "no-store")
}

/// The document.
pub fn document(parts: &Parts, now: Instant) -> Value {
    let looks: Vec<Look> = parts.board.looks(now);
    let report = status::judge(parts.board.phase(), &looks);
    let limits = parts.registry.limits();
    let config = parts.gateway.as_ref().map(|gateway| gateway.state().config.clone());
    let mut configured = parts.config.as_ref().map_or_else(|| json!({}), |seen| seen.document());
    if let Some(seen) = configured.as_object_mut() {
        seen.insert("path".to_owned(), json!(parts.shown.now().path));
    }
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": now.saturating_duration_since(parts.started).as_secs(),
        "phase": parts.board.phase().as_str(),
        "drained": parts.hold.on(),
        "status": report.status.as_str(),
        "reasons": report.reasons,
        "config": configured,
        "listen": config.as_ref().map(|config| json!({
            "data": config.server.listen.to_string(),
            "ops": config.ops.listen.to_string(),
        })),
        "level": parts.overload.level().as_str(),
        "connections": limit(&limits, "server.connections_max", "data"),
        "requests": limit(&limits, "server.exchanges_max", "data"),
        "waiting": limit(&limits, "server.waiting_max", "data"),
        "memory": {
            "now": process::resident_bytes(),
            "max": limit(&limits, "overload.memory_max", "")["max"].as_u64().filter(|max| *max < u64::MAX),
        },
        "alerts": parts.alerts.as_ref().map(|alerts| {
            let (firing, undelivered) = alerts.size();
            json!({ "enabled": alerts.enabled(), "firing": firing, "undelivered": undelivered })
        }),
        "nodes": nodes::summary(parts),
        "upstreams": upstreams(parts),
        "events": parts.events.recent().iter().rev().take(EVENTS_SHOWN).map(event).collect::<Vec<_>>(),
    })
}

/// How much there is of something that is bounded.
fn limit(limits: &[NamedLimit], name: &str, owner: &str) -> Value {
    let found = limits.iter().find(|limit| limit.name == name && limit.owner == owner);
    found.map_or(Value::Null, |found| {
        let limit = &found.limit;
        json!({ "now": limit.now(), "high_water": limit.high_water(), "max": limit.max() })
    })
}

/// Each upstream with its calls and the worst of its breakers.
fn upstreams(parts: &Parts) -> Vec<Value> {
    let Some(links) = &parts.links else { return Vec::new() };
    let (views, drained) = (links.breakers(), links.drained());
    let rank = |view: &&View| match view.stand {
        Stand::Closed => 0,
        Stand::HalfOpen => 1,
        Stand::Open => 2,
    };
    let row = |(name, calls): (String, u64)| {
        let own = views.iter().filter(|view| view.upstream == name);
        let worst = own.clone().max_by_key(rank);
        let open: Vec<&str> = own
            .clone()
            .filter(|view| view.stand != Stand::Closed)
            .filter_map(|view| view.model.as_deref())
            .collect();
        let last = own.filter_map(|view| view.cause.as_ref()).min_by_key(|(_, ago)| *ago);
        json!({
            "upstream": name,
            "calls": calls,
            "drained": drained.contains(&name),
            "breaker": worst.map(|view| view.stand.as_str()),
            "models_left_alone": open,
            "last_failure": last.map(|(cause, ago)| json!({
                "code": cause.code,
                "message": &*cause.full,
                "seconds_ago": ago.as_secs(),
            })),
        })
    };
    links.running().into_iter().map(row).collect()
}

fn event(event: &Event) -> Value {
    json!({
        "at": rfc3339(event.at, 0),
        "level": event.level.as_str().to_ascii_lowercase(),
        "kind": event.kind,
        "subject": event.subject,
        "detail": event.detail,
    })
}
