//! Changes of the configuration: `config.set`, `config.apply`, `config.patch`. The sentences of
//! refusals are those that clients look for.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Sorted, Stand, issues, shown};
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::orders::{ConfigChange, Order};
use crate::config::merge::{self, Unfit};
use crate::config::redact;
use crate::config::{self, CONFIG_BYTES_MAX, Faults};
use crate::nodes::json5;
use crate::nodes::methods::{Call, Done, Outcome};
use crate::nodes::refusal::Refusal;
use crate::nodes::who::Identity;

/// How long the main loop may take, as for orders of the control socket.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30);
/// Issues that the message itself names.
const NAMED_MAX: usize = 3;
/// Lists that a patch may name.
const REPLACED_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    raw: String,
    base_hash: Option<String>,
    note: Option<String>,
    replace_paths: Option<Vec<String>>,
}

/// `config.set`.
pub(super) fn set(call: &Call<'_>) -> Outcome {
    whole(call, "config.set")
}

/// `config.apply`: the same here, since what is written is in force at once.
pub(super) fn apply(call: &Call<'_>) -> Outcome {
    whole(call, "config.apply")
}

fn whole(call: &Call<'_>, method: &'static str) -> Outcome {
    let (params, stand) = begin(call, method)?;
    let old = stand.text.as_deref().unwrap_or_default();
    // TOML as config.get gave it, or the settings as a JSON object: no TOML begins with a brace.
    let new = match params.raw.trim_start().starts_with('{') {
        true => merge::replace(old, &object(&params.raw, method)?).map_err(unfit)?,
        false => params.raw.clone(),
    };
    bring(call, &params, &stand, &new, method)
}

/// `config.patch`.
pub(super) fn patch(call: &Call<'_>) -> Outcome {
    let method = "config.patch";
    let (params, stand) = begin(call, method)?;
    let old = stand.text.as_deref().unwrap_or_default();
    if let Err(faults) = config::parse_in(old, Some(&stand.path)) {
        let refusal = invalid(&faults);
        let message = format!("{}; fix it before patching", refusal.message);
        return Err(Refusal { message: message.into(), ..refusal });
    }
    let replace = params.replace_paths.iter().flatten();
    let replace: BTreeSet<String> = replace.take(REPLACED_MAX).cloned().collect();
    let new = merge::patch(old, &object(&params.raw, method)?, &replace).map_err(unfit)?;
    bring(call, &params, &stand, &new, method)
}

/// Who changes too often, or something else than what is there, gets no further.
fn begin(call: &Call<'_>, method: &'static str) -> Result<(Params, Stand), Refusal> {
    call.nodes.charge_write(method, call.peer)?;
    let params: Params = call.params()?;
    if params.raw.is_empty() || params.raw.len() as u64 > CONFIG_BYTES_MAX {
        let text = format!("invalid {method} params: raw must have 1 to {CONFIG_BYTES_MAX} bytes");
        return Err(Refusal::invalid(text));
    }
    let stand = Stand::of(call)?.map_err(|(_, faults)| invalid(&faults))?;
    if stand.text.is_some() {
        match &params.base_hash {
            None => {
                let text = "config base hash required; re-run config.get and retry";
                return Err(Refusal::invalid(text));
            }
            Some(base) if *base != stand.hash => return Err(moved()),
            Some(_) => {}
        }
    }
    Ok((params, stand))
}

fn moved() -> Refusal {
    Refusal::invalid("config changed since last load; re-run config.get and retry")
}

fn object(raw: &str, method: &str) -> Result<Map<String, Value>, Refusal> {
    match json5::parse(raw).map_err(Refusal::invalid)? {
        Value::Object(object) => Ok(object),
        _ => Err(Refusal::invalid(format!("{method} raw must be an object"))),
    }
}

