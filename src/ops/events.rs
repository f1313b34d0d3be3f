//! `GET /events`: what happened to the program, over restarts where there is a store.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::Level;
use serde_json::{Value, json};

use super::{Parts, problem};
use crate::base::error::{Error, Kind};
use crate::base::query::{pairs, shown};
use crate::base::time_format::rfc3339;
use crate::base::{clock, time_parse};
use crate::net::http::Response;
use crate::store::events::{ANSWER_MAX, Question, Told, list};

/// How long the store may take.
const READ_MAX: Duration = Duration::from_secs(2);

/// Events in an answer, when nobody says how many.
const LIMIT_DEFAULT: usize = 100;

/// The answer: `{"events": […], "kept": true}`, oldest first.
pub(super) fn answer(parts: &Parts, query: &str, now: Instant) -> Response {
    let question = match parse(query, clock::wall()) {
        Ok(question) => question,
        Err(error) => return problem(&error),
    };
    let (mut told, why) = match list(parts.store.durable(), now + READ_MAX, &question) {
        Ok(told) => (told, None),
        // What is in memory is better than nothing, and said to be that.
        Err(error) => (Vec::new(), Some(error.context().to_owned())),
    };
    let newest = told.last().map(|told| told.at);
    let fresh = parts.events.recent().into_iter().filter(|event| {
        // The store has whole milliseconds.
        let later = newest.is_none_or(|newest| event.at >= newest + Duration::from_millis(1));
        later && question.is_about(event)
    });
    told.extend(fresh.map(Told::from));
    let first = told.len().saturating_sub(question.limit);
    let rows: Vec<Value> = told[first..].iter().map(row).collect();
    let document = json!({ "events": rows, "kept": why.is_none(), "reason": why });
    Response::new(200, "application/json", document.to_string()).with("cache-control", "no-store")
}

fn row(told: &Told) -> Value {
    json!({
        "at": rfc3339(told.at, 3),
        "level": told.level.as_str().to_ascii_lowercase(),
        "kind": told.kind,
        "subject": told.subject,
        "detail": told.detail,
        "left_out": told.left_out,
    })
}

fn parse(query: &str, now: SystemTime) -> Result<Question, Error> {
    let refused = |text: String| Err(Error::new(Kind::InvalidField, text));
    let mut question = Question { limit: LIMIT_DEFAULT, ..Question::default() };
    for (name, value) in pairs(query) {
        let Some(value) = value else {
            return refused(format!("{}: is no proper value", shown(name)));
        };
        match name {
            "since" => match since(&value, now) {
                Some(since) => question.since_ms = Some(since),
                None => {
                    let text = "since: write a time as 2026-11-22T10:00:00Z, or -1h";
                    return refused(text.to_owned());
                }
            },
            "kind" => question.kind = Some(value),
            "level" => match value.parse::<Level>() {
                Ok(level) => question.level = Some(level),
                Err(_) => return refused("level: write error, warn, info or debug".to_owned()),
            },
            "limit" => match value.parse() {
                Ok(limit) if (1..=ANSWER_MAX).contains(&limit) => question.limit = limit,
                _ => return refused(format!("limit: write a number from 1 to {ANSWER_MAX}")),
            },
            _ => {
                let name = shown(name);
                let text = "is not known; there are since, kind, level and limit";
                return refused(format!("{name}: {text}"));
            }
        }
    }
    Ok(question)
}

/// Milliseconds since 1970 of a time, or of so long ago.
fn since(text: &str, now: SystemTime) -> Option<i64> {
    let at = match text.strip_prefix('-') {
        Some(ago) => now.checked_sub(humantime::parse_duration(ago).ok()?)?,
        None => UNIX_EPOCH + Duration::from_secs(time_parse::unix_seconds(text)?),
    };
    // Before 1970 is as good as then.
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_question_is_read_or_refused_with_what_to_write() {
        let query = "since=2026-11-22T10:00:00Z&kind=store_down&level=warn&limit=7";
        let question = parse(query, at(0)).unwrap();
        assert_eq!(question.since_ms, Some(1_795_341_600_000));
        assert_eq!(question.kind.as_deref(), Some("store_down"));
        assert_eq!((question.level, question.limit), (Some(Level::Warn), 7));
        assert_eq!(parse("since=-1h", at(7200)).unwrap().since_ms, Some(3_600_000));
        for (query, word) in [
            ("since=yesterday", "since: write"),
            ("since=-", "since: write"),
            ("level=bad", "level: write"),
            ("limit=0", "limit: write"),
            ("limit=1001", "limit: write"),
            ("kind=%ff", "kind: is no proper"),
            ("kinds=a", "kinds: is not known"),
        ] {
            let error = parse(query, at(0)).unwrap_err();
            assert_eq!(error.row().status, 400);
            assert!(error.context().starts_with(word), "{query}: {error}");
        }
    }

    #[test]
    fn without_a_store_what_is_in_memory_is_shown_and_said_to_be_that() {
        let parts = Parts::bare();
        for n in 0..3 {
            parts.events.record(Level::Warn, "tried", "x", n.to_string());
        }
        let answer = answer(&parts, "limit=2&kind=tried", clock::now());
        let document: Value = serde_json::from_slice(answer.body.as_ref()).unwrap();
        assert_eq!(document["kept"], false);
        assert!(document["reason"].as_str().unwrap().contains("state.dir"), "{document}");
        let details: Vec<&str> = document["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["detail"].as_str().unwrap())
            .collect();
        assert_eq!(details, ["1", "2"]);
    }
}
