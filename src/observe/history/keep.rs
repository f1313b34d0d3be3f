//! The history in the store: looks as they were taken, put together into minutes and hours when an hour
//! is over, and forgotten by age and by size.
//!
//! A look is written once, within a minute, and is part of its minutes and hours from then on that
//! its hour is over; until then those who ask put it together themselves. A look that comes late, from a
//! run that ended or of a clock that was set back, is added to the hour that it belongs to. What is
//! told of a stretch is therefore always what was seen in it, whenever the program ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::Known;
use super::code;
use super::kept::Kept;
use super::point::{Point, Shape};
use super::{History, write_key};
use crate::base::clock;
use crate::base::error::Error;
use crate::base::metrics::{Limit, Registry};
use crate::config::settings::History as Settings;
use crate::store::samples::{self, Cuts, LookRow, PartRow, Range, SeriesRow};
use crate::store::{Stand, Store};

/// Series in the store. Past it: further ones are in memory only, until old ones are forgotten.
const SERIES_MAX: usize = 4096;

/// How often looks are written: what an end without a stop may lose.
const SAVE: Duration = Duration::from_secs(60);

/// How often it is looked for what is too old or too large.
const TRIM: Duration = Duration::from_secs(300);

/// How long a write may take, and a question of this thread.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// An hour is put together in so many parts, each for some of its series, so that little of it is in
/// memory at once.
const PASSES: u32 = 8;

/// A clock may be wrong by this, in seconds; looks of a later time are of one that was wrong by more.
const FUTURE_MAX: i64 = 2 * 86_400;

/// Batches of forgetting in a row.
const TRIMS_MAX: usize = 100;

/// A minute, an hour and a day, in seconds.
pub(super) const MINUTE: u64 = 60;
/// See there.
pub(super) const HOUR: u64 = 3600;
/// See there.
pub(super) const DAY: u64 = 86_400;

/// Writes the history into the store. The thread `history` has it.
#[derive(Debug)]
pub struct Keeper {
    history: Arc<History>,
    store: Arc<Store>,
    boot: i64,
    settings: Settings,
    /// The numbers of series in the store, by all that tells them apart.
    ids: HashMap<String, u32>,
    /// Of which opening of the file they are.
    epoch: Option<u64>,
    /// The first look that is not in the store.
    unkept: u32,
    saved: Instant,
    trimmed: Option<Instant>,
    limit: Arc<Limit>,
}

impl Keeper {
    /// Keeps what `history` sees in `store`, and has its answers made from there, too.
    pub fn new(
        history: &Arc<History>,
        store: &Arc<Store>,
        settings: &Settings,
        registry: &Registry,
        now: Instant,
    ) -> Keeper {
        let boot = i64::try_from(clock::unix().as_nanos()).unwrap_or(i64::MAX);
        // Another one that keeps the same history is none of the program's.
        let _ = history.kept.set(Kept { store: Arc::clone(store), boot });
        let consequence = "further series are remembered in memory only";
        Keeper {
            history: Arc::clone(history),
            store: Arc::clone(store),
            boot,
            settings: settings.clone(),
            ids: HashMap::new(),
            epoch: None,
            unkept: 0,
            saved: now,
            trimmed: None,
            limit: registry.limit("history.kept_series_max", "", SERIES_MAX as u64, consequence),
        }
    }

    /// Takes over new settings.
    pub fn reconfigure(&mut self, settings: &Settings) {
        self.settings = settings.clone();
    }

    /// Does what is due; `wall` is the time in seconds since the epoch. What cannot be done now, because the
    /// store is away or full, is done later, as long as the looks are in memory.
    ///
    /// # Errors
    /// What went wrong. The store has told on the board how it stands with itself.
    pub fn tick(&mut self, now: Instant, wall: u64) -> Result<(), Error> {
        if self.store.metrics().stand() != Stand::Open {
            return Ok(());
        }
        let save = now.saturating_duration_since(self.saved) >= SAVE;
        if save || self.epoch.is_none() {
            self.saved = now;
            self.load()?;
            self.save()?;
            self.roll(wall)?;
        }
        if self.trimmed.is_none_or(|at| now.saturating_duration_since(at) >= TRIM) {
            self.trimmed = Some(now);
            self.trim(wall)?;
        }
        Ok(())
    }

