//! Orders about circuit breakers.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Ask, Done, Route};
use crate::base::error::{Error, Kind};
use crate::net::http::Method;
use crate::ops::Parts;
use crate::upstream::breaker::Force;
use crate::upstream::link::Links;

/// How long a breaker is held by hand when nobody says: long enough to look after something, short
/// enough to be forgotten.
const HELD: Duration = Duration::from_secs(10 * 60);
/// The longest time that can be said.
const HELD_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) const ROUTES: &[Route] =
    &[Route { method: Method::Post, path: "/breakers", run: force }];

/// `{"upstream": …, "model": … or nothing, "to": "open", "closed" or "auto", "seconds": …}`.
fn force(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let (upstream, model) = (ask.must("upstream")?, ask.text("model")?);
    let to = ask.must("to")?;
    let force = match to {
        "open" => Force::Open,
        "closed" => Force::Closed,
        "auto" => Force::Auto,
        _ => return Err(wrong("to is none of open, closed and auto")),
    };
    let held = match &ask.body()["seconds"] {
        Value::Null => HELD,
        seconds => seconds
            .as_u64()
            .map(Duration::from_secs)
            .filter(|held| !held.is_zero() && *held <= HELD_MAX)
            .ok_or_else(|| wrong("seconds is not between 1 and 2592000 (30 days)"))?,
    };
    let held = (force != Force::Auto).then_some(held);
    links(parts)?.force(upstream, model, force, held)?;
    let place = model.map_or_else(|| upstream.to_owned(), |model| format!("{upstream}/{model}"));
    let seconds = held.map(|held| held.as_secs());
    let told = match seconds {
        Some(seconds) => format!("{place} {to} for {seconds} s"),
        None => format!("{place} {to}"),
    };
    let document = json!({ "upstream": upstream, "model": model, "to": to, "seconds": seconds });
    Ok(Done::json(&document).told(told))
}

/// The links to upstreams.
pub(super) fn links(parts: &Parts) -> Result<&Links, Error> {
    let missing = || Error::new(Kind::Unsupported, "there are no upstreams");
    parts.links.as_deref().ok_or_else(missing)
}

fn wrong(what: &'static str) -> Error {
    Error::new(Kind::InvalidField, what)
}
