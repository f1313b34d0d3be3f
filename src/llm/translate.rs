//! Requests, from one dialect to the other.
//!
//! Nothing that changes what a request means is dropped in silence. Members that this table does
//! not name go to the upstream as they are: it may know them, and if it does not, what it does with
//! them is what it would have done without us.
//!
//! | OpenAI | Ollama | |
//! | --- | --- | --- |
//! | `chat/completions` | `chat` | both ways |
//! | `chat/completions` | `generate` | from Ollama: `system` and `prompt` become messages |
//! | `completions` | `generate` with `raw` | both ways: the prompt stays as it is |
//! | `completions` with `suffix` | `generate` with `suffix` | both ways |
//! | `embeddings` | `embed`, `embeddings` | both ways; texts only, token numbers are refused |
//! | `messages[].content` parts | `content`, `images` | texts are joined with a line feed; sound and files are refused |
//! | `image_url` with a `data:` URL | `images` | other URLs are refused: Ollama does not fetch |
//! | role `developer` | role `system` | |
//! | role `function`, `functions`, `function_call` | – | refused: the form before `tools` |
//! | `tool_calls[].function.arguments`, a string | an object | ids are made where Ollama has none |
//! | `tool_call_id` | `tool_name`, `tool_call_id` | matched with the calls before |
//! | `reasoning_content`, `reasoning` of past turns | `thinking` | from Ollama: dropped, OpenAI servers take it from nobody |
//! | `tools` | `tools` | `function.strict` goes along; Ollama does not enforce it |
//! | `tool_choice` | – | `auto`: dropped; `none`: the tools are left out; others: refused |
//! | `parallel_tool_calls: false` | – | refused |
//! | `response_format` | `format` | `json_object` and `"json"`, `json_schema` and a schema |
//! | `reasoning_effort` | `think` | `none` and `false`; `minimal` and `low`; `xhigh` and `high`; `true` becomes `medium` |
//! | `max_tokens`, `max_completion_tokens` | `options.num_predict` | -1 and -2, no limit: left out |
//! | `temperature`, `top_p`, `seed`, `stop`, `frequency_penalty`, `presence_penalty` | `options` | |
//! | `top_k`, `min_p` (extensions) | `options` | from Ollama: dropped, sampling hints |
//! | `logprobs`, `top_logprobs` | the same | chat and generate; the older form of `completions` is refused |
//! | `n` above 1, `best_of` above 1, `echo: true`, `logit_bias` | – | refused |
//! | `audio`, `modalities` other than text, `web_search_options` | – | refused |
//! | `stream_options` | – | kept here: it is about our own answer |
//! | `user`, `metadata`, `store`, `service_tier`, `safety_identifier`, `prompt_cache_key`, `prompt_cache_retention`, `prediction`, `verbosity` | – | dropped: accounting and hints |
//! | `encoding_format` | – | kept here: vectors are converted on the way back |
//! | `dimensions` | the same | both ways |
//! | – | `template`, `context` | refused |
//! | – | `keep_alive`, `truncate`, `shift` | dropped: care of the server's memory |
//! | – | other `options` | dropped: sampling hints and tuning of the server, `num_ctx` among them |

mod to_ollama;
mod to_openai;

use serde_json::{Map, Value};

use crate::base::error::{Error, Kind, Result};

use super::ask::field;
use super::{Ask, Dialect, Outgoing, json};

/// Translates a request into the other dialect.
pub(super) fn request(
    ask: &Ask,
    upstream: Dialect,
    model: &str,
    num_ctx: Option<u64>,
) -> Result<Outgoing> {
    let map = json::read(ask.text()).map_err(|error| {
        // The syntax was checked: what is left is a number that no computer holds.
        Error::new(Kind::InvalidJson, format!("body: {error}; send numbers that fit 64 bits"))
    })?;
    let mut given = Given { map, within: String::new() };
    given.take("model");
    given.take("stream");
    given.take("stream_options");
    let (path, mut body) = match upstream {
        Dialect::Ollama => to_ollama::request(ask, &mut given, num_ctx)?,
        Dialect::OpenAi => to_openai::request(ask, &mut given)?,
    };
    let mut whole = Map::new();
    whole.insert("model".to_owned(), model.into());
    whole.append(&mut body);
    if !ask.route().embeds() {
        whole.insert("stream".to_owned(), ask.stream().into());
        if ask.stream() && upstream == Dialect::OpenAi {
            let options = serde_json::json!({"include_usage": true});
            whole.insert("stream_options".to_owned(), options);
        }
    }
    for (name, value) in given.map {
        if !value.is_null() {
            whole.entry(name).or_insert(value);
        }
    }
    Ok(Outgoing { path, body: Value::Object(whole).to_string().into_bytes() })
}

/// The members of an object of a request that have not been dealt with yet.
struct Given {
    map: Map<String, Value>,
    /// Where the object stands, for errors: `""` or `"messages[3]."`.
    within: String,
}

impl Given {
    /// Takes a member out; null is as good as absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes out members that are not needed there.
    fn drop(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Refuses a member unless its value says nothing.
    fn refuse(
        &mut self,
        name: &str,
        why: &str,
        says_nothing: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        match self.take(name) {
            Some(value) if !says_nothing(&value) => Err(self.unsupported(name, why)),
            _ => Ok(()),
        }
    }

    /// The error for a member that is not what it should be.
    fn wrong(&self, name: &str, why: &str) -> Error {
        field(&format!("{}{name}", self.within), why)
    }

    /// The error for a member that the other dialect cannot say.
    fn unsupported(&self, name: &str, why: &str) -> Error {
        unsupported(&format!("{}{name}", self.within), why)
    }

    /// Takes a string out.
    fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "send a string")),
        }
    }

    /// Takes an array out; absent is empty.
    fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(self.wrong(name, "send an array")),
        }
    }

    /// Takes an object out; absent is empty.
    fn object(&mut self, name: &str) -> Result<Map<String, Value>> {
        match self.take(name) {
            None => Ok(Map::new()),
            Some(Value::Object(members)) => Ok(members),
            Some(_) => Err(self.wrong(name, "send an object")),
        }
    }

    /// Moves a member over, under another name.
    fn carry(&mut self, name: &str, to: &mut Map<String, Value>, as_name: &str) {
        if let Some(value) = self.take(name) {
            to.insert(as_name.to_owned(), value);
        }
    }
}

/// The members of a message.
fn message(value: Value, index: usize) -> Result<Given> {
    match value {
        Value::Object(map) => Ok(Given { map, within: format!("messages[{index}].") }),
        _ => Err(field(&format!("messages[{index}]"), "send an object")),
    }
}

/// A value that says the same as leaving it out.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is) => !is,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Number(_) => false,
    }
}

/// The error for what the other dialect cannot say.
fn unsupported(name: &str, why: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{name}: {why}"))
}

#[cfg(test)]
mod tests;
