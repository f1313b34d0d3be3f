//! Ollama requests for an OpenAI upstream.

use serde_json::{Map, Value, json};

use crate::base::error::Result;
use crate::llm::ask::field;
use crate::llm::{Ask, Route};

use super::{Given, empty, unsupported};

/// Members that change nothing about the answer.
const HARMLESS: [&str; 3] = ["keep_alive", "truncate", "shift"];

/// `options` that OpenAI has as well, under the same name.
const OPTIONS: [&str; 6] =
    ["temperature", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty"];

pub(super) fn request(ask: &Ask, given: &mut Given) -> Result<(&'static str, Map<String, Value>)> {
    given.drop(&HARMLESS);
    let mut body = Map::new();
    let route = match ask.route() {
        Route::OllamaEmbed => {
            body.insert("input".to_owned(), texts(given.take("input"))?);
            embed(given, &mut body);
            Route::OpenAiEmbeddings
        }
        Route::OllamaEmbeddings => {
            body.insert("input".to_owned(), texts(given.take("prompt"))?);
            embed(given, &mut body);
            Route::OpenAiEmbeddings
        }
        Route::OllamaGenerate => generate(given, &mut body)?,
        _ => {
            let list = given.list("messages")?;
            if list.is_empty() {
                return Err(nothing("messages"));
            }
            body.insert("messages".to_owned(), messages(list)?.into());
            Route::ChatCompletions
        }
    };
    if ask.route().embeds() {
        given.take("options");
        return Ok((route.path(), body));
    }
    if route == Route::ChatCompletions {
        chat(given, &mut body)?;
    } else {
        let why = "needs a chat, and raw and suffix make this a completion; leave it out";
        for name in ["format", "logprobs", "images"] {
            given.refuse(name, why, empty)?;
        }
        given.drop(&["think", "top_logprobs"]);
    }
    sampling(given, &mut body)?;
    Ok((route.path(), body))
}

fn nothing(name: &str) -> crate::base::error::Error {
    unsupported(
        name,
        "without it an Ollama server loads or unloads the model; this upstream cannot",
    )
}

fn texts(input: Option<Value>) -> Result<Value> {
    match input {
        None => Err(nothing("input")),
        Some(text @ Value::String(_)) => Ok(text),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => Ok(items.into()),
        Some(_) => Err(field("input", "send a string or an array of strings")),
    }
}

fn embed(given: &mut Given, body: &mut Map<String, Value>) {
    given.carry("dimensions", body, "dimensions");
    body.insert("encoding_format".to_owned(), "float".into());
}

/// A generate request is a completion when its prompt goes to the model as it is, or has a suffix;
/// else the server would put it into the model's template, which is what a chat does.
fn generate(given: &mut Given, body: &mut Map<String, Value>) -> Result<Route> {
    // Members of chats, which generate does not have and Ollama passes over.
    given.drop(&["tools", "messages"]);
    given.refuse("template", "the upstream has its own; leave it out", empty)?;
    given.refuse(
        "context",
        "holds tokens of one model; send the conversation to /api/chat",
        empty,
    )?;
    let prompt = given.text("prompt")?.unwrap_or_default();
    let system = given.text("system")?.filter(|system| !system.is_empty());
    let suffix = given.text("suffix")?.filter(|suffix| !suffix.is_empty());
    let raw = given.take("raw") == Some(Value::Bool(true));
    if raw || suffix.is_some() {
        if system.is_some() {
            return Err(unsupported("system", "has no place in a raw prompt or one with a suffix"));
        }
        body.insert("prompt".to_owned(), prompt.into());
        if let Some(suffix) = suffix {
            body.insert("suffix".to_owned(), suffix.into());
        }
        return Ok(Route::Completions);
    }
    let images = given.list("images")?;
    if prompt.is_empty() && images.is_empty() {
        return Err(nothing("prompt"));
    }
    let mut messages = Vec::new();
    if let Some(system) = system {
        messages.push(json!({"role": "system", "content": system}));
    }
    let content = with_images(prompt, images, "images")?;
    messages.push(json!({"role": "user", "content": content}));
    body.insert("messages".to_owned(), messages.into());
    Ok(Route::ChatCompletions)
}

fn chat(given: &mut Given, body: &mut Map<String, Value>) -> Result<()> {
    let mut tools = given.list("tools")?;
    for tool in &mut tools {
        if let Value::Object(tool) = tool {
            tool.entry("type").or_insert_with(|| "function".into());
        }
    }
    if !tools.is_empty() {
        body.insert("tools".to_owned(), tools.into());
    }
    match given.take("format") {
        None => {}
        Some(Value::String(format)) if format.is_empty() => {}
        Some(Value::String(format)) if format == "json" => {
            body.insert("response_format".to_owned(), json!({"type": "json_object"}));
        }
        Some(schema @ Value::Object(_)) => {
            // Not marked strict: OpenAI takes only part of what schemas can say in that mode.
            let format =
                json!({"type": "json_schema", "json_schema": {"name": "format", "schema": schema}});
            body.insert("response_format".to_owned(), format);
        }
        Some(_) => return Err(field("format", "send \"json\" or a JSON schema")),
    }
    let effort = match given.take("think") {
        None => None,
        Some(Value::Bool(true)) => Some("medium".to_owned()),
        Some(Value::Bool(false)) => Some("none".to_owned()),
        Some(Value::String(level)) => Some(level),
        Some(_) => return Err(field("think", "send true, false or a level")),
    };
    if let Some(effort) = effort {
        body.insert("reasoning_effort".to_owned(), effort.into());
    }
    given.carry("logprobs", body, "logprobs");
    given.carry("top_logprobs", body, "top_logprobs");
    Ok(())
}

/// What comes from `options`.
fn sampling(given: &mut Given, body: &mut Map<String, Value>) -> Result<()> {
    let map = given.object("options")?;
    let mut options = Given { map, within: "options.".to_owned() };
    for name in OPTIONS {
        options.carry(name, body, name);
    }
    if let Some(limit) = options.take("num_predict")
        && limit.as_f64().is_some_and(|limit| limit > 0.0)
    {
        body.insert("max_tokens".to_owned(), limit);
    }
    Ok(())
}

fn messages(list: Vec<Value>) -> Result<Vec<Value>> {
    // Calls that have no result yet: id and function.
    let mut open: Vec<(String, String)> = Vec::new();
    let mut made = 0_usize;
    let mut messages = Vec::with_capacity(list.len());
    for (index, message) in list.into_iter().enumerate() {
        let at = |member: &str| format!("messages[{index}].{member}");
        let mut given = super::message(message, index)?;
        let Some(role) = given.text("role")? else {
            return Err(field(&at("role"), "is missing; send \"user\" or another role"));
        };
        let text = given.text("content")?.unwrap_or_default();
        let images = given.list("images")?;
        if !images.is_empty() && role != "user" {
            return Err(unsupported(&at("images"), "the upstream takes images from the user only"));
        }
        given.take("thinking");
        let mut message = Map::new();
        message.insert("role".to_owned(), role.as_str().into());
        let content = with_images(text, images, &at("images"))?;
        message.insert("content".to_owned(), content);
        let calls = given.list("tool_calls")?;
        let mut tool_calls = Vec::with_capacity(calls.len());
        for (position, call) in calls.into_iter().enumerate() {
            let name = at(&format!("tool_calls[{position}].function.name"));
            let Some(function) = call.pointer("/function/name").and_then(Value::as_str) else {
                return Err(field(&name, "is missing; send the function's name"));
            };
            let id = match call.get("id").and_then(Value::as_str) {
                Some(id) if !id.is_empty() => id.to_owned(),
                _ => {
                    made += 1;
                    format!("call_{made}")
                }
            };
            let arguments = match call.pointer("/function/arguments") {
                None | Some(Value::Null) => "{}".to_owned(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            tool_calls.push(json!({
                "id": id, "type": "function",
                "function": {"name": function, "arguments": arguments},
            }));
            open.push((id, function.to_owned()));
        }
        if !tool_calls.is_empty() {
            message.insert("tool_calls".to_owned(), tool_calls.into());
        }
        if role == "tool" {
            let id = given.text("tool_call_id")?.filter(|id| !id.is_empty());
            let tool = given.text("tool_name")?;
            let id = match id {
                Some(id) => {
                    open.retain(|(known, _)| *known != id);
                    id
                }
                None => {
                    let named = open.iter().position(|(_, name)| Some(name) == tool.as_ref());
                    let position = match tool {
                        Some(_) => named,
                        None => Some(0).filter(|_| !open.is_empty()),
                    };
                    let Some(position) = position else {
                        let why = "no call of it comes before; send the assistant's tool_calls";
                        return Err(field(&at("tool_name"), why));
                    };
                    open.remove(position).0
                }
            };
            message.insert("tool_call_id".to_owned(), id.into());
        }
        for (name, value) in given.map {
            if !value.is_null() {
                message.entry(name).or_insert(value);
            }
        }
        messages.push(message.into());
    }
    Ok(messages)
}

/// Content with images in parts; without any it stays a string.
fn with_images(text: String, images: Vec<Value>, name: &str) -> Result<Value> {
    if images.is_empty() {
        return Ok(text.into());
    }
    let mut parts = Vec::with_capacity(images.len() + 1);
    if !text.is_empty() {
        parts.push(json!({"type": "text", "text": text}));
    }
    for image in images {
        let Value::String(image) = image else {
            return Err(field(name, "send images as base64"));
        };
        let url = match image.starts_with("data:") {
            true => image,
            false => format!("data:{};base64,{image}", kind(&image)),
        };
        parts.push(json!({"type": "image_url", "image_url": {"url": url}}));
    }
    Ok(parts.into())
}

/// The media type of an image, told by the first bytes of its base64.
fn kind(base64: &str) -> &'static str {
    match base64 {
        png if png.starts_with("iVBORw0KGgo") => "image/png",
        gif if gif.starts_with("R0lGOD") => "image/gif",
        webp if webp.starts_with("UklGR") => "image/webp",
        _ => "image/jpeg",
    }
}
