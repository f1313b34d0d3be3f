//! Answers that we write ourselves, in the client's dialect: chunks, ends, whole answers.

use std::borrow::Cow;

use serde_json::Value;

use super::calls::Call;
use super::{Dialect, Reply, Route, Usage, json};

/// Content to be written. Texts are JSON strings, with their quotes.
#[derive(Debug, Default)]
pub(super) struct Content<'a> {
    /// What the model says.
    pub text: Option<Cow<'a, str>>,
    /// What it thinks.
    pub thinking: Option<Cow<'a, str>>,
    /// The tools that it calls.
    pub calls: Vec<Call>,
    /// An array, as both dialects have it.
    pub logprobs: Option<&'a str>,
}

impl Content<'_> {
    fn is_empty(&self) -> bool {
        self.text.is_none() && self.thinking.is_none() && self.calls.is_empty()
    }
}

/// How an answer ended.
#[derive(Debug, Default)]
pub(super) struct End<'a> {
    /// The upstream's reason, as a JSON string.
    pub reason: Option<&'a str>,
    /// At least one tool was called.
    pub called: bool,
    /// The tokens, if they are known.
    pub usage: Option<Usage>,
}

impl End<'_> {
    /// `finish_reason`, which OpenAI clients never miss: an agent without one loops.
    fn finish_reason(&self) -> &str {
        match self.reason {
            Some("\"length\"") => "\"length\"",
            _ if self.called => "\"tool_calls\"",
            None | Some("\"load\"" | "\"unload\"") => "\"stop\"",
            Some(other) => other,
        }
    }

    /// `done_reason`. Ollama ends with `stop` when tools are called.
    fn done_reason(&self) -> &str {
        match self.reason {
            None | Some("\"tool_calls\"" | "\"function_call\"") => "\"stop\"",
            Some(other) => other,
        }
    }

    /// Ollama's counts and durations, with a comma before each. We do not know how long the parts
    /// took: zero is what clients take for that. Counts that nobody told are left out.
    fn ollama_figures(&self) -> String {
        let (mut input, mut output) = (String::new(), String::new());
        if let Some(usage) = self.usage {
            input = format!(",\"prompt_eval_count\":{}", usage.input);
            output = format!(",\"eval_count\":{}", usage.output);
        }
        format!(
            ",\"total_duration\":0,\"load_duration\":0{input},\"prompt_eval_duration\":0{output},\
             \"eval_duration\":0"
        )
    }
}

/// OpenAI's usage object.
fn openai_usage(usage: Usage) -> String {
    let Usage { input, output, .. } = usage;
    let total = input.saturating_add(output);
    format!("{{\"prompt_tokens\":{input},\"completion_tokens\":{output},\"total_tokens\":{total}}}")
}

/// The end of every OpenAI stream.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

impl Reply {
    /// Writes a chunk with content. Before the first one of an OpenAI chat goes the role.
    pub(super) fn write_chunk(&mut self, content: &Content<'_>, out: &mut Vec<u8>) {
        self.write_role(out);
        if content.is_empty() {
            return;
        }
        let start = out.len();
        out.extend_from_slice(self.head());
        match self.route {
            Route::Completions => {
                put(out, "\"choices\":[{\"index\":0,\"text\":");
                put(out, content.text.as_deref().unwrap_or("\"\""));
                put(out, ",\"logprobs\":null,\"finish_reason\":null}]}\n\n");
            }
            Route::OllamaGenerate => {
                put(out, "\"response\":");
                put(out, content.text.as_deref().unwrap_or("\"\""));
                member(out, "thinking", content.thinking.as_deref());
                member(out, "logprobs", content.logprobs);
                put(out, ",\"done\":false}\n");
            }
            Route::OllamaChat => {
                put(out, "\"message\":");
                self.write_ollama_message(content, out);
                member(out, "logprobs", content.logprobs);
                put(out, ",\"done\":false}\n");
            }
            _ => {
                put(out, "\"choices\":[{\"index\":0,\"delta\":{");
                let start = out.len();
                member(out, "reasoning_content", content.thinking.as_deref());
                member(out, "content", content.text.as_deref());
                self.write_openai_calls(&content.calls, Some(self.calls_sent), out);
                self.calls_sent += content.calls.len();
                if out.len() > start {
                    // Each member came with a comma before it.
                    out.remove(start);
                }
                put(out, "},\"logprobs\":");
                openai_logprobs(content.logprobs, out);
                put(out, ",\"finish_reason\":null}]}\n\n");
            }
        }
        if self.route.dialect() == Dialect::Ollama {
            json::escape_line_ends(out, start);
        }
    }

