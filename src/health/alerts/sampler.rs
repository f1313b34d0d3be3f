//! The series that rules look at, over the windows of those rules. Only these are kept, at the rules'
//! own pace, so that a rule can tell series apart by their labels and see what is shorter than the steps of the
//! history.

use std::sync::Arc;
use std::time::Duration;

use super::alert::Labels;
use super::at::At;
use super::input::{Buckets, Series, Value};
use crate::base::bounded::Map;
use crate::base::metrics::{Limit, Registry};
use crate::config::settings::alerts::{Figure, Measure, Rule, Selector, Source};

/// Most things that are followed: values of the labels in `by`, for all rules together. Past it: a further
/// one is not judged.
pub const SERIES_MAX: usize = 512;
/// Samples that are kept of one window, besides the latest.
const SAMPLES: u32 = 100;

/// What is followed of all rules.
#[derive(Debug)]
pub struct Sampler {
    tracks: Map<String, Track>,
    /// The figures that were followed at the last look, by rule.
    known: Vec<(String, Figure)>,
    last: At,
}

/// One thing that a rule looks at.
#[derive(Debug)]
struct Track {
    subject: Labels,
    /// Oldest first. The first one may be older than the window: it is what growth begins from.
    samples: Vec<(At, Sample)>,
    latest: (At, Sample),
}

/// What was seen of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sample {
    number: f64,
    buckets: Option<Buckets>,
    per: f64,
}

/// What came of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found {
    /// It is this.
    Value(f64),
    /// Nothing was counted at all.
    Nothing,
    /// Too little was counted to say anything.
    TooLittle,
}

impl Sampler {
    /// One that follows nothing yet.
    pub fn new(registry: &Registry) -> Self {
        let limit = registry.limit("alerts.series_max", "", SERIES_MAX as u64, "not judged");
        Sampler::bounded(limit)
    }

    fn bounded(limit: Arc<Limit>) -> Self {
        Sampler { tracks: Map::new(limit), known: Vec::new(), last: At(0) }
    }

    /// Whether any of the rules looks at a metric of this name.
    pub fn wants(rules: &[Arc<Rule>], name: &str) -> bool {
        figures(rules).any(|(_, figure)| {
            figure.of.name == name || figure.per.as_ref().is_some_and(|per| per.name == name)
        })
    }

    /// Takes a look at the series in.
    pub fn look(&mut self, now: At, rules: &[Arc<Rule>], series: &[Series]) {
        let known = std::mem::take(&mut self.known);
        for (name, figure) in figures(rules) {
            let same = known.iter().any(|(have, old)| have == name && old == figure);
            if !same {
                let mine = prefix(name);
                self.tracks.retain(|key, _| !key.starts_with(&mine));
            }
            self.follow(now, name, figure, same, series);
            self.known.push((name.to_owned(), figure.clone()));
        }
        // What was not seen at this look is no more.
        self.tracks.retain(|_, track| track.latest.0 == now);
        self.last = now;
    }

    fn follow(&mut self, now: At, rule: &str, figure: &Figure, same: bool, series: &[Series]) {
        let mut groups: Vec<(Labels, Sample)> = Vec::new();
        if figure.by.is_empty() {
            groups.push((Labels::new(), Sample::default()));
        }
        for one in series {
            let counts = fits(&figure.of, one);
            let divides = figure.per.as_ref().is_some_and(|per| fits(per, one));
            if !counts && !divides {
                continue;
            }
            let subject = subject(figure, one);
            let at = groups.iter().position(|(have, _)| *have == subject);
            let at = at.unwrap_or_else(|| {
                groups.push((subject, Sample::default()));
                groups.len() - 1
            });
            if let Some((_, sample)) = groups.get_mut(at) {
                sample.add(&one.value, counts, divides);
            }
        }
        let step = figure.window / SAMPLES;
        for (subject, sample) in groups {
            let key = key(rule, &subject);
            let latest = (now, sample);
            let Some(track) = self.tracks.get_mut(&key) else {
                // A counter that is new since the last look began with nothing.
                let begin = if same { (self.last, Sample::default()) } else { latest.clone() };
                let track = Track { subject, samples: vec![begin], latest };
                let _ = self.tracks.insert(key, track);
                continue;
            };
            let before = std::mem::replace(&mut track.latest, latest);
            let newest = track.samples.last().map_or(At(0), |(at, _)| *at);
            if before.0.since(newest) >= step && before.0 > newest {
                track.samples.push(before);
            }
            // All that is older than the window goes, but for the last of them.
            let old =
                track.samples.iter().filter(|(at, _)| now.since(*at) >= figure.window).count();
            track.samples.drain(..old.saturating_sub(1));
        }
    }

    /// What a rule's figure is, for each thing that it looks at.
    pub fn figures(&self, rule: &str, figure: &Figure) -> Vec<(Labels, Found)> {
        let mine = prefix(rule);
        let tracks = self.tracks.iter().filter(|(key, _)| key.starts_with(&mine));
        tracks.map(|(_, track)| (track.subject.clone(), track.figure(figure))).collect()
    }
}

