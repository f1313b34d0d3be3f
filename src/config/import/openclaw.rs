//! OpenClaw's `openclaw.json`: providers, the default model with its fallbacks, aliases, the gateway's
//! port and token.

use sha2::{Digest, Sha256};

use super::draft::{Draft, KeyFrom, Link, MODEL_CHARS_MAX, Upstream};
use super::litellm::{client_key, variable_fits};
use super::notes::Notes;
use super::providers;
use super::read::{At, Env, fits, quoted};
use crate::config::settings::BaseUrl;
use serde_json::Value;

const NO_COUNTERPART: &str = "has no counterpart; left out";
const NOT_OURS: &str = "is no part of a gateway for models; left out: keep OpenClaw for it, with tidegate as its provider";
/// How the bare names of variables end.
const ENDS: [&str; 4] = ["_KEY", "_TOKEN", "_SECRET", "_PASSWORD"];
/// What is known of a provider.
const PROVIDER: [&str; 5] = ["baseUrl", "api", "apiKey", "timeoutSeconds", "models"];
/// What is known of a model; what is told of it is found out by asking the upstream.
const MODEL: [&str; 9] = [
    "id",
    "name",
    "contextWindow",
    "contextTokens",
    "maxTokens",
    "cost",
    "input",
    "params",
    "reasoning",
];

/// What was learned of one model of a provider.
struct Known {
    reference: String,
    images: bool,
}

/// Reads a file.
pub(super) fn import(
    tree: &Value,
    env: Env<'_>,
    draft: &mut Draft,
    notes: &mut Notes,
) -> Result<(), String> {
    let root = At::root(tree);
    let wanted = ["models", "agents", "gateway", "agent"];
    if !wanted.iter().any(|key| root.get(key).is_some_and(|at| at.value.is_object())) {
        return Err("has neither models nor agents; is it OpenClaw's configuration?".to_owned());
    }
    let mut book = Book { env, draft, notes, names: Vec::new(), known: Vec::new() };
    if let Some(models) = root.get("models") {
        for (id, at) in models.get("providers").map(|at| at.entries()).unwrap_or_default() {
            book.provider(id, &at);
        }
        models.others(&["providers", "mode"], book.notes, NO_COUNTERPART);
    }
    let agents = root.get("agents");
    if let Some(defaults) = agents.as_ref().and_then(|at| at.get("defaults")) {
        book.defaults(&defaults);
    }
    for at in agents.as_ref().and_then(|at| at.get("list")).map(|at| at.list()).unwrap_or_default()
    {
        if let (Some(id), Some(model)) = (at.text("id"), at.get("model")) {
            book.chain(id, &model);
        }
    }
    if let Some(gateway) = root.get("gateway") {
        book.gateway(&gateway);
    }
    for (key, at) in root.entries() {
        match key {
            "models" | "agents" | "gateway" | "meta" | "$schema" => {}
            "$include" => {
                notes.add(&at.path, "left out: other files are not followed; import each")
            }
            "env" => notes.add(&at.path, "left out: set the variables for the daemon, in its unit"),
            "secrets" => {
                notes.add(&at.path, "left out: keys come from api_key_env and api_key_file")
            }
            _ => notes.add(&at.path, NOT_OURS),
        }
    }
    Ok(())
}

struct Book<'a> {
    env: Env<'a>,
    draft: &'a mut Draft,
    notes: &'a mut Notes,
    /// The file's names of providers, and ours; none when it was left out.
    names: Vec<(String, Option<String>)>,
    known: Vec<Known>,
}

