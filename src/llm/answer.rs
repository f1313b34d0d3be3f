//! Whole answers, and what both whole answers and streams need to be translated.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::calls;
use super::seen::{self, Piece, Seen};
use super::write::{Content, DONE, End};
use super::{Ask, Dialect, Fault, Reply, Route, Stream, Usage, embeddings, json};

/// Turns a whole answer of the upstream (status 200) into the client's, and tells its tokens.
///
/// In the same dialect it is the upstream's own bytes with the model's name replaced.
///
/// # Errors
/// [`Fault::InBand`] for an error told with status 200; [`Fault::Malformed`] for what is not an
/// answer: not JSON, no choices, no vectors, not finished.
pub fn whole(
    reply: &Reply,
    ask: &Ask,
    upstream: Dialect,
    body: &[u8],
) -> Result<(Vec<u8>, Usage), Fault> {
    let text = utf8(body)?;
    let seen = finished(ask.route(), upstream, text)?;
    let usage = tokens(ask, &seen);
    if ask.route().dialect() == upstream {
        return Ok((with_model(text, &seen, &reply.model), usage));
    }
    if ask.route().embeds() {
        return Ok((embeddings::answer(reply, upstream, &seen)?, usage));
    }
    let (content, end) = translated(upstream, &seen)?;
    Ok((reply.write_whole(&content, &end), usage))
}

/// Turns a whole answer into the client's stream: for upstreams that do not stream although they
/// were asked to. A stream that was only called JSON is taken as what it is.
///
/// # Errors
/// As [`whole`].
pub fn whole_as_stream(
    reply: &mut Reply,
    ask: &Ask,
    upstream: Dialect,
    body: &[u8],
) -> Result<(Vec<u8>, Usage), Fault> {
    // What is copied from it must not end a line. Line ends can only stand between tokens.
    let flat: Vec<u8> =
        body.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect();
    let text = utf8(&flat)?.trim_ascii();
    let seen = match finished(ask.route(), upstream, text) {
        Ok(seen) => seen,
        Err(fault @ Fault::Malformed(_)) => {
            return stream_called_whole(reply, ask, upstream, body).ok_or(fault);
        }
        Err(fault) => return Err(fault),
    };
    let usage = tokens(ask, &seen);
    let mut out = Vec::new();
    match (ask.route().dialect(), upstream) {
        (Dialect::Ollama, Dialect::Ollama) => {
            // A whole answer is what the last line of a stream is.
            out = with_model(text, &seen, &reply.model);
            json::escape_line_ends(&mut out, 0);
            out.push(b'\n');
        }
        (Dialect::OpenAi, Dialect::OpenAi) => choices_as_stream(reply, text, &mut out)?,
        _ => {
            let (content, end) = translated(upstream, &seen)?;
            reply.write_chunk(&content, &mut out);
            reply.write_end(&end, &mut out);
        }
    }
    Ok((out, usage))
}

/// The client's stream, when the body is a whole stream of the upstream's.
fn stream_called_whole(
    reply: &mut Reply,
    ask: &Ask,
    upstream: Dialect,
    body: &[u8],
) -> Option<(Vec<u8>, Usage)> {
    let (role_sent, calls_sent) = (reply.role_sent, reply.calls_sent);
    let mut stream = Stream::new(reply, ask, upstream, body.len());
    let mut out = Vec::new();
    let fed = stream.feed(reply, body, &mut out);
    match fed.and_then(|_| stream.end(reply, &mut out)) {
        Ok(()) => Some((out, stream.tokens())),
        Err(_) => {
            // Nothing was sent: the next attempt begins anew.
            (reply.role_sent, reply.calls_sent) = (role_sent, calls_sent);
            None
        }
    }
}

/// As the upstream told them, else by estimate.
fn tokens(ask: &Ask, seen: &Seen<'_>) -> Usage {
    let content = if ask.route().embeds() { 0 } else { seen.weight };
    Usage::or_estimate(seen.usage, ask.prompt_bytes(), content)
}

