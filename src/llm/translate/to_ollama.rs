//! OpenAI requests for an Ollama upstream.

use serde_json::{Map, Value, json};

use crate::base::error::Result;
use crate::llm::ask::field;
use crate::llm::{Ask, Route, calls};

use super::{Given, empty, unsupported};

/// Members that change nothing about the answer.
const HARMLESS: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "verbosity",
    "encoding_format",
];

/// Members that are `options` there, under the same name.
const OPTIONS: [&str; 7] =
    ["temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty"];

pub(super) fn request(
    ask: &Ask,
    given: &mut Given,
    num_ctx: Option<u64>,
) -> Result<(&'static str, Map<String, Value>)> {
    given.drop(&HARMLESS);
    let mut body = Map::new();
    let route = match ask.route() {
        Route::OpenAiEmbeddings => {
            embed(given, &mut body)?;
            Route::OllamaEmbed
        }
        Route::Completions => {
            completion(given, &mut body)?;
            Route::OllamaGenerate
        }
        _ => {
            chat(given, &mut body)?;
            Route::OllamaChat
        }
    };
    // Some clients that know Ollama send its own options along.
    let mut options = match given.take("options") {
        Some(Value::Object(options)) => options,
        _ => Map::new(),
    };
    if !ask.route().embeds() {
        sampling(given, &mut options)?;
    }
    if let (Some(num_ctx), None | Some(Value::Null)) = (num_ctx, options.get("num_ctx")) {
        options.insert("num_ctx".to_owned(), num_ctx.into());
    }
    if !options.is_empty() {
        body.insert("options".to_owned(), options.into());
    }
    Ok((route.path(), body))
}

fn embed(given: &mut Given, body: &mut Map<String, Value>) -> Result<()> {
    let input = given.take("input").unwrap_or_else(|| "".into());
    if let Value::Array(items) = &input
        && !items.iter().all(Value::is_string)
    {
        return Err(unsupported(
            "input",
            "token numbers mean something to one model only; send text",
        ));
    }
    body.insert("input".to_owned(), input);
    given.carry("dimensions", body, "dimensions");
    Ok(())
}

fn completion(given: &mut Given, body: &mut Map<String, Value>) -> Result<()> {
    let prompt = match given.take("prompt") {
        Some(Value::String(prompt)) => prompt,
        Some(Value::Array(mut items)) => match (items.pop(), items.is_empty()) {
            (Some(Value::String(prompt)), true) => prompt,
            (Some(Value::String(_)), false) => {
                return Err(unsupported("prompt", "the upstream takes one prompt; send a string"));
            }
            _ => {
                return Err(unsupported(
                    "prompt",
                    "token numbers mean something to one model only; send text",
                ));
            }
        },
        _ => return Err(field("prompt", "send a string")),
    };
    given.refuse("echo", "the upstream does not repeat the prompt", empty)?;
    given.refuse("best_of", "the upstream makes one answer", one)?;
    given.refuse("logprobs", "the upstream has them in chats only; leave it out", empty)?;
    body.insert("prompt".to_owned(), prompt.into());
    match given.text("suffix")?.filter(|suffix| !suffix.is_empty()) {
        // The model's template knows where a suffix goes: a raw prompt would leave it out.
        Some(suffix) => body.insert("suffix".to_owned(), suffix.into()),
        None => body.insert("raw".to_owned(), true.into()),
    };
    Ok(())
}

