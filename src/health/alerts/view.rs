//! Alerts as `GET /alerts` shows them.

use serde_json::{Value, json};

use super::judge::figure_text;
use super::service::Handle;
use super::{Alert, Silence};
use crate::config::duration_text;
use crate::config::settings::alerts::{Channel, Rule, Source, When};
use crate::health::notify::queue::Lane;

/// The whole document.
pub(super) fn document(handle: &Handle) -> Value {
    let settings = handle.settings.load_full();
    let (alerts, past, silences) =
        handle.engine.with(|engine| (engine.alerts(), engine.past(), engine.silences()));
    let (lanes, undelivered, lost) =
        handle.queue.with(|queue| (queue.lanes(), queue.undelivered(), queue.lost()));
    let now = handle.now();
    let channels: Vec<Value> = lanes
        .iter()
        .map(|(settings, lane, waiting)| channel(settings, lane, *waiting, now))
        .collect();
    json!({
        "enabled": settings.enabled,
        "alerts": alerts.iter().map(alert).collect::<Vec<_>>(),
        "past": past.iter().rev().map(alert).collect::<Vec<_>>(),
        "silences": silences.iter().map(silence).collect::<Vec<_>>(),
        "channels": channels,
        "undelivered": undelivered,
        "lost": lost,
        "rules": settings.rules.iter().map(|r| rule(r)).collect::<Vec<_>>(),
    })
}

fn alert(alert: &Alert) -> Value {
    let labels: serde_json::Map<String, Value> =
        alert.labels.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    json!({
        "rule": alert.rule,
        "severity": alert.severity.as_str(),
        "state": alert.state.as_str(),
        "since": alert.since.text(),
        "fired": alert.fired.map(|at| at.text()),
        "ended": alert.ended.map(|at| at.text()),
        "text": alert.text,
        "summary": alert.summary,
        "value": alert.value,
        "labels": labels,
        "fingerprint": alert.fingerprint,
        "told": alert.told.map(|told| told.at.text()),
        "muted_by": alert.muted,
        "silenced_by": alert.silenced,
    })
}

fn silence(silence: &Silence) -> Value {
    json!({
        "id": silence.id,
        "match": silence.matching,
        "since": silence.at.text(),
        "until": silence.until.text(),
        "reason": silence.reason,
    })
}

fn channel(channel: &Channel, lane: &Lane, waiting: usize, now: super::At) -> Value {
    json!({
        "name": channel.name,
        "kind": channel.kind.as_str(),
        "waiting": waiting,
        "delivered": lane.delivered,
        "given_up": lane.given_up,
        "delivered_at": lane.delivered_at.map(|at| at.text()),
        "failing_since": lane.failing_since.map(|at| at.text()),
        "failures": lane.failures,
        "why": lane.why,
        "next_try": (waiting > 0 && lane.not_before > now).then(|| lane.not_before.text()),
    })
}

fn rule(rule: &Rule) -> Value {
    json!({
        "name": rule.name,
        "severity": rule.severity.as_str(),
        "condition": condition(&rule.source),
        "for": duration_text(rule.hold),
        "summary": rule.summary,
        "muted_by": rule.muted_by,
        "built_in": rule.built_in,
    })
}

/// What a rule looks at, in words.
fn condition(source: &Source) -> String {
    let when = |when: &When| {
        let side = if when.above { "above" } else { "below" };
        let (threshold, clear) =
            (figure_text(when.threshold, when.unit), figure_text(when.clear, when.unit));
        format!("{side} {threshold} (clear at {clear})")
    };
    match source {
        Source::Metric(figure) => {
            let labels: Vec<String> =
                figure.of.labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
            let labels =
                if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let per =
                figure.per.as_ref().map_or_else(String::new, |per| format!(" per {}", per.name));
            let measure = format!("{:?}", figure.measure).to_lowercase();
            let window = duration_text(figure.window);
            let when = when(&figure.when);
            format!("{measure} of {}{labels}{per} over {window} {when}", figure.of.name)
        }
        Source::Limit { name, time_left: false, when: bounds } => {
            format!("share of limit {name} {}", when(bounds))
        }
        Source::Limit { name, time_left: true, when: bounds } => {
            format!("time until limit {name} {}", when(bounds))
        }
        Source::Check { name, degraded: false } => format!("check {name} has failed"),
        Source::Check { name, degraded: true } => format!("check {name} is degraded"),
        Source::Event { kinds, window } => {
            let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
            format!("event {}, for {}", kinds.join("|"), duration_text(*window))
        }
        Source::Threads => "a thread is late".to_owned(),
        Source::Channels { when: bounds } => format!("a channel fails for {}", when(bounds)),
    }
}