fn utf8(body: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(body).map_err(|_| Fault::Malformed("the answer is not UTF-8".to_owned()))
}

/// Looks at a whole answer and makes sure that it is one.
pub(super) fn finished(route: Route, upstream: Dialect, text: &str) -> Result<Seen<'_>, Fault> {
    let mut seen = seen::look(upstream, text)?;
    if let Some(error) = seen.error.take() {
        return Err(error);
    }
    let malformed = |what: &str| Err(Fault::Malformed(what.to_owned()));
    match upstream {
        Dialect::OpenAi if route.embeds() && seen.vectors.is_none() => malformed("no data"),
        Dialect::OpenAi if !route.embeds() && seen.choices == 0 => malformed("no choices"),
        _ if !seen.answers => malformed("no answer in it"),
        Dialect::Ollama if !route.embeds() && !seen.done => malformed("not done"),
        _ => Ok(seen),
    }
}

pub(super) fn with_model(text: &str, seen: &Seen<'_>, model: &str) -> Vec<u8> {
    match seen.model.clone().filter(|at| text.get(at.clone()) != Some(model)) {
        Some(at) => [&text[..at.start], model, &text[at.end..]].concat().into_bytes(),
        None => text.as_bytes().to_vec(),
    }
}

/// The content of a whole answer and how it ended.
fn translated<'a>(upstream: Dialect, seen: &Seen<'a>) -> Result<(Content<'a>, End<'a>), Fault> {
    let mut piece = seen.piece;
    let calls = match (upstream, piece.calls) {
        (Dialect::OpenAi, Some(text)) => {
            piece.calls = None;
            calls::from_openai(text)?
        }
        _ => Vec::new(),
    };
    let mut content = content(upstream, &piece)?;
    content.calls.extend(calls);
    let called = !content.calls.is_empty();
    Ok((content, End { reason: seen.finish, called, usage: seen.usage }))
}

/// What a piece of an answer says, for writing it in the other dialect. Fragments of OpenAI calls
/// must have been taken out.
pub(super) fn content<'a>(upstream: Dialect, piece: &Piece<'a>) -> Result<Content<'a>, Fault> {
    let mut content = Content {
        text: piece.text.or(piece.refusal).map(Cow::Borrowed),
        thinking: piece.thinking.map(Cow::Borrowed),
        calls: Vec::new(),
        logprobs: piece.logprobs,
    };
    if let Some(parts) = piece.parts {
        let parts: Value =
            json::read(parts).map_err(|error| Fault::Malformed(format!("content: {error}")))?;
        let (mut text, mut thinking) = (String::new(), String::new());
        collect(&parts, false, &mut text, &mut thinking, 0);
        content.text =
            Some(text).filter(|text| !text.is_empty()).map(|text| json::string(&text).into());
        if !thinking.is_empty() {
            content.thinking = Some(json::string(&thinking).into());
        }
    }
    if let (Dialect::Ollama, Some(calls)) = (upstream, piece.calls) {
        content.calls = calls::from_ollama(calls)?;
    }
    Ok(content)
}

