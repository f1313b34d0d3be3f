//! `node.*`: which nodes there are, commands for them, and what they say.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::{Call, Done, Method, Needs, Outcome};
use crate::nodes::catalogue::{self, Node};
use crate::nodes::fleet::{Asker, Command, NodeError, Payload, Said, unix_ms};
use crate::nodes::idempotency::Begun;
use crate::nodes::refusal::Refusal;
use crate::nodes::who::Scope;

pub(super) const METHODS: &[Method] = &[
    Method { name: "node.list", needs: Needs::Scope(Scope::Read), run: list },
    Method { name: "node.describe", needs: Needs::Scope(Scope::Read), run: describe },
    Method { name: "node.invoke", needs: Needs::Scope(Scope::Write), run: invoke },
    Method { name: "node.invoke.result", needs: Needs::Node, run: result },
    Method { name: "node.invoke.progress", needs: Needs::Node, run: progress },
];

/// Longest id, name of a command or key that is looked at, in bytes.
const WORD_BYTES_MAX: usize = 256;
/// Longest word and sentence of a node's error that are passed on, in bytes.
const ERROR_BYTES: (usize, usize) = (128, 4096);

#[derive(Serialize)]
struct Told<T> {
    ts: u64,
    #[serde(flatten)]
    rest: T,
}

fn list(call: &Call<'_>) -> Outcome {
    #[derive(Serialize)]
    struct All {
        nodes: Vec<Node>,
    }
    Done::json(&Told { ts: unix_ms(), rest: All { nodes: catalogue::all(call.nodes) } })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    node_id: String,
}

fn describe(call: &Call<'_>) -> Outcome {
    let Named { node_id } = call.params()?;
    match catalogue::one(call.nodes, node_id.trim()) {
        Some(rest) => Done::json(&Told { ts: unix_ms(), rest }),
        None => Err(Refusal::invalid("unknown nodeId")),
    }
}

/// Parameters that are not copied.
fn borrowed<'a, T: Deserialize<'a>>(call: &Call<'a>) -> Result<T, Refusal> {
    let invalid = |error| Refusal::invalid(format!("invalid {} params: {error}", call.method));
    serde_json::from_str(call.params.unwrap_or("{}")).map_err(invalid)
}

/// A word that has to be there.
fn word<'a>(name: &str, word: &'a str) -> Result<&'a str, Refusal> {
    let word = word.trim();
    if word.is_empty() || word.len() > WORD_BYTES_MAX {
        return Err(Refusal::invalid(format!("{name} must have 1 to {WORD_BYTES_MAX} bytes")));
    }
    Ok(word)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Invoke<'a> {
    #[serde(borrow)]
    node_id: Cow<'a, str>,
    #[serde(borrow)]
    command: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    timeout_ms: Option<u64>,
    #[serde(borrow)]
    idempotency_key: Cow<'a, str>,
}

fn invoke(call: &Call<'_>) -> Outcome {
    let asked: Invoke<'_> = borrowed(call)?;
    let (node, command) = (word("nodeId", &asked.node_id)?, word("command", &asked.command)?);
    if command.starts_with("system.execApprovals.") {
        let text = "node.invoke does not allow system.execApprovals.*";
        return Err(Refusal::invalid(text).with(json!({"command": command})));
    }
    if command == "browser.proxy" && !call.peer.may(Scope::Admin) {
        return Err(Refusal::missing(Scope::Admin));
    }
    let fleet = call.nodes.fleet();
    let key = &*asked.idempotency_key;
    // Answered before, a node that has gone since is not asked for.
    let begun = call.nodes.idempotency().begin_or_reply(
        call.who.account.as_ref(),
        call.method,
        key,
        || call.later(),
    )?;
    let ticket = match begun {
        Begun::First(ticket) => ticket,
        Begun::Known(outcome) => return (*outcome).clone().map(Done::Now),
        Begun::Joined => return Ok(Done::Later),
    };
    let peer = match fleet.ready(node, command) {
        Ok(peer) => peer,
        Err(refusal) => {
            // Nothing was done: the key is as good as new. Who joined is told.
            ticket.end(&Err(refusal.clone().retry(Duration::from_secs(1))));
            return Err(refusal);
        }
    };
    let command = Command {
        node,
        command,
        params: asked.params.map(RawValue::get),
        timeout: asked.timeout_ms.map(Duration::from_millis),
        key,
    };
    fleet.invoke(&peer, &command, Asker::Peer(call.later()), Some(ticket));
    Ok(Done::Later)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Result_<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    node_id: Cow<'a, str>,
    ok: bool,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(rename = "payloadJSON", borrow)]
    payload_json: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<ErrorSaid>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorSaid {
    code: Option<String>,
    message: Option<String>,
}

