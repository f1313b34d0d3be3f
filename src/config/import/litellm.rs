//! LiteLLM's `config.yaml`: `model_list`, its fallbacks, timeouts, limits and prices.

use sha2::{Digest, Sha256};

use super::draft::{Draft, Key, KeyFrom, Link, MODEL_CHARS_MAX, Upstream};
use super::notes::Notes;
use super::providers::{self, Provider};
use super::read::{At, Env, fits, quoted};
use crate::config::settings::BaseUrl;
use serde_json::Value;

/// What stands before the name of a variable.
const VARIABLE: &str = "os.environ/";
/// Keys that are none: local servers want one to be set.
const NO_KEYS: [&str; 9] =
    ["", "none", "None", "EMPTY", "empty", "dummy", "not-needed", "no-key", "ollama"];
/// What a deployment may be for; other modes have no route here.
const MODES: [&str; 4] = ["chat", "completion", "embedding", "responses"];
const NO_COUNTERPART: &str = "has no counterpart; left out";

/// What is known of `litellm_params`: carried over, or told of by itself.
const PARAMS: [&str; 21] = [
    "model",
    "api_base",
    "base_url",
    "api_key",
    "custom_llm_provider",
    "rpm",
    "tpm",
    "order",
    "max_parallel_requests",
    "timeout",
    "stream_timeout",
    "num_ctx",
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "weight",
    "max_retries",
    "num_retries",
    "temperature",
    "max_tokens",
    "top_p",
];
const INFO: [&str; 8] = [
    "mode",
    "supports_function_calling",
    "supports_vision",
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "id",
    "description",
];

/// All deployments of one name.
struct Group {
    name: String,
    path: String,
    /// With the order that the file gives them.
    links: Vec<(i64, Link)>,
}

/// Reads a file.
pub(super) fn import(
    tree: &Value,
    env: Env<'_>,
    draft: &mut Draft,
    notes: &mut Notes,
) -> Result<(), String> {
    let root = At::root(tree);
    let Some(list) = root.get("model_list").filter(|at| at.value.is_array()) else {
        return Err("has no model_list; is it LiteLLM's configuration?".to_owned());
    };
    let common = common(&root, draft, notes);
    let mut groups: Vec<Group> = Vec::new();
    for at in list.list() {
        let Some((name, order, link)) = deployment(&at, &common, env, draft, notes) else {
            continue;
        };
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.links.push((order, link)),
            None => groups.push(Group { name, path: at.path, links: vec![(order, link)] }),
        }
    }
    for group in &mut groups {
        group.links.sort_by_key(|(order, _)| *order);
        if group.links.len() > 1 {
            let text = "several deployments of one name: asked in this order, not by turns";
            notes.add(&group.path, text);
        }
    }
    chains(&root, &groups, draft, notes);
    aliases(&root, draft, notes);
    if let Some(general) = root.get("general_settings") {
        if let Some(at) = general.get("master_key") {
            master_key(&at, env, draft, notes);
        }
        general_rest(&general, notes);
    }
    let known = ["model_list", "litellm_settings", "router_settings", "general_settings"];
    for (key, at) in root.entries().iter().filter(|(key, _)| !known.contains(key)) {
        notes.add(
            &at.path,
            match *key {
                "environment_variables" => "left out: set them for the daemon, in its unit",
                "include" => "left out: other files are not followed; import each of them",
                "mcp_servers" | "guardrails" | "search_tools" => {
                    "is no part of this gateway; left out"
                }
                _ => NO_COUNTERPART,
            },
        );
    }
    draft.server.push(("listen", quoted("127.0.0.1:18789"), "LiteLLM's own default is port 4000"));
    Ok(())
}

