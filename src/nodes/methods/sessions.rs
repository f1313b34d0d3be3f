//! `sessions.*`: the conversations there are.

use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{begin, caller, default_model, millis, said, session};
use super::{Call, Done, Method, Needs, Outcome};
use crate::base::id::RequestId;
use crate::nodes::refusal::Refusal;
use crate::nodes::runs::turn::{Attachment, RunId, Turn, images, run_id};
use crate::nodes::runs::{Sent, Which, now_ms};
use crate::nodes::sessions::{AGENT, LABEL_BYTES_MAX, MAIN, Session, SessionId, agent_known};
use crate::nodes::who::Scope;

/// Where sessions are kept, in the member that has a path elsewhere.
const PATH: &str = "(memory)";

/// Sessions of a list when nothing else is asked for.
const LIST: usize = 200;

/// Most messages of a preview, and of `sessions.get`.
const MESSAGES_MAX: usize = 1000;

/// Most sessions that are previewed at once.
const PREVIEWS_MAX: usize = 100;

pub(super) const METHODS: &[Method] = &[
    Method { name: "sessions.list", needs: Needs::Scope(Scope::Read), run: list },
    Method { name: "sessions.describe", needs: Needs::Scope(Scope::Read), run: describe },
    Method { name: "sessions.resolve", needs: Needs::Scope(Scope::Read), run: resolve },
    Method { name: "sessions.preview", needs: Needs::Scope(Scope::Read), run: preview },
    Method { name: "sessions.get", needs: Needs::Scope(Scope::Read), run: get },
    Method { name: "sessions.create", needs: Needs::Scope(Scope::Write), run: create },
    Method { name: "sessions.send", needs: Needs::Scope(Scope::Write), run: send },
    Method { name: "sessions.steer", needs: Needs::Scope(Scope::Write), run: steer },
    Method { name: "sessions.abort", needs: Needs::Scope(Scope::Write), run: abort },
    Method { name: "sessions.patch", needs: Needs::Scope(Scope::Write), run: patch },
    Method { name: "sessions.reset", needs: Needs::Scope(Scope::Admin), run: reset },
    Method { name: "sessions.delete", needs: Needs::Scope(Scope::Write), run: delete },
    Method { name: "sessions.subscribe", needs: Needs::Scope(Scope::Read), run: subscribe },
    Method { name: "sessions.unsubscribe", needs: Needs::Scope(Scope::Read), run: unsubscribe },
    Method { name: "sessions.messages.subscribe", needs: Needs::Scope(Scope::Read), run: listen },
    Method { name: "sessions.messages.unsubscribe", needs: Needs::Scope(Scope::Read), run: leave },
];

#[derive(Deserialize)]
struct Keyed {
    key: String,
    #[serde(rename = "agentId")]
    agent_id: Option<String>,
}

/// The session that is meant.
fn keyed(call: &Call<'_>) -> Result<SessionId, Refusal> {
    let Keyed { key, agent_id } = call.params()?;
    session(call, &key, agent_id.as_deref())
}

