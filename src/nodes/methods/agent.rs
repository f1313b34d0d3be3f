//! `agent`, `agent.wait`, and what is asked about agents. There is one, `main`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{caller, default_model, known, millis, said, session};
use super::{Call, Done, Method, Needs, Outcome};
use crate::base::clock;
use crate::nodes::frame;
use crate::nodes::refusal::Refusal;
use crate::nodes::runs::turn::{Attachment, RunId, Turn, images, run_id};
use crate::nodes::runs::{Sent, now_ms, outcome};
use crate::nodes::sessions::{AGENT, MAIN, agent_known};
use crate::nodes::who::Scope;

/// How long `agent.wait` waits when nothing else is asked for.
const WAIT: Duration = Duration::from_secs(30);

/// How long it waits at most.
const WAIT_MAX: Duration = Duration::from_secs(600);

pub(super) const METHODS: &[Method] = &[
    Method { name: "agent", needs: Needs::Scope(Scope::Write), run: agent },
    Method { name: "agent.wait", needs: Needs::Scope(Scope::Write), run: wait },
    Method { name: "agent.identity.get", needs: Needs::Scope(Scope::Read), run: identity },
    Method { name: "agents.list", needs: Needs::Scope(Scope::Read), run: list },
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Agent {
    message: String,
    agent_id: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    session_key: Option<String>,
    deliver: Option<bool>,
    attachments: Option<Vec<Attachment>>,
    /// In seconds.
    timeout: Option<u64>,
    extra_system_prompt: Option<String>,
    idempotency_key: String,
}

/// Runs a turn. Two answers have the request's id: that it is accepted, and what came of it.
fn agent(call: &Call<'_>) -> Outcome {
    let params: Agent = call.params()?;
    if params.deliver == Some(true) {
        let text = "this gateway delivers to no channels; leave deliver out";
        return Err(Refusal::invalid(text));
    }
    let key = params.session_key.as_deref().unwrap_or(MAIN);
    let session = session(call, key, params.agent_id.as_deref())?;
    let model = params.model.filter(|model| !model.trim().is_empty());
    let turn = Turn {
        run: run_id(session.account.as_ref(), &params.idempotency_key)?,
        session,
        caller: caller(call),
        text: said(params.message)?,
        images: images(params.attachments.unwrap_or_default())?,
        model: model.map(|model| match &params.provider {
            Some(provider) if !provider.is_empty() => format!("{provider}/{model}"),
            _ => model,
        }),
        system: params.extra_system_prompt.filter(|text| !text.trim().is_empty()),
        timeout: params.timeout.filter(|seconds| *seconds > 0).map(Duration::from_secs),
        interrupts: false,
    };
    if turn.text.trim().is_empty() && turn.images.is_empty() {
        return Err(Refusal::invalid("message or attachment required"));
    }
    let id = turn.run.clone();
    let key = turn.session.shown_to(call.who.account.as_deref());
    let runs = call.nodes.runs();
    let accepted = || {
        let answer = json!({
            "runId": &*id.id, "status": "accepted", "acceptedAt": now_ms(), "sessionKey": key,
        });
        call.later().send(&Ok(frame::text(&answer)));
        if let Err(back) = runs.wait(&id, call.later(), None, true) {
            let (reply, refusal) = *back;
            reply.send(&Err(refusal));
        }
    };
    match runs.send(turn, accepted)? {
        Sent::Started => Ok(Done::Later),
        Sent::Known(kept) => known(&id, &kept),
        Sent::InFlight => {
            let answer = json!({"runId": &*id.id, "status": "accepted", "acceptedAt": now_ms()});
            call.later().send(&Ok(frame::text(&answer)));
            match runs.wait(&id, call.later(), None, true) {
                Ok(()) => Ok(Done::Later),
                Err(back) => {
                    let (reply, refusal) = *back;
                    reply.send(&Err(refusal));
                    Ok(Done::Later)
                }
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wait {
    run_id: String,
    timeout_ms: Option<u64>,
}

fn wait(call: &Call<'_>) -> Outcome {
    let params: Wait = call.params()?;
    let id = RunId { account: call.who.account.clone(), id: params.run_id.into() };
    let runs = call.nodes.runs();
    let over = |id: &RunId| runs.kept(id);
    let answer = |kept: crate::nodes::runs::table::Kept| {
        Done::json(&outcome(&id.id, &kept.ended, kept.started_ms, kept.ended_ms))
    };
    if let Some(kept) = over(&id) {
        return answer(kept);
    }
    let time = millis(params.timeout_ms).unwrap_or(WAIT).min(WAIT_MAX);
    match runs.wait(&id, call.later(), Some(clock::now() + time), false) {
        Ok(()) => Ok(Done::Later),
        Err(back) => {
            let (reply, refusal) = *back;
            // It may have ended between the two looks.
            let outcome = over(&id).map_or(Err(refusal), |kept| {
                Ok(frame::text(&outcome(&id.id, &kept.ended, kept.started_ms, kept.ended_ms)))
            });
            reply.send(&outcome);
            Ok(Done::Later)
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    agent_id: Option<String>,
    session_key: Option<String>,
}

fn identity(call: &Call<'_>) -> Outcome {
    let params: Identity = call.params()?;
    match params.session_key {
        Some(key) => session(call, &key, params.agent_id.as_deref()).map(drop)?,
        None => params.agent_id.as_deref().map_or(Ok(()), agent_known)?,
    }
    Done::json(&json!({"agentId": AGENT, "name": "Tidegate"}))
}

fn list(call: &Call<'_>) -> Outcome {
    Done::json(&agents(call))
}

/// The agents, of which there is one.
pub(super) fn agents(call: &Call<'_>) -> Value {
    let mut agent = json!({"id": AGENT, "kind": "agent", "name": "Tidegate"});
    if let Some(model) = default_model(call) {
        agent["model"] = json!({"primary": model});
    }
    json!({"defaultId": AGENT, "mainKey": "main", "scope": "per-sender", "agents": [agent]})
}