/// Settings that hold for every upstream; those of the server go into the draft.
fn common(root: &At<'_>, draft: &mut Draft, notes: &mut Notes) -> Vec<(&'static str, String)> {
    let mut common = Vec::new();
    let litellm = root.get("litellm_settings");
    let router = root.get("router_settings");
    let find = |key: &str, router_key: &str| {
        let ours = litellm.as_ref().and_then(|at| at.get(key));
        ours.or_else(|| router.as_ref().and_then(|at| at.get(router_key)))
    };
    if let Some(timeout) = find("request_timeout", "timeout").and_then(|at| at.seconds(notes)) {
        draft.server.push(("request_timeout", timeout, "of a request with all its fallbacks"));
    }
    if let Some(at) = find("allowed_fails", "allowed_fails") {
        match at.number().filter(|n| (0.0..100_000.0).contains(n) && n.fract() == 0.0) {
            Some(fails) => common.push(("breaker_failures_max", format!("{}", fails + 1.0))),
            None => notes.add(&at.path, "is no count; left out"),
        }
    }
    if let Some(at) = find("cooldown_time", "cooldown_time")
        && let Some(time) = at.seconds(notes)
    {
        if at.number().is_some_and(|seconds| seconds > 300.0) {
            common.push(("breaker_open_time_max", time.clone()));
        }
        common.push(("breaker_open_time", time));
    }
    for section in [&litellm, &router].into_iter().flatten() {
        for (key, at) in section.entries() {
            if let Some(text) = section_rest(key) {
                notes.add(&at.path, text);
            }
        }
    }
    common
}

/// What is told of a key of `litellm_settings` and `router_settings`; nothing of what is carried over.
fn section_rest(key: &str) -> Option<&'static str> {
    Some(match key {
        "request_timeout" | "timeout" | "allowed_fails" | "cooldown_time" | "fallbacks"
        | "default_fallbacks" | "model_group_alias" => return None,
        "context_window_fallbacks" | "content_policy_fallbacks" => {
            "left out: a request that its model refuses is the client's to change; give clients the name \
             of the other model"
        }
        "num_retries" | "max_retries" | "retry_after" | "retry_policy" => {
            "left out: a failure moves on along the chain, and a connection that broke before any byte \
             is tried once more; nothing needs to be set"
        }
        "cache" | "cache_params" | "cache_responses" => {
            "left out: embeddings are kept anyway ([cache]); for chat set cache = \"10m\" in a [[model]]"
        }
        "success_callback" | "failure_callback" | "callbacks" | "service_callback"
        | "service_callbacks" => "left out: see /metrics, /usage and the access lines of the log",
        "set_verbose" | "json_logs" | "verbose" | "debug_level" => {
            "left out: set log.level and log.format"
        }
        "drop_params" | "modify_params" | "additional_drop_params" => {
            "left out: fields that an upstream does not know are passed through or refused by it"
        }
        "redis_host" | "redis_port" | "redis_password" | "redis_url" | "redis_username" => {
            "left out: one instance needs no Redis"
        }
        "routing_strategy" | "routing_strategy_args" => {
            "left out: the deployments of a name are asked in their order"
        }
        "enable_pre_call_checks" => {
            "left out: a link that cannot carry a request is skipped anyway"
        }
        "ssl_verify" => {
            "left out: certificates are always checked; set ca_file in the [[upstream]]"
        }
        _ => NO_COUNTERPART,
    })
}

fn general_rest(general: &At<'_>, notes: &mut Notes) {
    for (key, at) in general.entries() {
        notes.add(
            &at.path,
            match key {
                "master_key" => continue,
                "database_url" | "store_model_in_db" | "database_connection_pool_limit" => {
                    "left out: there is no database of keys and models; write [[key]] and [[model]]"
                }
                "alerting" | "alerting_threshold" | "alerting_args" | "alert_types" => {
                    "left out: alerts have settings of their own, see tidegate.toml(5)"
                }
                "background_health_checks" | "health_check_interval" => {
                    "left out: health is told by the calls themselves; nothing is spent on probes"
                }
                "max_parallel_requests" | "global_max_parallel_requests" => {
                    "left out: set server.exchanges_max, or concurrency_max of an [[upstream]]"
                }
                _ => NO_COUNTERPART,
            },
        );
    }
}