    /// Writes what is not written yet: the last thing before the end.
    ///
    /// # Errors
    /// Why it was not.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.store.metrics().stand() != Stand::Open {
            return Ok(());
        }
        self.load()?;
        self.save()
    }

    /// Learns which series the store knows, when it was opened, or began anew.
    fn load(&mut self) -> Result<(), Error> {
        let db = self.store.metrics();
        let epoch = db.epoch();
        if self.epoch == Some(epoch) {
            return Ok(());
        }
        let (rows, last) = db.read(clock::now() + WRITE_MAX, |connection| {
            Ok((samples::series(connection, None)?, samples::last_look(connection, self.boot)?))
        })?;
        self.ids = rows.iter().map(|row| (key_of(row), row.id)).collect();
        self.unkept = last.map_or(0, |last| last + 1);
        self.limit.set_now(self.ids.len() as u64);
        self.epoch = Some(epoch);
        Ok(())
    }

    fn save(&mut self) -> Result<(), Error> {
        let mut new: Vec<SeriesRow> = Vec::new();
        let mut next = self.ids.values().max().map_or(1, |last| last + 1);
        let (ids, limit) = (&mut self.ids, &self.limit);
        let (looks, unkept) = self.history.unkept(self.unkept, self.boot, |known| {
            let row = row_of(known, next);
            let key = key_of(&row);
            if let Some(id) = ids.get(&key) {
                return Some(*id);
            }
            if ids.len() as u64 >= limit.max() {
                limit.refuse();
                return None;
            }
            ids.insert(key, next);
            next += 1;
            new.push(row);
            Some(next - 1)
        });
        self.limit.set_now(self.ids.len() as u64);
        if looks.is_empty() {
            return Ok(());
        }
        let deadline = clock::now() + WRITE_MAX;
        let written = self
            .store
            .metrics()
            .write("history_looks", deadline, move |tx| samples::put_looks(tx, &new, &looks));
        match &written {
            Ok(()) => self.unkept = unkept,
            // Which series it knows is not sure any more.
            Err(_) => self.epoch = None,
        }
        written
    }

    /// Puts the hours together that are over.
    fn roll(&mut self, wall: u64) -> Result<(), Error> {
        let over = signed(wall - wall % HOUR);
        let db = self.store.metrics();
        while let Some(at) = db.read(clock::now() + WRITE_MAX, |connection| {
            samples::oldest_unrolled(connection, over)
        })? {
            let hour = u64::try_from(at).unwrap_or(0);
            self.roll_hour(hour - hour % HOUR)?;
        }
        Ok(())
    }

    fn roll_hour(&self, hour: u64) -> Result<(), Error> {
        let db = self.store.metrics();
        let span = (signed(hour), signed(hour + HOUR));
        let mut parts = Vec::new();
        let mut last = 0;
        for pass in 0..PASSES {
            let rolled = db.read(clock::now() + WRITE_MAX, |connection| {
                roll(connection, hour, |series| series % PASSES == pass, &mut parts)
            })?;
            last = if pass == 0 { rolled } else { last.min(rolled) };
        }
        db.write("history_roll", clock::now() + WRITE_MAX, move |tx| {
            samples::put_parts(tx, &parts, span, last)
        })
    }

    /// Forgets what is too old or too large.
    fn trim(&mut self, wall: u64) -> Result<(), Error> {
        let before = |keep: Duration| signed(wall.saturating_sub(keep.as_secs()));
        let Settings { looks_for, minutes_for, hours_for, disk_max, .. } = self.settings;
        let cuts = Cuts {
            before: [before(looks_for), before(minutes_for), before(hours_for)],
            after: signed(wall) + FUTURE_MAX,
            bytes_max: signed(disk_max),
        };
        let db = self.store.metrics();
        let bytes = |connection: &_| samples::bytes(connection);
        let all = db.read(clock::now() + WRITE_MAX, bytes)?.iter().sum::<i64>();
        if all > cuts.bytes_max {
            self.history.disk.refuse();
        }
        for _ in 0..TRIMS_MAX {
            let deadline = clock::now() + WRITE_MAX;
            if !db.write("history_trim", deadline, move |tx| samples::trim(tx, &cuts))? {
                break;
            }
        }
        let all = db.read(clock::now() + WRITE_MAX, bytes)?.iter().sum::<i64>();
        self.history.disk.set_now(u64::try_from(all).unwrap_or(0));
        // Series may have gone.
        self.epoch = None;
        Ok(())
    }
}

