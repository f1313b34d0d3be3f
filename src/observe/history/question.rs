//! What is asked about the history: the query of `GET /history`.

use std::time::Duration;

use super::point::{Point, Shape};
use crate::base::error::{Error, Kind, Result};
use crate::base::query::{pairs, shown};
use crate::base::time_parse;

/// Most points of one series in an answer. Past it: the step is raised, and the answer says so.
pub const POINTS_MAX: u64 = 2000;

/// Most points of an answer, all its series together: some MiB while it is made. Past it: the same.
pub const ANSWER_POINTS_MAX: u64 = 50_000;

/// Most labels in a question.
const LABELS_MAX: usize = 8;

/// How far back a question may go, in seconds: past everything that can be kept.
const SPAN_SECONDS_MAX: u64 = 1500 * 86_400;

/// The span, in seconds, when nothing is said of it.
const SPAN_SECONDS: u64 = 3600;

/// About as many points there are when no step is asked for.
const POINTS: u64 = 180;

/// Steps that are chosen, in seconds.
const STEPS: [u64; 9] = [10, 30, 60, 300, 900, 3600, 21_600, 86_400, 604_800];

/// What becomes of all that is in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduce {
    /// In a second: the growth of a counter, or how much a histogram observed.
    Rate,
    /// The same in the whole step.
    Increase,
    /// The average.
    Avg,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// The last.
    Last,
    /// The value below which this share of what a histogram observed lies.
    Quantile(f64),
}

impl Reduce {
    /// All of them, by name.
    pub const NAMES: [(&'static str, Reduce); 10] = [
        ("rate", Reduce::Rate),
        ("increase", Reduce::Increase),
        ("avg", Reduce::Avg),
        ("min", Reduce::Min),
        ("max", Reduce::Max),
        ("last", Reduce::Last),
        ("p50", Reduce::Quantile(0.5)),
        ("p90", Reduce::Quantile(0.9)),
        ("p95", Reduce::Quantile(0.95)),
        ("p99", Reduce::Quantile(0.99)),
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        Reduce::NAMES.iter().find(|(_, reduce)| *reduce == self).map_or("", |(name, _)| name)
    }

    /// What says most about a metric of this shape.
    pub fn of(shape: Shape) -> Reduce {
        match shape {
            Shape::Counter => Reduce::Rate,
            Shape::Gauge => Reduce::Avg,
            Shape::Histogram => Reduce::Quantile(0.95),
        }
    }

    /// Whether there is such a figure of a metric of this shape.
    pub fn fits(self, shape: Shape) -> bool {
        match shape {
            Shape::Counter => !matches!(self, Reduce::Quantile(_)),
            Shape::Gauge => {
                matches!(self, Reduce::Avg | Reduce::Min | Reduce::Max | Reduce::Last)
            }
            Shape::Histogram => !matches!(self, Reduce::Min | Reduce::Max | Reduce::Last),
        }
    }

    /// The figure; `None` when nothing was seen, or when there is none of what was seen.
    pub fn apply(self, shape: Shape, point: &Point, bounds: &[f64]) -> Option<f64> {
        if point.count == 0 {
            return None;
        }
        let (count, seconds) = (point.count as f64, point.seconds());
        let value = match (shape, self) {
            (Shape::Histogram, Reduce::Rate) => point.observed() as f64 / seconds,
            (Shape::Histogram, Reduce::Increase) => point.observed() as f64,
            (Shape::Histogram, Reduce::Quantile(q)) => point.quantile(q, bounds)?,
            (Shape::Histogram, _) => point.sum / point.observed() as f64,
            (Shape::Counter, Reduce::Increase) => point.sum,
            // As rates, like the rest: a look covers its part of the time.
            (Shape::Counter, Reduce::Min) => point.min * count / seconds,
            (Shape::Counter, Reduce::Max) => point.max * count / seconds,
            (Shape::Counter, Reduce::Last) => point.last * count / seconds,
            (Shape::Counter, _) => point.sum / seconds,
            (Shape::Gauge, Reduce::Min) => point.min,
            (Shape::Gauge, Reduce::Max) => point.max,
            (Shape::Gauge, Reduce::Last) => point.last,
            (Shape::Gauge, _) => point.sum / count,
        };
        value.is_finite().then_some(value)
    }
}

/// A question about one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its name.
    pub metric: String,
    /// The first second that counts, since the epoch.
    pub from: u64,
    /// The first that does not any more.
    pub to: u64,
    /// Seconds that a point stands for; `None`: as many as give about 180 points.
    pub step: Option<u64>,
    /// Labels that a series must have.
    pub labels: Vec<(String, String)>,
    /// The labels that tell series of the answer apart: those that do not differ in them are taken
    /// together. `None`: all labels do.
    pub by: Option<Vec<String>>,
    /// What becomes of a step; `None`: what says most of such a metric.
    pub reduce: Option<Reduce>,
}

fn refused<T>(text: String) -> Result<T> {
    Err(Error::new(Kind::InvalidField, text))
}

