//! The answer about usage. Its names are those of OpenClaw's `usage.cost`, which people's tools read
//! already; what is added to it is named alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::base::time_format::rfc3339;
use crate::llm::usage::{Place, SECONDS_PER_DAY, SessionRow, Sums, What, Who};

use super::question::{By, Question};

/// Models without a price that are named. Past it: they are counted only.
const MISSING_NAMES_MAX: usize = 64;

/// Millionths in one.
const MICROS: f64 = 1e6;

/// What an answer tells beside the sums.
pub(super) struct Facts<'a> {
    pub currency: &'a str,
    /// Seconds since 1970.
    pub now: u64,
    /// Since when there are sums, in seconds since 1970.
    pub started: u64,
    /// Whether they outlive a restart.
    pub kept: bool,
    /// Days with rows of their own.
    pub days_max: u64,
}

/// What a row is about. Its order is that of days; other rows are ordered by what they sum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group<'a> {
    Day(Option<u64>),
    Model(&'a str, Option<(&'a str, &'a str)>),
    OtherModels,
    Key(&'a Who),
}

impl<'a> Group<'a> {
    fn of(place: &'a Place, by: By) -> Group<'a> {
        match (by, &place.what) {
            (By::Day, _) => Group::Day(place.day),
            (By::Key | By::Session, _) => Group::Key(&place.who),
            (By::Model, What::Others) => Group::OtherModels,
            (By::Model, What::Model { asked, answered }) => {
                let answered = answered.as_ref().map(|(upstream, model)| (&**upstream, &**model));
                Group::Model(asked, answered)
            }
        }
    }

    fn write(&self) -> Map<String, Value> {
        let value = match self {
            Group::Day(Some(day)) => json!({ "date": day_text(*day) }),
            Group::Day(None) => json!({ "date": null, "others": true }),
            Group::Model(asked, Some((upstream, model))) => {
                json!({ "model": asked, "answeredBy": format!("{upstream}/{model}") })
            }
            Group::Model(asked, None) => json!({ "model": asked, "answeredBy": null }),
            Group::OtherModels => json!({ "model": null, "answeredBy": null, "others": true }),
            Group::Key(who) => key(who),
        };
        object(value)
    }
}

/// Writes the answer.
pub(super) fn write(
    question: &Question,
    facts: &Facts<'_>,
    rows: &[(Arc<Place>, Sums)],
    sessions: &[SessionRow],
) -> Vec<u8> {
    let mine = rows.iter().filter(|(place, _)| question.is_about(&place.who));
    let counts = |day: Option<u64>| match question.since {
        None => true,
        Some(since) => day.is_some_and(|day| day >= since),
    };
    let mut groups: BTreeMap<Group<'_>, Sums> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    // Days that lost their rows may be among those that were asked for.
    let first_day = (facts.now / SECONDS_PER_DAY + 1).saturating_sub(facts.days_max);
    let mut complete = true;
    for (place, sums) in mine {
        if !counts(place.day) {
            complete &= place.day.is_some() || question.since.is_some_and(|day| day >= first_day);
            continue;
        }
        groups.entry(Group::of(place, question.by)).or_default().add(sums);
        if let (What::Model { answered: Some((upstream, model)), .. }, true) =
            (&place.what, sums.unpriced > 0)
        {
            missing.insert(format!("{upstream}/{model}"));
        }
    }
    let mut totals = Sums::default();
    let listed: Vec<Value> = if question.by == By::Session {
        let mine = sessions.iter().filter(|row| question.is_about(&row.who));
        mine.inspect(|row| totals.add(&row.sums)).map(session).collect()
    } else {
        groups.values().for_each(|sums| totals.add(sums));
        let mut groups: Vec<_> = groups.into_iter().collect();
        if question.by != By::Day {
            groups.sort_by_key(|(_, sums)| std::cmp::Reverse(sums.requests));
        }
        groups.iter().map(|(group, sums)| with_sums(group.write(), sums)).collect()
    };
    let document = json!({
        "updatedAt": time_text(facts.now),
        "startedAt": time_text(facts.started),
        "kept": facts.kept,
        "currency": facts.currency,
        "by": question.by.as_str(),
        "since": question.since.map(day_text),
        "key": question.key,
        "complete": complete,
        "totals": with_sums(Map::new(), &totals),
        "missingPrices": missing.iter().take(MISSING_NAMES_MAX).collect::<Vec<_>>(),
        "rows": listed,
    });
    document.to_string().into_bytes()
}

fn session(row: &SessionRow) -> Value {
    let name = row.name.as_deref();
    let mut out = object(json!({ "session": name, "lastUsed": time_text(row.last) }));
    let (key, others) = match &row.who {
        Who::Key(name) => (Some(&**name), false),
        who => (None, *who == Who::Others),
    };
    out.insert("key".to_owned(), json!(key));
    if others {
        out.insert("otherKeys".to_owned(), true.into());
    }
    if row.others {
        out.insert("others".to_owned(), true.into());
    }
    with_sums(out, &row.sums)
}

fn key(who: &Who) -> Value {
    match who {
        Who::Key(name) => json!({ "key": **name }),
        Who::Nobody => json!({ "key": null }),
        Who::Others => json!({ "key": null, "others": true }),
    }
}

fn with_sums(mut out: Map<String, Value>, sums: &Sums) -> Value {
    let micros = sums.cost_micros();
    #[expect(clippy::cast_precision_loss, reason = "for people; costMicros is exact")]
    let cost = micros.map(|micros| micros as f64 / MICROS);
    out.extend(object(json!({
        "requests": sums.requests,
        "failed": sums.failed,
        "cut": sums.cut,
        "cancelled": sums.cancelled,
        "fromCache": sums.replayed,
        "estimated": sums.estimated,
        "input": sums.input,
        "output": sums.output,
        "cacheRead": sums.cached,
        "totalTokens": sums.input.saturating_add(sums.output),
        "totalCost": cost,
        "costMicros": micros,
        "missingCostEntries": sums.unpriced,
    })));
    Value::Object(out)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn time_text(seconds: u64) -> String {
    // Past the year 9999 the last second of it is shown.
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    rfc3339(time.unwrap_or(UNIX_EPOCH), 0)
}

/// `2026-11-22`.
pub(super) fn day_text(day: u64) -> String {
    let mut text = time_text(day.saturating_mul(SECONDS_PER_DAY));
    text.truncate("2026-11-22".len());
    text
}