/// Collects the texts of content in parts; thinking may hold parts of its own.
fn collect(value: &Value, thought: bool, text: &mut String, thinking: &mut String, depth: u32) {
    if depth > 4 {
        return;
    }
    match value {
        Value::String(part) => if thought { thinking } else { text }.push_str(part),
        Value::Array(parts) => {
            for part in parts {
                collect(part, thought, text, thinking, depth + 1);
            }
        }
        Value::Object(part) => {
            for (name, inner) in part {
                match name.as_str() {
                    "text" | "refusal" => collect(inner, thought, text, thinking, depth + 1),
                    "thinking" => collect(inner, true, text, thinking, depth + 1),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// An OpenAI answer, as much of it as becomes chunks.
#[derive(Deserialize)]
struct OpenAiWhole<'a> {
    #[serde(borrow)]
    choices: Vec<OpenAiChoice<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OpenAiChoice<'a> {
    index: Option<u64>,
    message: Option<Value>,
    text: Option<Value>,
    #[serde(borrow)]
    logprobs: Option<&'a RawValue>,
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

/// A whole OpenAI answer as a stream: for each choice a chunk with all its content and one with its
/// end, then the usage when the client wants it.
fn choices_as_stream(reply: &mut Reply, text: &str, out: &mut Vec<u8>) -> Result<(), Fault> {
    let whole: OpenAiWhole<'_> = serde_json::from_str(text)
        .map_err(|error| Fault::Malformed(format!("not a completion: {error}")))?;
    let raw = |value: Option<&RawValue>| value.map_or("null", RawValue::get).to_owned();
    for (position, choice) in (0..).zip(whole.choices) {
        let index = choice.index.unwrap_or(position);
        let (content, nothing) = match (choice.message, choice.text) {
            (Some(mut message), _) => {
                let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
                for (index, call) in calls.into_iter().flatten().enumerate() {
                    if let Value::Object(call) = call {
                        call.insert("index".to_owned(), index.into());
                    }
                }
                (format!("\"delta\":{message}"), "\"delta\":{}")
            }
            (None, text) => {
                let text = text.unwrap_or_else(|| "".into());
                (format!("\"text\":{text}"), "\"text\":\"\"")
            }
        };
        let logprobs = raw(choice.logprobs);
        let reason = match choice.finish_reason {
            Some(reason) if reason.get() != "null" => reason.get(),
            _ => "\"stop\"",
        };
        for (content, logprobs, reason) in
            [(content.as_str(), logprobs.as_str(), "null"), (nothing, "null", reason)]
        {
            out.extend_from_slice(reply.head());
            let rest = format!(
                "\"choices\":[{{\"index\":{index},{content},\"logprobs\":{logprobs},\
                 \"finish_reason\":{reason}}}]}}\n\n"
            );
            out.extend_from_slice(rest.as_bytes());
        }
    }
    if reply.usage
        && let Some(usage) = whole.usage
        && usage.get() != "null"
    {
        out.extend_from_slice(reply.head());
        out.extend_from_slice(format!("\"choices\":[],\"usage\":{usage}}}\n\n").as_bytes());
    }
    reply.role_sent = true;
    out.extend_from_slice(DONE);
    Ok(())
}

/// Largest error body that is read as JSON, in bytes. A longer one is no error message.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// Longest excerpt of an error body that we do not understand, in bytes.
const EXCERPT_BYTES_MAX: usize = 200;

/// Longest sentence taken out of an error body, in bytes.
const MESSAGE_BYTES_MAX: usize = 400;

/// The sentence inside an upstream's error body: of an OpenAI error object, an Ollama string, a
/// vLLM, FastAPI or problem+json document; else a short excerpt. On one line and printable; empty
/// for an empty body.
pub fn upstream_message(body: &[u8]) -> String {
    let start = body.get(..ERROR_BODY_BYTES_MAX).unwrap_or(body);
    let text = String::from_utf8_lossy(start);
    let told = match serde_json::from_str::<Value>(&text) {
        Ok(value) if body.len() == start.len() => sentence(&value, 0),
        _ => None,
    };
    match told {
        Some(told) => seen::printable(&told, MESSAGE_BYTES_MAX),
        None => seen::printable(&text, EXCERPT_BYTES_MAX),
    }
}

fn sentence(value: &Value, depth: u32) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        // FastAPI lists what is wrong with a request.
        Value::Array(items) if depth < 3 => items.iter().find_map(|item| sentence(item, depth + 1)),
        Value::Object(members) if depth < 3 => {
            let names = ["error", "message", "detail", "msg", "title", "error_description"];
            names.into_iter().find_map(|name| sentence(members.get(name)?, depth + 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