impl Question {
    /// Reads a query at `now`, in seconds since the epoch. `None` when it asks for no metric: what there
    /// is, then.
    ///
    /// # Errors
    /// [`Kind::InvalidField`] for what is not known or no value for it. It is not left out in silence:
    /// the answer would be one to another question.
    pub fn parse(query: &str, now: u64) -> Result<Option<Question>> {
        let mut question = Question {
            metric: String::new(),
            from: 0,
            to: now.saturating_add(1),
            step: None,
            labels: Vec::new(),
            by: None,
            reduce: None,
        };
        let mut from = None;
        for (name, value) in pairs(query) {
            let Some(value) = value else {
                return refused(format!("{}: is no proper value", shown(name)));
            };
            let when = || match time(&value, now) {
                Some(time) => Ok(time),
                None => refused(format!(
                    "{name}: write seconds since 1970, a time as 2026-11-22T10:00:00Z, or how long ago \
                     as -6h"
                )),
            };
            match name {
                "metric" => question.metric = value,
                "from" => from = Some(when()?),
                "to" => question.to = when()?,
                "step" => match step(&value) {
                    Some(step) => question.step = Some(step),
                    None => return refused("step: write seconds, or a duration as 5m".to_owned()),
                },
                "label" => match value.split_once('=') {
                    Some((key, text)) if question.labels.len() < LABELS_MAX => {
                        question.labels.push((key.to_owned(), text.to_owned()));
                    }
                    Some(_) => return refused(format!("label: at most {LABELS_MAX} of them")),
                    None => {
                        return refused(
                            "label: write its name and value as route=/v1/x".to_owned(),
                        );
                    }
                },
                "by" => {
                    let names = value.split(',').filter(|name| !name.is_empty());
                    question.by = Some(names.map(str::to_owned).collect());
                }
                "fn" => match Reduce::NAMES.iter().find(|(known, _)| *known == value) {
                    Some((_, reduce)) => question.reduce = Some(*reduce),
                    None => {
                        let names: Vec<_> = Reduce::NAMES.iter().map(|(name, _)| *name).collect();
                        return refused(format!("fn: write one of {}", names.join(", ")));
                    }
                },
                _ => {
                    return refused(format!(
                        "{}: is not known; there are metric, from, to, step, label, by and fn",
                        shown(name)
                    ));
                }
            }
        }
        if question.metric.is_empty() {
            return Ok(None);
        }
        question.from = from.unwrap_or(question.to.saturating_sub(SPAN_SECONDS));
        if question.from >= question.to {
            return refused("from: is not before to".to_owned());
        }
        if question.to - question.from > SPAN_SECONDS_MAX {
            return refused("from: is further back than anything is kept".to_owned());
        }
        Ok(Some(question))
    }

    /// The step that this question wants, in seconds, before any bound.
    pub fn wanted_step(&self) -> u64 {
        let span = self.to - self.from;
        self.step.unwrap_or_else(|| {
            STEPS.into_iter().find(|step| span / step <= POINTS).unwrap_or(STEPS[STEPS.len() - 1])
        })
    }

    /// The points of an answer with this many series, none of them finer than `finest` seconds.
    pub fn grid(&self, finest: u64, series: usize) -> Grid {
        let series = (series as u64).max(1);
        let most = (ANSWER_POINTS_MAX / series).clamp(1, POINTS_MAX);
        let wanted = self.wanted_step().max(1);
        let least = finest.max((self.to - self.from).div_ceil(most)).max(1);
        let mut step = if wanted >= least {
            wanted
        } else {
            // One of the steps that people think in, where there is one.
            STEPS.into_iter().find(|step| *step >= least).unwrap_or(least)
        };
        if step > finest {
            step = step.next_multiple_of(finest.max(1));
        }
        let start = self.from - self.from % step;
        let slots = (self.to - start).div_ceil(step);
        Grid { start, step, slots: usize::try_from(slots).unwrap_or(0), raised: step > wanted }
    }
}

/// The steps of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Where the first one begins, in seconds since the epoch; a multiple of the step.
    pub start: u64,
    /// How long each is, in seconds.
    pub step: u64,
    /// How many there are.
    pub slots: usize,
    /// They are longer than was asked for.
    pub raised: bool,
}

impl Grid {
    /// The step in which a moment lies.
    pub fn slot(&self, at: u64) -> Option<usize> {
        let slot = usize::try_from(at.checked_sub(self.start)? / self.step).ok()?;
        (slot < self.slots).then_some(slot)
    }
}

/// Seconds since the epoch of `1763800000`, `2026-11-22T10:00:00Z` or `-6h`.
fn time(text: &str, now: u64) -> Option<u64> {
    if let Some(ago) = text.strip_prefix('-') {
        return now.checked_sub(span(ago)?);
    }
    if text == "now" {
        return Some(now);
    }
    text.parse().ok().filter(|at| *at < u64::MAX / 2).or_else(|| time_parse::unix_seconds(text))
}

/// Seconds of a step.
fn step(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| span(text)).filter(|step| (1..=SPAN_SECONDS_MAX).contains(step))
}

