//! What was said in one session: messages, bounded in bytes. The oldest go first, and it is told
//! that there were some.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::llm::Usage;

/// What a message costs beside its texts, in bytes.
const MESSAGE_BYTES: usize = 256;

/// Most messages of one session, however small they are.
pub const MESSAGES_MAX: usize = 4096;

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The person, or the program that acts for one.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word on the wire, here and upstream.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A picture that came with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its type, `image/png` for one.
    pub mime: Box<str>,
    /// Its bytes, as base64.
    pub base64: Arc<str>,
}

/// One message.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Message {
    pub role: Role,
    pub text: Box<str>,
    pub thinking: Box<str>,
    pub images: Vec<Image>,
    /// Pictures were left out, since the session has no room for them.
    pub images_left_out: bool,
    /// In milliseconds since 1970.
    pub at_ms: u64,
    /// The run that it belongs to.
    pub run: Arc<str>,
    pub model: Option<Box<str>>,
    pub usage: Option<Usage>,
    /// Why the answer ended: the model's reason, `aborted` or `error`.
    pub stop: Option<Box<str>>,
}

impl Message {
    /// What a person says.
    pub fn user(text: &str, images: Vec<Image>, run: &Arc<str>, at_ms: u64) -> Self {
        Message {
            role: Role::User,
            text: text.into(),
            thinking: Box::default(),
            images,
            images_left_out: false,
            at_ms,
            run: Arc::clone(run),
            model: None,
            usage: None,
            stop: None,
        }
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        let images: usize = self.images.iter().map(|image| image.base64.len()).sum();
        MESSAGE_BYTES + self.text.len() + self.thinking.len() + images
    }

    /// As clients see it. Texts are cut at `chars_max`, and say so; pictures are named, not shown.
    pub fn shown(&self, id: &str, seq: u64, chars_max: usize) -> Value {
        let mut content = Vec::new();
        if !self.thinking.is_empty() {
            content
                .push(json!({"type": "thinking", "thinking": clipped(&self.thinking, chars_max)}));
        }
        if !self.text.is_empty() || content.is_empty() && self.images.is_empty() {
            content.push(json!({"type": "text", "text": clipped(&self.text, chars_max)}));
        }
        for image in &self.images {
            let bytes = image.base64.len();
            let mime = &*image.mime;
            content
                .push(json!({"type": "image", "mimeType": mime, "omitted": true, "bytes": bytes}));
        }
        if self.images_left_out {
            content.push(json!({"type": "text", "text": "[a picture was left out here]"}));
        }
        let mut shown = json!({
            "role": self.role.as_str(), "content": content, "timestamp": self.at_ms,
        });
        let mut meta = json!({"id": id, "seq": seq, "runId": &*self.run});
        match self.role {
            Role::User => {
                meta["idempotencyKey"] = (&*self.run).into();
                shown["idempotencyKey"] = (&*self.run).into();
            }
            Role::Assistant => {
                if let Some(model) = &self.model {
                    shown["model"] = (&**model).into();
                }
                if let Some(usage) = self.usage {
                    shown["usage"] = usage_shown(usage);
                }
                if let Some(stop) = &self.stop {
                    shown["stopReason"] = (&**stop).into();
                }
            }
        }
        shown["__openclaw"] = meta;
        shown
    }

    /// As a model hears it.
    pub fn asked(&self) -> Value {
        let role = self.role.as_str();
        if self.images.is_empty() {
            return json!({"role": role, "content": &*self.text});
        }
        let mut parts = Vec::new();
        if !self.text.is_empty() {
            parts.push(json!({"type": "text", "text": &*self.text}));
        }
        for Image { mime, base64 } in &self.images {
            let url = format!("data:{mime};base64,{base64}");
            parts.push(json!({"type": "image_url", "image_url": {"url": url}}));
        }
        json!({"role": role, "content": parts})
    }
}

/// The tokens of an answer, in the words of the protocol.
pub fn usage_shown(usage: Usage) -> Value {
    let Usage { input, output, cached, estimated } = usage;
    let fresh = input.saturating_sub(cached);
    let total = input.saturating_add(output);
    let mut shown = json!({
        "input": fresh, "output": output, "cacheRead": cached, "cacheWrite": 0, "totalTokens": total,
    });
    if estimated {
        shown["estimated"] = true.into();
    }
    shown
}

fn clipped(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}\n...(truncated)...", &text[..at]),
        None => text.to_owned(),
    }
}

/// The messages of a session, the oldest first.
#[derive(Debug, Default)]
pub struct History {
    messages: VecDeque<(u64, Arc<Message>)>,
    bytes: usize,
    last: u64,
}