/// One entry of `model_list`: its name, its order, and the link that it becomes.
fn deployment(
    at: &At<'_>,
    common: &[(&'static str, String)],
    env: Env<'_>,
    draft: &mut Draft,
    notes: &mut Notes,
) -> Option<(String, i64, Link)> {
    let params = at.get("litellm_params");
    let (Some(name), Some(params)) = (at.text("model_name"), params) else {
        notes.add(&at.path, "has no model_name or no litellm_params; left out");
        return None;
    };
    let Some(full) = params.text("model") else {
        notes.add(&params.path, "has no model; left out");
        return None;
    };
    let info = at.get("model_info");
    if let Some(mode) = info.as_ref().and_then(|info| info.text("mode"))
        && !MODES.contains(&mode)
    {
        notes.add(&at.path, "is for images, audio or ranking, which have no route here; left out");
        return None;
    }
    let (provider, model) = split(full, &params);
    let (provider_name, found) = provider_of(provider, &params, notes)?;
    let url = address(&params, found, env, notes)?;
    let mut upstream = Upstream {
        name: provider_name.strip_suffix("_chat").unwrap_or(provider_name).to_owned(),
        kind: found.kind,
        url,
        key: upstream_key(&params, found),
        settings: common.to_vec(),
        from: vec![at.path.clone()],
    };
    own_settings(at, &params, &mut upstream, notes);
    told(at, &params, info.as_ref(), notes);
    let upstream = draft.upstream(upstream);
    let wild = name.contains('*') || model.contains('*');
    if wild {
        let text =
            format!("stands for many models: clients ask for {upstream}/MODEL, without an entry");
        notes.add(&at.path, text);
        return None;
    }
    if !fits(name, MODEL_CHARS_MAX) || !fits(model, MODEL_CHARS_MAX) {
        notes.add(&at.path, "has a name that is too long or holds blanks at its ends; left out");
        return None;
    }
    let can = |key: &str| {
        info.as_ref()
            .and_then(|info| info.get(key))
            .is_none_or(|at| at.value != &Value::Bool(false))
    };
    let link = Link {
        upstream,
        model: model.to_owned(),
        tools: can("supports_function_calling"),
        images: can("supports_vision"),
    };
    let price = |key: &str| params.get(key).or_else(|| info.as_ref()?.get(key));
    let costs = ["input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost"];
    draft.price(&link, 1e6, costs.map(price), notes);
    #[expect(clippy::cast_possible_truncation, reason = "an order; a cast saturates")]
    let order = params.get("order").and_then(|at| at.number()).unwrap_or(1.0) as i64;
    Some((name.to_owned(), order, link))
}

/// `provider/model`; without a provider, the one that such a model's name tells.
fn split<'a>(full: &'a str, params: &At<'a>) -> (&'a str, &'a str) {
    if let Some(provider) = params.text("custom_llm_provider") {
        return (
            provider,
            full.strip_prefix(provider).and_then(|m| m.strip_prefix('/')).unwrap_or(full),
        );
    }
    match full.split_once('/') {
        Some((provider, model)) => (provider, model),
        None if full.starts_with("claude") => ("anthropic", full),
        None if full.starts_with("gemini") => ("gemini", full),
        None => ("openai", full),
    }
}

fn provider_of<'a>(
    name: &'a str,
    params: &At<'_>,
    notes: &mut Notes,
) -> Option<(&'a str, Provider)> {
    if let Some(provider) = providers::find(name) {
        return Some((name, provider));
    }
    let based = params.get("api_base").or_else(|| params.get("base_url")).is_some();
    if providers::speaks_something_else(name) || !based {
        let text = "its provider speaks neither the OpenAI API nor Ollama's, or its address is not known; \
                    left out: name an address that does, as an [[upstream]] of kind openai";
        notes.add(&params.path, text);
        return None;
    }
    notes.add(&params.path, "its provider is not known here: taken to speak the OpenAI API");
    Some((name, Provider { kind: "openai", url: None, key: None }))
}

