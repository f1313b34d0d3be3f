//! How the gateway is, as the protocol tells it: facts of this gateway in its shapes.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::Parts;
use super::fleet::unix_ms;
use crate::base::clock;
use crate::health::status::{self, Report, Status};

/// The agent that sessions without another belong to; there is no second one.
pub const AGENT: &str = "main";

/// What `hello-ok` and its like hold: only what the protocol's schema allows. `ok` is there when it is
/// true: the schema has no other value for it.
pub fn summary(parts: &Parts, now: Instant) -> Value {
    document(&judge(parts, now), now)
}

/// The answer to `health`, and the payload of the event: the same with what the gateway says of itself;
/// reasons name upstreams and paths, so that only administrators see them.
pub fn full(parts: &Parts, now: Instant, reasons: bool) -> Value {
    let report = judge(parts, now);
    let mut document = document(&report, now);
    if let Some(members) = document.as_object_mut() {
        members.insert("status".to_owned(), report.status.as_str().into());
        members.insert("phase".to_owned(), parts.board.phase().as_str().into());
        let told = if reasons { json!(report.reasons) } else { json!(report.reasons.len()) };
        members.insert("reasons".to_owned(), told);
    }
    document
}

/// The status, without its reasons.
pub fn status(parts: &Parts, now: Instant) -> Status {
    judge(parts, now).status
}

fn judge(parts: &Parts, now: Instant) -> Report {
    status::judge(parts.board.phase(), &parts.board.looks(now))
}

fn document(report: &Report, now: Instant) -> Value {
    let took = clock::now().saturating_duration_since(now);
    let mut members = Map::new();
    if report.status != Status::Unhealthy {
        members.insert("ok".to_owned(), true.into());
    }
    members.insert("ts".to_owned(), unix_ms().into());
    members.insert("durationMs".to_owned(), u64::try_from(took.as_millis()).unwrap_or(0).into());
    members.insert("configReload".to_owned(), json!({"hotReloadStatus": "active"}));
    members.insert("defaultAgentId".to_owned(), AGENT.into());
    // There are no chat channels here.
    members.insert("channels".to_owned(), json!({}));
    members.insert("channelOrder".to_owned(), json!([]));
    members.insert("channelLabels".to_owned(), json!({}));
    Value::Object(members)
}
