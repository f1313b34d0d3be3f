//! Answers about the history, out of the store.

use std::sync::Arc;
use std::time::Duration;

use super::answer::Known;
use super::code;
use super::keep::{DAY, HOUR, MINUTE, known_of, signed};
use super::point::Shape;
use super::question::Question;
use super::sheet::Sheet;
use crate::base::clock;
use crate::base::error::Error;
use crate::store::Store;
use crate::store::samples::{self, Range};

/// How long the store may take for a question.
const READ_MAX: Duration = Duration::from_secs(3);

/// The store, for those who ask.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) store: Arc<Store>,
    /// Which run this is.
    pub(super) boot: i64,
}

/// What a row of the sheet is filled from.
struct Source {
    series: u32,
    row: usize,
    shape: Shape,
}

impl Kept {
    /// The series that a question is about, with their numbers.
    ///
    /// # Errors
    /// Why the store does not say.
    pub(super) fn series(&self, question: &Question) -> Result<Vec<(u32, Known)>, Error> {
        let rows = self.store.metrics().read(clock::now() + READ_MAX, |connection| {
            samples::series(connection, Some(&question.metric))
        })?;
        let known = rows.iter().filter_map(|row| Some((row.id, known_of(row)?)));
        Ok(known.filter(|(_, known)| known.fits(question)).collect())
    }

    /// Fills in what is kept of these series. Tells the first look of this run that was not there.
    ///
    /// # Errors
    /// Why the store does not say; the sheet may have some of it.
    pub(super) fn fill(
        &self,
        question: &Question,
        series: &[(u32, Known)],
        sheet: &mut Sheet,
    ) -> Result<u32, Error> {
        let sources: Vec<Source> = series
            .iter()
            .filter_map(|(id, known)| {
                let row = sheet.row(known.labels.clone(), known.shape, &known.bounds)?;
                Some(Source { series: *id, row, shape: known.shape })
            })
            .collect();
        let step = sheet.grid().step;
        self.store.metrics().read(clock::now() + READ_MAX, |connection| {
            // One state of the file for all of it: a look is in its minutes or by itself, never both.
            let moment = connection.unchecked_transaction()?;
            let last = samples::last_look(&moment, self.boot)?;
            let coarse = if step.is_multiple_of(HOUR) {
                Some((2, DAY, HOUR))
            } else if step.is_multiple_of(MINUTE) {
                Some((1, HOUR, MINUTE))
            } else {
                None
            };
            if let Some((tier, stretch, unit)) = coarse {
                let span = (signed(question.from.saturating_sub(stretch - 1)), signed(question.to));
                for source in &sources {
                    samples::parts(&moment, tier, source.series, span, |start, data| {
                        let start = u64::try_from(start).unwrap_or(0);
                        let _ = code::points(source.shape, data, |slot, point| {
                            let at = start + slot as u64 * unit;
                            // The step in which the question begins counts whole.
                            if at < question.to {
                                sheet.add(source.row, at, point);
                            }
                        });
                    })?;
                }
            }
            let range = Range {
                from: signed(sheet.grid().start),
                to: signed(question.to),
                unrolled: coarse.is_some(),
            };
            let find = |id: u32| sources.iter().find(|source| source.series == id);
            samples::looks(&moment, range, |_, look| {
                let at = u64::try_from(look.at).unwrap_or(0);
                let millis = u64::try_from(look.millis).unwrap_or(0);
                let wanted = |id: u32| find(id).is_some();
                let _ = code::seen(&look.data, millis, wanted, |id, _, point| {
                    if let Some(source) = find(id) {
                        sheet.add(source.row, at, &point);
                    }
                });
            })?;
            Ok(last.map_or(0, |last| last + 1))
        })
    }
}
