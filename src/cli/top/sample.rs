//! What `GET /live.json` says at a moment, as far as it is shown. What is not there is 0 or empty: an
//! older or younger daemon is shown as well as it can be.

use serde_json::Value;

/// Most upstreams, limits and events that are kept of a document.
const ROWS_MAX: usize = 256;

/// A moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Seconds since 1970.
    pub at: f64,
    pub version: String,
    pub phase: String,
    pub ready: bool,
    /// `healthy`, `degraded` or `unhealthy`.
    pub status: String,
    pub level: String,
    pub started: f64,
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub descriptors: (u64, u64),
    pub threads: u64,
    /// Requests by status.
    pub requests: Vec<(String, u64)>,
    pub latency: Histogram,
    pub first_token: Histogram,
    pub upstreams: Vec<Upstream>,
    pub limits: Vec<Limit>,
    /// What is not well: the check and its reason.
    pub checks: Vec<(String, String)>,
    pub events: Vec<Event>,
}

/// Counts in buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    pub bounds: Vec<f64>,
    pub counts: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Upstream {
    pub name: String,
    /// Where the worst of its breakers stands.
    pub state: String,
    /// In how many seconds it is asked again.
    pub next_try: Option<f64>,
    pub running: u64,
    pub running_max: u64,
    pub attempts: u64,
    pub failed: u64,
    pub last_failure: String,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Limit {
    pub name: String,
    pub owner: String,
    pub bytes: bool,
    pub now: Option<u64>,
    pub max: u64,
    pub hit: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Event {
    pub at: String,
    pub level: String,
    pub kind: String,
    pub subject: String,
    pub detail: String,
}

fn text(value: &Value, key: &str) -> String {
    clean(value[key].as_str().unwrap_or_default())
}

/// What comes from elsewhere moves no cursor.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_format(c) { '·' } else { c }).collect()
}

/// Marks that turn the direction of text, or take no room.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().take(ROWS_MAX)
}

impl Sample {
    /// Reads a document.
    pub(super) fn of(document: &Value) -> Self {
        let process = &document["process"];
        let number = |key: &str| process[key].as_u64().unwrap_or(0);
        let (metrics, health) = (&document["metrics"], &document["health"]);
        let limits: Vec<Limit> = rows(&document["limits"]).map(limit).collect();
        Sample {
            at: document["at"].as_f64().unwrap_or(0.0),
            version: text(document, "version"),
            phase: text(document, "phase"),
            ready: document["ready"].as_bool().unwrap_or(false),
            level: text(document, "overload"),
            started: process["start_time_seconds"].as_f64().unwrap_or(0.0),
            cpu_seconds: process["cpu_seconds"].as_f64().unwrap_or(0.0),
            resident_bytes: number("resident_bytes"),
            descriptors: (number("open_fds"), number("max_fds")),
            threads: number("threads"),
            requests: counters(&metrics["tidegate_http_requests_total"], "status"),
            latency: Histogram::of(&metrics["tidegate_http_request_seconds"]),
            first_token: Histogram::of(&metrics["tidegate_first_token_seconds"]),
            upstreams: upstreams(document, &limits),
            limits,
            status: text(health, "status"),
            checks: rows(&health["checks"]).filter_map(check).chain(late(health)).collect(),
            events: rows(&document["events"]).map(event).collect(),
        }
    }

    /// A limit by its name, and its owner when one is given.
    pub(super) fn limit(&self, name: &str, owner: &str) -> Option<&Limit> {
        self.limits.iter().find(|l| l.name == name && (owner.is_empty() || l.owner == owner))
    }
}

fn limit(row: &Value) -> Limit {
    Limit {
        name: text(row, "limit"),
        owner: text(row, "owner"),
        bytes: row["unit"] == "bytes",
        now: row["now"].as_u64(),
        max: row["max"].as_u64().unwrap_or(0),
        hit: row["refused"].as_u64().unwrap_or(0),
    }
}

fn check(row: &Value) -> Option<(String, String)> {
    let state = text(row, "state");
    if state == "ok" {
        return None;
    }
    let reason = text(row, "reason");
    let told = if reason.is_empty() { state } else { format!("{state}: {reason}") };
    Some((text(row, "name"), told))
}

/// Threads that hang.
fn late(health: &Value) -> impl Iterator<Item = (String, String)> {
    rows(&health["threads"]["late"]).map(|thread| {
        let name = thread.as_str().map(clean).unwrap_or_else(|| text(thread, "name"));
        (format!("thread {name}"), "hangs".to_owned())
    })
}

fn event(row: &Value) -> Event {
    let [at, level, kind, subject, detail] =
        ["at", "level", "kind", "subject", "detail"].map(|key| text(row, key));
    Event { at, level, kind, subject, detail }
}

