//! `wake`: something has happened, and a session is to hear of it.

use serde::Deserialize;
use serde_json::json;

use super::chat::{caller, said, session};
use super::{Call, Done, Method, Needs, Outcome};
use crate::base::id::RequestId;
use crate::nodes::refusal::Refusal;
use crate::nodes::runs::turn::{Turn, run_id};
use crate::nodes::sessions::MAIN;
use crate::nodes::who::Scope;

pub(super) const METHODS: &[Method] =
    &[Method { name: "wake", needs: Needs::Scope(Scope::Write), run: wake }];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wake {
    mode: String,
    text: String,
    session_key: Option<String>,
    agent_id: Option<String>,
}

fn wake(call: &Call<'_>) -> Outcome {
    let params: Wake = call.params()?;
    let key = params.session_key.as_deref().unwrap_or(MAIN);
    let session = session(call, key, params.agent_id.as_deref())?;
    let text = said(params.text)?;
    if text.trim().is_empty() {
        return Err(Refusal::invalid("text required"));
    }
    let runs = call.nodes.runs();
    match params.mode.as_str() {
        "next-heartbeat" => runs.remind(&session, &text)?,
        "now" => {
            let turn = Turn {
                run: run_id(session.account.as_ref(), RequestId::generate().as_str())?,
                session,
                caller: caller(call),
                text: format!("System: {text}"),
                images: Vec::new(),
                model: None,
                system: None,
                timeout: None,
                interrupts: false,
            };
            runs.send(turn, || ()).map(drop)?;
        }
        _ => return Err(Refusal::invalid("mode must be \"now\" or \"next-heartbeat\"")),
    }
    Done::json(&json!({"ok": true, "mode": params.mode}))
}
