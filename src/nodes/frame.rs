//! Frames: requests as they come in, answers and events as they go out. No keys beside those of the
//! protocol; its schema allows none.

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::outbox::Event;
use super::refusal::Refusal;

/// Longest id of a request that is taken, in bytes: it is repeated in the answer.
pub const ID_BYTES_MAX: usize = 256;

/// A frame from a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A request, which gets one answer.
    Request {
        /// The client's number of it.
        id: Cow<'a, str>,
        /// What it asks for.
        method: Cow<'a, str>,
        /// How, as JSON text; read once it is known what for.
        params: Option<&'a str>,
    },
    /// The client does not want this answer any more.
    Cancel {
        /// Of which request.
        id: Cow<'a, str>,
    },
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

impl<'a> Incoming<'a> {
    /// Reads a frame; its parameters are only checked to be JSON.
    ///
    /// # Errors
    /// What is wrong with it, for the log and the close reason.
    pub fn parse(text: &'a str) -> Result<Self, &'static str> {
        let raw: Raw<'a> = serde_json::from_str(text).map_err(|_| "invalid request frame")?;
        let id = raw.id.filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX);
        match (&*raw.kind, id, raw.method) {
            ("req", Some(id), Some(method)) if !method.is_empty() => {
                let params = raw.params.map(RawValue::get).filter(|params| *params != "null");
                Ok(Incoming::Request { id, method, params })
            }
            ("cancel", Some(id), _) => Ok(Incoming::Cancel { id }),
            _ => Err("invalid request frame"),
        }
    }
}

/// An answer that has what was asked for; `payload` is JSON text.
pub fn answer(id: &str, payload: &str) -> String {
    let mut text = String::with_capacity(payload.len() + id.len() + 64);
    text.push_str(r#"{"type":"res","id":"#);
    quoted(&mut text, id);
    text.push_str(r#","ok":true,"payload":"#);
    text.push_str(payload);
    text.push('}');
    text
}

/// An answer that says why not.
pub fn refused(id: &str, refusal: &Refusal) -> String {
    let mut text = String::from(r#"{"type":"res","id":"#);
    quoted(&mut text, id);
    let _ = write!(text, r#","ok":false,"error":{}}}"#, refusal.shape());
    text
}

/// What stands before and behind the payload of an event: the frame is `before`, payload, `after`.
pub fn event(event: &Event, seq: u64) -> (String, String) {
    let before = format!(r#"{{"type":"event","event":"{}","payload":"#, event.name);
    let mut after = format!(r#","seq":{seq}"#);
    if let Some(version) = event.version {
        let (presence, health) = (version.presence, version.health);
        let _ = write!(after, r#","stateVersion":{{"presence":{presence},"health":{health}}}"#);
    }
    after.push('}');
    (before, after)
}

/// Any value as JSON text. What cannot be written, which our own types do not hold, is `null`.
pub fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

fn quoted(out: &mut String, value: &str) {
    out.push_str(&text(&value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::outbox::{Class, StateVersion};

    #[test]
    fn frames_are_read_and_what_is_none_is_refused() {
        let parsed = Incoming::parse(r#"{"type":"req","id":"1","method":"a","params":{"x":[1]}}"#);
        let (id, method) = ("1".into(), "a".into());
        assert_eq!(parsed, Ok(Incoming::Request { id, method, params: Some(r#"{"x":[1]}"#) }));
        assert!(Incoming::parse(r#"{"type":"cancel","id":"1"}"#).is_ok());
        let long = format!(r#"{{"type":"req","id":"{}","method":"a"}}"#, "x".repeat(257));
        for wrong in ["", "[]", "{}", r#"{"type":"req","id":"","method":"a"}"#, &*long] {
            assert!(Incoming::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_goes_out_is_json_whatever_the_id_is() {
        let refusal = Refusal::invalid("a \"quoted\" word");
        for text in [answer("a\"\\\u{1}", "[1]"), refused("a\"\\\u{1}", &refusal)] {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["id"], "a\"\\\u{1}");
        }
        let version = Some(StateVersion { presence: 3, health: 4 });
        let tick = Event { name: "tick", payload: "{}".into(), class: Class::Telemetry, version };
        let (before, after) = event(&tick, 7);
        let value: serde_json::Value = serde_json::from_str(&(before + "{}" + &after)).unwrap();
        assert_eq!((&value["seq"], &value["stateVersion"]["health"]), (&7.into(), &4.into()));
    }
}