/// The sums of a counter by one of its labels.
fn counters(metric: &Value, label: &str) -> Vec<(String, u64)> {
    let by = metric["by"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(place) = by.iter().position(|name| name == label) else { return Vec::new() };
    let mut sums: Vec<(String, u64)> = Vec::new();
    for row in rows(&metric["rows"]).filter_map(Value::as_array) {
        let (Some(name), Some(count)) = (row.get(place), row.last().and_then(Value::as_u64)) else {
            continue;
        };
        let name = clean(name.as_str().unwrap_or_default());
        match sums.iter_mut().find(|(have, _)| *have == name) {
            Some((_, sum)) => *sum += count,
            None => sums.push((name, count)),
        }
    }
    sums
}

fn upstreams(document: &Value, limits: &[Limit]) -> Vec<Upstream> {
    let mut found: Vec<Upstream> = Vec::new();
    let mut at = |name: String| -> usize {
        found.iter().position(|u| u.name == name).unwrap_or_else(|| {
            found.push(Upstream { name, state: "closed".to_owned(), ..Upstream::default() });
            found.len() - 1
        })
    };
    let mut places = Vec::new();
    for limit in limits.iter().filter(|limit| limit.name == "upstream.concurrency_max") {
        places.push((at(limit.owner.clone()), limit));
    }
    let breakers: Vec<(usize, &Value)> =
        rows(&document["breakers"]).map(|row| (at(text(row, "upstream")), row)).collect();
    for (place, limit) in places {
        (found[place].running, found[place].running_max) = (limit.now.unwrap_or(0), limit.max);
    }
    for (place, row) in breakers {
        let upstream = &mut found[place];
        let state = text(row, "state");
        if gravity(&state) > gravity(&upstream.state) {
            upstream.next_try = row["next_try_seconds"].as_f64();
            upstream.state = state;
        }
        if let Some(code) = row["last_failure"]["code"].as_str() {
            let ago = row["last_failure"]["seconds_ago"].as_u64().unwrap_or(0);
            upstream.last_failure =
                format!("{} {} ago", clean(code), super::paint::time(ago as f64));
        }
    }
    let attempts = &document["metrics"]["tidegate_upstream_attempts_total"];
    for row in rows(&attempts["rows"]).filter_map(Value::as_array) {
        let [name, outcome, count] = row.as_slice() else { continue };
        let Some(upstream) = found.iter_mut().find(|u| name == &Value::from(u.name.as_str()))
        else {
            continue;
        };
        let count = count.as_u64().unwrap_or(0);
        upstream.attempts += count;
        if outcome != "ok" {
            upstream.failed += count;
        }
    }
    found
}

fn gravity(state: &str) -> u8 {
    match state {
        "closed" => 0,
        "half_open" => 1,
        _ => 2,
    }
}

impl Histogram {
    fn of(metric: &Value) -> Self {
        let bounds = metric["bounds"].as_array().map(Vec::as_slice).unwrap_or_default();
        let bounds: Vec<f64> = bounds.iter().filter_map(Value::as_f64).collect();
        let mut counts = vec![0; bounds.len() + 1];
        for row in rows(&metric["rows"]).filter_map(Value::as_array) {
            let figures = row.last().map(|figure| &figure[0]);
            let more = figures.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for (count, more) in counts.iter_mut().zip(more) {
                *count += more.as_u64().unwrap_or(0);
            }
        }
        Histogram { bounds, counts }
    }

    /// What came between two moments.
    pub(super) fn since(&self, before: &Histogram) -> Histogram {
        if before.bounds != self.bounds {
            return self.clone();
        }
        let counts = self.counts.iter().zip(&before.counts);
        let counts = counts.map(|(now, before)| now.saturating_sub(*before)).collect();
        Histogram { bounds: self.bounds.clone(), counts }
    }

    /// Below what so large a share of the values is, in seconds: evenly spread within a bucket, as
    /// Prometheus takes it. None without values.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.counts.iter().sum();
        if all == 0 {
            return None;
        }
        let wanted = share * all as f64;
        let mut below = 0.0;
        for (place, count) in self.counts.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && below + count >= wanted {
                let low = if place == 0 { 0.0 } else { self.bounds[place - 1] };
                // Past the last bound nobody knows.
                let Some(high) = self.bounds.get(place) else { return Some(low) };
                return Some(low + (high - low) * ((wanted - below) / count));
            }
            below += count;
        }
        self.bounds.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values_between_two_moments() {
        let of =
            |counts: [u64; 4]| Histogram { bounds: vec![1.0, 2.0, 4.0], counts: counts.into() };
        let now = of([10, 20, 0, 1]).since(&of([10, 10, 0, 0]));
        assert_eq!(now.counts, [0, 10, 0, 1]);
        assert_eq!(now.quantile(0.5), Some(1.55));
        assert_eq!(now.quantile(0.99), Some(4.0));
        assert_eq!(of([0; 4]).quantile(0.5), None);
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(of([1, 0, 0, 0]).since(&Histogram::default()), of([1, 0, 0, 0]));
    }

    #[test]
    fn a_document_of_any_form_is_read() {
        for document in [json!(null), json!([]), json!({"metrics": [], "limits": {"a": 1}})] {
            assert!(Sample::of(&document).upstreams.is_empty());
        }
        let sample = Sample::of(&json!({
            "limits": [1, null, {"limit": "upstream.concurrency_max"}],
            "breakers": [{"upstream": "a\u{1b}[2J", "state": "open", "next_try_seconds": 3}],
            "metrics": {
                "tidegate_upstream_attempts_total": {"rows": [[], [1, 2], ["a", "b", "c"]]},
                "tidegate_http_request_seconds": {
                    "bounds": [1, "x"], "rows": [[[["y"], 1]], [3]],
                },
            },
            "health": {
                "checks": [{"name": "c", "state": "failed"}, 1],
                "threads": {"late": ["t", 2]},
            },
            "events": ["x"],
        }));
        assert!(sample.upstreams.iter().all(|upstream| !upstream.name.contains('\u{1b}')));
        assert_eq!(sample.checks[0], ("c".into(), "failed".into()));
        assert_eq!(sample.checks[2], ("thread t".into(), "hangs".into()));
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}c\n"), "a·[2Jb·c·");
    }
}
