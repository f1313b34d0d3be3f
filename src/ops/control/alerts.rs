//! Orders about alerts: silence, unsilence, test.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Ask, Done, Route};
use crate::base::error::{Error, Kind};
use crate::config::duration_parse;
use crate::health::alerts::Handle;
use crate::health::notify::Outcome;
use crate::net::http::Method;
use crate::ops::Parts;

pub(super) const ROUTES: &[Route] = &[
    Route { method: Method::Post, path: "/alerts/silence", run: silence },
    Route { method: Method::Post, path: "/alerts/unsilence", run: unsilence },
    Route { method: Method::Post, path: "/alerts/test", run: test },
];

fn handle(parts: &Parts) -> Result<&Arc<Handle>, Error> {
    parts.alerts.as_ref().ok_or_else(|| Error::new(Kind::NotFound, "there are no alerts here"))
}

/// `{"match", "for", "reason"}`.
fn silence(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let (matching, lasting) = (ask.must("match")?, ask.must("for")?);
    let lasting = duration_parse(lasting).map_err(|why| {
        Error::new(Kind::InvalidField, format!("for {why}; write a duration such as 2h"))
    })?;
    let reason = ask.text("reason")?.unwrap_or_default();
    let (silence, kept) = handle(parts)?.silence(matching, lasting, reason)?;
    let told = format!("{matching} until {}: {}", silence.until.text(), silence.reason);
    let document = json!({
        "id": silence.id,
        "match": silence.matching,
        "until": silence.until.text(),
        "reason": silence.reason,
        "kept": kept,
    });
    Ok(Done::json(&document).told(told))
}

/// `{"silence"}`: an id, or what was silenced.
fn unsilence(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let what = ask.must("silence")?;
    match handle(parts)?.unsilence(what) {
        0 => {
            let text = format!("there is no silence {what}; see tidegate alerts");
            Err(Error::new(Kind::NotFound, text))
        }
        ended => Ok(Done::json(&json!({"ended": ended})).told(format!("{what}: {ended} ended"))),
    }
}

/// `{"channel"}`: one, or with none of them named all.
fn test(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let outcomes = handle(parts)?.trial(ask.text("channel")?)?;
    let failed = outcomes.iter().filter(|(_, outcome)| !delivered(outcome)).count();
    let row = |(channel, outcome): &(String, Outcome)| {
        let why = match outcome {
            Outcome::Delivered { .. } => "",
            Outcome::Later { why, .. } | Outcome::Refused { why, .. } => why,
        };
        json!({"channel": channel, "delivered": delivered(outcome), "why": why})
    };
    let rows: Vec<Value> = outcomes.iter().map(row).collect();
    let told = format!("{} channels tried, {failed} failed", rows.len());
    Ok(Done::json(&json!({"channels": rows, "failed": failed})).told(told))
}

fn delivered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Delivered { .. })
}
