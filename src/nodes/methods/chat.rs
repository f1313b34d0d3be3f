//! `chat.*`: what is said, and what was.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Done, Method, Needs, Outcome};
use crate::net::service::Caller;
use crate::nodes::frame;
use crate::nodes::history::Message;
use crate::nodes::refusal::{Code, Refusal};
use crate::nodes::run::Ended;
use crate::nodes::runs::table::Kept;
use crate::nodes::runs::turn::{Attachment, RunId, Turn, images, run_id};
use crate::nodes::runs::{Sent, Which, outcome};
use crate::nodes::sessions::{SessionId, agent_known};
use crate::nodes::who::{How, Scope};

/// Messages of a page when nothing else is asked for.
const PAGE: usize = 200;

/// Most messages of a page.
const PAGE_MAX: usize = 1000;

/// Most bytes of a page (the protocol's 6 MB).
const PAGE_BYTES_MAX: usize = 6 * 1024 * 1024;

/// What ends the runs of a session when it is all that is said.
const STOP: &str = "/stop";

pub(super) const METHODS: &[Method] = &[
    Method { name: "chat.send", needs: Needs::Scope(Scope::Write), run: send },
    Method { name: "chat.abort", needs: Needs::Scope(Scope::Write), run: abort },
    Method { name: "chat.history", needs: Needs::Scope(Scope::Read), run: history },
    Method { name: "chat.startup", needs: Needs::Scope(Scope::Read), run: startup },
];

/// For whom a run is.
pub(super) fn caller(call: &Call<'_>) -> Caller {
    Caller {
        key: call.who.account.clone(),
        granted: !matches!(call.who.how, How::Open | How::Key),
        peer: SocketAddr::new(call.peer.address, 0),
    }
}

/// The model that is asked when none is named.
pub(super) fn default_model(call: &Call<'_>) -> Option<String> {
    let key = call.who.account.as_deref().filter(|_| call.who.how == How::Key);
    call.nodes.parts().host.default_model(key)
}

/// The session that a key means to the caller.
pub(super) fn session(
    call: &Call<'_>,
    key: &str,
    agent: Option<&str>,
) -> Result<SessionId, Refusal> {
    if let Some(agent) = agent {
        agent_known(agent)?;
    }
    SessionId::parse(call.who.account.as_ref(), key, call.peer.may(Scope::Admin))
}

