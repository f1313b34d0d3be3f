//! The data plane's routes: one table.

use std::collections::BTreeSet;

use super::hooks::Hook;
use crate::config::settings::Routes;
use crate::llm::Route as Llm;
use crate::net::http::Method;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A model call.
    Llm(Llm),
    /// `GET /v1/models`.
    Models,
    /// `GET /v1/models/{id}`.
    Model,
    /// `GET /api/tags`.
    Tags,
    /// `POST /api/show`.
    Show,
    /// `GET /api/ps`.
    Ps,
    /// `GET /api/version`.
    Version,
    /// `GET /usage`.
    Usage,
    /// `GET /`.
    Root,
    /// `GET /ws`, and `GET /` that asks for it.
    WebSocket,
    /// `POST /hooks/…`.
    Hook(Hook),
    /// `GET /healthz`: whether the process lives.
    Healthz,
    /// `GET /readyz`: whether requests are welcome.
    Readyz,
}

impl Route {
    /// Its kind, as limits tell routes apart.
    pub fn kind(self) -> Routes {
        match self {
            Route::Llm(route) if route.embeds() => Routes::Embeddings,
            Route::Llm(_) => Routes::Chat,
            _ => Routes::Lists,
        }
    }
}

/// What stands before every path of the OpenAI API.
const OPENAI_PREFIX: &str = "/v1/";
/// What stands before every path of Ollama's API.
const OLLAMA_PREFIX: &str = "/api/";

/// What stands before a model's id in its path.
pub const MODEL_PREFIX: &str = "/v1/models/";

/// Where WebSocket connections are opened, beside `/`.
pub const WEBSOCKET_PATH: &str = "/ws";

/// Path, route, and the methods it takes.
const TABLE: &[(&str, Route, &[Method])] = &[
    ("/v1/chat/completions", Route::Llm(Llm::ChatCompletions), &[Method::Post]),
    ("/api/chat", Route::Llm(Llm::OllamaChat), &[Method::Post]),
    ("/api/generate", Route::Llm(Llm::OllamaGenerate), &[Method::Post]),
    ("/v1/completions", Route::Llm(Llm::Completions), &[Method::Post]),
    ("/v1/embeddings", Route::Llm(Llm::OpenAiEmbeddings), &[Method::Post]),
    ("/api/embed", Route::Llm(Llm::OllamaEmbed), &[Method::Post]),
    ("/api/embeddings", Route::Llm(Llm::OllamaEmbeddings), &[Method::Post]),
    ("/v1/models", Route::Models, &[Method::Get, Method::Head]),
    (MODEL_PREFIX, Route::Model, &[Method::Get, Method::Head]),
    ("/api/tags", Route::Tags, &[Method::Get, Method::Head]),
    ("/api/show", Route::Show, &[Method::Post]),
    ("/api/ps", Route::Ps, &[Method::Get, Method::Head]),
    ("/api/version", Route::Version, &[Method::Get, Method::Head]),
    ("/usage", Route::Usage, &[Method::Get, Method::Head]),
    ("/hooks/wake", Route::Hook(Hook::Wake), &[Method::Post]),
    ("/hooks/agent", Route::Hook(Hook::Agent), &[Method::Post]),
    ("/healthz", Route::Healthz, &[Method::Get, Method::Head]),
    ("/health", Route::Healthz, &[Method::Get, Method::Head]),
    ("/readyz", Route::Readyz, &[Method::Get, Method::Head]),
    ("/ready", Route::Readyz, &[Method::Get, Method::Head]),
    ("/", Route::Root, &[Method::Get, Method::Head]),
    (WEBSOCKET_PATH, Route::WebSocket, &[Method::Get]),
];

/// The row that stands for an `OPTIONS` request of a path that is ours.
pub const OPTIONS: u16 = u16::MAX;

/// The row that stands for the echo of a drill.
pub const ECHO: u16 = u16::MAX - 1;

/// What a path and method lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The number of a row of the table.
    Row(u16),
    /// The path is ours, the method is not: those that are.
    OtherMethods(&'static [Method]),
    /// Not ours.
    Nothing,
}