fn result(call: &Call<'_>) -> Outcome {
    let said: Result_<'_> = borrowed(call)?;
    own(call, &said.node_id)?;
    let known = if said.ok {
        let json = said.payload_json.map(RawValue::get);
        let text = json.filter(|text| text.starts_with('"'));
        let inner: Option<Cow<'_, str>> = text.and_then(|text| serde_json::from_str(text).ok());
        let parsed = Parsed::of(inner.as_deref().unwrap_or_default(), text);
        let value = match &parsed {
            // An object in its place is taken for what it is.
            Parsed::Nothing => said.payload.map(RawValue::get).or(json.filter(|_| text.is_none())),
            Parsed::Json(value) => Some(*value),
            Parsed::Odd(value) => Some(&**value),
        };
        let text = text.filter(|_| inner.is_some());
        let outcome = Ok(Payload { value, text });
        call.nodes.fleet().said(call.peer, Said { id: &said.id, outcome })?
    } else {
        let said_error = said.error.unwrap_or_default();
        let cut = |text: Option<String>, max: usize| {
            text.map(|mut text| {
                text.truncate(
                    (0..=max.min(text.len()))
                        .rev()
                        .find(|at| text.is_char_boundary(*at))
                        .unwrap_or(0),
                );
                text
            })
        };
        let error = NodeError {
            code: cut(said_error.code, ERROR_BYTES.0),
            message: cut(said_error.message, ERROR_BYTES.1),
        };
        call.nodes.fleet().said(call.peer, Said { id: &said.id, outcome: Err(error) })?
    };
    // Late answers are expected, and no fault of the node.
    Done::json(&if known { json!({"ok": true}) } else { json!({"ok": true, "ignored": true}) })
}

/// What a text with JSON in it says.
enum Parsed<'a> {
    /// There is none.
    Nothing,
    /// JSON.
    Json(&'a str),
    /// Something else, which is passed on as it is.
    Odd(String),
}

impl<'a> Parsed<'a> {
    /// `quoted`: the same text as it came, a JSON string.
    fn of(text: &'a str, quoted: Option<&str>) -> Self {
        let text = text.trim();
        match (text.is_empty(), quoted, serde_json::from_str::<&RawValue>(text)) {
            (true, ..) | (_, None, _) => Parsed::Nothing,
            (_, _, Ok(value)) => Parsed::Json(value.get()),
            (_, Some(quoted), Err(_)) => Parsed::Odd(format!(r#"{{"payloadJSON":{quoted}}}"#)),
        }
    }
}

/// A node speaks for itself only.
fn own(call: &Call<'_>, node: &str) -> Result<(), Refusal> {
    match call.who.device.as_deref() {
        Some(own) if own == node => Ok(()),
        _ => Err(Refusal::invalid("nodeId mismatch")),
    }
}

/// Nobody here reads parts of results: they are taken and thrown away, as the protocol allows.
fn progress(call: &Call<'_>) -> Outcome {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Progress<'a> {
        #[serde(borrow)]
        invoke_id: Cow<'a, str>,
        #[serde(borrow)]
        node_id: Cow<'a, str>,
    }
    let said: Progress<'_> = borrowed(call)?;
    own(call, &said.node_id)?;
    if call.nodes.fleet().under_way(call.peer, &said.invoke_id) {
        return Done::json(&json!({"ok": true}));
    }
    Done::json(&json!({"ok": true, "ignored": true}))
}
