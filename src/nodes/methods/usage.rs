//! `usage.cost` and `usage.status`: the figures of `GET /usage` in the protocol's shapes. What is not
//! one's own is for administrators.
//!
//! A price that nobody said is missing, not zero: `totalCost` is `null` when nothing of a row has a
//! price, and `missingCostEntries` counts what is not in it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Call, Done, Method, Needs, Outcome};
use crate::base::clock;
use crate::base::time_format::rfc3339;
use crate::base::time_parse;
use crate::llm::usage::{SECONDS_PER_DAY, Sums};
use crate::nodes::host::UsageDay;
use crate::nodes::idempotency::Begun;
use crate::nodes::refusal::Refusal;
use crate::nodes::who::{Identity, Scope};

pub(super) const METHODS: &[Method] = &[
    Method { name: "usage.cost", needs: Needs::Scope(Scope::Read), run: cost },
    Method { name: "usage.status", needs: Needs::Scope(Scope::Read), run: status },
];

/// Days that are told when nobody says how many (the protocol's).
const DAYS: u64 = 30;
/// Millionths in one.
const MICROS: f64 = 1e6;
/// Most days that may be asked for.
const DAYS_MAX: u64 = 36_500;

/// Whose usage a client may know: `None` is everybody's.
pub(super) fn account_of(who: &Identity) -> Option<&str> {
    if who.scopes.allow(Scope::Admin) { None } else { who.account.as_deref() }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Params {
    /// A number, or one as a text.
    days: Option<Value>,
    range: Option<String>,
    start_date: Option<String>,
    end_date: Option<String>,
}

/// Days since 1970, both included; no first one is since ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) first: Option<u64>,
    pub(super) last: u64,
}

pub(super) fn period(params: &Params, today: u64) -> Result<Period, Refusal> {
    let wrong = |text: &'static str| Refusal::invalid(format!("invalid usage.cost params: {text}"));
    let day = |text: &str| {
        let seconds = time_parse::unix_seconds(&format!("{text}T00:00:00Z"));
        let day = seconds.map(|seconds| seconds / SECONDS_PER_DAY);
        day.filter(|day| day_text(*day) == text).ok_or_else(|| wrong("write a day as 2026-11-22"))
    };
    let last_days = |days: u64| {
        let days = days.clamp(1, DAYS_MAX);
        Period { first: Some((today + 1).saturating_sub(days)), last: today }
    };
    if let (Some(first), Some(last)) = (&params.start_date, &params.end_date) {
        return Ok(Period { first: Some(day(first)?), last: day(last)? });
    }
    match params.range.as_deref() {
        Some("all") => return Ok(Period { first: None, last: today }),
        Some("7d") => return Ok(last_days(7)),
        Some("30d") => return Ok(last_days(30)),
        Some("90d") => return Ok(last_days(90)),
        Some("1y") => return Ok(last_days(365)),
        Some(_) => return Err(wrong("range is 7d, 30d, 90d, 1y or all")),
        None => {}
    }
    let days = match &params.days {
        None | Some(Value::Null) => Some(DAYS),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(number) => number.as_u64(),
    };
    days.map(last_days).ok_or_else(|| wrong("days is no number of days"))
}

/// `2026-11-22`.
pub(super) fn day_text(day: u64) -> String {
    let since = std::time::Duration::from_secs(day.saturating_mul(SECONDS_PER_DAY));
    let time = std::time::UNIX_EPOCH.checked_add(since).unwrap_or(std::time::UNIX_EPOCH);
    let mut text = rfc3339(time, 0);
    text.truncate("2026-11-22".len());
    text
}

fn cost(call: &Call<'_>) -> Outcome {
    let params: Params = call.params()?;
    let period = period(&params, clock::unix().as_secs() / SECONDS_PER_DAY)?;
    let account = account_of(call.who);
    // What is asked for; whose it is stands beside it. Everybody's is nobody's own.
    let question = format!("{}:{:?}:{}", u8::from(account.is_some()), period.first, period.last);
    let owner = account.and(call.who.account.as_ref());
    let reports = call.nodes.reports();
    match reports.begin_or_reply(owner, "usage.cost", &question, || call.later())? {
        Begun::Known(outcome) => outcome.as_ref().clone().map(Done::Now),
        Begun::Joined => Ok(Done::Later),
        Begun::First(ticket) => {
            call.nodes.count_report();
            let rows = call.nodes.parts().tables.usage(account, period.first);
            let outcome = Ok(report(&rows, period).to_string());
            ticket.end(&outcome);
            outcome.map(Done::Now)
        }
    }
}