/// A time in milliseconds, as clients say it; zero means none of their own.
pub(super) fn millis(ms: Option<u64>) -> Option<Duration> {
    ms.filter(|ms| *ms > 0).map(Duration::from_millis)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Send {
    session_key: String,
    agent_id: Option<String>,
    message: String,
    attachments: Option<Vec<Attachment>>,
    timeout_ms: Option<u64>,
    queue_mode: Option<String>,
    idempotency_key: String,
}

fn send(call: &Call<'_>) -> Outcome {
    let params: Send = call.params()?;
    let session = session(call, &params.session_key, params.agent_id.as_deref())?;
    let run = run_id(session.account.as_ref(), &params.idempotency_key)?;
    if params.message.trim() == STOP {
        let runs = call.nodes.runs().abort(&Which::Session(&session), "stop");
        return Done::json(&aborted(&runs));
    }
    let turn = Turn {
        run,
        session,
        caller: caller(call),
        text: said(params.message)?,
        images: images(params.attachments.unwrap_or_default())?,
        model: None,
        system: None,
        timeout: millis(params.timeout_ms),
        interrupts: params.queue_mode.as_deref() == Some("interrupt"),
    };
    begin(call, turn, json!({}))
}

/// What is said: no NUL in it.
pub(super) fn said(message: String) -> Result<String, Refusal> {
    match message.contains('\0') {
        true => Err(Refusal::invalid("message must not contain null bytes")),
        false => Ok(message),
    }
}

/// Begins a turn; the answer says so before anything else is told of it. `more` goes along.
pub(super) fn begin(call: &Call<'_>, turn: Turn, more: Value) -> Outcome {
    if turn.text.trim().is_empty() && turn.images.is_empty() {
        return Err(Refusal::invalid("message or attachment required"));
    }
    let id = turn.run.clone();
    let answer = |status: &str| {
        let mut answer = more.clone();
        answer["runId"] = (&*id.id).into();
        answer["status"] = status.into();
        answer
    };
    let accepted = || call.later().send(&Ok(frame::text(&answer("started"))));
    match call.nodes.runs().send(turn, accepted)? {
        Sent::Started => Ok(Done::Later),
        Sent::InFlight => Done::json(&answer("in_flight")),
        Sent::Known(kept) => known(&id, &kept),
    }
}

/// The answer about a run that has ended.
pub(super) fn known(id: &RunId, kept: &Kept) -> Outcome {
    match &kept.ended {
        Ended::Failed { message, .. } => {
            let details = json!({"runId": &*id.id, "status": "error"});
            Err(Refusal::new(Code::Unavailable, message.clone()).with(details))
        }
        ended => Done::json(&outcome(&id.id, ended, kept.started_ms, kept.ended_ms)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Abort {
    session_key: String,
    agent_id: Option<String>,
    run_id: Option<String>,
}

fn abort(call: &Call<'_>) -> Outcome {
    let params: Abort = call.params()?;
    let session = session(call, &params.session_key, params.agent_id.as_deref())?;
    let runs = call.nodes.runs();
    let Some(run) = params.run_id else {
        return Done::json(&aborted(&runs.abort(&Which::Session(&session), "rpc")));
    };
    let id = RunId { account: session.account.clone(), id: run.into() };
    let on = runs.with(|table| table.run(&id).map(|entry| entry.turn.session.clone()));
    match on {
        Some(on) if on != session => Err(Refusal::invalid("runId does not match sessionKey")),
        _ => Done::json(&aborted(&runs.abort(&Which::Run(&id), "rpc"))),
    }
}

fn aborted(runs: &[RunId]) -> Value {
    let ids: Vec<&str> = runs.iter().map(|run| &*run.id).collect();
    json!({"ok": true, "aborted": !ids.is_empty(), "runIds": ids})
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct History {
    session_key: String,
    agent_id: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
    offset: Option<usize>,
    max_chars: Option<usize>,
}

/// A page of what was said, and what stands around it.
struct Page {
    session_id: Option<Arc<str>>,
    messages: Vec<(u64, Arc<Message>)>,
    kept: usize,
    total: u64,
    info: Option<Value>,
    running: Option<Value>,
}

fn history(call: &Call<'_>) -> Outcome {
    page(call).map(|page| Done::Now(frame::text(&page)))
}

fn startup(call: &Call<'_>) -> Outcome {
    let mut page = page(call)?;
    page["agentsList"] = super::agent::agents(call);
    Done::json(&page)
}

fn page(call: &Call<'_>) -> Result<Value, Refusal> {
    let params: History = call.params()?;
    let session = session(call, &params.session_key, params.agent_id.as_deref())?;
    if params.cursor.is_some() {
        // There are no cursors of ours: the client reads from the start.
        return Ok(json!({"kind": "reset"}));
    }
    let limit = params.limit.unwrap_or(PAGE).min(PAGE_MAX);
    let offset = params.offset.unwrap_or(0);
    let viewer = call.who.account.as_deref();
    let page = call.nodes.runs().with(|table| {
        let known = table.sessions.get(&session)?;
        let active = known.active.clone();
        let active = active.map(|id| RunId { account: session.account.clone(), id });
        let running = active.and_then(|id| table.run(&id));
        let running = running
            .map(|entry| json!({"runId": &*entry.turn.run.id, "text": entry.run.text.as_str()}));
        Some(Page {
            session_id: Some(Arc::clone(&known.id)),
            messages: known.history.page(offset, limit),
            kept: known.history.len(),
            total: known.history.total(),
            info: Some(known.row(&session, viewer)),
            running,
        })
    });
    let page = page.unwrap_or_else(|| Page {
        session_id: None,
        messages: Vec::new(),
        kept: 0,
        total: 0,
        info: None,
        running: None,
    });
    Ok(shown(&params, offset, &page, default_model(call)))
}

fn shown(params: &History, offset: usize, page: &Page, default: Option<String>) -> Value {
    let chars_max = params.max_chars.unwrap_or(usize::MAX);
    let id = page.session_id.as_deref().unwrap_or_default();
    let (mut messages, mut bytes) = (Vec::new(), 0);
    for (seq, message) in page.messages.iter().rev() {
        bytes += message.bytes();
        if bytes > PAGE_BYTES_MAX && !messages.is_empty() {
            break;
        }
        messages.push(message.shown(&format!("{id}:{seq}"), *seq, chars_max));
    }
    messages.reverse();
    let next = offset + messages.len();
    let nothing = || json!({"hasActiveRun": false, "activeRunIds": []});
    let mut shown = json!({
        "sessionKey": params.session_key, "offset": offset,
        "hasMore": next < page.kept, "totalMessages": page.total,
        "sessionInfo": page.info.clone().unwrap_or_else(nothing),
        "defaults": {"model": default}, "messages": messages,
    });
    if !id.is_empty() {
        shown["sessionId"] = id.into();
    }
    if next < page.kept {
        shown["nextOffset"] = next.into();
    }
    if page.total > page.kept as u64 {
        // The oldest are forgotten (nodes.session_bytes_max).
        shown["truncated"] = true.into();
    }
    if let Some(running) = &page.running {
        shown["inFlightRun"] = running.clone();
    }
    shown
}
