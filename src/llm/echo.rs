//! The built-in upstream: it says the prompt back, word by word.
//!
//! It makes the bytes that a real upstream of the client's dialect would send, and they run through
//! [`super::Stream`] and [`super::whole`] like any others.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::write::{Content, End};
use super::{Ask, Dialect, Reply, Route, Usage, embeddings, json};

/// Longest piece of one event, in bytes. Text without blanks is cut there, so that no prompt makes
/// an event longer than any `stream_line_max`.
const WORD_BYTES_MAX: usize = 1024;

/// Components of a vector: as many as two digests have bytes.
const VECTOR_LENGTH: usize = 64;

/// One answer of the built-in upstream.
#[derive(Debug)]
pub struct Echo {
    reply: Reply,
    text: String,
    /// The texts of an embedding request.
    inputs: Vec<String>,
    dimensions: usize,
    at: usize,
    ended: bool,
}

impl Echo {
    /// An answer with a fixed id and time.
    pub fn new(ask: &Ask) -> Echo {
        Echo::at(ask, "chatcmpl-echo", UNIX_EPOCH)
    }

    /// An answer with this id and time.
    pub fn at(ask: &Ask, id: &str, created: SystemTime) -> Echo {
        // The body was checked; what serde_json does not hold (a number beyond 64 bits) leaves
        // nothing to say back.
        let body: Value = json::read(ask.text()).unwrap_or_default();
        let mut reply = Reply::new(ask, ask.model(), id, created);
        // As a real upstream does, which we always ask for it.
        reply.usage = true;
        let dimensions = body.get("dimensions").and_then(Value::as_u64);
        Echo {
            text: said(ask.route(), &body),
            inputs: inputs(ask.route(), &body),
            dimensions: dimensions
                .and_then(|given| usize::try_from(given).ok())
                .map_or(VECTOR_LENGTH, |given| given.clamp(1, VECTOR_LENGTH)),
            at: 0,
            ended: false,
            reply,
        }
    }

    /// What its bytes are to be read as.
    pub fn dialect(&self) -> Dialect {
        self.reply.route.dialect()
    }

    /// Appends the event with the next word. False when there is nothing more; the call before
    /// that wrote the end of the stream.
    pub fn next(&mut self, out: &mut Vec<u8>) -> bool {
        if self.ended {
            return false;
        }
        let rest = self.text.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            self.ended = true;
            let usage = Some(self.usage());
            self.reply.write_end(&End { usage, ..End::default() }, out);
            return true;
        }
        let word = word(rest);
        self.at += word.len();
        let text = Some(json::string(word).into());
        self.reply.write_chunk(&Content { text, ..Content::default() }, out);
        true
    }

    /// The whole answer.
    pub fn whole(&self) -> Vec<u8> {
        let Reply { model, route, .. } = &self.reply;
        let usage = self.usage();
        if !route.embeds() {
            let content =
                Content { text: Some(json::string(&self.text).into()), ..Content::default() };
            return self.reply.write_whole(&content, &End { usage: Some(usage), ..End::default() });
        }
        let vectors = self.inputs.iter().map(|text| vector(text, self.dimensions));
        let tokens = usage.input;
        let numbers = |vector: Vec<f32>| serde_json::to_string(&vector).unwrap_or_default();
        match route {
            Route::OpenAiEmbeddings => {
                let items: Vec<String> = vectors
                    .enumerate()
                    .map(|(index, vector)| {
                        let vector = match self.reply.base64 {
                            true => json::string(&embeddings::encode(&vector)),
                            false => numbers(vector),
                        };
                        format!(
                            "{{\"object\":\"embedding\",\"index\":{index},\"embedding\":{vector}}}"
                        )
                    })
                    .collect();
                format!(
                    "{{\"object\":\"list\",\"data\":[{}],\"model\":{model},\"usage\":\
                     {{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}",
                    items.join(",")
                )
            }
            Route::OllamaEmbed => {
                let vectors: Vec<String> = vectors.map(numbers).collect();
                format!(
                    "{{\"model\":{model},\"embeddings\":[{}],\"total_duration\":0,\
                     \"load_duration\":0,\"prompt_eval_count\":{tokens}}}",
                    vectors.join(",")
                )
            }
            _ => {
                let vector = vectors.map(numbers).next().unwrap_or_else(|| "[]".to_owned());
                format!("{{\"embedding\":{vector}}}")
            }
        }
        .into_bytes()
    }

    /// Words, there and back.
    fn usage(&self) -> Usage {
        let words = |text: &str| text.split_whitespace().count() as u64;
        let said = words(&self.text);
        let asked: u64 = self.inputs.iter().map(|text| words(text)).sum();
        Usage { input: said + asked, output: said, ..Usage::default() }
    }
}

/// The first word and the blanks after it, so that the pieces make the text again.
fn word(text: &str) -> &str {
    let start = text.find(|c: char| !c.is_whitespace()).unwrap_or(text.len());
    let after = text.get(start..).unwrap_or_default();
    let end = after.find(char::is_whitespace).map_or(text.len(), |end| start + end);
    let rest = text.get(end..).unwrap_or_default();
    let blanks = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
    match super::ask::clip(text, (end + blanks).min(WORD_BYTES_MAX)) {
        // No character is that long, but a loop must not depend on it.
        "" => text,
        word => word,
    }
}

