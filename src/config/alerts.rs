//! `[alerts]`, `[[alert]]` and `[[notify]]` as people write them become rules and channels. A rule of a
//! built-in name changes that one; everything else about it stays.

mod defaults;
mod figure;
mod notify;

use std::sync::Arc;
use std::time::Duration;

use super::build::{Site, plain_name, unique};
use super::fault::shown;
use super::nearest::nearest;
use super::raw::{Raw, RawAlert, RawMeasure, RawOp, RawSeverity};
use super::report::{Report, join};
use super::settings::Alerts;
use super::settings::alerts::{
    Endpoint, Figure, Measure, Pattern, Rule, Severity, Source, Unit, When,
};

pub(super) use defaults::built_in;

/// The window where none is written.
const WINDOW: Duration = Duration::from_secs(5 * 60);
/// How long an event lasts where nothing is written.
const EVENT_WINDOW: Duration = Duration::from_secs(15 * 60);

/// Makes them.
pub(super) fn build(raw: &Raw, site: &Site<'_>, report: &mut Report) -> Alerts {
    let a = &raw.alerts;
    if a.retry_max < a.retry_min {
        let text = format!("{} is below retry_min {}", a.retry_max, a.retry_min);
        report.fault("alerts.retry_max", text, "raise it, or lower retry_min");
    }
    let heartbeat = a.heartbeat_url.as_ref().and_then(|text| {
        Endpoint::parse(text)
            .map_err(|(why, remedy)| report.fault("alerts.heartbeat_url", why, remedy))
            .ok()
    });
    Alerts {
        enabled: a.enabled && raw.features.alerts,
        instance: a.instance.clone(),
        interval: a.interval.0,
        group_wait: a.group_wait.0,
        group_interval: a.group_interval.0,
        repeat: a.repeat.0,
        resolved: a.resolved,
        spool_max: a.spool_max,
        spool_bytes_max: a.spool_bytes_max.0,
        spool_age: a.spool_age.0,
        retry_min: a.retry_min.0,
        retry_max: a.retry_max.0,
        heartbeat,
        heartbeat_interval: a.heartbeat_interval.0,
        rules: rules(raw, report),
        channels: notify::channels(raw, site, report),
    }
}

/// The built-in rules as they were changed, then the new ones; without those that are turned off.
fn rules(raw: &Raw, report: &mut Report) -> Vec<Arc<Rule>> {
    unique("alert", "name", raw.alert.iter().map(|alert| alert.name.as_str()), report);
    let mut rules = built_in();
    let known = rules.len();
    let mut off = Vec::new();
    for (index, raw) in raw.alert.iter().enumerate().filter(|(_, raw)| !raw.name.is_empty()) {
        let place = format!("alert.{index}");
        plain_name(&raw.name, &join(&place, "name"), report);
        match rules.iter_mut().take(known).find(|rule| rule.name == raw.name) {
            Some(rule) => change(rule, raw, &place, report),
            None => {
                let built_in = rules.iter().take(known).map(|rule| rule.name.as_str());
                let near = nearest(&raw.name, built_in).map(str::to_owned);
                if let Some(rule) = new(raw, near, &place, report) {
                    rules.push(rule);
                }
            }
        }
        if !raw.enabled {
            off.push(raw.name.as_str());
        }
    }
    for (index, raw) in raw.alert.iter().enumerate() {
        for (at, name) in raw.muted_by.iter().enumerate() {
            if !rules.iter().any(|rule| rule.name == *name) {
                let place = join(&format!("alert.{index}.muted_by"), &at.to_string());
                let near = nearest(name, rules.iter().map(|rule| rule.name.as_str()));
                let remedy = near.map_or_else(
                    || "write the name of a rule".to_owned(),
                    |near| format!("did you mean {near:?}?"),
                );
                report.fault(&place, format!("{} names no rule", shown(name)), remedy);
            }
        }
    }
    rules.retain(|rule| !off.contains(&rule.name.as_str()));
    rules.into_iter().map(Arc::new).collect()
}

/// What a built-in rule takes over of an entry. Its source stays.
fn change(rule: &mut Rule, raw: &RawAlert, place: &str, report: &mut Report) {
    let mut not = |key: &str, set: bool| {
        if set {
            let text = format!("cannot be changed: {} is a built-in rule", rule.name);
            let remedy = "take it out, or turn the rule off and add one of another name";
            report.fault(&join(place, key), text, remedy);
        }
    };
    not("metric", raw.metric.is_some());
    not("per", raw.per.is_some());
    not("by", !raw.by.is_empty());
    not("limit", raw.limit.is_some());
    not("check", raw.check.is_some());
    not("event", raw.event.is_some());
    not("measure", raw.measure.is_some());
    match &mut rule.source {
        Source::Metric(figure) => {
            figure.window = raw.window.map_or(figure.window, |span| span.0);
            figure.count_min = raw.count_min.unwrap_or(figure.count_min);
            change_when(&mut figure.when, raw, place, report);
        }
        Source::Limit { when, .. } | Source::Channels { when } => {
            without_window(raw, place, report);
            change_when(when, raw, place, report);
        }
        Source::Event { window, .. } => {
            *window = raw.window.map_or(*window, |span| span.0);
            without_threshold(raw, place, report);
        }
        Source::Check { .. } | Source::Threads => {
            without_window(raw, place, report);
            without_threshold(raw, place, report);
        }
    }
    common(rule, raw, place, report);
}