fn span(text: &str) -> Option<u64> {
    let span: Duration = humantime::parse_duration(text).ok()?;
    Some(span.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn parse(query: &str) -> Question {
        Question::parse(query, NOW).unwrap().unwrap()
    }

    #[test]
    fn a_question_is_read_with_what_stands_in_for_what_it_leaves_out() {
        let question = parse("metric=x");
        assert_eq!((question.from, question.to, question.step), (NOW - 3599, NOW + 1, None));
        let query = "metric=x_seconds&from=-6h&to=-1h&step=5m&fn=p95&label=route%3D/v1&label=a=b%3Dc\
                     &by=route,,key";
        let question = parse(query);
        assert_eq!((question.from, question.to), (NOW - 6 * 3600, NOW - 3600));
        assert_eq!((question.step, question.reduce), (Some(300), Some(Reduce::Quantile(0.95))));
        let label = |key: &str, text: &str| (key.to_owned(), text.to_owned());
        assert_eq!(question.labels, [label("route", "/v1"), label("a", "b=c")]);
        assert_eq!(question.by, Some(vec!["route".to_owned(), "key".to_owned()]));
        assert_eq!(parse("metric=x&from=2027-01-15T07:00:00Z").from, NOW - 3600);
        assert_eq!(Question::parse("", NOW).unwrap(), None);
    }

    #[test]
    fn what_is_no_question_is_refused_with_what_to_write() {
        let check = |query: &str, begins: &str| {
            let error = Question::parse(query, NOW).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidField);
            assert!(error.context().starts_with(begins), "{query}: {}", error.context());
        };
        check("metric=x&from=yesterday", "from: write");
        check("metric=x&to=-", "to: write");
        check("metric=x&from=-1h&to=-2h", "from: is not before to");
        check("metric=x&from=0", "from: is further back");
        check("metric=x&step=0", "step: write");
        check("metric=x&step=soon", "step: write");
        check("metric=x&fn=median", "fn: write one of rate");
        check("metric=x&label=route", "label: write");
        check(&format!("metric=x{}", "&label=a=b".repeat(9)), "label: at most 8");
        check("metric=x&limit=3", "limit: is not known");
        check("metric=%ff", "metric: is no proper value");
        for query in ["&&&", "=", "metric", "%", "from=-6h"] {
            let _ = Question::parse(query, NOW);
        }
    }

    #[test]
    fn the_step_is_raised_when_there_would_be_too_many_points() {
        let grid = parse("metric=x&from=-1h&step=10").grid(10, 1);
        assert_eq!((grid.step, grid.slots, grid.raised), (10, 361, false));
        let grid = parse("metric=x&from=-7d&step=10").grid(10, 1);
        assert_eq!((grid.step, grid.raised), (900, true));
        assert!(grid.slots as u64 <= POINTS_MAX + 1);
        // What is kept by the minute is not told by the second.
        let grid = parse("metric=x&from=-1h&step=10").grid(60, 1);
        assert_eq!((grid.step, grid.raised), (60, true));
        // Many series have fewer points each.
        let grid = parse("metric=x&from=-6h&step=10").grid(10, 400);
        assert!(grid.slots as u64 * 400 <= ANSWER_POINTS_MAX + 400 && grid.raised, "{grid:?}");
        for span in [60, 3600, 86_400, 7 * 86_400, 400 * 86_400] {
            let grid = parse(&format!("metric=x&from={}", NOW - span)).grid(10, 1);
            assert!(!grid.raised && grid.slots <= 182, "{grid:?}");
            assert_eq!(grid.start % grid.step, 0);
            assert_eq!(grid.slot(NOW - span), Some(0));
            assert_eq!(grid.slot(NOW), Some(grid.slots - 1));
            assert_eq!((grid.slot(NOW + grid.step), grid.slot(grid.start - 1)), (None, None));
        }
    }

    #[test]
    fn there_is_no_figure_that_means_nothing() {
        let nothing = Point::default();
        let quiet = Point::spread(0.0, Vec::new(), 10_000);
        for (_, reduce) in Reduce::NAMES {
            assert_eq!(reduce.apply(Shape::Gauge, &nothing, &[]), None);
            let figure = reduce.apply(Shape::Histogram, &quiet, &[1.0]);
            // Nothing was observed: that is a rate of 0, but no duration of 0.
            let counts = matches!(reduce, Reduce::Rate | Reduce::Increase);
            assert_eq!(figure, counts.then_some(0.0), "{}", reduce.as_str());
        }
        let fits = |shape| Reduce::NAMES.iter().filter(|(_, reduce)| reduce.fits(shape)).count();
        assert_eq!([Shape::Counter, Shape::Gauge, Shape::Histogram].map(fits), [6, 4, 7]);
        let mut minute = Point::value(5.0, 10_000);
        minute.append(&Point::value(15.0, 10_000));
        let figure = |reduce: Reduce| reduce.apply(Shape::Counter, &minute, &[]).unwrap();
        assert_eq!((figure(Reduce::Rate), figure(Reduce::Increase)), (1.0, 20.0));
        assert_eq!((figure(Reduce::Min), figure(Reduce::Max)), (0.5, 1.5));
    }
}