/// The answer, of the rows of days.
fn report(rows: &[UsageDay], period: Period) -> Value {
    let mut totals = Sums::default();
    let mut daily = Vec::new();
    let mut first = period.first;
    for row in rows.iter().filter(|row| row.day.is_none_or(|day| day <= period.last)) {
        totals.add(&row.sums);
        if let Some(day) = row.day {
            first = Some(first.map_or(day, |first| first.min(day)));
            let mut fields = Map::new();
            fields.insert("date".to_owned(), day_text(day).into());
            daily.push(figures(fields, &row.sums));
        }
    }
    let first = first.unwrap_or(period.last);
    json!({
        "updatedAt": unix_ms(),
        "days": (period.last + 1).saturating_sub(first),
        "timeZone": "UTC",
        "daily": daily,
        "totals": figures(Map::new(), &totals),
    })
}

/// The names that clients read, and those of `GET /usage` that they do not know.
pub(super) fn figures(mut fields: Map<String, Value>, sums: &Sums) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "for people; costMicros is exact")]
    let cost = sums.cost_micros().map(|micros| micros as f64 / MICROS);
    let told = json!({
        "input": sums.input,
        "output": sums.output,
        "cacheRead": sums.cached,
        "cacheWrite": 0,
        "totalTokens": sums.input.saturating_add(sums.output),
        "totalCost": cost,
        "costMicros": sums.cost_micros(),
        "missingCostEntries": sums.unpriced,
        "requests": sums.requests,
    });
    if let Value::Object(told) = told {
        fields.extend(told);
    }
    Value::Object(fields)
}

fn unix_ms() -> u64 {
    u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX)
}

/// The upstreams; what they themselves allow us is not known.
fn status(call: &Call<'_>) -> Outcome {
    let upstreams = call.nodes.parts().tables.upstreams();
    let provider = |name: &String| json!({"provider": name, "displayName": name, "windows": []});
    let providers: Vec<Value> = upstreams.iter().map(provider).collect();
    Done::json(&json!({"updatedAt": unix_ms(), "providers": providers}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(params: Value) -> Result<Period, Refusal> {
        period(&serde_json::from_value(params).unwrap(), 20_000)
    }

    #[test]
    fn a_period_is_what_clients_mean_by_it() {
        let days = |first, last| Ok::<_, ()>(Period { first, last });
        for (params, expected) in [
            (json!({}), days(Some(19_971), 20_000)),
            (json!({"days": 1}), days(Some(20_000), 20_000)),
            (json!({"days": "7"}), days(Some(19_994), 20_000)),
            (json!({"days": 0}), days(Some(20_000), 20_000)),
            (json!({"days": u64::MAX}), days(Some(0), 20_000)),
            (json!({"range": "all", "days": 3}), days(None, 20_000)),
            (json!({"range": "1y"}), days(Some(19_636), 20_000)),
            (
                json!({"startDate": "2024-02-29", "endDate": "2024-03-01", "mode": "utc"}),
                days(Some(19_782), 19_783),
            ),
        ] {
            assert_eq!(of(params.clone()).map_err(|_| ()), expected, "{params}");
        }
        for wrong in [
            json!({"range": "2d"}),
            json!({"days": -1}),
            json!({"days": "x"}),
            json!({"startDate": "2024-02-30", "endDate": "2024-03-01"}),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rows_are_summed_and_a_missing_price_is_not_zero() {
        let row = |day, micros: Option<u128>, unpriced| {
            let (priced, cost) = (micros.is_some().into(), micros.unwrap_or_default() * 1_000_000);
            let mut sums = Sums { requests: 2, input: 10, output: 5, cached: 4, ..Sums::default() };
            sums.add(&Sums { priced, unpriced, cost, ..Sums::default() });
            UsageDay { day, sums }
        };
        let rows = [
            row(None, Some(7), 0),
            row(Some(19_998), Some(1_500_000), 0),
            row(Some(20_000), None, 2),
            row(Some(20_001), Some(9), 0),
        ];
        let told = report(&rows, Period { first: None, last: 20_000 });
        assert_eq!(told["days"], 3);
        assert_eq!(told["daily"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&told["daily"][0]["date"], &told["daily"][0]["totalCost"]),
            (&json!("2024-10-02"), &json!(1.5))
        );
        assert_eq!(
            (&told["daily"][1]["totalCost"], &told["daily"][1]["missingCostEntries"]),
            (&Value::Null, &json!(2))
        );
        let totals = &told["totals"];
        assert_eq!(
            (&totals["requests"], &totals["totalTokens"], &totals["missingCostEntries"]),
            (&json!(6), &json!(45), &json!(2))
        );
        assert_eq!(totals["totalCost"], json!(1.500_007));
        let none = report(&[], Period { first: Some(19_971), last: 20_000 });
        assert_eq!((&none["days"], &none["totals"]["totalCost"]), (&json!(30), &json!(0.0)));
    }
}