impl Book<'_> {
    /// `models.providers.<id>`.
    fn provider(&mut self, id: &str, at: &At<'_>) {
        let name = self.provider_upstream(id, at).map(|upstream| self.draft.upstream(upstream));
        self.names.push((id.to_owned(), name.clone()));
        at.others(&PROVIDER, self.notes, NO_COUNTERPART);
        let Some(name) = name else { return };
        for model in at.get("models").map(|at| at.list()).unwrap_or_default() {
            let Some(model_id) = model.text("id") else { continue };
            let local = self.draft.upstreams.iter().any(|u| u.name == name && u.kind == "ollama");
            self.model(&format!("{id}/{model_id}"), &name, model_id, &model, local);
        }
    }

    fn model(&mut self, reference: &str, upstream: &str, id: &str, at: &At<'_>, local: bool) {
        at.others(&MODEL, self.notes, NO_COUNTERPART);
        let input = at.get("input");
        let images = input.is_none_or(|at| at.list().iter().any(|kind| kind.value == "image"));
        self.known.push(Known { reference: reference.to_owned(), images });
        let (upstream, model) = (upstream.to_owned(), id.to_owned());
        let link = Link { upstream, model, tools: true, images };
        let Some(cost) = at.get("cost") else { return };
        let get = |key: &str| cost.get(key);
        let all = ["input", "output", "cacheRead", "cacheWrite"].map(get);
        let free = all.iter().flatten().all(|at| at.number() == Some(0.0));
        if free && !local {
            self.notes.add(&cost.path, "is 0 throughout: taken as not known; write a [[price]]");
            return;
        }
        let [input, output, cached, written] = all;
        if let Some(written) = written.filter(|at| at.number() != Some(0.0)) {
            self.notes
                .add(&written.path, "left out: what is written to a cache costs as input does");
        }
        self.draft.price(&link, 1.0, [input, output, cached], self.notes);
    }

    fn provider_upstream(&mut self, id: &str, at: &At<'_>) -> Option<Upstream> {
        let known = providers::find(id);
        let kind = match at.text("api") {
            Some("ollama") => "ollama",
            Some("openai-completions") => "openai",
            Some("openai-responses") => {
                self.notes
                    .add(&at.path, "speaks openai-responses: asked for chat completions instead");
                "openai"
            }
            None => known.map_or("openai", |known| known.kind),
            Some(_) => {
                let text = "speaks neither the OpenAI API nor Ollama's; left out";
                self.notes.add(&at.path, text);
                return None;
            }
        };
        let mut url = match at.get("baseUrl") {
            Some(at) => self.address(&at)?,
            None => match known.and_then(|known| known.url) {
                Some(url) => url.to_owned(),
                None => {
                    self.notes.add(&at.path, "has no baseUrl; left out: write an [[upstream]]");
                    return None;
                }
            },
        };
        if kind == "ollama"
            && let Some(short) = url.strip_suffix("/v1")
        {
            url = short.to_owned();
        }
        let mut settings = Vec::new();
        if let Some(time) = at.get("timeoutSeconds").and_then(|at| at.seconds(self.notes)) {
            settings.push(("total_timeout", time));
        }
        let num_ctx = if kind == "ollama" { self.num_ctx(at) } else { None };
        settings.extend(num_ctx.map(|num| ("num_ctx", num.to_string())));
        let key = match at.get("apiKey") {
            Some(at) => self.key(&at, kind),
            None => known.and_then(|k| k.key).map_or(KeyFrom::None, |key| KeyFrom::Env(key.into())),
        };
        let from = vec![at.path.clone()];
        Some(Upstream { name: id.to_owned(), kind, url, key, settings, from })
    }

    /// The context length that all models of a provider agree on.
    fn num_ctx(&mut self, provider: &At<'_>) -> Option<u64> {
        let models = provider.get("models").map(|at| at.list()).unwrap_or_default();
        let asked = models.iter().filter_map(|at| at.get("params")?.get("num_ctx"));
        let mut lengths: Vec<u64> = asked.filter_map(|at| at.count(16_777_216)).collect();
        lengths.sort_unstable();
        lengths.dedup();
        if lengths.len() > 1 {
            let text = "its models have different num_ctx, and an upstream has one; left out";
            self.notes.add(&provider.path, text);
            return None;
        }
        lengths.pop()
    }

    fn address(&mut self, at: &At<'_>) -> Option<String> {
        let Some(text) = self.filled(at.value.as_str().unwrap_or_default()) else {
            let text = "names a variable that is not set here; left out: set it while importing";
            self.notes.add(&at.path, text);
            return None;
        };
        match BaseUrl::parse(&text) {
            Ok(url) => Some(url.to_url()),
            Err((what, remedy)) => {
                self.notes.add(&at.path, format!("{what}; left out: {remedy}"));
                None
            }
        }
    }

    /// A text with its `${VARIABLE}`s filled in; nothing when one is not set.
    fn filled(&self, text: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after.split_once('}')?;
            out.push_str(before);
            out.push_str(&(self.env)(name)?);
            rest = after;
        }
        out.push_str(rest);
        Some(out)
    }

    /// The key for an upstream: a variable, a reference to a secret, or the key itself.
    fn key(&mut self, at: &At<'_>, kind: &str) -> KeyFrom {
        if let Some(text) = at.value.as_str() {
            return match Written::of(text) {
                Written::Variable(name) => KeyFrom::Env(name.to_owned()),
                Written::Nothing => KeyFrom::None,
                Written::Literal(_) if kind == "ollama" && text == "ollama-local" => KeyFrom::None,
                Written::Literal(text) => {
                    KeyFrom::Literal(Sha256::digest(text.trim().as_bytes()).into())
                }
            };
        }
        let id = at.text("id").unwrap_or_default();
        match at.text("source") {
            Some("env") if variable_fits(id) => KeyFrom::Env(id.to_owned()),
            _ => {
                let text = "is a reference to a secret that has no counterpart; write the key into a file \
                            and name it by api_key_file";
                self.notes.add(&at.path, text);
                KeyFrom::None
            }
        }
    }

    /// `agents.defaults`.
    fn defaults(&mut self, defaults: &At<'_>) {
        for (key, name) in [("model", "default"), ("imageModel", "image")] {
            if let Some(model) = defaults.get(key) {
                self.chain(name, &model);
            }
        }
        for (reference, at) in defaults.get("models").map(|at| at.entries()).unwrap_or_default() {
            if let Some(alias) = at.text("alias") {
                match self.link(reference, &at.path) {
                    Some(_) if self.draft.models.iter().any(|model| model.name == alias) => {
                        self.notes
                            .add(&at.path, "its alias is the name of a model already; left out");
                    }
                    Some(link) => self.named(alias, &at.path, vec![link]),
                    None => {}
                }
            }
            at.others(&["alias"], self.notes, "left out: set it in the client's requests");
        }
    }

    /// A model with its fallbacks, as text or as a table.
    fn chain(&mut self, name: &str, at: &At<'_>) {
        let mut chain = Vec::new();
        let primary = at.value.as_str().or_else(|| at.text("primary"));
        chain.extend(primary.and_then(|reference| self.link(reference, &at.path)));
        for entry in at.get("fallbacks").map(|at| at.list()).unwrap_or_default() {
            let reference = entry.value.as_str().unwrap_or_default();
            chain.extend(self.link(reference, &entry.path));
        }
        self.named(name, &at.path, chain);
    }

    fn named(&mut self, name: &str, path: &str, chain: Vec<Link>) {
        if !self.draft.model(name, path, chain) {
            self.notes.add(path, "has a name that is too long or has blanks at its ends; left out");
        }
    }

    /// `provider/model` as a link. A provider that the file does not describe is one of those that
    /// OpenClaw knows by itself.
    fn link(&mut self, reference: &str, path: &str) -> Option<Link> {
        let Some((id, model)) = reference.split_once('/').filter(|(_, m)| fits(m, MODEL_CHARS_MAX))
        else {
            self.notes
                .add(path, "holds a name without its provider; left out: write provider/model");
            return None;
        };
        if !self.names.iter().any(|(known, _)| known == id) {
            let upstream = providers::find(id).and_then(|provider| {
                let key = provider.key.map_or(KeyFrom::None, |key| KeyFrom::Env(key.to_owned()));
                let from = vec![path.to_owned()];
                let (name, url) = (id.to_owned(), provider.url?.to_owned());
                Some(Upstream { name, kind: provider.kind, url, key, settings: Vec::new(), from })
            });
            let name = upstream.map(|upstream| self.draft.upstream(upstream));
            self.names.push((id.to_owned(), name));
        }
        let name =
            self.names.iter().find(|(known, _)| known == id).and_then(|(_, name)| name.clone());
        let Some(upstream) = name else {
            self.notes
                .add(path, "names a provider that was not carried over; left out of the chain");
            return None;
        };
        let known = self.known.iter().find(|known| known.reference == reference);
        let images = known.is_none_or(|known| known.images);
        Some(Link { upstream, model: model.to_owned(), tools: true, images })
    }

    /// The port, the address and the token.
    fn gateway(&mut self, at: &At<'_>) {
        let auth = at.get("auth");
        for (name, key) in [("token", "token"), ("password", "password")] {
            let Some(at) = auth.as_ref().and_then(|auth| auth.get(key)) else { continue };
            let found = match at.value.as_str().map(Written::of) {
                Some(Written::Literal(text)) => Some(text.to_owned()),
                Some(Written::Variable(variable)) => (self.env)(variable),
                Some(Written::Nothing) => None,
                None => {
                    at.text("id").filter(|_| at.text("source") == Some("env")).and_then(self.env)
                }
            };
            client_key(name, &at, found.as_deref(), self.draft, self.notes);
        }
        let port = at.get("port").and_then(|at| at.count(65_535)).unwrap_or(18_789);
        let wide = match at.text("bind") {
            None | Some("loopback") => false,
            Some("lan") if !self.draft.keys.is_empty() => true,
            Some(_) => {
                let text =
                    "left out, so that it listens on loopback: set server.listen, with a [[key]]";
                self.notes.add(&format!("{}.bind", at.path), text);
                false
            }
        };
        let host = if wide { "0.0.0.0" } else { "127.0.0.1" };
        let why = "OpenClaw's own port: only one of the two can have it";
        self.draft.server.push(("listen", quoted(&format!("{host}:{port}")), why));
        if port == 18_790 {
            self.draft.ops.push(("listen", quoted("127.0.0.1:18791"), "18790 is taken above"));
        }
        at.others(&["auth", "port", "bind", "mode"], self.notes, NOT_OURS);
        if let Some(auth) = auth {
            auth.others(&["token", "password", "mode"], self.notes, NO_COUNTERPART);
        }
    }
}

/// What stands where a key is wanted.
enum Written<'a> {
    Variable(&'a str),
    Literal(&'a str),
    Nothing,
}

impl<'a> Written<'a> {
    /// `${NAME}`, the bare name of a variable in capitals, or the key itself.
    fn of(text: &'a str) -> Self {
        let text = text.trim();
        let braced = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        let upper = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        // Only what cannot be taken for a key itself, which must not be repeated.
        let bare = ENDS.iter().any(|end| text.ends_with(end)) && text.bytes().all(upper);
        match braced {
            Some(name) if variable_fits(name) => Written::Variable(name),
            None if bare && variable_fits(text) => Written::Variable(text),
            _ if text.is_empty() => Written::Nothing,
            _ => Written::Literal(text),
        }
    }
}
