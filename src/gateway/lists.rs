//! What can be asked for, in both dialects: `/v1/models`, `/api/tags`, `/api/show`, `/api/ps`,
//! `/api/version` and `/`. Each answer is made of what the catalog knows at once; an upstream that
//! is away costs its own entries, never the list.

mod names;
mod ollama;
mod openai;

#[cfg(test)]
mod tests;

use crate::base::error::{Error, Kind, Result};
use crate::config::Config;
use crate::net::http::Response;
use crate::nodes::host::Model;

use super::auth::Models;
use super::catalog::Catalog;

pub use ollama::VERSION;

/// What may be asked for, each name once, with who answers it first and its context.
pub fn listed(config: &Config, catalog: &Catalog, allowed: &Models) -> Vec<Model> {
    let lists = names::Lists::of(config, catalog, allowed);
    let model = |entry: &names::Entry<'_>| Model {
        name: entry.name.to_string(),
        upstream: entry.upstream.name.clone(),
        context: openai::context(entry, catalog),
    };
    lists.entries().iter().map(model).collect()
}

/// `GET /v1/models`.
///
/// # Errors
/// None; for the caller's sake as the others.
pub fn models(config: &Config, catalog: &Catalog, allowed: &Models) -> Result<Response> {
    Ok(Response::json(200, openai::models(config, catalog, allowed)))
}

/// `GET /v1/models/{id}`; `id` as it stands in the path.
///
/// # Errors
/// [`Kind::ModelNotFound`]; why the upstream of `upstream/model` cannot be asked, when it was never
/// known what it has.
pub fn model(config: &Config, catalog: &Catalog, allowed: &Models, id: &str) -> Result<Response> {
    let id = names::decoded(id);
    Ok(Response::json(200, openai::model(config, catalog, allowed, &id)?))
}

/// `GET /api/tags`.
///
/// # Errors
/// None.
pub fn tags(config: &Config, catalog: &Catalog, allowed: &Models) -> Result<Response> {
    Ok(ollama_json(ollama::tags(config, catalog, allowed)))
}

/// `POST /api/show` with this body.
///
/// # Errors
/// [`Kind::InvalidJson`], [`Kind::InvalidField`], [`Kind::ModelNotFound`]; why the upstream cannot be
/// asked, when its description was never known.
pub fn show(config: &Config, catalog: &Catalog, allowed: &Models, body: &[u8]) -> Result<Response> {
    Ok(ollama_json(ollama::show(config, catalog, allowed, body)?))
}

/// `GET /api/ps`.
///
/// # Errors
/// None.
pub fn ps(config: &Config, catalog: &Catalog, allowed: &Models) -> Result<Response> {
    Ok(ollama_json(ollama::ps(config, catalog, allowed)))
}

/// `GET /api/version`.
///
/// # Errors
/// None.
pub fn version() -> Result<Response> {
    Ok(ollama_json(format!(r#"{{"version":"{VERSION}"}}"#).into_bytes()))
}

/// `GET /`: what Ollama's clients look for to see that a server is there.
///
/// # Errors
/// None.
pub fn root() -> Result<Response> {
    Ok(Response::text(200, "Ollama is running"))
}

/// What a key may ask for, when this name is part of it. Whether there is such a model makes no
/// difference, so that nobody learns of names that are not for them.
///
/// # Errors
/// [`Kind::ModelNotAllowed`]; [`Kind::Unauthorized`] without models: the key is no more.
pub fn allowed<'a>(models: Option<&'a Models>, name: &str) -> Result<&'a Models> {
    let models = models.ok_or_else(key_is_gone)?;
    if models.allow(name) {
        return Ok(models);
    }
    let name = names::shown(name);
    let context =
        format!("this key may not ask for model '{name}'; GET /v1/models lists what it may");
    Err(Error::new(Kind::ModelNotAllowed, context))
}

/// A reload took the key away while its request was on the way.
pub fn key_is_gone() -> Error {
    Error::new(Kind::Unauthorized, "the key that was sent is no longer known here")
}

/// There is no such model, and what the name may have meant.
pub fn not_found(config: &Config, catalog: &Catalog, allowed: &Models, name: &str) -> Error {
    let near = names::near(config, catalog, allowed, name);
    let hint = match near.as_slice() {
        [] => "GET /v1/models lists what there is".to_owned(),
        near => format!("did you mean {}?", near.join(" or ")),
    };
    let name = names::shown(name);
    Error::new(Kind::ModelNotFound, format!("model '{name}' not found; {hint}"))
}

/// Ollama's own content type.
fn ollama_json(body: Vec<u8>) -> Response {
    Response::new(200, "application/json; charset=utf-8", body)
}