/// Where it is; a note when that cannot be told.
fn address(params: &At<'_>, found: Provider, env: Env<'_>, notes: &mut Notes) -> Option<String> {
    let at = params.get("api_base").or_else(|| params.get("base_url"));
    let Some(at) = at else {
        let Some(url) = found.url else {
            notes
                .add(&params.path, "has no api_base; left out: write an [[upstream]] with its url");
            return None;
        };
        return Some(url.to_owned());
    };
    let written = at.value.as_str().unwrap_or_default();
    let text = match written.strip_prefix(VARIABLE) {
        Some(variable) => match env(variable) {
            Some(value) => value,
            None => {
                let text =
                    "names a variable that is not set here; left out: set it while importing";
                notes.add(&at.path, text);
                return None;
            }
        },
        None => written.to_owned(),
    };
    match BaseUrl::parse(&text) {
        Ok(url) => Some(url.to_url()),
        Err((what, remedy)) => {
            notes.add(&at.path, format!("{what}; left out: {remedy}"));
            None
        }
    }
}

fn upstream_key(params: &At<'_>, found: Provider) -> KeyFrom {
    let own = |variable: &str| KeyFrom::Env(variable.to_owned());
    match params.text("api_key") {
        None => found.key.map_or(KeyFrom::None, own),
        Some(text) => match text.strip_prefix(VARIABLE) {
            Some(variable) if variable_fits(variable) => own(variable),
            Some(_) => KeyFrom::None,
            None if NO_KEYS.contains(&text.trim()) => KeyFrom::None,
            None => KeyFrom::Literal(Sha256::digest(text.trim().as_bytes()).into()),
        },
    }
}

/// Whether a text can be a variable's name.
pub(super) fn variable_fits(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Limits and times of this deployment: they make it an upstream of its own.
fn own_settings(at: &At<'_>, params: &At<'_>, upstream: &mut Upstream, notes: &mut Notes) {
    let mut count = |key: &str, ours: &'static str, max: u64| {
        let Some(found) = params.get(key).or_else(|| at.get(key)) else { return };
        match found.count(max) {
            Some(number) => upstream.settings.push((ours, number.to_string())),
            None => notes.add(&found.path, "is no count from 1 on; left out"),
        }
    };
    count("rpm", "requests_per_minute", 100_000_000);
    count("tpm", "tokens_per_minute", 1_000_000_000_000);
    count("max_parallel_requests", "concurrency_max", 65_536);
    if upstream.kind == "ollama" {
        count("num_ctx", "num_ctx", 16_777_216);
    }
    for (key, ours) in [("timeout", "total_timeout"), ("stream_timeout", "first_token_timeout")] {
        if let Some(time) = params.get(key).and_then(|at| at.seconds(notes)) {
            upstream.settings.push((ours, time));
        }
    }
}

/// Tells what else is written about a deployment.
fn told(at: &At<'_>, params: &At<'_>, info: Option<&At<'_>>, notes: &mut Notes) {
    for (key, text) in [
        ("weight", "left out: the deployments of a name are asked in their order"),
        ("max_retries", "left out: a failure moves on along the chain"),
        ("num_retries", "left out: a failure moves on along the chain"),
        ("temperature", "left out: requests are passed on as they are; set it in the client"),
        ("max_tokens", "left out: requests are passed on as they are; set it in the client"),
        ("top_p", "left out: requests are passed on as they are; set it in the client"),
    ] {
        if let Some(at) = params.get(key) {
            notes.add(&at.path, text);
        }
    }
    if let Some(at) = params.get("api_key").filter(|at| {
        let variable = at.value.as_str().and_then(|text| text.strip_prefix(VARIABLE));
        !at.value.is_string() || variable.is_some_and(|variable| !variable_fits(variable))
    }) {
        notes.add(&at.path, "is neither a key nor a variable; left out: set api_key_env");
    }
    params.others(&PARAMS, notes, NO_COUNTERPART);
    at.others(&["model_name", "litellm_params", "model_info", "rpm", "tpm"], notes, NO_COUNTERPART);
    if let Some(info) = info {
        info.others(&INFO, notes, NO_COUNTERPART);
    }
}

