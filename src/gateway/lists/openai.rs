//! `/v1/models`.

use crate::base::error::Result;
use crate::config::settings::{Config, UpstreamKind};
use crate::gateway::auth::Models;
use crate::gateway::catalog::Catalog;

use super::names::{Entry, Lists};
use super::not_found;

/// The list.
pub(super) fn models(config: &Config, catalog: &Catalog, allowed: &Models) -> Vec<u8> {
    let lists = Lists::of(config, catalog, allowed);
    let mut out = br#"{"object":"list","data":["#.to_vec();
    for (index, entry) in lists.entries().iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push(&mut out, entry, catalog);
    }
    out.extend_from_slice(b"]}");
    out
}

/// One model.
pub(super) fn model(
    config: &Config,
    catalog: &Catalog,
    allowed: &Models,
    id: &str,
) -> Result<Vec<u8>> {
    super::allowed(Some(allowed), id)?;
    let Some(resolved) = config.resolve(id) else {
        return Err(not_found(config, catalog, allowed, id));
    };
    let Some(target) = resolved.model.chain.first() else {
        return Err(not_found(config, catalog, allowed, id));
    };
    let lists = Lists::of(config, catalog, allowed);
    let list = lists.list(&target.upstream.name);
    let listed = list.and_then(|list| list.find(&target.model));
    if !resolved.declared && target.upstream.kind != UpstreamKind::Echo && listed.is_none() {
        // Its upstream has not got it, or cannot tell.
        return Err(match list {
            Some(_) => not_found(config, catalog, allowed, id),
            None => catalog.why_no_list(&target.upstream.name),
        });
    }
    let entry = Entry {
        name: id.into(),
        upstream: &target.upstream,
        model: &target.model,
        listed,
        declared: resolved.declared,
    };
    let mut out = Vec::new();
    push(&mut out, &entry, catalog);
    Ok(out)
}

/// One model as an object. `created` is 0 where the upstream does not say: clients want a number.
fn push(out: &mut Vec<u8>, entry: &Entry<'_>, catalog: &Catalog) {
    let created = entry.listed.map_or(0, |listed| listed.created);
    let mut fields = serde_json::json!({
        "id": entry.name,
        "object": "model",
        "created": created,
        "owned_by": entry.upstream.name,
    });
    if let Some(tokens) = context(entry, catalog) {
        fields["context_length"] = tokens.into();
    }
    out.extend_from_slice(fields.to_string().as_bytes());
}

/// The context length, when it is known.
pub(super) fn context(entry: &Entry<'_>, catalog: &Catalog) -> Option<u64> {
    let context = match entry.upstream.kind {
        // It stands in the list, which is at hand.
        UpstreamKind::OpenAi => return entry.listed?.context,
        // Those that are declared are few: they are asked about, so that the next list knows more.
        _ if entry.declared => catalog.context(entry.upstream, entry.model, None),
        _ => catalog.known_context(entry.upstream, entry.model),
    };
    context.map(|context| context.tokens)
}