    /// Writes all that follows the content: finish, usage when the client wants it, terminator.
    pub(super) fn write_end(&mut self, end: &End<'_>, out: &mut Vec<u8>) {
        self.write_role(out);
        out.extend_from_slice(self.head());
        match self.route {
            Route::OllamaGenerate | Route::OllamaChat => {
                put(
                    out,
                    match self.route {
                        Route::OllamaGenerate => "\"response\":\"\"",
                        _ => "\"message\":{\"role\":\"assistant\",\"content\":\"\"}",
                    },
                );
                put(out, ",\"done\":true,\"done_reason\":");
                put(out, end.done_reason());
                put(out, &end.ollama_figures());
                put(out, "}\n");
                return;
            }
            Route::Completions => {
                put(out, "\"choices\":[{\"index\":0,\"text\":\"\",\"logprobs\":null");
            }
            _ => put(out, "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null"),
        }
        put(out, ",\"finish_reason\":");
        put(out, end.finish_reason());
        put(out, "}]}\n\n");
        if let (true, Some(usage)) = (self.usage, end.usage) {
            out.extend_from_slice(self.head());
            put(out, "\"choices\":[],\"usage\":");
            put(out, &openai_usage(usage));
            put(out, "}\n\n");
        }
        out.extend_from_slice(DONE);
    }

    /// Writes a whole answer.
    pub(super) fn write_whole(&self, content: &Content<'_>, end: &End<'_>) -> Vec<u8> {
        let (model, created_at) = (&self.model, self.created_at());
        let mut out = Vec::new();
        match self.route {
            Route::OllamaGenerate | Route::OllamaChat => {
                put(&mut out, &format!("{{\"model\":{model},\"created_at\":\"{created_at}\","));
                if self.route == Route::OllamaGenerate {
                    put(&mut out, "\"response\":");
                    put(&mut out, content.text.as_deref().unwrap_or("\"\""));
                    member(&mut out, "thinking", content.thinking.as_deref());
                } else {
                    put(&mut out, "\"message\":");
                    self.write_ollama_message(content, &mut out);
                }
                member(&mut out, "logprobs", content.logprobs);
                put(&mut out, ",\"done\":true,\"done_reason\":");
                put(&mut out, end.done_reason());
                put(&mut out, &end.ollama_figures());
                put(&mut out, "}");
                return out;
            }
            Route::Completions => {
                self.write_whole_head("text_completion", &mut out);
                put(&mut out, "\"text\":");
                put(&mut out, content.text.as_deref().unwrap_or("\"\""));
                put(&mut out, ",\"logprobs\":null");
            }
            _ => {
                self.write_whole_head("chat.completion", &mut out);
                put(&mut out, "\"message\":{\"role\":\"assistant\",\"content\":");
                let nothing = if content.calls.is_empty() { "\"\"" } else { "null" };
                put(&mut out, content.text.as_deref().unwrap_or(nothing));
                member(&mut out, "reasoning_content", content.thinking.as_deref());
                self.write_openai_calls(&content.calls, None, &mut out);
                put(&mut out, "},\"logprobs\":");
                openai_logprobs(content.logprobs, &mut out);
            }
        }
        put(&mut out, ",\"finish_reason\":");
        put(&mut out, end.finish_reason());
        put(&mut out, "}]");
        let usage = end.usage.map(openai_usage);
        member(&mut out, "usage", usage.as_deref());
        put(&mut out, "}");
        out
    }