/// The chain of each name: its own deployments, and then those of its fallbacks.
fn chains(root: &At<'_>, groups: &[Group], draft: &mut Draft, notes: &mut Notes) {
    let sections: Vec<At<'_>> =
        ["litellm_settings", "router_settings"].iter().filter_map(|key| root.get(key)).collect();
    let mut fallbacks: Vec<(&str, At<'_>)> = Vec::new();
    for section in &sections {
        for entry in section.get("fallbacks").map(|at| at.list()).unwrap_or_default() {
            fallbacks.extend(entry.entries());
        }
    }
    let defaults = sections.iter().find_map(|section| section.get("default_fallbacks"));
    let any =
        fallbacks.iter().find(|(name, _)| *name == "*").map(|(_, at)| at.clone()).or(defaults);
    for group in groups {
        let own = fallbacks.iter().find(|(name, _)| *name == group.name).map(|(_, at)| at.clone());
        let mut chain: Vec<Link> = group.links.iter().map(|(_, link)| link.clone()).collect();
        for entry in own.or(any.clone()).map(|at| at.list()).unwrap_or_default() {
            let wanted = entry.value.as_str().or_else(|| entry.text("model"));
            match groups.iter().find(|group| Some(group.name.as_str()) == wanted) {
                Some(group) => chain.extend(group.links.iter().map(|(_, link)| link.clone())),
                None => notes.add(&entry.path, "names no model that was carried over; left out"),
            }
        }
        draft.model(&group.name, &group.path, chain);
    }
    for (name, at) in &fallbacks {
        if *name != "*" && !groups.iter().any(|group| group.name == *name) {
            notes.add(&at.path, "is about no model that was carried over; left out");
        }
    }
}

/// Further names of models.
fn aliases(root: &At<'_>, draft: &mut Draft, notes: &mut Notes) {
    let Some(table) = root.get("router_settings").and_then(|at| at.get("model_group_alias")) else {
        return;
    };
    for (name, at) in table.entries() {
        let wanted = at.value.as_str().or_else(|| at.text("model"));
        let chain = draft.models.iter().find(|model| Some(model.name.as_str()) == wanted);
        let Some(chain) = chain.map(|model| model.chain.clone()) else {
            notes.add(&at.path, "names no model that was carried over; left out");
            continue;
        };
        if draft.models.iter().any(|model| model.name == name) {
            notes.add(&at.path, "is the name of a model already; left out");
        } else if !draft.model(name, &at.path, chain) {
            notes.add(&at.path, "is too long a name, or has blanks at its ends; left out");
        }
    }
}

fn master_key(at: &At<'_>, env: Env<'_>, draft: &mut Draft, notes: &mut Notes) {
    let written = at.value.as_str().unwrap_or_default();
    let key = match written.strip_prefix(VARIABLE) {
        Some(variable) => env(variable),
        None => Some(written.to_owned()),
    };
    client_key("master", at, key.as_deref(), draft, notes);
}

/// A key that clients show. Only its digest is kept.
pub(super) fn client_key(
    name: &'static str,
    at: &At<'_>,
    key: Option<&str>,
    draft: &mut Draft,
    notes: &mut Notes,
) {
    match key.map(str::trim).filter(|key| !key.is_empty()) {
        Some(key) => {
            let mut sha256 = String::with_capacity(64);
            for byte in Sha256::digest(key.as_bytes()) {
                sha256.push_str(&format!("{byte:02x}"));
            }
            draft.keys.push(Key { name, sha256, from: at.path.clone() });
        }
        None => {
            let text = "the key is not at hand, so there is no [[key]]: set its variable while importing, \
                        or make a new one with tidegate key";
            notes.add(&at.path, text);
        }
    }
}
