//! The live document: what `/metrics`, `/limits`, `/breakers`, `/cache`, `/health` and `/config` say, in one.
//! Figures stand in it as they are counted; rates and percentiles are the reader's to make.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::base::clock;
use crate::base::metrics::{Family, Labels, Metric};
use crate::base::time_format;
use crate::health::overload::LEVELS;
use crate::observe::process::Process;
use crate::ops::{Parts, breakers, cache, health, limits};
use crate::upstream::breaker::Stand;

/// Most events in a document, the newest. `/events` has more.
const EVENTS_MAX: usize = 40;

/// Most breakers in a document, those that are not closed first. `/breakers` has all.
const BREAKERS_MAX: usize = 128;

/// Families that are shown, added up over all labels but these.
const SHOWN: [(&str, &[&str]); 20] = [
    ("tidegate_http_requests_total", &["status", "code"]),
    ("tidegate_http_request_seconds", &[]),
    ("tidegate_first_token_seconds", &[]),
    ("tidegate_queue_wait_seconds", &["engine"]),
    ("tidegate_streams_total", &[]),
    ("tidegate_streams_cut_total", &[]),
    ("tidegate_fallbacks_total", &[]),
    ("tidegate_tokens_total", &["direction"]),
    ("tidegate_upstream_attempts_total", &["upstream", "outcome"]),
    ("tidegate_upstream_retries_total", &["upstream"]),
    ("tidegate_cache_requests_total", &["namespace", "result"]),
    ("tidegate_connections_accepted_total", &["engine"]),
    ("tidegate_overload_level", &[]),
    ("tidegate_panics_total", &["engine"]),
    ("tidegate_resource_growth_per_hour", &["measure"]),
    ("tidegate_events_total", &["kind"]),
    ("tidegate_config_reloads_total", &["outcome"]),
    ("tidegate_nodes_events_dropped_total", &["class"]),
    ("tidegate_nodes_invocations_total", &["outcome"]),
    ("tidegate_nodes_ended_total", &["reason"]),
];

/// Makes documents.
#[derive(Debug)]
pub(super) struct Maker {
    parts: Parts,
    /// The keys of all settings, which name limits.
    settings: Vec<String>,
    made: AtomicU64,
}

impl Maker {
    pub(super) fn new(parts: Parts) -> Self {
        Maker { parts, settings: limits::settings(), made: AtomicU64::new(0) }
    }

    /// The document at `now`, with its number, from 1 on.
    pub(super) fn make(&self, now: Instant) -> (u64, String) {
        let number = self.made.fetch_add(1, Relaxed) + 1;
        let parts = &self.parts;
        let (families, _) = parts.registry.gather();
        let mut views = parts.links.as_ref().map(|links| links.breakers()).unwrap_or_default();
        let left_out = views.len().saturating_sub(BREAKERS_MAX);
        if left_out > 0 {
            views.sort_by_key(|view| view.stand == Stand::Closed);
            views.truncate(BREAKERS_MAX);
        }
        let level = families.iter().find(|family| family.name == "tidegate_overload_level");
        let document = json!({
            "number": number,
            "at": seconds(clock::wall()),
            "version": env!("CARGO_PKG_VERSION"),
            "phase": parts.board.phase().as_str(),
            "ready": parts.board.ready(now),
            "alerts": parts.alerts.as_ref().map(|alerts| alerts.view()),
            "config": parts.config.as_ref().map(|config| config.document()),
            "overload": level.map(overload),
            "process": process(&Process::now()),
            "metrics": metrics(&families),
            "limits": limits::rows(&parts.registry, &self.settings),
            "breakers": breakers::rows(&views),
            "breakers_left_out": left_out,
            "cache": cache::rows(parts.answers.as_ref()),
            "health": health::document(parts, now),
            "events": self.events(),
        });
        (number, document.to_string())
    }

