//! `/api/tags`, `/api/show`, `/api/ps`.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::base::error::{Error, Kind, Result};
use crate::base::time_format::rfc3339;
use crate::config::settings::{Config, Target, UpstreamKind};
use crate::gateway::auth::Models;
use crate::gateway::catalog::Catalog;
use crate::gateway::catalog::parse::Listed;

use super::names::{Entry, Lists};
use super::not_found;

/// The version of Ollama's API that is served. Clients compare it: VS Code and Raycast want 0.6.4 or
/// later, so Tidegate's own version would break them, and so would "unknown". 0.13.0 is the last
/// minor release before `/v1/responses` (0.13.3) and `/v1/messages` (0.14.0), which clients look for
/// by version and which are not here.
pub const VERSION: &str = "0.13.0";

/// Go's zero time, which Ollama's own client shows as "Never": for a time that nobody told.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// `/api/tags`.
pub(super) fn tags(config: &Config, catalog: &Catalog, allowed: &Models) -> Vec<u8> {
    let lists = Lists::of(config, catalog, allowed);
    let mut out = br#"{"models":["#.to_vec();
    for (index, entry) in lists.entries().iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let known = entry.listed.and_then(|listed| listed.members.as_deref());
        match known {
            Some(members) => push_named(&mut out, &entry.name, members),
            None => push_named(&mut out, &entry.name, &made_up_members(entry)),
        }
    }
    out.extend_from_slice(b"]}");
    out
}

/// `/api/ps`: what each Ollama upstream has in memory. Times stand as they came.
pub(super) fn ps(config: &Config, catalog: &Catalog, allowed: &Models) -> Vec<u8> {
    let ollama = config.upstreams.iter().filter(|u| u.kind == UpstreamKind::Ollama);
    let names: Vec<&str> = ollama.map(|upstream| upstream.name.as_str()).collect();
    let mut out = br#"{"models":["#.to_vec();
    let mut first = true;
    for (upstream, ps) in names.iter().zip(catalog.ps(names.iter().copied())) {
        for loaded in ps.iter().flat_map(|ps| &ps.models) {
            let name = format!("{upstream}/{}", loaded.model);
            if !allowed.allow(&name) {
                continue;
            }
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            push_named(&mut out, &name, &loaded.members);
        }
    }
    out.extend_from_slice(b"]}");
    out
}

/// `/api/show`. An Ollama upstream's own answer is passed on as it came: no name stands in it that
/// an alias would have to replace.
pub(super) fn show(
    config: &Config,
    catalog: &Catalog,
    allowed: &Models,
    body: &[u8],
) -> Result<Vec<u8>> {
    let (name, verbose) = asked(body)?;
    super::allowed(Some(allowed), &name)?;
    let Some(resolved) = config.resolve(&name) else {
        return Err(not_found(config, catalog, allowed, &name));
    };
    let Some(target) = resolved.model.chain.first() else {
        return Err(not_found(config, catalog, allowed, &name));
    };
    let upstream = target.upstream.name.as_str();
    match target.upstream.kind {
        UpstreamKind::Ollama => match catalog.show(upstream, &target.model, verbose) {
            Ok(show) => Ok(show.body.to_vec()),
            Err(error) if error.kind() == Kind::UpstreamModelNotFound => {
                Err(not_found(config, catalog, allowed, &name))
            }
            Err(error) => Err(error),
        },
        UpstreamKind::OpenAi => {
            let list = catalog.lists([upstream]).pop().flatten();
            let listed = list.as_ref().and_then(|list| list.find(&target.model));
            if listed.is_none() && !resolved.declared {
                return Err(match list {
                    Some(_) => not_found(config, catalog, allowed, &name),
                    None => catalog.why_no_list(upstream),
                });
            }
            Ok(described(target, listed).to_string().into_bytes())
        }
        UpstreamKind::Echo => Ok(described(target, None).to_string().into_bytes()),
    }
}

/// The model that a body names, and whether everything is wanted.
fn asked(body: &[u8]) -> Result<(String, bool)> {
    let wrong = |what: &'static str| Error::new(Kind::InvalidField, what);
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Error::new(Kind::InvalidJson, "the body is not JSON").because(error))?;
    if !body.is_object() {
        return Err(wrong("the body must be a JSON object"));
    }
    // `name` is what older clients write; some write both and leave one empty.
    let name = ["model", "name"]
        .iter()
        .filter_map(|key| body.get(key))
        .find(|value| !value.is_null() && value.as_str() != Some(""));
    let name = name.ok_or_else(|| wrong("model is required"))?;
    let name = name.as_str().ok_or_else(|| wrong("model must be a string"))?;
    let verbose = body.get("verbose").and_then(Value::as_bool).unwrap_or(false);
    Ok((name.to_owned(), verbose))
}

/// A description of a model that no Ollama server describes: only what is known, no figures.
fn described(target: &Target, listed: Option<&Listed>) -> Value {
    let echo = target.upstream.kind == UpstreamKind::Echo;
    let told = listed.map(|listed| listed.told).unwrap_or_default();
    let mut capabilities = vec!["completion"];
    if told.embedding {
        capabilities = vec!["embedding"];
    } else if !echo {
        // Tools are translated for it; `tools = false` in the configuration says that it has none.
        if target.tools && told.tools.unwrap_or(true) {
            capabilities.push("tools");
        }
        if target.images && told.vision.unwrap_or(false) {
            capabilities.push("vision");
        }
    }
    json!({
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": details(echo),
        "model_info": {},
        "capabilities": capabilities,
        "modified_at": modified(listed),
    })
}

/// Ollama's details, with nothing in them that nobody told.
fn details(echo: bool) -> Value {
    let family = if echo { "echo" } else { "" };
    json!({
        "parent_model": "",
        "format": "",
        "family": family,
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    })
}

fn modified(listed: Option<&Listed>) -> String {
    match listed.map_or(0, |listed| listed.created) {
        0 => NEVER.to_owned(),
        created => rfc3339(UNIX_EPOCH + Duration::from_secs(created.min(CREATED_MAX)), 0),
    }
}

/// The last second of the year 9999: what comes from outside may be any number.
const CREATED_MAX: u64 = 253_402_300_799;

/// The fields of a model that no Ollama server lists. Clients of Ollama want all of them: its own
/// command line takes the first twelve characters of `digest`, so that there must be some; it is
/// that of the name. A size of 0 is what such a model takes here.
fn made_up_members(entry: &Entry<'_>) -> String {
    let echo = entry.upstream.kind == UpstreamKind::Echo;
    let digest = Sha256::digest(format!("{}/{}", entry.upstream.name, entry.model));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let fields = json!({
        "modified_at": modified(entry.listed),
        "size": 0,
        "digest": digest,
        "details": details(echo),
    });
    let mut text = fields.to_string();
    // Its brace gives way to the comma behind the name.
    text.replace_range(..1, ",");
    text.pop();
    text
}

/// `{"name":…,"model":…` and the members.
fn push_named(out: &mut Vec<u8>, name: &str, members: &str) {
    let name = Value::from(name).to_string();
    out.extend_from_slice(b"{\"name\":");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b",\"model\":");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(members.as_bytes());
    out.push(b'}');
}
