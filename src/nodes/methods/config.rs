//! `config.*`: the configuration file, without its secrets, and changes of it. They go the way of every
//! other change: the main loop's order, a version, a probation.

mod schema;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Call, Done, Method, Needs, Outcome};
use crate::base::lock::{Locked, Rank};
use crate::config::overview::Overview;
use crate::config::versions::digest;
use crate::config::{self, Fault, Faults, merge, redact};
use crate::nodes::outbox::{Class, Event};
use crate::nodes::refusal::Refusal;
use crate::nodes::who::Scope;

pub(super) const METHODS: &[Method] = &[
    Method { name: "config.get", needs: Needs::Scope(Scope::Read), run: get },
    Method { name: "config.set", needs: Needs::Scope(Scope::Admin), run: write::set },
    Method { name: "config.apply", needs: Needs::Scope(Scope::Admin), run: write::apply },
    Method { name: "config.patch", needs: Needs::Scope(Scope::Admin), run: write::patch },
    Method { name: "config.schema", needs: Needs::Scope(Scope::Read), run: schema::whole },
    Method { name: "config.schema.lookup", needs: Needs::Scope(Scope::Read), run: schema::lookup },
];

/// Parameters of methods that have none. Further ones are left out of account, as the schema's later
/// versions may have some.
#[derive(Deserialize)]
struct Nothing {}

/// The file as it is, and what is in force.
struct Stand {
    path: PathBuf,
    /// `None`: there is none, and the built-in defaults run.
    text: Option<String>,
    /// SHA-256 of the text.
    hash: String,
    /// That of the configuration in force.
    applied: String,
    overview: Value,
}

impl Stand {
    fn of(call: &Call<'_>) -> Result<Result<Stand, (PathBuf, Faults)>, Refusal> {
        let overview = overview(call)?.document();
        let path = PathBuf::from(overview["file"].as_str().unwrap_or_default());
        let text = match config::read_if_there(&path) {
            Ok(text) => text,
            Err(faults) => return Ok(Err((path, faults))),
        };
        let hash = digest(text.as_deref().unwrap_or_default());
        let applied = overview["sha256"].as_str().unwrap_or_default().to_owned();
        Ok(Ok(Stand { path, text, hash, applied, overview }))
    }
}

fn overview<'a>(call: &'a Call<'_>) -> Result<&'a Arc<Overview>, Refusal> {
    let none = || Refusal::unavailable("there is no configuration yet");
    call.nodes.parts().config.as_ref().ok_or_else(none)
}

/// What a text says, without secrets.
fn shown(text: &str) -> Map<String, Value> {
    redact::redact(text).and_then(|text| merge::values(&text)).unwrap_or_default()
}

/// Faults as the protocol has them.
fn issues(faults: &[Fault]) -> Vec<Value> {
    let issue = |fault: &Fault| {
        let message = match fault.remedy.as_str() {
            "" => fault.text.clone(),
            remedy => format!("{}; {remedy}", fault.text),
        };
        let mut issue = json!({"path": fault.key, "message": message});
        if let Some(line) = fault.line {
            issue["line"] = line.into();
        }
        issue
    };
    faults.iter().map(issue).collect()
}

fn get(call: &Call<'_>) -> Outcome {
    let Nothing {} = call.params()?;
    let stand = match Stand::of(call)? {
        Ok(stand) => stand,
        Err((path, faults)) => {
            return Done::json(&json!({
                "path": path, "exists": true, "raw": null, "parsed": {}, "sourceConfig": {},
                "resolved": {}, "runtimeConfig": {}, "config": {}, "valid": false, "hash": null,
                "configRevisionHash": null, "appliedConfigHash": overview(call)?.sha256(),
                "issues": issues(&faults.faults), "warnings": [], "legacyIssues": [],
            }));
        }
    };
    let text = stand.text.as_deref().unwrap_or_default();
    let (runtime, faults, warnings) = match config::parse_in(text, Some(&stand.path)) {
        Ok(loaded) => (shown(&loaded.print()), Vec::new(), loaded.warnings),
        Err(faults) => (Map::new(), faults.faults, Vec::new()),
    };
    // Comments may hold anything; who may not change the file does not need them.
    let raw = call.who.scopes.allow(Scope::Admin).then(|| redact::redact(text)).flatten();
    let source = shown(text);
    Done::json(&json!({
        "path": stand.path,
        "exists": stand.text.is_some(),
        "raw": raw,
        "parsed": source,
        "sourceConfig": source,
        "resolved": source,
        "config": source,
        "runtimeConfig": runtime,
        "valid": faults.is_empty(),
        "hash": stand.hash,
        "configRevisionHash": stand.hash,
        "appliedConfigHash": stand.applied,
        "issues": issues(&faults),
        "warnings": issues(&warnings),
        "legacyIssues": [],
        "version": stand.overview["version"],
        "probationSeconds": stand.overview["probation_seconds"],
        "trouble": stand.overview["trouble"],
    }))
}

/// Sees when another configuration comes into force, whoever brought it about.
#[derive(Debug)]
pub struct Watch {
    seen: Locked<String>,
}

impl Default for Watch {
    fn default() -> Self {
        Watch { seen: Locked::new(Rank::Leaf, String::new()) }
    }
}

impl Watch {
    /// The event `config.changed`, once for each change since the first look.
    pub fn look(&self, overview: &Overview) -> Option<Event> {
        let now = overview.sha256();
        let before = self.seen.with(|seen| {
            if *seen == now { None } else { Some(std::mem::replace(seen, now.clone())) }
        });
        before.filter(|before| !before.is_empty())?;
        let document = overview.document();
        let payload = json!({
            "path": document["file"],
            "hash": now,
            "configRevisionHash": now,
            "appliedConfigHash": now,
            "version": document["version"],
        });
        let payload = payload.to_string().into();
        Some(Event { name: "config.changed", payload, class: Class::Control, version: None })
    }
}

/// Fields of an object, in the order of their names: what a client compares.
type Sorted = BTreeMap<String, Value>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_the_start_is_none() {
        let overview = Overview::new(None);
        let watch = Watch::default();
        assert!(watch.look(&overview).is_none());
        overview.set(json!({"sha256": "a", "file": "/f", "version": 1}));
        assert!(watch.look(&overview).is_none(), "the first that there is");
        assert!(watch.look(&overview).is_none());
        overview.set(json!({"sha256": "b", "file": "/f", "version": 2}));
        let event = watch.look(&overview).unwrap();
        assert_eq!(event.name, "config.changed");
        let payload: Value = serde_json::from_str(&event.payload).unwrap();
        assert_eq!((&payload["hash"], &payload["version"]), (&json!("b"), &json!(2)));
        assert!(watch.look(&overview).is_none());
    }
}