    /// The newest events, newest first.
    fn events(&self) -> Vec<Value> {
        let recent = self.parts.events.recent();
        let newest = recent.iter().rev().take(EVENTS_MAX).map(|event| {
            json!({
                "number": event.number,
                "at": time_format::rfc3339(event.at, 3),
                "level": event.level.as_str().to_ascii_lowercase(),
                "kind": event.kind,
                "subject": event.subject,
                "detail": event.detail,
            })
        });
        newest.collect()
    }
}

fn seconds(at: SystemTime) -> f64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // To the millisecond, which is what a reader of the text makes of it.
    (since.as_secs_f64() * 1000.0).round() / 1000.0
}

fn overload(family: &Family) -> &'static str {
    let level = match family.series.first() {
        Some((_, Metric::Gauge(gauge))) => usize::try_from(gauge.value()).unwrap_or(usize::MAX),
        _ => 0,
    };
    LEVELS.get(level).map_or("unknown", |level| level.as_str())
}

fn process(process: &Process) -> Value {
    json!({
        "cpu_seconds": process.cpu_seconds,
        "resident_bytes": process.resident_bytes,
        "anonymous_bytes": process.anonymous_bytes,
        "virtual_bytes": process.virtual_bytes,
        "open_fds": process.open_fds,
        "max_fds": process.max_fds,
        "threads": process.threads,
        "start_time_seconds": process.start_time_seconds,
    })
}

/// `{family: {"by": [label…], "rows": [[value of each label…, figure]…]}}`; a histogram's figures are
/// its counts, with `bounds` and `sum` beside them. Rows of nothing are left out.
fn metrics(families: &[Family]) -> Map<String, Value> {
    let mut shown = Map::new();
    for (name, by) in SHOWN {
        if let Some(family) = families.iter().find(|family| family.name == name) {
            shown.insert(name.to_owned(), figures(family, by));
        }
    }
    shown
}

fn figures(family: &Family, by: &[&str]) -> Value {
    let mut rows: Vec<(Vec<&str>, u64)> = Vec::new();
    let mut buckets: Vec<(Vec<&str>, Vec<u64>, f64)> = Vec::new();
    let mut bounds: &[f64] = &[];
    for (labels, metric) in &family.series {
        let group = group(labels, by);
        match metric {
            Metric::Counter(counter) => add(&mut rows, group, counter.value()),
            Metric::Gauge(gauge) => add(&mut rows, group, gauge.value()),
            Metric::Histogram(histogram) => {
                bounds = histogram.bounds();
                let (sum, counts) = (histogram.sum(), histogram.counts());
                match buckets.iter_mut().find(|(have, ..)| *have == group) {
                    Some((_, known, total)) => {
                        known.iter_mut().zip(counts).for_each(|(known, more)| *known += more);
                        *total += sum;
                    }
                    None => buckets.push((group, counts, sum)),
                }
            }
        }
    }
    if bounds.is_empty() {
        rows.retain(|(_, value)| *value > 0);
        let rows = rows.into_iter().map(|(group, value)| row(group, value.into()));
        return json!({ "by": by, "rows": rows.collect::<Vec<_>>() });
    }
    let rows = buckets.into_iter().map(|(group, counts, sum)| row(group, json!([counts, sum])));
    json!({ "by": by, "bounds": bounds, "rows": rows.collect::<Vec<_>>() })
}

fn add<'a>(rows: &mut Vec<(Vec<&'a str>, u64)>, group: Vec<&'a str>, value: u64) {
    match rows.iter_mut().find(|(have, _)| *have == group) {
        Some((_, known)) => *known += value,
        None => rows.push((group, value)),
    }
}

fn group<'a>(labels: &'a Labels, by: &[&str]) -> Vec<&'a str> {
    let value = |label: &&str| labels.iter().find(|(have, _)| have == label);
    by.iter().map(|label| value(label).map_or("", |(_, value)| value.as_str())).collect()
}

fn row(group: Vec<&str>, figure: Value) -> Value {
    group.into_iter().map(Value::from).chain([figure]).collect()
}