/// What is said back: the last message of the user, or the prompt.
fn said(route: Route, body: &Value) -> String {
    match route {
        Route::ChatCompletions | Route::OllamaChat => {
            let messages = body.get("messages").and_then(Value::as_array);
            let mut messages = messages.into_iter().flatten().rev();
            let last =
                messages.find(|message| message.get("role").is_some_and(|role| role == "user"));
            last.and_then(|message| message.get("content")).map(text_of).unwrap_or_default()
        }
        Route::Completions | Route::OllamaGenerate => {
            body.get("prompt").map(text_of).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// The text of content that is a string, or parts.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.get("text").unwrap_or(part).as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// The texts to embed. Numbers of tokens are as good as any text here.
fn inputs(route: Route, body: &Value) -> Vec<String> {
    let input = match route {
        Route::OpenAiEmbeddings | Route::OllamaEmbed => body.get("input"),
        Route::OllamaEmbeddings => body.get("prompt"),
        _ => None,
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match input {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) if items.iter().all(Value::is_number) => {
            vec![Value::from(items.clone()).to_string()]
        }
        Some(Value::Array(items)) => items.iter().map(text).collect(),
        Some(other) => vec![text(other)],
    }
}

/// A vector of length 1 that follows from the text alone.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let digest = |half: u8| Sha256::new().chain_update([half]).chain_update(text).finalize();
    let (first, second) = (digest(0), digest(1));
    let bytes = first.iter().chain(second.iter());
    // Never zero, so that the length never is.
    let numbers: Vec<f32> = bytes.take(dimensions).map(|b| f32::from(*b) - 127.5).collect();
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    numbers.iter().map(|number| number / length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{Usage, whole};

    fn ask(route: Route, body: &str) -> Ask {
        Ask::parse(route, body.as_bytes().to_vec()).unwrap()
    }

    fn pieces(text: &str) -> Vec<&str> {
        let mut rest = text;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let piece = word(rest);
            pieces.push(piece);
            rest = &rest[piece.len()..];
        }
        pieces
    }

    #[test]
    fn words_make_the_text_again() {
        assert_eq!(pieces("a  bc\n d"), ["a  ", "bc\n ", "d"]);
        assert_eq!(pieces(" a "), [" a "]);
        assert_eq!(pieces("  "), ["  "]);
        let long = "é".repeat(WORD_BYTES_MAX);
        assert_eq!(pieces(&long).concat(), long);
        assert!(pieces(&long).iter().all(|piece| piece.len() <= WORD_BYTES_MAX));
    }

    #[test]
    fn the_last_message_of_the_user_is_said_back() {
        let said = |route, body: &str| {
            let ask = ask(route, body);
            let echo = Echo::new(&ask);
            let (out, usage) = whole(&echo.reply, &ask, echo.dialect(), &echo.whole()).unwrap();
            let out: Value = serde_json::from_slice(&out).unwrap();
            let text =
                ["/choices/0/message/content", "/choices/0/text", "/message/content", "/response"];
            let text = text.iter().find_map(|at| out.pointer(at)).unwrap();
            (text.as_str().unwrap().to_owned(), usage)
        };
        let two = Usage { input: 2, output: 2, ..Usage::default() };
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"no"},{"role":"user","content":"a b"},{"role":"assistant","content":"no"}],"stream":false}"#;
        assert_eq!(said(Route::ChatCompletions, chat), ("a b".to_owned(), two));
        assert_eq!(said(Route::OllamaChat, chat), ("a b".to_owned(), two));
        let parts = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"},{"type":"text","text":"b"}]}]}"#;
        assert_eq!(said(Route::ChatCompletions, parts), ("a\nb".to_owned(), two));
        let prompt = r#"{"model":"m","prompt":"a b","stream":false}"#;
        assert_eq!(said(Route::Completions, prompt), ("a b".to_owned(), two));
        assert_eq!(said(Route::OllamaGenerate, prompt), ("a b".to_owned(), two));
        let nothing = r#"{"model":"m","stream":false}"#;
        assert_eq!(said(Route::OllamaGenerate, nothing), (String::new(), Usage::default()));
    }

    #[test]
    fn vectors_follow_from_the_text_and_have_length_one() {
        let answer = |route, body: &str| -> Value {
            serde_json::from_slice(&Echo::new(&ask(route, body)).whole()).unwrap()
        };
        let ollama = answer(Route::OllamaEmbed, r#"{"model":"m","input":["a","b","a"]}"#);
        let vectors = ollama["embeddings"].as_array().unwrap();
        assert_eq!(vectors.len(), 3);
        assert_eq!(vectors[0], vectors[2]);
        assert_ne!(vectors[0], vectors[1]);
        let numbers: Vec<f64> =
            vectors[0].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        assert_eq!(numbers.len(), VECTOR_LENGTH);
        assert!((numbers.iter().map(|n| n * n).sum::<f64>() - 1.0).abs() < 1e-5);
        let older = answer(Route::OllamaEmbeddings, r#"{"model":"m","prompt":"a"}"#);
        assert_eq!(older["embedding"], vectors[0]);
        let openai = answer(Route::OpenAiEmbeddings, r#"{"model":"m","input":"a"}"#);
        assert_eq!(openai["data"][0]["embedding"], vectors[0]);
        let coded = answer(
            Route::OpenAiEmbeddings,
            r#"{"model":"m","input":"a","encoding_format":"base64"}"#,
        );
        assert_eq!(
            coded["data"][0]["embedding"].as_str().unwrap(),
            embeddings::encode(&vector("a", 64))
        );
        let short =
            answer(Route::OpenAiEmbeddings, r#"{"model":"m","input":[1,2],"dimensions":8}"#);
        assert_eq!(short["data"][0]["embedding"].as_array().unwrap().len(), 8);
        assert_eq!(short["data"].as_array().unwrap().len(), 1);
    }
}
