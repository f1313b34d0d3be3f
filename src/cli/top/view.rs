//! What a screen shows: two moments and what lies between them.

use serde::Serialize;

use super::sample::{Histogram, Sample};

/// Figures of one interval. Its form is that of a line of `top --json`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct View {
    /// Seconds since 1970.
    pub at: f64,
    /// Length of the interval.
    pub seconds: f64,
    pub version: String,
    pub phase: String,
    pub ready: bool,
    pub status: String,
    pub level: String,
    pub uptime_seconds: f64,
    pub requests_per_second: f64,
    /// Answers of 500 and above.
    pub errors_per_second: f64,
    /// Answers of 429 and 503 among all.
    pub refused_per_second: f64,
    pub latency_seconds: Quantiles,
    pub first_token_seconds: Quantiles,
    pub running: Share,
    pub waiting: Share,
    pub connections: Share,
    pub descriptors: Share,
    /// Of one processor.
    pub cpu_percent: f64,
    pub resident_bytes: u64,
    pub threads: u64,
    pub upstreams: Vec<UpstreamView>,
    /// The fullest first.
    pub limits: Vec<LimitView>,
    pub checks: Vec<CheckView>,
    /// The newest first.
    pub events: Vec<EventView>,
    /// Whether the daemon answers no more.
    pub lost: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Quantiles {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Share {
    pub now: u64,
    pub max: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct UpstreamView {
    pub upstream: String,
    pub state: String,
    pub next_try_seconds: Option<f64>,
    pub running: Share,
    pub calls_per_second: f64,
    /// Of the interval's calls; none without calls.
    pub failed_percent: Option<f64>,
    pub last_failure: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct LimitView {
    pub limit: String,
    pub owner: String,
    pub bytes: bool,
    pub now: u64,
    pub max: u64,
    pub percent: f64,
    pub hit: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct CheckView {
    pub check: String,
    pub state: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct EventView {
    pub at: String,
    pub level: String,
    pub kind: String,
    pub subject: String,
    pub detail: String,
}

impl View {
    /// The interval between two moments. A daemon that was restarted between them has begun anew.
    pub(super) fn of(before: &Sample, now: &Sample) -> Self {
        let empty = Sample { at: before.at, ..Sample::default() };
        let before = if before.started == now.started { before } else { &empty };
        let seconds = (now.at - before.at).max(0.0);
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let requests = |sample: &Sample, which: &dyn Fn(&str) -> bool| -> u64 {
            sample.requests.iter().filter(|(status, _)| which(status)).map(|(_, n)| n).sum()
        };
        let rate = |which: &dyn Fn(&str) -> bool| {
            per_second(requests(now, which).saturating_sub(requests(before, which)))
        };
        let share = |name: &str, owner: &str| {
            let limit = now.limit(name, owner);
            limit.map_or(Share::default(), |l| Share { now: l.now.unwrap_or(0), max: l.max })
        };
        let cpu = (now.cpu_seconds - before.cpu_seconds).max(0.0);
        View {
            at: now.at,
            seconds,
            version: now.version.clone(),
            phase: now.phase.clone(),
            ready: now.ready,
            status: now.status.clone(),
            level: now.level.clone(),
            uptime_seconds: (now.at - now.started).max(0.0),
            requests_per_second: rate(&|_| true),
            errors_per_second: rate(&|status| status.starts_with('5')),
            refused_per_second: rate(&|status| matches!(status, "429" | "503")),
            latency_seconds: quantiles(&now.latency.since(&before.latency)),
            first_token_seconds: quantiles(&now.first_token.since(&before.first_token)),
            running: share("server.exchanges_max", ""),
            waiting: share("server.waiting_max", ""),
            connections: share("server.connections_max", "data"),
            descriptors: Share { now: now.descriptors.0, max: now.descriptors.1 },
            cpu_percent: if seconds > 0.0 { cpu / seconds * 100.0 } else { 0.0 },
            resident_bytes: now.resident_bytes,
            threads: now.threads,
            upstreams: upstreams(before, now, &per_second),
            limits: limits(now),
            checks: now
                .checks
                .iter()
                .map(|(check, state)| CheckView { check: check.clone(), state: state.clone() })
                .collect(),
            events: events(now),
            lost: false,
        }
    }
}

fn quantiles(values: &Histogram) -> Quantiles {
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| values.quantile(share));
    Quantiles { p50, p95, p99 }
}

fn upstreams(before: &Sample, now: &Sample, per_second: &dyn Fn(u64) -> f64) -> Vec<UpstreamView> {
    let row = |upstream: &super::sample::Upstream| {
        let old = before.upstreams.iter().find(|old| old.name == upstream.name);
        let (attempts, failed) = old.map_or((0, 0), |old| (old.attempts, old.failed));
        let calls = upstream.attempts.saturating_sub(attempts);
        let failed = upstream.failed.saturating_sub(failed);
        UpstreamView {
            upstream: upstream.name.clone(),
            state: upstream.state.clone(),
            next_try_seconds: upstream.next_try,
            running: Share { now: upstream.running, max: upstream.running_max },
            calls_per_second: per_second(calls),
            failed_percent: (calls > 0).then(|| failed as f64 / calls as f64 * 100.0),
            last_failure: upstream.last_failure.clone(),
        }
    };
    now.upstreams.iter().map(row).collect()
}

fn limits(now: &Sample) -> Vec<LimitView> {
    let held = now.limits.iter().filter_map(|limit| Some((limit, limit.now?)));
    let held = held.filter(|(limit, now)| *now > 0 && limit.max > 0);
    let mut rows: Vec<LimitView> = held
        .map(|(limit, now)| LimitView {
            limit: limit.name.clone(),
            owner: limit.owner.clone(),
            bytes: limit.bytes,
            now,
            max: limit.max,
            percent: now as f64 / limit.max as f64 * 100.0,
            hit: limit.hit,
        })
        .collect();
    rows.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    rows.truncate(20);
    rows
}

fn events(now: &Sample) -> Vec<EventView> {
    let row = |event: &super::sample::Event| EventView {
        at: event.at.clone(),
        level: event.level.clone(),
        kind: event.kind.clone(),
        subject: event.subject.clone(),
        detail: event.detail.clone(),
    };
    now.events.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(at: f64, started: f64, requests: u64, failed: u64) -> Sample {
        Sample::of(&json!({
            "at": at,
            "process": {"start_time_seconds": started, "cpu_seconds": requests as f64 / 100.0},
            "metrics": {
                "tidegate_http_requests_total": {"by": ["status", "code"],
                    "rows": [["200", "ok", requests], ["503", "x", failed], ["503", "y", failed]]},
                "tidegate_upstream_attempts_total": {"by": ["upstream", "outcome"],
                    "rows": [["a", "ok", requests], ["a", "error", failed]]},
            },
            "limits": [
                {"limit": "upstream.concurrency_max", "owner": "a", "now": 2, "max": 64, "refused": 0},
                {"limit": "full", "owner": "", "now": 9, "max": 10, "refused": 4},
                {"limit": "empty", "owner": "", "now": 0, "max": 10, "refused": 0},
            ],
        }))
    }

    #[test]
    fn rates_are_those_of_the_interval() {
        let view = View::of(&sample(100.0, 1.0, 10, 0), &sample(102.0, 1.0, 30, 5));
        assert_eq!((view.requests_per_second, view.errors_per_second), (15.0, 5.0));
        assert_eq!((view.refused_per_second, view.seconds), (5.0, 2.0));
        assert!((view.cpu_percent - 10.0).abs() < 1e-9);
        let a = &view.upstreams[0];
        assert_eq!((a.calls_per_second, a.failed_percent), (12.5, Some(20.0)));
        assert_eq!(a.running, Share { now: 2, max: 64 });
        let limits: Vec<&str> = view.limits.iter().map(|limit| limit.limit.as_str()).collect();
        assert_eq!(limits, ["full", "upstream.concurrency_max"]);
    }

    #[test]
    fn a_restart_begins_anew_and_no_time_is_no_rate() {
        let view = View::of(&sample(100.0, 1.0, 1000, 0), &sample(102.0, 101.0, 30, 0));
        assert_eq!(view.requests_per_second, 15.0);
        let same = sample(100.0, 1.0, 10, 0);
        assert_eq!(View::of(&same, &same).requests_per_second, 0.0);
        assert_eq!(View::of(&same, &same).upstreams[0].failed_percent, None);
    }
}