fn change_when(when: &mut When, raw: &RawAlert, place: &str, report: &mut Report) {
    if raw.op.is_none() && raw.threshold.is_none() && raw.clear.is_none() {
        return;
    }
    let above = raw.op.map_or(when.above, |op| op == RawOp::Above);
    let written = raw.threshold.as_ref();
    let threshold = match written {
        Some(text) => value(text, &join(place, "threshold"), report).unwrap_or((0.0, when.unit)),
        None => (when.threshold, when.unit),
    };
    // Where it is over moves with the threshold, unless it is written too.
    let keep = (written.is_none() && raw.op.is_none()).then_some(when.clear);
    *when = make_when(above, threshold, keep, raw, place, report);
}

/// A rule that is new.
fn new(raw: &RawAlert, near: Option<String>, place: &str, report: &mut Report) -> Option<Rule> {
    let sources = [&raw.metric, &raw.limit, &raw.check, &raw.event];
    match sources.iter().filter(|source| source.is_some()).count() {
        1 => {}
        0 => {
            let remedy = match near {
                Some(near) => format!("did you mean the built-in rule {near:?}? Else write metric"),
                None => "write one of metric, limit, check and event".to_owned(),
            };
            report.fault(place, "looks at nothing", remedy);
            return None;
        }
        _ => {
            report.fault(
                place,
                "looks at several things",
                "keep one of metric, limit, check and event",
            );
            return None;
        }
    }
    let source = figure::source(raw, place, report)?;
    let mut rule = Rule {
        name: raw.name.clone(),
        source,
        hold: Duration::ZERO,
        severity: Severity::Warning,
        summary: String::new(),
        labels: Vec::new(),
        muted_by: Vec::new(),
        built_in: false,
    };
    common(&mut rule, raw, place, report);
    Some(rule)
}

/// What every rule has.
fn common(rule: &mut Rule, raw: &RawAlert, place: &str, report: &mut Report) {
    if raw.hold.is_some() && matches!(rule.source, Source::Event { .. }) {
        let remedy = "take it out; an event is an alert at once";
        report.fault(&join(place, "for"), "has no meaning for events", remedy);
    }
    rule.hold = raw.hold.map_or(rule.hold, |span| span.0);
    if let Some(severity) = raw.severity {
        rule.severity = severity_of(severity);
    }
    if let Some(summary) = &raw.summary {
        rule.summary.clone_from(summary);
    }
    if !raw.muted_by.is_empty() {
        rule.muted_by.clone_from(&raw.muted_by);
    }
    for (at, text) in raw.labels.iter().enumerate() {
        let label =
            text.split_once('=').filter(|(name, value)| label_name(name) && !value.is_empty());
        match label {
            Some((name, value)) => rule.labels.push((name.to_owned(), value.to_owned())),
            None => {
                let place = join(&join(place, "labels"), &at.to_string());
                let text = format!("{} is no label", shown(text));
                let remedy = "write name=value, the name of letters, digits and _, and none of \
                              alertname, severity and instance";
                report.fault(&place, text, remedy);
            }
        }
    }
}

/// Whether a label may have this name: Prometheus' rule, and none of those that every alert has.
fn label_name(name: &str) -> bool {
    let letter = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| letter(&b))
        && bytes.all(|b| letter(&b) || b.is_ascii_digit())
        && name.len() <= 64
        && !matches!(name, "alertname" | "severity" | "instance")
}

pub(super) fn severity_of(raw: RawSeverity) -> Severity {
    match raw {
        RawSeverity::Critical => Severity::Critical,
        RawSeverity::Warning => Severity::Warning,
        RawSeverity::Info => Severity::Info,
    }
}

fn without_window(raw: &RawAlert, place: &str, report: &mut Report) {
    for (key, set) in [("window", raw.window.is_some()), ("count_min", raw.count_min.is_some())] {
        if set {
            let remedy = "take it out; it is for metrics and events";
            report.fault(&join(place, key), "has no meaning for this rule", remedy);
        }
    }
}

fn without_threshold(raw: &RawAlert, place: &str, report: &mut Report) {
    let set = [
        ("op", raw.op.is_some()),
        ("threshold", raw.threshold.is_some()),
        ("clear", raw.clear.is_some()),
    ];
    for (key, _) in set.into_iter().filter(|(_, set)| *set) {
        report.fault(&join(place, key), "has no meaning for this rule", "take it out");
    }
}

/// A value with its unit.
fn value(text: &str, place: &str, report: &mut Report) -> Option<(f64, Unit)> {
    let parsed = figure::value(text);
    if parsed.is_none() {
        let text = format!("{} is no value", shown(text));
        report.fault(
            place,
            text,
            "write a number, or one with a unit as in \"90%\", \"2s\", \"512MiB\"",
        );
    }
    parsed
}

/// `keep` is where it was over so far, for a rule of which nothing of this is written.
fn make_when(
    above: bool,
    (threshold, unit): (f64, Unit),
    keep: Option<f64>,
    raw: &RawAlert,
    place: &str,
    report: &mut Report,
) -> When {
    let at = join(place, "clear");
    let written = raw.clear.as_ref().and_then(|text| value(text, &at, report));
    let default = keep.unwrap_or(if above { threshold * 0.95 } else { threshold * 1.05 });
    let clear = written.map_or(default, |(clear, _)| clear);
    if written.is_some() && (above && clear > threshold || !above && clear < threshold) {
        let side = if above { "above" } else { "below" };
        let text = format!("is {side} the threshold, where it is an alert");
        report.fault(&at, text, "write a value on the good side of the threshold");
    }
    When { above, threshold, clear, unit }
}
