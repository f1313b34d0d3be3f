//! What was seen, judged by the rules: one reading for each thing that a rule looks at.

use std::sync::Arc;
use std::time::Duration;

use super::alert::{Judged, Labels, Reading};
use super::at::At;
use super::input::{LimitSeen, Seen};
use super::sampler::{Found, Sampler};
use super::trend::{TimeLeft, Trends, share};
use crate::base::health::State;
use crate::base::metrics::Registry;
use crate::config::duration_text as written;
use crate::config::settings::alerts::{Figure, Measure, Pattern, Rule, Source, Unit, When};
use crate::health::stalls;

/// The check of the alerts themselves: it has rules of its own, and must not tell of itself.
pub const OWN_CHECK: &str = "alerts";
/// What the kinds of our own events begin with.
const OWN_EVENTS: &str = "alert_";
/// Events of what rules about threads and checks tell anyway.
const TOLD_OTHERWISE: [&str; 3] = ["thread_stalled", "status_changed", "overload_raised"];

/// What is remembered between looks.
#[derive(Debug)]
pub struct Judge {
    sampler: Sampler,
    trends: Trends,
}

impl Judge {
    /// One that has seen nothing yet.
    pub fn new(registry: &Registry) -> Self {
        Judge { sampler: Sampler::new(registry), trends: Trends::new(registry) }
    }

    /// Judges a look by all rules.
    pub fn judge(&mut self, rules: &[Arc<Rule>], seen: &Seen) -> Vec<(Arc<Rule>, Vec<Reading>)> {
        self.sampler.look(seen.at, rules, &seen.series);
        self.trends.look(seen.at, &seen.limits);
        let named = Named::of(rules);
        rules.iter().map(|rule| (Arc::clone(rule), self.readings(rule, &named, seen))).collect()
    }

    fn readings(&self, rule: &Rule, named: &Named<'_>, seen: &Seen) -> Vec<Reading> {
        match &rule.source {
            Source::Metric(figure) => {
                let figures = self.sampler.figures(&rule.name, figure);
                figures.into_iter().map(|(subject, found)| metric(figure, subject, found)).collect()
            }
            Source::Limit { name, time_left, when } => {
                let looked_at = seen.limits.iter().filter(|limit| {
                    let left_out = name.open
                        && (limit.makes_room || named.limits.contains(&(&*limit.name, *time_left)));
                    name.fits(&limit.name) && !left_out
                });
                looked_at.map(|limit| self.limit(limit, *time_left, *when, seen.at)).collect()
            }
            Source::Check { name, degraded } => {
                let looked_at = seen.checks.iter().filter(|(check, _)| {
                    let left_out = name.open
                        && (check == OWN_CHECK || named.checks.contains(&(check, *degraded)));
                    name.fits(check) && !left_out
                });
                let reading =
                    |(name, state): &(String, State)| check(name, state, *degraded, seen.ready);
                looked_at.map(reading).collect()
            }
            Source::Event { kinds, window } => events(kinds, *window, named, seen),
            // Only those that are late are seen; one that goes on is seen no more.
            Source::Threads => seen
                .threads
                .iter()
                .map(|pulse| Reading {
                    subject: label("thread", &pulse.name),
                    judged: Judged::Bad,
                    value: pulse.silence.map(|silence| silence.as_secs_f64()),
                    text: stalls::told(pulse),
                    until: None,
                })
                .collect(),
            Source::Channels { when } => seen
                .channels
                .iter()
                .map(|channel| {
                    let failing =
                        channel.failing_since.map(|since| seen.at.since(since).as_secs_f64());
                    let state = match failing {
                        None => Judged::Good,
                        Some(seconds) => judged(*when, seconds),
                    };
                    let text = format!("nothing gets through on {}: {}", channel.name, channel.why);
                    Reading {
                        subject: label("channel", &channel.name),
                        judged: state,
                        value: failing,
                        text,
                        until: None,
                    }
                })
                .collect(),
        }
    }

    fn limit(&self, limit: &LimitSeen, time_left: bool, when: When, now: At) -> Reading {
        let mut subject = label("limit", &limit.name);
        if !limit.owner.is_empty() {
            subject.push(("owner".to_owned(), limit.owner.clone()));
        }
        let whose = match limit.owner.as_str() {
            "" => limit.name.clone(),
            owner => format!("{} of {owner}", limit.name),
        };
        if time_left {
            let (judged, value) = match self.trends.time_left(limit) {
                TimeLeft::Ever => (Judged::Good, None),
                TimeLeft::Unknown => (Judged::Unknown, None),
                TimeLeft::Seconds(left) => (judged(when, left), Some(left)),
            };
            let left = figure_text(value.unwrap_or_default(), Unit::Seconds);
            let text =
                format!("{whose} is reached in {left}: it is {} of {}", limit.now, limit.max);
            return Reading { subject, judged, value, text, until: None };
        }
        let share = share(limit);
        let refuses = self.trends.refuses(limit, now);
        let judged = if refuses && when.above { Judged::Bad } else { judged(when, share) };
        let word = if refuses { "refuses" } else { "is" };
        let text = format!(
            "{whose} {word} at {} ({} of {})",
            figure_text(share, Unit::Share),
            limit.now,
            limit.max
        );
        Reading { subject, judged, value: Some(share), text, until: None }
    }
}