fn figures(rules: &[Arc<Rule>]) -> impl Iterator<Item = (&str, &Figure)> {
    rules.iter().filter_map(|rule| match &rule.source {
        Source::Metric(figure) => Some((rule.name.as_str(), figure)),
        _ => None,
    })
}

/// Names of rules hold no such character.
fn prefix(rule: &str) -> String {
    format!("{rule}\u{1f}")
}

fn key(rule: &str, subject: &Labels) -> String {
    let mut key = prefix(rule);
    for (name, value) in subject {
        key.push_str(name);
        key.push('\u{1e}');
        key.push_str(value);
        key.push('\u{1f}');
    }
    key
}

fn fits(selector: &Selector, series: &Series) -> bool {
    let value = |name: &str| {
        let found = series.labels.iter().find(|(have, _)| have == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    selector.name == series.name
        && selector.labels.iter().all(|(name, pattern)| pattern.fits(value(name)))
}

/// The labels of `by` that the series has.
fn subject(figure: &Figure, series: &Series) -> Labels {
    let of = |name: &String| series.labels.iter().find(|(have, _)| have == name).cloned();
    figure.by.iter().filter_map(of).collect()
}

impl Sample {
    fn add(&mut self, value: &Value, counts: bool, divides: bool) {
        let number = match value {
            Value::Number(number) => *number,
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            Value::Buckets(buckets) => buckets.counts.iter().sum::<u64>() as f64,
        };
        if divides {
            self.per += number;
        }
        if !counts {
            return;
        }
        self.number += number;
        if let Value::Buckets(more) = value {
            match &mut self.buckets {
                None => self.buckets = Some(more.clone()),
                Some(all) => {
                    for (sum, count) in all.counts.iter_mut().zip(&more.counts) {
                        *sum += count;
                    }
                    all.sum += more.sum;
                }
            }
        }
    }
}

impl Track {
    fn figure(&self, figure: &Figure) -> Found {
        let latest = &self.latest.1;
        let zero = Sample::default();
        let (began, first) = match self.samples.first() {
            Some((at, sample)) => (*at, sample),
            None => (self.latest.0, &zero),
        };
        let grown = (latest.number - first.number).max(0.0);
        #[expect(clippy::cast_precision_loss, reason = "at most 10^9")]
        let least = figure.count_min as f64;
        let enough = |counted: f64| match counted {
            counted if counted <= 0.0 => Some(Found::Nothing),
            counted if counted < least => Some(Found::TooLittle),
            _ => None,
        };
        if figure.per.is_some() {
            let (of, per) = match figure.measure {
                Measure::Value => (latest.number, latest.per),
                _ => (grown, (latest.per - first.per).max(0.0)),
            };
            return enough(per).unwrap_or(Found::Value(of / per));
        }
        let seconds = self.latest.0.since(began).as_secs_f64();
        match (figure.measure, &latest.buckets) {
            (Measure::Value, _) => Found::Value(latest.number),
            (Measure::Increase, _) => Found::Value(grown),
            (Measure::Rate, _) if seconds > 0.0 => Found::Value(grown / seconds),
            (Measure::Average, None) => Found::Value(self.mean(figure.window)),
            (Measure::Average, Some(buckets)) => {
                let before = first.buckets.as_ref().map_or(0.0, |before| before.sum);
                enough(grown).unwrap_or(Found::Value((buckets.sum - before) / grown))
            }
            (Measure::Quantile(q), Some(buckets)) => {
                let found = || quantile(buckets, first.buckets.as_ref(), q);
                enough(grown).unwrap_or_else(|| Found::Value(found()))
            }
            (Measure::Rate | Measure::Quantile(_), _) => Found::Nothing,
        }
    }

    /// The mean of the samples that lie within the window.
    fn mean(&self, window: Duration) -> f64 {
        let now = self.latest.0;
        let all = self.samples.iter().chain([&self.latest]);
        let inside = all.filter(|(at, _)| now.since(*at) <= window).map(|(_, s)| s.number);
        let (sum, count) = inside.fold((0.0, 0.0), |(sum, count), n| (sum + n, count + 1.0));
        if count > 0.0 { sum / count } else { self.latest.1.number }
    }
}

/// The value that a share `q` of what came since `before` is below, by the buckets' bounds and evenly
/// within a bucket. What lies above every bound counts as the last one.
fn quantile(now: &Buckets, before: Option<&Buckets>, q: f64) -> f64 {
    let grown: Vec<u64> = now
        .counts
        .iter()
        .enumerate()
        .map(|(at, count)| {
            let old = before.and_then(|before| before.counts.get(at)).copied().unwrap_or(0);
            count.saturating_sub(old)
        })
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let rank = grown.iter().sum::<u64>() as f64 * q;
    let (mut below, mut low) = (0.0, 0.0);
    for (at, count) in grown.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let count = *count as f64;
        let Some(high) = now.bounds.get(at) else { break };
        if count > 0.0 && below + count >= rank {
            return low + (high - low) * ((rank - below) / count).clamp(0.0, 1.0);
        }
        below += count;
        low = *high;
    }
    low
}

#[cfg(test)]
mod tests;