fn not_found(key: &str) -> Refusal {
    Refusal::invalid(format!("session not found: {key}"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct List {
    limit: Option<usize>,
    offset: Option<usize>,
    active_minutes: Option<u64>,
    include_derived_titles: Option<bool>,
    include_last_message: Option<bool>,
    label: Option<String>,
    agent_id: Option<String>,
    search: Option<String>,
}

impl List {
    fn takes(&self, id: &SessionId, session: &Session, now_ms: u64) -> bool {
        let age = now_ms.saturating_sub(session.updated_ms);
        let active =
            self.active_minutes.is_none_or(|minutes| age <= minutes.saturating_mul(60_000));
        let labelled = self.label.is_none() || self.label.as_deref() == session.label.as_deref();
        let found = self.search.as_ref().is_none_or(|search| {
            let search = search.to_lowercase();
            let label = session.label.as_deref().unwrap_or_default().to_lowercase();
            id.key.contains(&search) || label.contains(&search)
        });
        active && labelled && found
    }

    fn row(&self, id: &SessionId, session: &Session, viewer: Option<&str>) -> Value {
        let mut row = session.row(id, viewer);
        if self.include_derived_titles == Some(true)
            && let Some(title) = session.title()
        {
            row["derivedTitle"] = title.into();
        }
        if self.include_last_message == Some(true)
            && let Some(preview) = session.preview()
        {
            row["lastMessagePreview"] = preview.into();
        }
        row
    }
}

fn list(call: &Call<'_>) -> Outcome {
    let params: List = call.params()?;
    params.agent_id.as_deref().map_or(Ok(()), agent_known)?;
    let (now_ms, viewer) = (now_ms(), call.who.account.as_deref());
    let mut rows = call.nodes.runs().with(|table| {
        let seen = table.sessions.iter().filter(|(id, session)| {
            call.peer.sees(id.account.as_deref()) && params.takes(id, session, now_ms)
        });
        let row = |(id, session): (&SessionId, &Session)| {
            (session.updated_ms, params.row(id, session, viewer))
        };
        seen.map(row).collect::<Vec<_>>()
    });
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1["key"].as_str().cmp(&b.1["key"].as_str())));
    let (total, offset) = (rows.len(), params.offset.unwrap_or(0));
    let page = rows.into_iter().skip(offset).take(params.limit.unwrap_or(LIST));
    let sessions: Vec<Value> = page.map(|(_, row)| row).collect();
    let next = offset + sessions.len();
    let mut answer = json!({
        "ts": now_ms, "path": PATH, "count": sessions.len(), "totalCount": total,
        "hasMore": next < total,
        "defaults": {"model": default_model(call)}, "sessions": sessions,
    });
    if next < total {
        answer["nextOffset"] = next.into();
    }
    Done::json(&answer)
}

fn row_of(call: &Call<'_>, id: &SessionId) -> Option<Value> {
    let viewer = call.who.account.as_deref();
    let all = List {
        include_derived_titles: Some(true),
        include_last_message: Some(true),
        ..List::default()
    };
    call.nodes
        .runs()
        .with(|table| table.sessions.get(id).map(|session| all.row(id, session, viewer)))
}

fn describe(call: &Call<'_>) -> Outcome {
    Done::json(&json!({"session": row_of(call, &keyed(call)?)}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resolve {
    key: Option<String>,
    session_id: Option<String>,
    label: Option<String>,
    agent_id: Option<String>,
    allow_missing: Option<bool>,
}

fn resolve(call: &Call<'_>) -> Outcome {
    let params: Resolve = call.params()?;
    params.agent_id.as_deref().map_or(Ok(()), agent_known)?;
    let by_key = params.key.as_deref().map(|key| session(call, key, None)).transpose()?;
    if by_key.is_none() && params.session_id.is_none() && params.label.is_none() {
        return Err(Refusal::invalid("name the session by key, sessionId or label"));
    }
    let found = call.nodes.runs().with(|table| {
        let means = |(id, session): &(&SessionId, &Session)| {
            call.peer.sees(id.account.as_deref())
                && by_key.as_ref().is_none_or(|key| key == *id)
                && params.session_id.as_ref().is_none_or(|wanted| **wanted == *session.id)
                && (params.label.is_none() || params.label.as_deref() == session.label.as_deref())
        };
        table.sessions.iter().find(means).map(|(id, _)| id.clone())
    });
    match found {
        Some(id) => {
            let key = id.shown_to(call.who.account.as_deref());
            Done::json(&json!({"ok": true, "key": key, "agentId": AGENT}))
        }
        None if params.allow_missing == Some(true) => Done::json(&json!({"ok": false})),
        None => {
            let asked = params.key.or(params.session_id).or(params.label).unwrap_or_default();
            Err(Refusal::invalid(format!("No session found: {asked}")))
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Preview {
    keys: Vec<String>,
    limit: Option<usize>,
    max_chars: Option<usize>,
}

fn preview(call: &Call<'_>) -> Outcome {
    let params: Preview = call.params()?;
    let limit = params.limit.unwrap_or(12).min(50);
    let chars = params.max_chars.unwrap_or(240).clamp(20, 2000);
    let clip = |text: &str| text.chars().take(chars).collect::<String>();
    let mut previews = Vec::new();
    for key in params.keys.iter().take(PREVIEWS_MAX) {
        let id = session(call, key, None)?;
        let messages = call
            .nodes
            .runs()
            .with(|table| table.sessions.get(&id).map(|session| session.history.page(0, limit)));
        let items: Vec<Value> = messages
            .iter()
            .flatten()
            .map(|(_, message)| json!({"role": message.role.as_str(), "text": clip(&message.text)}))
            .collect();
        let status = match (&messages, items.is_empty()) {
            (None, _) => "missing",
            (_, true) => "empty",
            _ => "ok",
        };
        previews.push(json!({"key": key, "status": status, "items": items}));
    }
    Done::json(&json!({"ts": now_ms(), "previews": previews}))
}

#[derive(Deserialize)]
struct Get {
    limit: Option<usize>,
}

fn get(call: &Call<'_>) -> Outcome {
    let (id, Get { limit }) = (keyed(call)?, call.params()?);
    let limit = limit.unwrap_or(200).min(MESSAGES_MAX);
    let page = call.nodes.runs().with(|table| {
        table.sessions.get(&id).map(|known| (known.id.clone(), known.history.page(0, limit)))
    });
    let (uid, messages) = page.unwrap_or_default();
    let shown: Vec<Value> = messages
        .iter()
        .map(|(seq, message)| message.shown(&format!("{uid}:{seq}"), *seq, usize::MAX))
        .collect();
    Done::json(&json!({"messages": shown}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Create {
    key: Option<String>,
    agent_id: Option<String>,
    label: Option<String>,
    model: Option<String>,
    task: Option<String>,
    message: Option<String>,
    attachments: Option<Vec<Attachment>>,
    idempotency_key: Option<String>,
}

fn create(call: &Call<'_>) -> Outcome {
    let params: Create = call.params()?;
    let fresh = || format!("dashboard:{}", RequestId::generate());
    let key = params.key.clone().unwrap_or_else(fresh);
    let id = session(call, &key, params.agent_id.as_deref())?;
    let (label, model) = (labelled(params.label)?, modelled(params.model)?);
    let now = now_ms();
    call.nodes.runs().with(|table| {
        let session = table.sessions.open(&id, now)?;
        session.label = label.map(Into::into).or_else(|| session.label.take());
        session.model = model.map(Into::into).or_else(|| session.model.take());
        Ok::<_, Refusal>(())
    })?;
    call.nodes.runs().session_changed(&id, "create", None);
    let entry = row_of(call, &id).unwrap_or_else(|| json!({}));
    let shown = id.shown_to(call.who.account.as_deref());
    let mut answer = json!({
        "ok": true, "key": shown, "sessionId": entry["sessionId"], "entry": entry,
        "runStarted": false,
    });
    let first = params.task.or(params.message).filter(|text| !text.trim().is_empty());
    if let Some(text) = first {
        let key = params.idempotency_key.unwrap_or_else(|| RequestId::generate().to_string());
        let (text, images) = (said(text)?, images(params.attachments.unwrap_or_default())?);
        let turn = turn(call, id, &key, text, images)?;
        let run = turn.run.clone();
        match call.nodes.runs().send(turn, || ()) {
            Ok(Sent::Started | Sent::InFlight | Sent::Known(_)) => {
                answer["runStarted"] = true.into();
                answer["runId"] = (&*run.id).into();
            }
            Err(refusal) => answer["runError"] = refusal.shape(),
        }
    }
    Done::json(&answer)
}

fn labelled(label: Option<String>) -> Result<Option<String>, Refusal> {
    match label {
        Some(label) if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) => {
            Err(Refusal::invalid(format!("label: at most {LABEL_BYTES_MAX} bytes on one line")))
        }
        label => Ok(label.filter(|label| !label.trim().is_empty())),
    }
}

fn modelled(model: Option<String>) -> Result<Option<String>, Refusal> {
    match model {
        Some(model) if model.len() > 256 || model.chars().any(char::is_control) => {
            Err(Refusal::invalid("model: at most 256 bytes on one line"))
        }
        model => Ok(model.filter(|model| !model.trim().is_empty())),
    }
}

fn turn(
    call: &Call<'_>,
    session: SessionId,
    key: &str,
    text: String,
    images: Vec<crate::nodes::history::Image>,
) -> Result<Turn, Refusal> {
    Ok(Turn {
        run: run_id(session.account.as_ref(), key)?,
        session,
        caller: caller(call),
        text,
        images,
        model: None,
        system: None,
        timeout: None,
        interrupts: false,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Send {
    key: String,
    message: String,
    attachments: Option<Vec<Attachment>>,
    timeout_ms: Option<u64>,
    idempotency_key: Option<String>,
}

fn send(call: &Call<'_>) -> Outcome {
    say(call, false)
}

/// As `sessions.send`, but what runs makes room.
fn steer(call: &Call<'_>) -> Outcome {
    say(call, true)
}

fn say(call: &Call<'_>, interrupts: bool) -> Outcome {
    let id = keyed(call)?;
    let params: Send = call.params()?;
    let known = call.nodes.runs().with(|table| {
        table.sessions.get(&id).map(|session| (session.history.total() + 1, session.idle()))
    });
    let Some((seq, idle)) = known else { return Err(not_found(&params.key)) };
    let key = params.idempotency_key.unwrap_or_else(|| RequestId::generate().to_string());
    let shown = images(params.attachments.unwrap_or_default())?;
    let turn = turn(call, id, &key, said(params.message)?, shown)?;
    let turn = Turn { timeout: millis(params.timeout_ms), interrupts, ..turn };
    let mut more = json!({"messageSeq": seq});
    if interrupts && !idle {
        more["interruptedActiveRun"] = true.into();
    }
    begin(call, turn, more)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Abort {
    key: Option<String>,
    run_id: Option<String>,
    agent_id: Option<String>,
}

fn abort(call: &Call<'_>) -> Outcome {
    let params: Abort = call.params()?;
    let key = params.key.as_deref().map(|key| session(call, key, params.agent_id.as_deref()));
    let session = key.transpose()?;
    let runs = call.nodes.runs();
    let stopped = match (&params.run_id, &session) {
        (Some(run), session) => {
            let account = session
                .as_ref()
                .map_or_else(|| call.who.account.clone(), |session| session.account.clone());
            let id = RunId { account, id: run.as_str().into() };
            let on = runs.with(|table| table.run(&id).map(|entry| entry.turn.session.clone()));
            match (on, session) {
                (Some(on), Some(session)) if on != *session => Vec::new(),
                _ => runs.abort(&Which::Run(&id), "rpc"),
            }
        }
        (None, Some(session)) => runs.abort(&Which::Session(session), "rpc"),
        (None, None) => return Err(Refusal::invalid("key or runId required")),
    };
    let first = stopped.first().map(|run| &*run.id);
    let status = if first.is_some() { "aborted" } else { "no-active-run" };
    Done::json(&json!({"ok": true, "abortedRunId": first, "status": status}))
}

/// Changes what can be changed of a session: its label and its model.
fn patch(call: &Call<'_>) -> Outcome {
    let id = keyed(call)?;
    let params: serde_json::Map<String, Value> = call.params()?;
    let known = ["key", "agentId", "expectedSessionId", "label", "model"];
    if let Some(other) = params.keys().find(|name| !known.contains(&name.as_str())) {
        let text = format!("{other}: sessions of this gateway have a label and a model only");
        return Err(Refusal::invalid(text));
    }
    let text = |name: &str| match params.get(name) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(Value::String(text)) => Ok(Some(Some(text.clone()))),
        Some(_) => Err(Refusal::invalid(format!("{name}: write a text, or null"))),
    };
    let label = text("label")?.map(labelled).transpose()?;
    let model = text("model")?.map(modelled).transpose()?;
    let expected = params.get("expectedSessionId").and_then(Value::as_str);
    let now = now_ms();
    call.nodes.runs().with(|table| {
        let session = table.sessions.open(&id, now)?;
        if expected.is_some_and(|expected| *expected != *session.id) {
            return Err(Refusal::invalid("the session was reset meanwhile"));
        }
        if let Some(label) = label {
            session.label = label.map(Into::into);
        }
        if let Some(model) = model {
            session.model = model.map(Into::into);
        }
        Ok(())
    })?;
    call.nodes.runs().session_changed(&id, "patch", None);
    let entry = row_of(call, &id).unwrap_or_else(|| json!({}));
    let set = entry["model"].as_str().map(ToOwned::to_owned);
    let model = set.or_else(|| default_model(call));
    let key = id.shown_to(call.who.account.as_deref());
    Done::json(&json!({
        "ok": true, "path": PATH, "key": key, "entry": entry, "resolved": {"model": model},
    }))
}

fn reset(call: &Call<'_>) -> Outcome {
    let id = keyed(call)?;
    let runs = call.nodes.runs();
    runs.abort(&Which::Session(&id), "reset");
    let now = now_ms();
    runs.with(|table| table.sessions.open(&id, now).map(|session| session.reset(now)))?;
    runs.session_changed(&id, "reset", None);
    let key = id.shown_to(call.who.account.as_deref());
    Done::json(&json!({"ok": true, "key": key, "entry": row_of(call, &id)}))
}

fn delete(call: &Call<'_>) -> Outcome {
    let id = keyed(call)?;
    if &*id.key == MAIN {
        return Err(Refusal::invalid("Cannot delete the main session (main)."));
    }
    let runs = call.nodes.runs();
    // What still runs or waits in it ends without it.
    let deleted = runs.delete(&id);
    if deleted {
        runs.session_changed(&id, "delete", None);
    }
    let key = id.shown_to(call.who.account.as_deref());
    Done::json(&json!({"ok": true, "key": key, "deleted": deleted, "archived": []}))
}

fn subscribe(call: &Call<'_>) -> Outcome {
    let number = call.peer.number;
    call.nodes.runs().with(|table| table.subscriptions.listen_to_list(number))?;
    Done::json(&json!({"subscribed": true}))
}

fn unsubscribe(call: &Call<'_>) -> Outcome {
    call.nodes.runs().with(|table| table.subscriptions.leave_list(call.peer.number));
    Done::json(&json!({"subscribed": false}))
}

fn listen(call: &Call<'_>) -> Outcome {
    let (id, number) = (keyed(call)?, call.peer.number);
    call.nodes.runs().with(|table| table.subscriptions.listen(number, id.clone()))?;
    let key = id.shown_to(call.who.account.as_deref());
    Done::json(&json!({"subscribed": true, "key": key}))
}

fn leave(call: &Call<'_>) -> Outcome {
    let id = keyed(call)?;
    call.nodes.runs().with(|table| table.subscriptions.leave(call.peer.number, &id));
    let key = id.shown_to(call.who.account.as_deref());
    Done::json(&json!({"subscribed": false, "key": key}))
}