/// Looks up a path. `/v1/models/` takes any id behind it, with its slashes.
pub fn find(method: Method, path: &str) -> Found {
    let row = TABLE.iter().position(|(known, route, _)| match route {
        Route::Model => path.len() > known.len() && path.starts_with(known),
        _ => path == *known,
    });
    let Some(row) = row else { return Found::Nothing };
    let methods = TABLE[row].2;
    if methods.contains(&method) {
        Found::Row(u16::try_from(row).unwrap_or(u16::MAX))
    } else {
        Found::OtherMethods(methods)
    }
}

/// The row of WebSocket connections.
pub fn websocket() -> u16 {
    let row = TABLE.iter().position(|(_, route, _)| *route == Route::WebSocket);
    row.and_then(|row| u16::try_from(row).ok()).unwrap_or(u16::MAX)
}

/// The route of a row.
pub fn route(row: u16) -> Option<Route> {
    TABLE.get(usize::from(row)).map(|(_, route, _)| *route)
}

/// The path of a row, for metrics: a closed set, unlike what clients send.
pub fn pattern(row: u16) -> &'static str {
    match TABLE.get(usize::from(row)) {
        Some((_, Route::Model, _)) => "/v1/models/{id}",
        Some((path, _, _)) => path,
        None => "other",
    }
}

/// Every pattern there is, and what stands for requests of none.
pub fn patterns() -> impl Iterator<Item = &'static str> {
    let rows = u16::try_from(TABLE.len()).unwrap_or(u16::MAX);
    (0..rows).map(pattern).chain(["other", "none", "options"])
}

/// Whether a pattern is that of model calls.
pub fn calls(pattern: &str) -> bool {
    TABLE.iter().any(|(path, route, _)| *path == pattern && matches!(route, Route::Llm(_)))
}

/// What to say about a path that is not ours: where the API that was meant begins, or what there is
/// of it. Ollama's clients also ask for things that no gateway should do for everybody.
pub fn nothing(path: &str) -> String {
    let under = |prefix: &str| {
        let ours = TABLE.iter().filter_map(|(known, _, _)| known.strip_prefix(prefix));
        ours.map(|rest| rest.trim_end_matches('/')).collect::<BTreeSet<_>>()
    };
    let list = |prefix: &str| {
        let names = under(prefix).into_iter().collect::<Vec<_>>().join(", ");
        format!("no such path; under {prefix} there are {names}")
    };
    if path.starts_with(OPENAI_PREFIX) {
        list(OPENAI_PREFIX)
    } else if path.starts_with(OLLAMA_PREFIX) {
        list(OLLAMA_PREFIX) + "; pull and delete models at the upstream itself"
    } else {
        format!(
            "no such path; the OpenAI API is under {OPENAI_PREFIX}, Ollama's under {OLLAMA_PREFIX}"
        )
    }
}

/// `Allow`, with the `OPTIONS` that every path has.
pub fn allow(methods: &[Method]) -> String {
    let mut text = String::new();
    for method in methods {
        text.push_str(method.as_str());
        text.push_str(", ");
    }
    text.push_str("OPTIONS");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_exactly_and_model_ids_may_hold_slashes() {
        let at = |method, path| match find(method, path) {
            Found::Row(row) => format!("{:?}", route(row).unwrap()),
            other => format!("{other:?}"),
        };
        assert_eq!(at(Method::Get, "/v1/models"), "Models");
        assert_eq!(at(Method::Get, "/v1/models/local/a:b"), "Model");
        assert_eq!(at(Method::Get, "/v1/models/"), "Nothing");
        assert_eq!(at(Method::Post, "/v1/models"), "OtherMethods([Get, Head])");
        assert_eq!(at(Method::Get, "/api/tagsx"), "Nothing");
        assert_eq!(at(Method::Head, "/"), "Root");
        assert_eq!(allow(&[Method::Post]), "POST, OPTIONS");
    }

    #[test]
    fn a_path_that_is_not_there_is_answered_with_those_that_are() {
        let check = |path, expected| assert_eq!(nothing(path), expected, "{path}");
        check(
            "/v1/responses",
            "no such path; under /v1/ there are chat/completions, completions, embeddings, models",
        );
        check(
            "/api/pull",
            "no such path; under /api/ there are chat, embed, embeddings, generate, ps, show, tags, \
             version; pull and delete models at the upstream itself",
        );
        let elsewhere = "no such path; the OpenAI API is under /v1/, Ollama's under /api/";
        check("/chat/completions", elsewhere);
        check("/", elsewhere);
    }
}
