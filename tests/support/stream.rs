//! A streamed answer as its client sees it: events with their times, and what they add up to.

use std::time::Instant;

use serde_json::Value;

use super::wire::{Answer, Piece};

/// The dialects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    OpenAi,
    Ollama,
}

/// One event of a stream.
#[derive(Clone, Debug)]
pub struct Event {
    /// When its last byte came.
    pub at: Instant,
    /// The text: what follows `data: `, or the line.
    pub text: String,
}

impl Event {
    /// The event as JSON; `None` for `[DONE]`.
    pub fn json(&self) -> Option<Value> {
        if self.text == "[DONE]" {
            return None;
        }
        Some(serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {:?}", self.text)))
    }
}

/// A stream taken apart.
#[derive(Clone, Debug)]
pub struct Stream {
    pub dialect: Dialect,
    pub events: Vec<Event>,
    /// SSE comments.
    pub comments: Vec<Event>,
    /// Bytes behind the last complete event.
    pub rest: String,
}

impl Stream {
    /// Takes an answer apart.
    pub fn of(dialect: Dialect, answer: &Answer) -> Self {
        Stream::from_pieces(dialect, &answer.pieces)
    }

    /// Takes pieces apart.
    pub fn from_pieces(dialect: Dialect, pieces: &[Piece]) -> Self {
        let mut stream =
            Stream { dialect, events: Vec::new(), comments: Vec::new(), rest: String::new() };
        let end: &[u8] = match dialect {
            Dialect::OpenAi => b"\n\n",
            Dialect::Ollama => b"\n",
        };
        let mut pending = Vec::new();
        for piece in pieces {
            pending.extend_from_slice(&piece.data);
            while let Some(at) = pending.windows(end.len()).position(|window| window == end) {
                let block: Vec<u8> = pending.drain(..at + end.len()).collect();
                let block = String::from_utf8(block[..at].to_vec()).unwrap();
                stream.block(block, piece.at);
            }
        }
        stream.rest = String::from_utf8_lossy(&pending).into_owned();
        stream
    }

    fn block(&mut self, block: String, at: Instant) {
        match self.dialect {
            Dialect::Ollama => {
                assert!(!block.trim().is_empty(), "a blank line breaks ollama-python");
                self.events.push(Event { at, text: block });
            }
            Dialect::OpenAi => {
                for line in block.lines() {
                    if line.starts_with(':') {
                        self.comments.push(Event { at, text: line.to_owned() });
                    } else if let Some(data) = line.strip_prefix("data:") {
                        let text = data.strip_prefix(' ').unwrap_or(data).to_owned();
                        assert!(!text.trim().is_empty(), "an empty event breaks openai-python");
                        self.events.push(Event { at, text });
                    } else {
                        panic!("neither data nor a comment: {line:?}");
                    }
                }
            }
        }
    }

    fn jsons(&self) -> impl Iterator<Item = Value> {
        self.events.iter().filter_map(Event::json)
    }

    fn text_of(&self, event: &Value) -> String {
        let paths: &[&str] = match self.dialect {
            Dialect::OpenAi => &["/choices/0/delta/content", "/choices/0/text"],
            Dialect::Ollama => &["/message/content", "/response"],
        };
        let text = paths.iter().find_map(|path| event.pointer(path).and_then(Value::as_str));
        text.unwrap_or_default().to_owned()
    }

    /// All text of the answer.
    pub fn content(&self) -> String {
        self.jsons().map(|event| self.text_of(&event)).collect()
    }

    /// How many events carried text.
    pub fn content_events(&self) -> usize {
        self.jsons().filter(|event| !self.text_of(event).is_empty()).count()
    }

    /// When the last text came.
    pub fn last_content_at(&self) -> Option<Instant> {
        let texts = self
            .events
            .iter()
            .filter(|event| event.json().is_some_and(|json| !self.text_of(&json).is_empty()));
        texts.map(|event| event.at).max()
    }

    /// How many events open the answer with the role (OpenAI chat).
    pub fn role_chunks(&self) -> usize {
        self.jsons().filter(|event| event.pointer("/choices/0/delta/role").is_some()).count()
    }

