//! Answers about the history, out of memory.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};

use super::point::Shape;
use super::question::{Question, Reduce};
use super::sheet::{Labels, Sheet};
use super::{History, Series};
use crate::base::error::{Error, Kind, Result};

/// What there is of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Its metric.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// What its values are.
    pub shape: Shape,
    /// Of a histogram: the bounds of its buckets.
    pub bounds: Vec<f64>,
}

impl Known {
    fn of(series: &Series) -> Known {
        let labels = series.labels.iter().map(|(key, text)| (key.to_string(), text.to_string()));
        Known {
            name: series.name.to_string(),
            labels: labels.collect(),
            shape: series.track.shape(),
            bounds: series.track.bounds().to_vec(),
        }
    }

    /// Whether a question is about it.
    pub fn fits(&self, question: &Question) -> bool {
        let wanted = |label: &(String, String)| self.labels.contains(label);
        self.name == question.metric && question.labels.iter().all(wanted)
    }
}

impl History {
    /// The answer to the query of `GET /history` at `now`, in seconds since the epoch.
    ///
    /// # Errors
    /// [`Kind::InvalidField`] for a query that cannot be answered, [`Kind::NotFound`] for a metric that
    /// there is no history of.
    pub fn answer(&self, query: &str, now: u64) -> Result<Value> {
        match Question::parse(query, now)? {
            Some(question) => self.about(&question),
            None => Ok(self.list()),
        }
    }

    /// About one metric.
    fn about(&self, question: &Question) -> Result<Value> {
        let mut known = self.known();
        known.retain(|known| known.fits(question));
        let Some(first) = known.first() else {
            let text = format!(
                "no series of {:?} with these labels is remembered; GET /history names what is",
                question.metric.chars().take(80).collect::<String>()
            );
            return Err(Error::new(Kind::NotFound, text));
        };
        let (shape, bounds) = (first.shape, first.bounds.clone());
        let reduce = question.reduce.unwrap_or_else(|| Reduce::of(shape));
        if !reduce.fits(shape) {
            let fit = Reduce::NAMES.iter().filter(|(_, reduce)| reduce.fits(shape));
            let fit: Vec<_> = fit.map(|(name, _)| *name).collect();
            let text = format!(
                "fn: {} says nothing of a {}; there are {}",
                reduce.as_str(),
                shape.as_str(),
                fit.join(", ")
            );
            return Err(Error::new(Kind::InvalidField, text));
        }
        let mut notes = Vec::new();
        let grid = question.grid(self.interval().as_secs(), known.len());
        if grid.raised {
            notes.push(format!(
                "the step is {} s, so that there are not too many points",
                grid.step
            ));
        }
        let mut sheet = Sheet::new(grid, shape, bounds);
        self.fill(question, &mut sheet, 0);
        Ok(sheet.tell(question, &notes))
    }

    /// What there is.
    fn list(&self) -> Value {
        let mut metrics: Vec<(String, Shape, u64, Vec<String>)> = Vec::new();
        for known in self.known() {
            let at = metrics.iter().position(|(name, ..)| *name == known.name);
            let at = at.unwrap_or_else(|| {
                metrics.push((known.name.clone(), known.shape, 0, Vec::new()));
                metrics.len() - 1
            });
            let (_, _, series, labels) = &mut metrics[at];
            *series += 1;
            for (key, _) in known.labels {
                if !labels.contains(&key) {
                    labels.push(key);
                }
            }
        }
        metrics.sort_by(|a, b| a.0.cmp(&b.0));
        let rows = metrics.into_iter().map(|(name, shape, series, labels)| {
            json!({ "metric": name, "type": shape.as_str(), "series": series, "labels": labels })
        });
        let range = self.range();
        json!({
            "interval": self.interval().as_secs_f64(),
            "memoryFrom": range.map(|(from, _)| from),
            "latest": range.map(|(_, to)| to),
            "metrics": rows.collect::<Vec<Value>>(),
        })
    }

    /// All series in memory.
    pub fn known(&self) -> Vec<Known> {
        self.inner.with(|inner| inner.series.iter().map(Known::of).collect())
    }

    /// Fills in what the looks from number `first` on saw.
    pub(super) fn fill(&self, question: &Question, sheet: &mut Sheet, first: u32) {
        self.inner.with(|inner| {
            for series in inner.series.iter().filter(|series| *series.name == *question.metric) {
                let known = Known::of(series);
                if !known.fits(question) {
                    continue;
                }
                let Some(row) = sheet.row(known.labels, known.shape, &known.bounds) else {
                    continue;
                };
                for look in inner.looks.iter().filter(|look| look.number >= first) {
                    let inside = (question.from..question.to).contains(&look.wall);
                    if inside && let Some(point) = series.track.at(look.number, look.millis) {
                        sheet.add(row, look.wall, &point);
                    }
                }
            }
        });
    }

    /// The time between two looks.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.load(Relaxed))
    }
}