fn unfit(why: Unfit) -> Refusal {
    match why {
        Unfit::Text => Refusal::invalid("invalid config: the file is no TOML; mend it first"),
        Unfit::Lost(paths) => Refusal::invalid(format!(
            "config.patch would remove entries from array path(s): {}. Pass replacePaths with the exact \
             path(s) when this is intentional, or use config.apply for full-config replacement.",
            paths.join(", ")
        )),
        Unfit::Value(place, why) => {
            let issue = json!({"path": place, "message": why});
            Refusal::invalid(format!("invalid config: {place}: {why}"))
                .with(json!({"issues": [issue]}))
        }
    }
}

/// Everything that is wrong; the message names the first of it.
fn invalid(faults: &Faults) -> Refusal {
    let all = faults.faults.len() + faults.omitted;
    let named: Vec<String> =
        faults.faults.iter().take(NAMED_MAX).map(|fault| fault.to_string()).collect();
    let more = match all - named.len().min(all) {
        0 => String::new(),
        1 => " (+1 more issue)".to_owned(),
        more => format!(" (+{more} more issues)"),
    };
    Refusal::invalid(format!("invalid config: {}{more}", named.join("; ")))
        .with(json!({"issues": issues(&faults.faults)}))
}

/// Puts the text in force and in the file, or nothing of it.
fn bring(
    call: &Call<'_>,
    params: &Params,
    stand: &Stand,
    new: &str,
    method: &'static str,
) -> Outcome {
    let old = stand.text.as_deref().unwrap_or_default();
    let new = redact::restore(new, old).map_err(|places| {
        let text = format!("{} where there is no secret yet; write it", redact::MASK);
        let issue = |place: &String| json!({"path": place, "message": text});
        let issues: Vec<Value> = places.iter().map(issue).collect();
        Refusal::invalid(format!("invalid config: {}: {text}", places.join(", ")))
            .with(json!({"issues": issues}))
    })?;
    if new == old && stand.text.is_some() && stand.hash == stand.applied {
        return Done::json(&json!({
            "ok": true, "noop": true, "path": stand.path, "hash": stand.hash, "config": shown(old),
            "restart": null,
        }));
    }
    config::parse_in(&new, Some(&stand.path)).map_err(|faults| invalid(&faults))?;
    let change = ConfigChange::Apply {
        name: stand.path.display().to_string(),
        base: Some(stand.hash.clone()),
        force: false,
        text: new.clone(),
    };
    let reason = params.note.as_deref().filter(|note| !note.is_empty()).unwrap_or(method);
    let (author, reason) = (author(call.who), reason.to_owned());
    let order = Order::Config { change, author, reason };
    let outcome = call.nodes.parts().desk.ask(order, clock::now() + ORDER_TIMEOUT);
    let outcome = outcome.map_err(refused)?;
    let field = |name: &str| outcome.get(name).cloned().unwrap_or(Value::Null);
    let fields = [
        ("ok", json!(true)),
        ("path", json!(stand.path)),
        ("hash", field("sha256")),
        ("configRevisionHash", field("sha256")),
        ("appliedConfigHash", field("sha256")),
        ("config", Value::Object(shown(&new))),
        ("version", field("version")),
        ("probationSeconds", field("probation_seconds")),
        ("notes", field("notes")),
        ("warnings", field("warnings")),
        // Nothing is restarted: what only a restart could change is refused.
        ("restart", Value::Null),
    ];
    let fields: Sorted = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Done::json(&fields)
}

fn refused(error: Error) -> Refusal {
    match error.kind() {
        Kind::ConfigMoved => moved(),
        _ => error.into(),
    }
}

/// Who it was, for the history of versions.
fn author(who: &Identity) -> String {
    let device = who.device.as_deref().map(|id| id.get(..12).unwrap_or(id));
    match (who.account.as_deref(), device) {
        (Some(account), Some(device)) if !account.starts_with("device:") => {
            format!("{account} on device:{device}")
        }
        (Some(account), _) => account.to_owned(),
        (None, Some(device)) => format!("device:{device}"),
        (None, None) => "anybody over WebSocket".to_owned(),
    }
}