impl History {
    /// Adds a message; the oldest make room so that no more than `bytes_max` are held. Pictures that
    /// find no room beside their own text are left out. Returns its number.
    pub fn push(&mut self, mut message: Message, bytes_max: usize) -> u64 {
        if message.bytes() > bytes_max && !message.images.is_empty() {
            message.images = Vec::new();
            message.images_left_out = true;
        }
        self.last += 1;
        self.bytes += message.bytes();
        self.messages.push_back((self.last, Arc::new(message)));
        self.fit(bytes_max);
        self.last
    }

    /// Forgets the oldest until no more than `bytes_max` are held, but not the last one.
    pub fn fit(&mut self, bytes_max: usize) {
        while self.messages.len() > 1
            && (self.bytes > bytes_max || self.messages.len() > MESSAGES_MAX)
        {
            let gone = self.messages.pop_front();
            self.bytes -= gone.map_or(0, |(_, message)| message.bytes());
        }
    }

    /// Takes the last message back, if it is this one.
    pub fn take_back(&mut self, seq: u64) {
        if self.messages.back().is_some_and(|(last, _)| *last == seq)
            && let Some((_, message)) = self.messages.pop_back()
        {
            self.bytes -= message.bytes();
        }
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many messages there ever were.
    pub fn total(&self) -> u64 {
        self.last
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The last ones, the newest `skip` of them left out: at most `limit`, the oldest first.
    pub fn page(&self, skip: usize, limit: usize) -> Vec<(u64, Arc<Message>)> {
        let end = self.messages.len().saturating_sub(skip);
        let from = end.saturating_sub(limit);
        self.messages.range(from..end).cloned().collect()
    }

    /// The last message.
    pub fn last(&self) -> Option<&Arc<Message>> {
        self.messages.back().map(|(_, message)| message)
    }

    /// The first that is kept of the person's.
    pub fn opening(&self) -> Option<&Arc<Message>> {
        let mut messages = self.messages.iter().map(|(_, message)| message);
        messages.find(|message| message.role == Role::User)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, text: &str) -> Message {
        Message { role, ..Message::user(text, Vec::new(), &"run".into(), 7) }
    }

    #[test]
    fn the_oldest_make_room_and_the_last_one_stays() {
        let mut history = History::default();
        let max = 3 * (MESSAGE_BYTES + 100);
        for _ in 0..5 {
            history.push(message(Role::User, &"x".repeat(100)), max);
        }
        assert_eq!((history.len(), history.total(), history.bytes()), (3, 5, max));
        assert_eq!(history.page(0, 10).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(history.page(1, 1).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [4]);
        assert!(history.page(9, 9).is_empty());
        let seq = history.push(message(Role::User, &"x".repeat(max)), max);
        assert_eq!((history.len(), seq), (1, 6));
        history.take_back(5);
        assert_eq!(history.len(), 1, "another one");
        history.take_back(6);
        assert_eq!((history.len(), history.bytes()), (0, 0));
        for _ in 0..=MESSAGES_MAX {
            history.push(message(Role::User, ""), usize::MAX);
        }
        assert_eq!(history.len(), MESSAGES_MAX);
    }

    #[test]
    fn pictures_that_find_no_room_are_left_out_and_it_is_told() {
        let image = Image { mime: "image/png".into(), base64: "A".repeat(2000).into() };
        let mut history = History::default();
        history.push(Message::user("look", vec![image.clone()], &"r".into(), 1), 4000);
        let kept = Arc::clone(history.last().unwrap());
        assert_eq!(kept.asked()["content"][1]["image_url"]["url"].as_str().unwrap().len(), 2022);
        assert_eq!(kept.shown("m", 1, 100)["content"][1]["omitted"], true);
        history.push(Message::user("look", vec![image], &"r".into(), 1), 1000);
        let kept = Arc::clone(history.last().unwrap());
        assert_eq!(kept.asked(), json!({"role": "user", "content": "look"}));
        assert!(kept.shown("m", 1, 100).to_string().contains("left out"));
    }

    #[test]
    fn a_message_is_shown_with_what_is_known_of_it() {
        let mut answer = message(Role::Assistant, "h\u{e9}llo");
        answer.usage = Some(Usage { input: 10, output: 2, cached: 4, estimated: true });
        answer.stop = Some("stop".into());
        let shown = answer.shown("s:2", 2, 3);
        assert_eq!(shown["content"][0]["text"], "h\u{e9}l\n...(truncated)...");
        let usage = json!({"input": 6, "output": 2, "cacheRead": 4, "cacheWrite": 0,
            "totalTokens": 12, "estimated": true});
        assert_eq!((&shown["usage"], &shown["stopReason"]), (&usage, &json!("stop")));
        assert_eq!(shown["__openclaw"], json!({"id": "s:2", "seq": 2, "runId": "run"}));
    }
}