/// Puts together what the looks of an hour saw of some series, on top of what is there of it already.
/// Tells the last row that it has read.
fn roll(
    connection: &samples::Connection,
    hour: u64,
    wanted: impl Fn(u32) -> bool,
    parts: &mut Vec<PartRow>,
) -> samples::Result<i64> {
    let mut last = 0;
    let mut series: HashMap<u32, (bool, Vec<Point>)> = HashMap::new();
    let range = Range { from: signed(hour), to: signed(hour + HOUR), unrolled: true };
    samples::looks(connection, range, |row, look| {
        last = last.max(row);
        let minute = u64::try_from(look.at).unwrap_or(0).saturating_sub(hour) / MINUTE;
        let slot = usize::try_from(minute).unwrap_or(0).min(59);
        let millis = u64::try_from(look.millis).unwrap_or(0);
        // What is damaged is left out.
        let _ = code::seen(&look.data, millis, &wanted, |id, spread, point| {
            let (_, slots) =
                series.entry(id).or_insert_with(|| (spread, vec![Point::default(); 60]));
            slots[slot].append(&point);
        });
    })?;
    for (id, (spread, minutes)) in series {
        let shape = if spread { Shape::Histogram } else { Shape::Gauge };
        let mut whole = Point::default();
        minutes.iter().for_each(|minute| whole.append(minute));
        let mut merge = |tier: u8, start: u64, slots: Vec<Point>| -> samples::Result<()> {
            let start = signed(start);
            let mut all = vec![Point::default(); slots.len()];
            if let Some(data) = samples::part(connection, tier, id, start)? {
                let _ = code::points(shape, &data, |slot, point| {
                    if let Some(slot) = all.get_mut(slot) {
                        slot.clone_from(point);
                    }
                });
            }
            all.iter_mut().zip(&slots).for_each(|(all, slot)| all.append(slot));
            parts.push(PartRow { tier, series: id, start, data: code::part(shape, &all) });
            Ok(())
        };
        merge(1, hour, minutes)?;
        let mut hours = vec![Point::default(); 24];
        let slot = usize::try_from(hour % DAY / HOUR).unwrap_or(0);
        hours[slot] = whole;
        merge(2, hour - hour % DAY, hours)?;
    }
    Ok(last)
}

impl History {
    /// The looks from number `first` on as rows, with the number that comes after them. `id` gives each
    /// series its number; what has none is left out.
    fn unkept(
        &self,
        first: u32,
        boot: i64,
        mut id: impl FnMut(&Known) -> Option<u32>,
    ) -> (Vec<LookRow>, u32) {
        self.inner.with(|inner| {
            let first = inner.looks.partition_point(|look| look.number < first);
            if first == inner.looks.len() {
                return (Vec::new(), inner.next);
            }
            let ids: Vec<Option<u32>> =
                inner.series.iter().map(|series| id(&Known::of(series))).collect();
            let looks = inner.looks.iter().skip(first).map(|look| {
                let mut data = Vec::new();
                for (series, id) in inner.series.iter().zip(&ids) {
                    if let Some(id) = id
                        && let Some(point) = series.track.at(look.number, look.millis)
                    {
                        code::put_seen(&mut data, *id, series.track.shape(), &point);
                    }
                }
                let (at, millis) = (signed(look.wall), signed(look.millis));
                LookRow { at, boot, look: look.number, millis, data }
            });
            (looks.collect(), inner.next)
        })
    }
}

/// A number as SQLite has it.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn row_of(known: &Known, id: u32) -> SeriesRow {
    SeriesRow {
        id,
        name: known.name.clone(),
        labels: serde_json::to_string(&known.labels).unwrap_or_default(),
        shape: known.shape.as_str().to_owned(),
        bounds: serde_json::to_string(&known.bounds).unwrap_or_default(),
    }
}

/// The series of a row; `None` for one that cannot be read.
pub(super) fn known_of(row: &SeriesRow) -> Option<Known> {
    Some(Known {
        name: row.name.clone(),
        labels: serde_json::from_str(&row.labels).ok()?,
        shape: Shape::parse(&row.shape)?,
        bounds: serde_json::from_str(&row.bounds).ok()?,
    })
}

fn key_of(row: &SeriesRow) -> String {
    let mut key = String::new();
    let rest = [(row.labels.as_str(), row.shape.as_str()), (row.bounds.as_str(), "")];
    write_key(&mut key, &row.name, rest.into_iter());
    key
}

#[cfg(test)]
mod tests;