fn chat(given: &mut Given, body: &mut Map<String, Value>) -> Result<()> {
    let list = given.list("messages")?;
    body.insert("messages".to_owned(), messages(list)?.into());
    let older = "is the form before tools; send tools";
    given.refuse("functions", older, empty)?;
    given.refuse("function_call", older, |value| value == "none" || value == "auto")?;
    let tools = given.list("tools")?;
    let choice = given.take("tool_choice");
    match choice.as_ref().map(|choice| choice.as_str().unwrap_or("a function")) {
        None | Some("auto") => {}
        Some("none") => {}
        Some(_) => {
            let why = "the upstream cannot be made to call a tool; send auto or none";
            return Err(unsupported("tool_choice", why));
        }
    }
    if !tools.is_empty() && choice.is_none_or(|choice| choice != "none") {
        if given.take("parallel_tool_calls") == Some(Value::Bool(false)) {
            let why = "the upstream may call several tools at once; leave it out";
            return Err(unsupported("parallel_tool_calls", why));
        }
        body.insert("tools".to_owned(), tools.into());
    }
    given.take("parallel_tool_calls");
    if let Some(format) = given.take("response_format").map(format).transpose()?.flatten() {
        body.insert("format".to_owned(), format);
    }
    if let Some(effort) = given.text("reasoning_effort")? {
        let think = match effort.as_str() {
            "none" => false.into(),
            "minimal" => "low".into(),
            "xhigh" => "high".into(),
            _ => effort.into(),
        };
        body.insert("think".to_owned(), think);
    }
    given.carry("logprobs", body, "logprobs");
    given.carry("top_logprobs", body, "top_logprobs");
    given.refuse("audio", "the upstream answers with text only", empty)?;
    given.refuse("modalities", "the upstream answers with text only", |value| {
        *value == json!(["text"])
    })?;
    given.refuse("web_search_options", "the upstream does not search", |_| false)?;
    Ok(())
}

/// What becomes `options`.
fn sampling(given: &mut Given, options: &mut Map<String, Value>) -> Result<()> {
    given.refuse("n", "the upstream makes one answer; send 1", one)?;
    given.refuse("logit_bias", "the upstream cannot prefer tokens; leave it out", empty)?;
    for name in OPTIONS {
        given.carry(name, options, name);
    }
    given.carry("max_tokens", options, "num_predict");
    given.carry("max_completion_tokens", options, "num_predict");
    match given.take("stop") {
        None => {}
        Some(Value::String(stop)) => {
            options.insert("stop".to_owned(), json!([stop]));
        }
        Some(stop @ Value::Array(_)) => {
            options.insert("stop".to_owned(), stop);
        }
        Some(_) => return Err(field("stop", "send a string or an array of strings")),
    }
    Ok(())
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

/// `response_format` as `format`; `None` for plain text.
fn format(format: Value) -> Result<Option<Value>> {
    const NAME: &str = "response_format";
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some("json".into())),
        Some("json_schema") => match format.pointer("/json_schema/schema") {
            Some(schema @ Value::Object(_)) => Ok(Some(schema.clone())),
            _ => Err(field("response_format.json_schema.schema", "send a JSON schema")),
        },
        Some(_) => Err(unsupported(NAME, "the upstream has text, json_object and json_schema")),
        None => Err(field(NAME, "send an object with type")),
    }
}

fn messages(list: Vec<Value>) -> Result<Vec<Value>> {
    // The names of the functions that were called, by the id of the call.
    let mut called: Vec<(String, String)> = Vec::new();
    let mut messages = Vec::with_capacity(list.len());
    for (index, message) in list.into_iter().enumerate() {
        let at = |member: &str| format!("messages[{index}].{member}");
        let mut given = super::message(message, index)?;
        let mut message = Map::new();
        let role = match given.text("role")?.as_deref() {
            Some("developer") => "system".to_owned(),
            Some("function") => {
                return Err(unsupported(&at("role"), "is the form before tools; send \"tool\""));
            }
            Some(role) => role.to_owned(),
            None => return Err(field(&at("role"), "is missing; send \"user\" or another role")),
        };
        let (text, images) = content(given.take("content"), &at)?;
        message.insert("content".to_owned(), text.into());
        if !images.is_empty() {
            message.insert("images".to_owned(), images.into());
        }
        let thoughts = [given.take("reasoning_content"), given.take("reasoning")];
        if let Some(thinking) = thoughts.into_iter().flatten().find(Value::is_string) {
            message.insert("thinking".to_owned(), thinking);
        }
        given.refuse("function_call", "is the form before tools; send tool_calls", empty)?;
        given.refuse("audio", "the upstream knows text only", empty)?;
        if let Some(Value::Array(list)) = given.take("tool_calls") {
            let mut tool_calls = Vec::with_capacity(list.len());
            for (call, item) in list.iter().enumerate() {
                tool_calls.push(tool_call(item, &at(&format!("tool_calls[{call}]")), &mut called)?);
            }
            message.insert("tool_calls".to_owned(), tool_calls.into());
        }
        if role == "tool" {
            if let Some(id) = given.text("tool_call_id")? {
                let name = called.iter().rev().find(|(known, _)| *known == id);
                if let Some((_, name)) = name {
                    message.insert("tool_name".to_owned(), name.as_str().into());
                }
                message.insert("tool_call_id".to_owned(), id.into());
            }
            if let Some(name) = given.take("name").filter(Value::is_string) {
                message.entry("tool_name").or_insert(name);
            }
        }
        message.shift_insert(0, "role".to_owned(), role.into());
        for (name, value) in given.map {
            if !value.is_null() {
                message.entry(name).or_insert(value);
            }
        }
        messages.push(message.into());
    }
    Ok(messages)
}

