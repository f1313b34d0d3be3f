//! `GET /health`: how the process is, and every check with its age, as JSON.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::base::health::{Look, State};
use crate::health::stalls;
use crate::health::status::{self, Status};
use crate::net::http::Response;

use super::Parts;

/// The document: status, phase, reasons, checks and threads.
pub fn document(parts: &Parts, now: Instant) -> Value {
    let (phase, looks) = (parts.board.phase(), parts.board.looks(now));
    let report = status::judge(phase, &looks);
    let late = parts.heartbeats.late(now);
    let late: Vec<Value> = late
        .iter()
        .map(|pulse| json!({ "name": pulse.name, "essential": pulse.essential, "why": stalls::told(pulse) }))
        .collect();
    json!({
        "ok": report.status != Status::Unhealthy,
        "status": report.status.as_str(),
        "phase": phase.as_str(),
        "reasons": report.reasons,
        "checks": looks.iter().map(check).collect::<Vec<_>>(),
        "threads": { "watched": parts.heartbeats.watched(), "late": late },
    })
}

/// The answer: 503 when the process is unhealthy.
pub(super) fn answer(parts: &Parts, now: Instant) -> Response {
    let document = document(parts, now);
    let status = if document["ok"] == Value::Bool(true) { 200 } else { 503 };
    Response::new(status, "application/json", document.to_string())
        .with("cache-control", "no-store")
}

fn check(look: &Look) -> Value {
    let (state, reason) = match &look.state {
        State::Ok => ("ok", None),
        State::Pending => ("pending", None),
        State::Degraded(why) => ("degraded", Some(why)),
        State::Failed(why) => ("failed", Some(why)),
    };
    let seconds = |time: Duration| (time.as_secs_f64() * 10.0).round() / 10.0;
    json!({
        "name": look.name,
        "state": state,
        "reason": reason,
        "affects": look.affects.as_str(),
        "since_seconds": seconds(look.since),
        "age_seconds": seconds(look.age),
        "interval_seconds": look.interval.map(seconds),
        "next_run_seconds": look.next.map(seconds),
        "last_error": look.last.as_ref().map(|(why, _)| why),
        "last_error_age_seconds": look.last.as_ref().map(|(_, age)| seconds(*age)),
    })
}
