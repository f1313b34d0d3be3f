//! An answer that is kept, to be given again in whatever form its next reader asks for: streamed or
//! whole, in either dialect, vectors as numbers or as base64.
//!
//! Only what can be given again without a loss is kept: a whole answer with one text, and thinking,
//! of one choice. Anything else in it (calls of tools, log probabilities, pictures, citations,
//! several choices) makes it none; a replay would leave that out in silence. Calls of tools would
//! moreover repeat their ids, and what they bring about.

use std::borrow::Cow;

use super::seen::Seen;
use super::write::{Content, End};
use super::{Ask, Dialect, Fault, Reply, Usage, answer, embeddings};

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept(What);

#[derive(Debug, PartialEq, Eq)]
enum What {
    /// Vectors, as an upstream of this dialect sent them.
    Vectors {
        dialect: Dialect,
        body: Box<str>,
    },
    Text(Text),
}

/// A text. Values are JSON strings with their quotes.
#[derive(Debug, PartialEq, Eq)]
struct Text {
    text: Option<Box<str>>,
    thinking: Option<Box<str>>,
    finish: Option<Box<str>>,
    usage: Option<Usage>,
}

impl Kept {
    /// Of a whole answer of the upstream (status 200), if it can be given again.
    pub fn of_whole(ask: &Ask, upstream: Dialect, body: &[u8]) -> Option<Kept> {
        let text = std::str::from_utf8(body).ok()?;
        let seen = answer::finished(ask.route(), upstream, text).ok()?;
        if ask.route().embeds() {
            return Some(Kept(What::Vectors { dialect: upstream, body: text.into() }));
        }
        let mut keeping = Keeping::new(body.len());
        keeping.add(&seen);
        keeping.finish(seen.finish, seen.usage)
    }

    /// Its size, in bytes.
    pub fn size(&self) -> usize {
        match &self.0 {
            What::Vectors { body, .. } => body.len(),
            What::Text(text) => {
                let length = |part: &Option<Box<str>>| part.as_ref().map_or(0, |part| part.len());
                length(&text.text) + length(&text.thinking) + length(&text.finish)
            }
        }
    }

    /// The answer as this client asks for it: its body, and the tokens that it once took.
    ///
    /// # Errors
    /// When vectors cannot be written in the form that is wanted.
    pub fn replay(&self, reply: &mut Reply, ask: &Ask) -> Result<(Vec<u8>, Option<Usage>), Fault> {
        match &self.0 {
            What::Vectors { dialect: Dialect::OpenAi, body }
                if ask.route().dialect() == Dialect::OpenAi =>
            {
                let seen = answer::finished(ask.route(), Dialect::OpenAi, body)?;
                let body = embeddings::in_form(reply, body, &seen)?;
                Ok((body, seen.usage))
            }
            What::Vectors { dialect, body } => {
                let (body, usage) = answer::whole(reply, ask, *dialect, body.as_bytes())?;
                Ok((body, Some(usage)))
            }
            What::Text(text) => {
                let part = |part: &'_ Option<Box<str>>| part.as_deref().map(str::to_owned);
                let content = Content {
                    text: part(&text.text).map(Cow::Owned),
                    thinking: part(&text.thinking).map(Cow::Owned),
                    ..Content::default()
                };
                let finish = text.finish.as_deref();
                let end = End { reason: finish, called: false, usage: text.usage };
                if !ask.stream() {
                    return Ok((reply.write_whole(&content, &end), text.usage));
                }
                let mut out = Vec::new();
                reply.write_chunk(&content, &mut out);
                reply.write_end(&end, &mut out);
                Ok((out, text.usage))
            }
        }
    }
}

/// Collects what a stream says, to keep it.
#[derive(Debug)]
pub(super) struct Keeping {
    /// The insides of JSON strings: put one behind the other they are that of the whole.
    text: String,
    thinking: String,
    bytes_max: usize,
    /// Something came that cannot be kept.
    spoiled: bool,
}