fn tool_call(call: &Value, name: &str, called: &mut Vec<(String, String)>) -> Result<Value> {
    let Some(function) = call.pointer("/function/name").and_then(Value::as_str) else {
        return Err(field(
            &format!("{name}.function.name"),
            "is missing; send the function's name",
        ));
    };
    let arguments = match call.pointer("/function/arguments") {
        None | Some(Value::Null) => Some(Map::new()),
        Some(Value::String(text)) => calls::arguments(text),
        Some(Value::Object(members)) => Some(members.clone()),
        Some(_) => None,
    };
    let Some(arguments) = arguments else {
        let name = format!("{name}.function.arguments");
        return Err(field(&name, "send a JSON object as a string"));
    };
    let function_value = json!({"name": function, "arguments": arguments});
    match call.get("id").and_then(Value::as_str) {
        Some(id) => {
            called.push((id.to_owned(), function.to_owned()));
            Ok(json!({"id": id, "function": function_value}))
        }
        None => Ok(json!({"function": function_value})),
    }
}

/// The text and the images of a message's content.
fn content(content: Option<Value>, at: &impl Fn(&str) -> String) -> Result<(String, Vec<Value>)> {
    let parts = match content {
        None => return Ok((String::new(), Vec::new())),
        Some(Value::String(text)) => return Ok((text, Vec::new())),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(field(&at("content"), "send a string or an array of parts")),
    };
    let (mut text, mut images) = (String::new(), Vec::new());
    for (index, part) in parts.into_iter().enumerate() {
        let name = |member: &str| at(&format!("content[{index}]{member}"));
        let piece = match (part.get("type").and_then(Value::as_str), &part) {
            (None, Value::String(text)) => text.as_str(),
            (Some("text" | "refusal"), part) => {
                let text = part.get("text").or_else(|| part.get("refusal"));
                text.and_then(Value::as_str)
                    .ok_or_else(|| field(&name(".text"), "send a string"))?
            }
            (Some("image_url"), part) => {
                let url = part.get("image_url");
                let url = url.map(|url| url.get("url").unwrap_or(url)).and_then(Value::as_str);
                let url = url.ok_or_else(|| field(&name(".image_url.url"), "send a string"))?;
                images.push(image(url, &name(".image_url.url"))?.into());
                continue;
            }
            (Some(_), _) => {
                let why = "the upstream takes text and image_url only";
                return Err(unsupported(&name(".type"), why));
            }
            _ => return Err(field(&name(".type"), "is missing; send \"text\"")),
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(piece);
    }
    Ok((text, images))
}

/// The base64 of a `data:` URL.
fn image<'a>(url: &'a str, name: &str) -> Result<&'a str> {
    let why = "the upstream does not fetch images; send a data: URL with base64";
    let rest = url.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:"));
    let rest = rest.and(url.get(5..)).ok_or_else(|| unsupported(name, why))?;
    match rest.split_once(',') {
        Some((kind, data)) if kind.to_ascii_lowercase().ends_with(";base64") => Ok(data),
        _ => Err(unsupported(name, why)),
    }
}
