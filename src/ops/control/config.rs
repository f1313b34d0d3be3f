//! The configuration: its history, and orders that change it.

use std::time::Duration;

use serde_json::Value;

use super::process::ORDER_TIMEOUT;
use super::{Ask, Done, Route};
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::orders::{ConfigChange, Order};
use crate::config::listing;
use crate::config::versions::Versions;
use crate::net::http::Method;
use crate::ops::Parts;

/// Most settings changed at once.
const EDITS_MAX: usize = 256;

pub(super) const ROUTES: &[Route] = &[
    Route { method: Method::Get, path: "/config/history", run: history },
    Route { method: Method::Get, path: "/config/version", run: version },
    Route { method: Method::Post, path: "/config/apply", run: apply },
    Route { method: Method::Post, path: "/config/edit", run: edit },
    Route { method: Method::Post, path: "/config/rollback", run: rollback },
    Route { method: Method::Post, path: "/config/knob", run: knob },
];

fn versions(parts: &Parts) -> Result<&Versions, Error> {
    let versions = parts.config.as_ref().and_then(|config| config.versions());
    let text = "there are no versions: there is no state directory";
    versions.ok_or_else(|| Error::new(Kind::NotFound, text))
}

fn history(parts: &Parts, _ask: &Ask<'_>) -> Result<Done, Error> {
    Ok(Done::json(&listing::history(versions(parts)?)))
}

fn version(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let number = match ask.query("number")? {
        Some(number) => number.parse().ok(),
        None => parts.config.as_ref().and_then(|config| config.document()["version"].as_u64()),
    };
    let text = "name a version, as ?number=42";
    let number = number.ok_or_else(|| Error::new(Kind::InvalidField, text))?;
    let shown = listing::show(versions(parts)?, number);
    let document = shown.map_err(|error| Error::new(Kind::NotFound, error.to_string()))?;
    Ok(Done::json(&document))
}

fn apply(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let change = ConfigChange::Apply {
        text: ask.must("text")?.to_owned(),
        name: ask.text("name")?.unwrap_or("the configuration").to_owned(),
        base: base(ask)?,
        force: force(ask),
    };
    order(parts, ask, change)
}

fn edit(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let wrong = || {
        let text = "edits is a list of [setting, value or null]";
        Error::new(Kind::InvalidField, text)
    };
    let list = ask.body()["edits"].as_array().ok_or_else(wrong)?;
    let one = |edit: &Value| -> Option<(String, Option<String>)> {
        let [key, value] = edit.as_array()?.as_slice() else { return None };
        let value = match value {
            Value::Null => None,
            value => Some(value.as_str()?.to_owned()),
        };
        Some((key.as_str()?.to_owned(), value))
    };
    let edits: Option<Vec<_>> = list.iter().map(one).collect();
    let edits = edits.filter(|edits| (1..=EDITS_MAX).contains(&edits.len())).ok_or_else(wrong)?;
    order(parts, ask, ConfigChange::Edit { edits, base: base(ask)?, force: force(ask) })
}

fn rollback(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let version = ask.body()["version"].as_u64();
    order(parts, ask, ConfigChange::Rollback { version, force: force(ask) })
}

fn knob(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let change = ConfigChange::Knob {
        key: ask.must("key")?.to_owned(),
        value: ask.text("value")?.map(str::to_owned),
        span: Duration::from_secs(ask.body()["seconds"].as_u64().unwrap_or(0)),
    };
    order(parts, ask, change)
}

fn base(ask: &Ask<'_>) -> Result<Option<String>, Error> {
    Ok(ask.text("base")?.map(str::to_owned))
}

fn force(ask: &Ask<'_>) -> bool {
    ask.body()["force"].as_bool().unwrap_or(false)
}

/// Has the main loop carry it out.
fn order(parts: &Parts, ask: &Ask<'_>, change: ConfigChange) -> Result<Done, Error> {
    let author = ask.text("author")?.unwrap_or("unknown").to_owned();
    let reason = ask.text("reason")?.unwrap_or_default().to_owned();
    let order = Order::Config { change, author, reason };
    let outcome = parts.desk.ask(order, clock::now() + ORDER_TIMEOUT)?;
    let told = match outcome["version"].as_u64() {
        Some(version) => format!("version {version} is in force"),
        None => "done".to_owned(),
    };
    Ok(Done::json(&outcome).told(told))
}