    fn write_whole_head(&self, object: &str, out: &mut Vec<u8>) {
        let (model, created) = (&self.model, self.created.as_secs());
        let id = json::string(&self.id);
        put(out, &format!("{{\"id\":{id},\"object\":\"{object}\",\"created\":{created},"));
        put(out, &format!("\"model\":{model},\"choices\":[{{\"index\":0,"));
    }

    /// The chunk with the role, once in a chat.
    fn write_role(&mut self, out: &mut Vec<u8>) {
        if self.route != Route::ChatCompletions || self.role_sent {
            return;
        }
        self.role_sent = true;
        out.extend_from_slice(self.head());
        put(out, "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},");
        put(out, "\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    }

    fn write_ollama_message(&self, content: &Content<'_>, out: &mut Vec<u8>) {
        put(out, "{\"role\":\"assistant\",\"content\":");
        put(out, content.text.as_deref().unwrap_or("\"\""));
        member(out, "thinking", content.thinking.as_deref());
        for (index, call) in content.calls.iter().enumerate() {
            put(out, if index == 0 { ",\"tool_calls\":[{" } else { ",{" });
            if let Some(id) = &call.id {
                put(out, "\"id\":");
                json::write_string(out, id);
                out.push(b',');
            }
            put(out, &format!("\"function\":{{\"index\":{index},\"name\":"));
            json::write_string(out, &call.name);
            put(out, ",\"arguments\":");
            put(out, &Value::Object(call.arguments.clone()).to_string());
            put(out, "}}");
            if index + 1 == content.calls.len() {
                out.push(b']');
            }
        }
        out.push(b'}');
    }

    /// The calls with a comma before them; in streams with their index, which goes on over the
    /// chunks. Each call has another id: the upstream's, or one made from the request's own.
    fn write_openai_calls(&self, calls: &[Call], first: Option<usize>, out: &mut Vec<u8>) {
        for (position, call) in calls.iter().enumerate() {
            let index = first.unwrap_or(0) + position;
            put(out, if position == 0 { ",\"tool_calls\":[{" } else { ",{" });
            if first.is_some() {
                put(out, &format!("\"index\":{index},"));
            }
            put(out, "\"id\":");
            match &call.id {
                Some(id) => json::write_string(out, id),
                None => json::write_string(out, &self.call_id(index)),
            }
            put(out, ",\"type\":\"function\",\"function\":{\"name\":");
            json::write_string(out, &call.name);
            put(out, ",\"arguments\":");
            json::write_string(out, &Value::Object(call.arguments.clone()).to_string());
            put(out, "}}");
            if position + 1 == calls.len() {
                out.push(b']');
            }
        }
    }

    /// An id for a call, at most 40 bytes: OpenAI refuses longer ones when they are sent back.
    fn call_id(&self, index: usize) -> String {
        let own = self.id.split_once('-').map_or(self.id.as_str(), |(_, own)| own);
        let start = own.len().saturating_sub(26);
        let own = own.get(start..).filter(|own| own.is_ascii()).unwrap_or_default();
        format!("call_{own}_{index}")
    }
}

fn openai_logprobs(logprobs: Option<&str>, out: &mut Vec<u8>) {
    match logprobs {
        Some(list) => {
            put(out, "{\"content\":");
            put(out, list);
            put(out, ",\"refusal\":null}");
        }
        None => put(out, "null"),
    }
}

/// Writes a member with a comma before it, if there is a value.
fn member(out: &mut Vec<u8>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        put(out, ",\"");
        put(out, name);
        put(out, "\":");
        put(out, value);
    }
}

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}