    /// The different values of a member of the events, in their order.
    pub fn distinct(&self, member: &str) -> Vec<String> {
        let mut values = Vec::new();
        for event in self.jsons() {
            if let Some(value) = event.get(member).and_then(Value::as_str)
                && !values.iter().any(|have| have == value)
            {
                values.push(value.to_owned());
            }
        }
        values
    }

    /// How often the terminator came (`[DONE]`, `done: true`).
    pub fn terminators(&self) -> usize {
        let done = |event: &&Event| match self.dialect {
            Dialect::OpenAi => event.text == "[DONE]",
            Dialect::Ollama => event.json().is_some_and(|json| json["done"] == true),
        };
        self.events.iter().filter(done).count()
    }

    /// The values of `finish_reason` or `done_reason` that are not null.
    pub fn finish_reasons(&self) -> Vec<String> {
        let path = match self.dialect {
            Dialect::OpenAi => "/choices/0/finish_reason",
            Dialect::Ollama => "/done_reason",
        };
        let reasons =
            self.jsons().filter_map(|event| event.pointer(path)?.as_str().map(str::to_owned));
        reasons.collect()
    }

    /// The in-band errors: (message, time), each in the form of its dialect.
    pub fn errors(&self) -> Vec<(String, Instant)> {
        let errors = self.events.iter().filter_map(|event| {
            let json = event.json()?;
            let error = json.get("error")?;
            let message = match self.dialect {
                Dialect::OpenAi => {
                    for key in ["message", "type", "code"] {
                        assert!(error.get(key).is_some_and(Value::is_string), "no {key}: {error}");
                    }
                    error["message"].as_str()
                }
                Dialect::Ollama => error.as_str(),
            };
            let message = message.unwrap_or_else(|| panic!("not this dialect's error: {json}"));
            assert!(!message.is_empty());
            Some((message.to_owned(), event.at))
        });
        errors.collect()
    }

    /// Fails unless this is one normal answer: one role, one id, one model name, this text, an end.
    pub fn assert_normal(&self, model: &str, content: &str, context: &str) {
        assert_eq!(self.errors(), [], "{context}: an error in a good answer");
        assert_eq!(self.content(), content, "{context}: {:#?}", self.events);
        assert_eq!(self.distinct("model"), [model], "{context}: model names");
        assert_eq!(self.terminators(), 1, "{context}: terminators in {:?}", self.events);
        assert_eq!(
            self.finish_reasons().len(),
            1,
            "{context}: finish reasons in {:?}",
            self.events
        );
        assert_eq!(self.rest, "", "{context}: bytes behind the end");
        if self.dialect == Dialect::OpenAi {
            assert_eq!(self.events.last().unwrap().text, "[DONE]", "{context}");
            assert_eq!(self.distinct("id").len(), 1, "{context}: ids {:?}", self.distinct("id"));
            let chat = self.distinct("object") == ["chat.completion.chunk"];
            assert_eq!(self.role_chunks(), usize::from(chat), "{context}: role chunks");
        } else {
            let last = self.events.last().unwrap().json().unwrap();
            assert_eq!(last["done"], true, "{context}");
        }
    }

    /// Fails unless this is an answer that broke off as it should: text, one in-band error at the very
    /// end, no terminator. Gives the time between the last text and the error.
    pub fn assert_broken_off(
        &self,
        model: &str,
        content: &str,
        context: &str,
    ) -> std::time::Duration {
        assert_eq!(self.content(), content, "{context}: {:#?}", self.events);
        assert_eq!(self.distinct("model"), [model], "{context}: model names");
        assert_eq!(self.terminators(), 0, "{context}: a terminator in {:#?}", self.events);
        assert_eq!(self.rest, "", "{context}: half an event");
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "{context}: errors in {:#?}", self.events);
        let last = self.events.last().unwrap().json().unwrap();
        assert!(last.get("error").is_some(), "{context}: the error is not the last event");
        errors[0].1 - self.last_content_at().unwrap()
    }
}
