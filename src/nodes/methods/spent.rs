//! `sessions.usage`: what sessions came to, as `GET /usage?by=session` has it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::session;
use super::usage::{self, Period, account_of, day_text, figures};
use super::{Call, Done, Method, Needs, Outcome};
use crate::base::clock;
use crate::llm::usage::{SECONDS_PER_DAY, SessionRow, Sums, Who};
use crate::nodes::runs::now_ms;
use crate::nodes::sessions::{AGENT, SessionId};
use crate::nodes::who::Scope;

/// Sessions that are told when nobody says how many.
const ROWS: usize = 50;

/// Most of them.
const ROWS_MAX: usize = 1000;

pub(super) const METHODS: &[Method] =
    &[Method { name: "sessions.usage", needs: Needs::Scope(Scope::Read), run: sessions }];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Params {
    key: Option<String>,
    limit: Option<usize>,
    #[serde(flatten)]
    period: usage::Params,
}

/// Sessions have no sums by day: those that were used last in the period are told, each with all that
/// it used.
fn sessions(call: &Call<'_>) -> Outcome {
    let params: Params = call.params()?;
    let wanted = params.key.as_deref().map(|key| session(call, key, None)).transpose()?;
    let period = usage::period(&params.period, clock::unix().as_secs() / SECONDS_PER_DAY)?;
    let rows = call.nodes.parts().tables.usage_of_sessions(account_of(call.who));
    let rows = chosen(rows, period, wanted.as_ref());
    let limit = params.limit.unwrap_or(ROWS).clamp(1, ROWS_MAX);
    Done::json(&report(&rows, period, limit, |id, row| shown(call, id, row)))
}

/// The rows that are asked for, the one used last first.
fn chosen(
    rows: Vec<SessionRow>,
    period: Period,
    wanted: Option<&SessionId>,
) -> Vec<(SessionId, SessionRow)> {
    let within = |row: &SessionRow| {
        let day = row.last / SECONDS_PER_DAY;
        period.first.is_none_or(|first| day >= first) && day <= period.last
    };
    // What belongs to no single session has no row that could be told.
    let mut rows: Vec<_> = rows
        .into_iter()
        .filter(within)
        .filter_map(|row| Some((id_of(&row)?, row)))
        .filter(|(id, _)| wanted.is_none_or(|wanted| wanted == id))
        .collect();
    rows.sort_by(|(_, a), (_, b)| b.last.cmp(&a.last).then_with(|| a.name.cmp(&b.name)));
    rows
}

/// The answer: of all of these the sums, and the first `limit` by themselves.
fn report(
    rows: &[(SessionId, SessionRow)],
    period: Period,
    limit: usize,
    show: impl Fn(&SessionId, &SessionRow) -> Value,
) -> Value {
    let mut totals = Sums::default();
    for (_, row) in rows {
        totals.add(&row.sums);
    }
    let since = rows.iter().map(|(_, row)| row.last / SECONDS_PER_DAY).min();
    let first = period.first.or(since).unwrap_or(period.last);
    let sessions: Vec<Value> = rows.iter().take(limit).map(|(id, row)| show(id, row)).collect();
    let totals = figures(Map::new(), &totals);
    json!({
        "updatedAt": now_ms(),
        "startDate": day_text(first),
        "endDate": day_text(period.last),
        "sessions": sessions,
        "totals": totals,
        "aggregates": {
            "messages": {
                "total": 0, "user": 0, "assistant": 0, "toolCalls": 0, "toolResults": 0, "errors": 0,
            },
            "tools": {"totalCalls": 0, "uniqueTools": 0, "tools": []},
            "byModel": [], "byProvider": [], "byChannel": [], "daily": [],
            "byAgent": [{"agentId": AGENT, "totals": totals}],
        },
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_told_the_last_used_first_and_what_names_none_is_left_out() {
        let row = |name: Option<&str>, last: u64| SessionRow {
            who: Who::Nobody,
            name: name.map(Into::into),
            others: false,
            last: last * SECONDS_PER_DAY,
            sums: Sums { requests: 1, input: 3, output: 2, unpriced: 1, ..Sums::default() },
        };
        let rows = || {
            let days = [(Some("a"), 19_990), (Some("b"), 19_995), (None, 20_000), (Some("c"), 100)];
            days.map(|(name, last)| row(name, last)).to_vec()
        };
        let show = |id: &SessionId, _: &SessionRow| Value::from(&*id.key);
        let period = Period { first: Some(19_971), last: 20_000 };
        let told = report(&chosen(rows(), period, None), period, 50, show);
        assert_eq!(told["sessions"], json!(["b", "a"]));
        assert_eq!(
            (&told["totals"]["requests"], &told["totals"]["totalCost"]),
            (&json!(2), &Value::Null)
        );
        assert_eq!(
            (&told["startDate"], &told["endDate"]),
            (&json!("2024-09-05"), &json!("2024-10-04"))
        );
        let one = SessionId { account: None, key: "a".into() };
        assert_eq!(chosen(rows(), period, Some(&one)).len(), 1);
        let others = SessionId { account: Some("laptop".into()), key: "a".into() };
        assert!(chosen(rows(), period, Some(&others)).is_empty());
        let ever = Period { first: None, last: 20_000 };
        let told = report(&chosen(rows(), ever, None), ever, 1, show);
        assert_eq!((&told["sessions"], &told["totals"]["requests"]), (&json!(["b"]), &json!(3)));
        assert_eq!(told["startDate"], "1970-04-11");
    }
}
