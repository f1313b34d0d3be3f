//! One turn: what a person asks, and the request that it becomes.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::net::service::Caller;
use crate::nodes::frame;
use crate::nodes::history::{Image, Message};
use crate::nodes::refusal::Refusal;
use crate::nodes::sessions::SessionId;

/// Most pictures of one message.
pub const IMAGES_MAX: usize = 16;

/// Longest run id, which is the client's idempotency key, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Whose run, and which: what one account names is nothing to others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunId {
    /// The account.
    pub account: Option<Arc<str>>,
    /// The id on the wire.
    pub id: Arc<str>,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Which run it is.
    pub run: RunId,
    /// In which session.
    pub session: SessionId,
    /// For whom.
    pub caller: Caller,
    /// What is said.
    pub text: String,
    /// What is shown.
    pub images: Vec<Image>,
    /// Whom to ask, other than the session's model.
    pub model: Option<String>,
    /// What the model is told before everything else.
    pub system: Option<String>,
    /// How long it may take, at most `nodes.run_timeout`.
    pub timeout: Option<Duration>,
    /// A run that is under way in the session makes room.
    pub interrupts: bool,
}

impl Turn {
    /// Memory that it takes while it waits.
    pub fn bytes(&self) -> usize {
        let images: usize = self.images.iter().map(|image| image.base64.len()).sum();
        self.text.len() + images + self.system.as_ref().map_or(0, String::len)
    }
}

/// What stands in a turn's request.
pub struct Composed {
    /// The turn.
    pub turn: Turn,
    /// What was said before.
    pub before: Vec<Arc<Message>>,
    /// What happened since the last turn.
    pub events: Vec<Box<str>>,
    /// Whom to ask.
    pub model: String,
}

impl Composed {
    /// What the person says, as it will be kept.
    pub fn message(&self, now_ms: u64) -> Message {
        let Turn { text, images, run, .. } = &self.turn;
        Message::user(text, images.clone(), &run.id, now_ms)
    }

    /// The body of `POST /v1/chat/completions`.
    pub fn body(&self) -> Vec<u8> {
        let mut messages: Vec<Value> = Vec::with_capacity(self.before.len() + 2);
        if let Some(system) = &self.turn.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.extend(self.before.iter().map(|message| message.asked()));
        let mut last = self.message(0);
        if !self.events.is_empty() {
            let mut text = String::new();
            for event in &self.events {
                text.push_str("System: ");
                text.push_str(event);
                text.push('\n');
            }
            if !last.text.is_empty() {
                text.push('\n');
                text.push_str(&last.text);
            }
            last.text = text.into();
        }
        messages.push(last.asked());
        let body = json!({
            "model": self.model, "messages": messages, "stream": true,
            "stream_options": {"include_usage": true},
        });
        frame::text(&body).into_bytes()
    }
}

/// An attachment as clients send it. What else they say of it is theirs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    /// Its type.
    pub mime_type: Option<String>,
    /// Its name.
    pub file_name: Option<String>,
    /// Its bytes, as base64 or as a `data:` URL.
    pub content: Value,
}

/// The pictures among attachments.
///
/// # Errors
/// `INVALID_REQUEST` for what is none: a model cannot be shown other files.
pub fn images(attachments: Vec<Attachment>) -> Result<Vec<Image>, Refusal> {
    if attachments.len() > IMAGES_MAX {
        return Err(Refusal::invalid(format!("a message has at most {IMAGES_MAX} attachments")));
    }
    attachments.into_iter().enumerate().map(|(at, one)| image(at, one)).collect()
}