/// What rules name in full: patterns of others leave it out.
struct Named<'a> {
    limits: Vec<(&'a str, bool)>,
    checks: Vec<(&'a str, bool)>,
    events: Vec<&'a str>,
}

impl<'a> Named<'a> {
    fn of(rules: &'a [Arc<Rule>]) -> Self {
        let mut named = Named { limits: Vec::new(), checks: Vec::new(), events: Vec::new() };
        for rule in rules {
            match &rule.source {
                Source::Limit { name, time_left, .. } if !name.open => {
                    named.limits.push((&name.text, *time_left));
                }
                Source::Check { name, degraded } if !name.open => {
                    named.checks.push((&name.text, *degraded));
                }
                Source::Event { kinds, .. } => {
                    named.events.extend(kinds.iter().filter(|k| !k.open).map(|k| k.text.as_str()));
                }
                _ => {}
            }
        }
        named
    }
}

fn label(name: &str, value: &str) -> Labels {
    vec![(name.to_owned(), value.to_owned())]
}

/// Where a figure lies.
pub fn judged(when: When, value: f64) -> Judged {
    let When { above, threshold, clear, .. } = when;
    if value.is_nan() {
        Judged::Unknown
    } else if above && value > threshold || !above && value < threshold {
        Judged::Bad
    } else if above && value <= clear || !above && value >= clear {
        Judged::Good
    } else {
        Judged::Between
    }
}

fn metric(figure: &Figure, subject: Labels, found: Found) -> Reading {
    let (judged, value) = match found {
        Found::Value(value) => (judged(figure.when, value), Some(value)),
        // Nothing fails where nothing is asked for.
        Found::Nothing => (Judged::Good, None),
        Found::TooLittle => (Judged::Unknown, None),
    };
    let what = match figure.measure {
        Measure::Value => String::new(),
        Measure::Increase if figure.per.is_some() => String::new(),
        Measure::Increase => " grew by".to_owned(),
        Measure::Rate => " grew each second by".to_owned(),
        Measure::Average => " on average".to_owned(),
        Measure::Quantile(q) => format!(" at p{:.0}", q * 100.0),
    };
    let what = match &figure.per {
        Some(per) => format!("{}{what} per {}", figure.of.name, per.name),
        None => format!("{}{what}", figure.of.name),
    };
    let window = match figure.measure {
        Measure::Value => String::new(),
        _ => format!(" within {}", written(figure.window)),
    };
    let of = match subject.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>() {
        none if none.is_empty() => String::new(),
        some => format!(" of {}", some.join("/")),
    };
    let When { above, threshold, unit, .. } = figure.when;
    let side = if above { "above" } else { "below" };
    let shown = figure_text(value.unwrap_or_default(), unit);
    let text = format!("{what}{of}: {shown}{window}, {side} {}", figure_text(threshold, unit));
    Reading { subject, judged, value, text, until: None }
}

fn check(name: &str, state: &State, degraded: bool, ready: bool) -> Reading {
    let (judged, text) = match state {
        _ if !ready => (Judged::Unknown, String::new()),
        State::Pending => (Judged::Unknown, String::new()),
        State::Failed(why) if !degraded => (Judged::Bad, format!("{name} has failed: {why}")),
        State::Degraded(why) if degraded => (Judged::Bad, format!("{name} is degraded: {why}")),
        State::Ok | State::Degraded(_) | State::Failed(_) => (Judged::Good, String::new()),
    };
    Reading { subject: label("check", name), judged, value: None, text, until: None }
}

fn events(kinds: &[Pattern], window: Duration, named: &Named<'_>, seen: &Seen) -> Vec<Reading> {
    let mut readings: Vec<Reading> = Vec::new();
    for event in &seen.events {
        let meant = kinds.iter().any(|kind| {
            let left_out = kind.open
                && (event.level > log::Level::Error
                    || event.kind.starts_with(OWN_EVENTS)
                    || TOLD_OTHERWISE.contains(&event.kind)
                    || named.events.contains(&event.kind));
            kind.fits(event.kind) && !left_out
        });
        if !meant {
            continue;
        }
        let mut subject = label("event", event.kind);
        if !event.subject.is_empty() {
            subject.push(("subject".to_owned(), event.subject.clone()));
        }
        let text = match event.subject.as_str() {
            "" => format!("{}: {}", event.kind, event.detail),
            subject => format!("{} ({subject}): {}", event.kind, event.detail),
        };
        readings.retain(|reading| reading.subject != subject);
        let until = Some(seen.at.after(window));
        readings.push(Reading { subject, judged: Judged::Bad, value: None, text, until });
    }
    readings
}

/// A figure for people.
pub fn figure_text(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Share => format!("{:.1}%", value * 100.0),
        Unit::Seconds if value >= 120.0 => {
            written(Duration::try_from_secs_f64(value.round()).unwrap_or(Duration::MAX))
        }
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Bytes => format!("{:.1} MiB", value / (1024.0 * 1024.0)),
        Unit::Number if value.fract() == 0.0 => format!("{value:.0}"),
        Unit::Number => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests;