impl Keeping {
    /// Nothing yet; at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Keeping { text: String::new(), thinking: String::new(), bytes_max, spoiled: false }
    }

    /// One event, or a whole answer.
    pub fn add(&mut self, seen: &Seen<'_>) {
        if self.spoiled {
            return;
        }
        let inside = |value: &'_ str| value.len().saturating_sub(2) as u64;
        let piece = &seen.piece;
        let ours = piece.text.map_or(0, inside) + piece.thinking.map_or(0, inside);
        // What is heavier than its text and its thinking says something else as well.
        self.spoiled |= seen.weight != ours || seen.choices > 1 || piece.logprobs.is_some();
        for (to, from) in [(&mut self.text, piece.text), (&mut self.thinking, piece.thinking)] {
            let from = from.and_then(|from| from.strip_prefix('"')?.strip_suffix('"'));
            to.push_str(from.unwrap_or_default());
        }
        if self.spoiled || self.text.len() + self.thinking.len() > self.bytes_max {
            *self = Keeping { spoiled: true, ..Keeping::new(0) };
        }
    }

    /// The whole, which ended with this reason.
    pub fn finish(self, finish: Option<&str>, usage: Option<Usage>) -> Option<Kept> {
        let ended = matches!(finish, None | Some("\"stop\"" | "\"length\""));
        if self.spoiled || !ended || self.text.is_empty() && self.thinking.is_empty() {
            return None;
        }
        let quoted = |inside: &str| (!inside.is_empty()).then(|| format!("\"{inside}\"").into());
        Some(Kept(What::Text(Text {
            text: quoted(&self.text),
            thinking: quoted(&self.thinking),
            finish: finish.map(Into::into),
            usage,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{Route, Stream};
    use serde_json::{Value, json};
    use std::time::{Duration, UNIX_EPOCH};

    fn ask(route: Route, stream: bool, more: &Value) -> Ask {
        let mut body = json!({"model": "m", "stream": stream, "input": "x", "prompt": "x",
            "messages": [{"role": "user", "content": "x"}]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        Ask::parse(route, body.to_string().into_bytes()).unwrap()
    }

    fn reply(ask: &Ask) -> Reply {
        Reply::new(ask, "m", "chatcmpl-2", UNIX_EPOCH + Duration::from_secs(1_700_000_000))
    }

    fn replayed(kept: &Kept, ask: &Ask) -> String {
        let (body, _) = kept.replay(&mut reply(ask), ask).unwrap();
        String::from_utf8(body).unwrap()
    }

    const WHOLE: &str = r#"{"id":"a","model":"up","choices":[{"index":0,"message":{"role":"assistant",
        "content":"say \"hi\"\n","reasoning_content":"hm"},"finish_reason":"stop"}],
        "usage":{"prompt_tokens":3,"completion_tokens":2}}"#;

    const STREAM: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"say \\\"h\"}}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"i\\\"\\n\"}}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n\
        data: [DONE]\n\n";

    fn streamed(ask: &Ask, text: &str, max: usize) -> Option<Kept> {
        let mut reply = reply(ask);
        let mut stream = Stream::new(&reply, ask, Dialect::OpenAi, 10_000);
        stream.keep(max);
        let mut out = Vec::new();
        // In small pieces, as a network brings it.
        for piece in text.as_bytes().chunks(7) {
            stream.feed(&mut reply, piece, &mut out).unwrap();
        }
        assert!(stream.done());
        stream.kept()
    }

    #[test]
    fn a_stream_and_a_whole_answer_are_kept_as_the_same() {
        let chat = ask(Route::ChatCompletions, true, &json!({}));
        let whole = Kept::of_whole(&chat, Dialect::OpenAi, WHOLE.as_bytes()).unwrap();
        assert_eq!(streamed(&chat, STREAM, 100), Some(whole));
        assert!(streamed(&chat, STREAM, 5).is_none(), "larger than one entry may be");
    }

    #[test]
    fn it_is_replayed_in_every_form() {
        let chat = ask(Route::ChatCompletions, false, &json!({}));
        let kept = Kept::of_whole(&chat, Dialect::OpenAi, WHOLE.as_bytes()).unwrap();
        let whole = |route| -> Value {
            serde_json::from_str(&replayed(&kept, &ask(route, false, &json!({})))).unwrap()
        };
        let openai = whole(Route::ChatCompletions);
        assert_eq!(openai["choices"][0]["message"]["content"], "say \"hi\"\n");
        assert_eq!(openai["choices"][0]["message"]["reasoning_content"], "hm");
        assert_eq!(openai["id"], "chatcmpl-2", "an id of its own");
        assert_eq!(openai["usage"]["completion_tokens"], 2);
        let ollama = whole(Route::OllamaChat);
        assert_eq!(ollama["message"]["content"], "say \"hi\"\n");
        assert_eq!((&ollama["done"], &ollama["eval_count"]), (&json!(true), &json!(2)));
        let stream = replayed(&kept, &ask(Route::ChatCompletions, true, &json!({})));
        assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
        assert!(!stream.contains("usage"), "the client did not ask for it: {stream}");
        // Read by the streaming core, it is what it was.
        let openai =
            ask(Route::ChatCompletions, true, &json!({"stream_options": {"include_usage": true}}));
        assert_eq!(streamed(&openai, &replayed(&kept, &openai), 100), Some(kept));
    }

    #[test]
    fn what_would_lose_something_is_not_kept() {
        let chat = ask(Route::ChatCompletions, false, &json!({}));
        let keeps = |message: Value, more: Value| {
            let mut choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
            for (name, value) in more.as_object().unwrap() {
                choice[name] = value.clone();
            }
            let body = json!({"choices": [choice]}).to_string();
            Kept::of_whole(&chat, Dialect::OpenAi, body.as_bytes()).is_some()
        };
        let text = || json!({"role": "assistant", "content": "hi"});
        assert!(keeps(text(), json!({})));
        assert!(keeps(text(), json!({"finish_reason": "length"})));
        assert!(!keeps(text(), json!({"finish_reason": "content_filter"})));
        assert!(!keeps(text(), json!({"logprobs": {"content": [{"token": "hi"}]}})));
        let with = |name: &str, value: Value| {
            let mut message = text();
            message[name] = value;
            message
        };
        let call = json!([{"id": "c", "function": {"name": "f", "arguments": "{}"}}]);
        assert!(!keeps(with("tool_calls", call), json!({})));
        assert!(!keeps(with("annotations", json!([{"url": "u"}])), json!({})));
        assert!(!keeps(with("refusal", json!("no")), json!({})));
        assert!(keeps(with("tool_calls", json!([])), json!({})));
        assert!(!keeps(json!({"content": ""}), json!({})), "an empty answer");
        assert!(!keeps(json!({"content": [{"type": "text", "text": "a"}]}), json!({})));
        let two = json!({"choices": [
            {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"},
            {"index": 1, "message": {"content": "b"}, "finish_reason": "stop"}]});
        assert!(Kept::of_whole(&chat, Dialect::OpenAi, two.to_string().as_bytes()).is_none());
        assert!(Kept::of_whole(&chat, Dialect::OpenAi, b"{\"error\":\"x\"}").is_none());
    }

    #[test]
    fn vectors_are_given_in_the_form_that_is_asked_for() {
        let vector = "[0.25,-0.5,1]";
        let base64 = "\"AACAPgAAAL8AAIA/\"";
        let answer = |vector: &str| {
            format!(
                "{{\"object\":\"list\",\"data\":[{{\"object\":\"embedding\",\"index\":0,\"embedding\":{vector}}}],\
                 \"model\":\"up\",\"usage\":{{\"prompt_tokens\":3,\"total_tokens\":3}}}}"
            )
        };
        let floats = ask(Route::OpenAiEmbeddings, false, &json!({}));
        let packed = ask(Route::OpenAiEmbeddings, false, &json!({"encoding_format": "base64"}));
        let ollama = ask(Route::OllamaEmbed, false, &json!({}));
        let check = |dialect, body: &str| {
            let kept = Kept::of_whole(&floats, dialect, body.as_bytes()).unwrap();
            let item =
                |ask: &Ask| -> Value { serde_json::from_str(&replayed(&kept, ask)).unwrap() };
            let numbers = json!([0.25, -0.5, 1.0]);
            let same = |a: &Value| {
                let floats = |v: &Value| -> Vec<f64> {
                    v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
                };
                assert_eq!(floats(a), floats(&numbers), "{a}");
            };
            same(&item(&floats)["data"][0]["embedding"]);
            assert_eq!(item(&packed)["data"][0]["embedding"], "AACAPgAAAL8AAIA/");
            assert_eq!(item(&packed)["model"], "m");
            assert_eq!(item(&packed)["usage"]["prompt_tokens"], 3);
            same(&item(&ollama)["embeddings"][0]);
        };
        check(Dialect::OpenAi, &answer(vector));
        check(Dialect::OpenAi, &answer(base64));
        let body =
            format!("{{\"model\":\"up\",\"embeddings\":[{vector}],\"prompt_eval_count\":3}}");
        check(Dialect::Ollama, &body);
    }
}