fn image(at: usize, attachment: Attachment) -> Result<Image, Refusal> {
    let name = attachment.file_name.as_deref().unwrap_or("without a name");
    let name = crate::nodes::sessions::clip(name, 100);
    let refused = |what: &str| Refusal::invalid(format!("attachment {at} ({name}): {what}"));
    let Value::String(content) = attachment.content else {
        return Err(refused("content must be base64 text or a data: URL"));
    };
    let (mime, base64) = match content.strip_prefix("data:") {
        Some(rest) => {
            let split = rest.split_once(";base64,");
            let (mime, data) = split.ok_or_else(|| refused("the data: URL is not base64"))?;
            (mime.to_owned(), data.to_owned())
        }
        None => (attachment.mime_type.unwrap_or_default(), content),
    };
    let mime = mime.to_ascii_lowercase();
    let kind = mime.strip_prefix("image/").unwrap_or_default();
    if kind.is_empty() || !kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b)) {
        return Err(refused("only images can be shown to a model"));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    if base64.is_empty() || !base64.bytes().all(plain) {
        return Err(refused("the content is not base64"));
    }
    Ok(Image { mime: mime.into(), base64: base64.into() })
}

/// The id of a run from the client's key.
///
/// # Errors
/// `INVALID_REQUEST` for no proper one.
pub fn run_id(account: Option<&Arc<str>>, key: &str) -> Result<RunId, Refusal> {
    let key = key.trim();
    if key.is_empty() || key.len() > ID_BYTES_MAX || key.chars().any(char::is_control) {
        return Err(Refusal::invalid(format!(
            "idempotencyKey: 1 to {ID_BYTES_MAX} bytes without control characters"
        )));
    }
    Ok(RunId { account: account.cloned(), id: key.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(value: Value) -> Attachment {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn pictures_come_as_base64_or_as_data_urls_and_other_files_are_refused() {
        let good = vec![
            attachment(json!({"mimeType": "Image/PNG", "content": "iVBORw0KGgo=", "type": "x"})),
            attachment(json!({"content": "data:image/jpeg;base64,/9j/"})),
        ];
        let images = images(good).unwrap();
        assert_eq!((&*images[0].mime, &*images[0].base64), ("image/png", "iVBORw0KGgo="));
        assert_eq!((&*images[1].mime, &*images[1].base64), ("image/jpeg", "/9j/"));
        for wrong in [
            json!({"mimeType": "text/plain", "content": "aGk="}),
            json!({"mimeType": "image/png", "content": "a b"}),
            json!({"mimeType": "image/png", "content": ""}),
            json!({"mimeType": "image/png;x=\"", "content": "aGk="}),
            json!({"mimeType": "image/png", "content": {"type": "Buffer"}}),
            json!({"content": "data:image/png,x"}),
            json!({}),
        ] {
            assert!(super::images(vec![attachment(wrong.clone())]).is_err(), "{wrong}");
        }
        let many = (0..=IMAGES_MAX).map(|_| Attachment::default()).collect();
        assert!(super::images(many).is_err());
    }

    #[test]
    fn a_request_has_what_was_said_what_happened_and_what_is_asked() {
        let run = run_id(None, " r1 ").unwrap();
        let session = SessionId { account: None, key: "agent:main:main".into() };
        let peer = "127.0.0.1:0".parse().unwrap();
        let caller = Caller { key: None, granted: false, peer };
        let turn = Turn {
            run: run.clone(),
            session,
            caller,
            text: "and you?".to_owned(),
            images: Vec::new(),
            model: None,
            system: Some("be brief".to_owned()),
            timeout: None,
            interrupts: false,
        };
        let before = vec![Arc::new(Message::user("I am well", Vec::new(), &run.id, 1))];
        let events = vec!["it rains".into()];
        let composed = Composed { turn, before, events, model: "m".to_owned() };
        let body: Value = serde_json::from_slice(&composed.body()).unwrap();
        assert_eq!(
            body["messages"],
            json!([
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "I am well"},
                {"role": "user", "content": "System: it rains\n\nand you?"},
            ])
        );
        assert_eq!((&body["model"], &body["stream"]), (&json!("m"), &json!(true)));
        assert_eq!(&*composed.message(5).text, "and you?");
        assert!(run_id(None, "").is_err() && run_id(None, "a\nb").is_err());
    }
}
