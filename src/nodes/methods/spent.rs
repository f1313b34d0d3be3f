//! `sessions.usage`: what sessions came to, as `GET /usage?by=session` has it. Sessions are not summed
//! by day: whoever asks for a time hears that all of it is told.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::session;
use super::usage::{account_of, figures};
use super::{Call, Done, Method, Needs, Outcome};
use crate::llm::usage::{SessionRow, Sums, Who};
use crate::nodes::runs::now_ms;
use crate::nodes::sessions::{AGENT, SessionId};
use crate::nodes::who::Scope;

/// Sessions that are told when nobody says how many.
const ROWS: usize = 50;

/// Most of them.
const ROWS_MAX: usize = 1000;

pub(super) const METHODS: &[Method] =
    &[Method { name: "sessions.usage", needs: Needs::Scope(Scope::Read), run: usage }];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Params {
    key: Option<String>,
    start_date: Option<String>,
    end_date: Option<String>,
    range: Option<String>,
    limit: Option<usize>,
}

fn usage(call: &Call<'_>) -> Outcome {
    let params: Params = call.params()?;
    let wanted = params.key.as_deref().map(|key| session(call, key, None)).transpose()?;
    let mut rows = call.nodes.parts().tables.usage_of_sessions(account_of(call.who));
    if let Some(wanted) = &wanted {
        rows.retain(|row| id_of(row).as_ref() == Some(wanted));
    }
    rows.sort_by(|a, b| b.last.cmp(&a.last).then_with(|| a.name.cmp(&b.name)));
    let mut totals = Sums::default();
    for row in &rows {
        totals.add(&row.sums);
    }
    let named = rows.iter().filter_map(|row| Some((id_of(row)?, row)));
    let limit = params.limit.unwrap_or(ROWS).min(ROWS_MAX);
    let sessions: Vec<Value> = named.take(limit).map(|(id, row)| shown(call, &id, row)).collect();
    let asked = params.start_date.is_some() || params.end_date.is_some();
    let asked = asked || params.range.as_deref().is_some_and(|range| range != "all");
    let mut answer = json!({
        "updatedAt": now_ms(), "sessions": sessions, "totals": figures(Map::new(), &totals),
    });
    if asked {
        answer["periodIgnored"] = true.into();
    }
    Done::json(&answer)
}

/// The session of a row; none for what belongs to no single one.
fn id_of(row: &SessionRow) -> Option<SessionId> {
    let key = row.name.clone().filter(|_| !row.others)?;
    match &row.who {
        Who::Key(name) => Some(SessionId { account: Some(name.clone()), key }),
        Who::Nobody => Some(SessionId { account: None, key }),
        Who::Others => None,
    }
}

fn shown(call: &Call<'_>, id: &SessionId, row: &SessionRow) -> Value {
    let mut shown = json!({
        "key": id.shown_to(call.who.account.as_deref()), "agentId": AGENT,
        "updatedAt": row.last.saturating_mul(1000), "usage": figures(Map::new(), &row.sums),
    });
    let known = call.nodes.runs().with(|table| {
        let session = table.sessions.get(id)?;
        Some((session.id.clone(), session.label.clone()))
    });
    if let Some((uid, label)) = known {
        shown["sessionId"] = (&*uid).into();
        if let Some(label) = label {
            shown["label"] = (&*label).into();
        }
    }
    shown
}
