//! Answers about the history, out of memory and the store.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};

use super::keep::{HOUR, MINUTE};
use super::point::Shape;
use super::question::{Question, Reduce};
use super::sheet::{Labels, Sheet};
use super::{History, Series};
use crate::base::error::{Error, Kind, Result};

/// Refuses a figure that says nothing of such a metric.
fn check_fits(question: &Question, shape: Shape) -> Result<()> {
    let reduce = question.reduce.unwrap_or_else(|| Reduce::of(shape));
    if reduce.fits(shape) {
        return Ok(());
    }
    let fit = Reduce::NAMES.iter().filter(|(_, reduce)| reduce.fits(shape));
    let fit: Vec<_> = fit.map(|(name, _)| *name).collect();
    let text = format!(
        "fn: {} says nothing of a {}; there are {}",
        reduce.as_str(),
        shape.as_str(),
        fit.join(", ")
    );
    Err(Error::new(Kind::InvalidField, text))
}

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
    pub(super) fn of(series: &Series) -> Known {
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
            Some(question) => self.about(&question, now),
            None => Ok(self.list()),
        }
    }

    /// About one metric.
    fn about(&self, question: &Question, now: u64) -> Result<Value> {
        let mut notes = Vec::new();
        let mut known = self.known();
        known.retain(|known| known.fits(question));
        // What is in memory needs no question to the store.
        let older = self.range().is_none_or(|(from, _)| question.from < from);
        let mut kept = self.kept.get().filter(|_| older);
        let mut stored = Vec::new();
        if let Some(store) = kept {
            match store.series(question) {
                Ok(rows) => stored = rows,
                Err(error) => {
                    notes.push(format!("only what is in memory: {}", error.context()));
                    kept = None;
                }
            }
        } else if older {
            notes.push("only what is in memory: there is no store".to_owned());
        }
        let newest = stored.iter().map(|(_, known)| known).next_back();
        let Some(first) = known.first().or(newest) else {
            let text = format!(
                "no series of {:?} with these labels is remembered; GET /history names what is",
                question.metric.chars().take(80).collect::<String>()
            );
            return Err(Error::new(Kind::NotFound, text));
        };
        let (shape, bounds) = (first.shape, first.bounds.clone());
        check_fits(question, shape)?;
        stored.retain(|(_, known)| known.shape == shape && known.bounds == bounds);
        let only_stored = stored.iter().filter(|(_, stored)| !known.contains(stored)).count();
        let finest = match kept {
            Some(_) => self.finest(question, now),
            None => self.interval().as_secs(),
        };
        let grid = question.grid(finest, known.len() + only_stored);
        if grid.raised {
            notes.push(format!(
                "the step is {} s: there is nothing finer, or there would be too many points",
                grid.step
            ));
        }
        let mut sheet = Sheet::new(grid, shape, bounds);
        let first = match kept.map(|kept| kept.fill(question, &stored, &mut sheet)) {
            Some(Ok(first)) => first,
            Some(Err(error)) => {
                notes.push(format!("not all of it: {}", error.context()));
                0
            }
            None => 0,
        };
        self.fill(question, &mut sheet, first);
        Ok(sheet.tell(question, &notes))
    }

    /// The finest step that there is for this question, in seconds: what is old is kept by the minute, and
    /// what is older by the hour.
    fn finest(&self, question: &Question, now: u64) -> u64 {
        let ages = self.ages();
        let age = now.saturating_sub(question.from);
        if age <= ages[0] {
            self.interval().as_secs()
        } else if age <= ages[1] {
            MINUTE
        } else {
            HOUR
        }
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
                    let inside = look.wall < question.to;
                    if inside && let Some(point) = series.track.at(look.number, look.millis) {
                        sheet.add(row, look.wall, &point);
                    }
                }
            }
        });
    }

    /// How long looks and minutes are kept, in seconds.
    fn ages(&self) -> [u64; 2] {
        [self.looks_for.load(Relaxed), self.minutes_for.load(Relaxed)]
    }

    /// The time between two looks.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.load(Relaxed))
    }
}
