//! The book itself: rows by day, key and model, and rows by session.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::{Entry, Maker, SECONDS_PER_DAY, Sums};

/// Keys whose requests without a session, and whose forgotten sessions, have rows of their own:
/// twice the keys that a configuration may have. Past it: they are told together.
pub const KEYS_MAX: usize = 2048;

/// Rows that a page holds: what is copied under one lock, about a microsecond's worth.
const PAGE_ROWS: usize = 16;

/// Whose row it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// The key of this name.
    Key(Arc<str>),
    /// Nobody in particular: there are no keys.
    Nobody,
    /// All whose rows found no room.
    Others,
}

impl Who {
    fn of(key: Option<&Arc<str>>) -> Who {
        key.map_or(Who::Nobody, |key| Who::Key(Arc::clone(key)))
    }
}

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// One model.
    Model {
        /// As clients ask for it.
        asked: Box<str>,
        /// Who answered; `None` for requests that nobody answered.
        answered: Option<Maker>,
    },
    /// All models whose rows found no room.
    Others,
}

/// A row's place in the book.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Days since 1970, UTC; `None` for all days before those that have rows of their own.
    pub day: Option<u64>,
    /// Whose.
    pub who: Who,
    /// About what.
    pub what: What,
}

/// How much a book may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Rows by day, key and model. At most three quarters are for models, and at most half of
    /// those for the models of one key, so that a client that makes names up leaves room for others.
    pub rows: usize,
    /// Days, at least one.
    pub days: usize,
    /// Sessions, at least one.
    pub sessions: usize,
}

impl Bounds {
    /// The last rows: everybody's others, one for each day and one for what was before.
    fn reserved(&self) -> usize {
        self.days + 1
    }

    fn models(&self) -> usize {
        self.rows / 4 * 3
    }

    fn models_of_one(&self) -> usize {
        self.models() / 2
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionId {
    who: Who,
    name: Arc<str>,
}

/// Sums and the time of the last request in them.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    sums: Sums,
    at: u64,
}

impl Last {
    fn add(&mut self, sums: &Sums, at: u64) {
        self.sums.add(sums);
        self.at = self.at.max(at);
    }
}

/// What a key has beside its sessions.
#[derive(Debug, Default)]
struct Beside {
    /// Requests that named no session.
    without: Last,
    /// Sessions that were forgotten.
    forgotten: Last,
}

/// The sums of one session.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// Whose.
    pub who: Who,
    /// Its name; `None` for requests that named none.
    pub name: Option<Arc<str>>,
    /// The row stands for sessions that have none of their own any more.
    pub others: bool,
    /// The last request, in seconds since 1970.
    pub last: u64,
    /// The sums.
    pub sums: Sums,
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Rows by day, key and model.
    pub rows: usize,
    /// Days, from the oldest with a row of its own to the newest.
    pub days: usize,
    /// Sessions.
    pub sessions: usize,
    /// Keys with rows beside their sessions.
    pub keys: usize,
    /// How often a request found no row of its own.
    pub merged: u64,
    /// How many sessions were forgotten.
    pub forgotten: u64,
}

/// Some of the rows.
#[derive(Debug)]
pub struct Page {
    /// The rows.
    pub rows: Vec<(Arc<Place>, Sums)>,
    /// Where the next page begins; `None` when this was the last one.
    pub next: Option<usize>,
    /// Changes when rows move: pages of two generations do not belong together.
    pub generation: u64,
}

/// The book.
#[derive(Debug)]
pub struct Book {
    bounds: Bounds,
    rows: Vec<(Arc<Place>, Sums)>,
    index: HashMap<Arc<Place>, usize>,
    /// Rows for models, of each key.
    models: HashMap<Who, usize>,
    models_total: usize,
    newest: u64,
    oldest: Option<u64>,
    generation: u64,
    sessions: LruCache<SessionId, Last>,
    beside: HashMap<Who, Beside>,
    total: Sums,
    /// How often anything has changed.
    edits: u64,
    /// Requests and sessions that found no row of their own.
    merged: u64,
    forgotten: u64,
}

impl Book {
    /// An empty one.
    pub fn new(bounds: Bounds) -> Book {
        Book {
            bounds,
            rows: Vec::new(),
            index: HashMap::new(),
            models: HashMap::new(),
            models_total: 0,
            newest: 0,
            oldest: None,
            generation: 0,
            sessions: LruCache::new(at_least_one(bounds.sessions)),
            beside: HashMap::new(),
            total: Sums::default(),
            edits: 0,
            merged: 0,
            forgotten: 0,
        }
    }

    /// Enters a request: a quarter of a microsecond. A new day costs a walk over all rows, once: half
    /// a millisecond for some thousands of them.
    pub fn enter(&mut self, mut entry: Entry) {
        self.edits += 1;
        let day = entry.at / SECONDS_PER_DAY;
        if day > self.newest {
            self.newest = day;
            self.rebuild();
        }
        let sums = Sums::of(&entry);
        let mut all = sums;
        let who = Who::of(entry.key.as_ref());
        for (answered, charge) in std::mem::take(&mut entry.spent) {
            let mut spent = Sums::default();
            spent.charge(&charge);
            all.add(&spent);
            let what = What::Model { asked: entry.asked.clone(), answered: Some(answered) };
            self.add(Place { day: self.row_day(day), who: who.clone(), what }, &spent);
        }
        self.total.add(&all);
        self.session(&who, entry.session.take(), &all, entry.at);
        let what = What::Model { asked: entry.asked, answered: entry.answered };
        self.add(Place { day: self.row_day(day), who, what }, &sums);
    }

    /// Changes the bounds. What no longer has room becomes part of others at once.
    pub fn resize(&mut self, bounds: Bounds) {
        if bounds == self.bounds {
            return;
        }
        self.bounds = bounds;
        self.edits += 1;
        while self.sessions.len() > bounds.sessions.max(1) {
            self.forget_one();
        }
        self.sessions.resize(at_least_one(bounds.sessions));
        self.rebuild();
    }

    /// Adds what was summed before, by an earlier process. What has no room becomes part of others, as
    /// it would have then.
    pub fn restore(&mut self, rows: Vec<(Place, Sums)>, sessions: Vec<SessionRow>) {
        self.edits += 1;
        let newest = rows.iter().filter_map(|(place, _)| place.day).max();
        if let Some(newest) = newest.filter(|newest| *newest > self.newest) {
            self.newest = newest;
            self.rebuild();
        }
        // That counts requests.
        let merged = self.merged;
        for (mut place, sums) in rows {
            self.total.add(&sums);
            place.day = place.day.and_then(|day| self.row_day(day));
            self.add(place, &sums);
        }
        self.merged = merged;
        self.restore_sessions(sessions);
    }

    fn restore_sessions(&mut self, rows: Vec<SessionRow>) {
        let mut all: HashMap<SessionId, Last> = HashMap::new();
        while let Some((id, last)) = self.sessions.pop_lru() {
            all.insert(id, last);
        }
        for SessionRow { who, name, others, last, sums } in rows {
            let sum = match name {
                Some(name) => all.entry(SessionId { who, name }).or_default(),
                None if others => &mut self.beside(&who).forgotten,
                None => &mut self.beside(&who).without,
            };
            sum.add(&sums, last);
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(_, last)| last.at);
        for (id, last) in all {
            if self.sessions.len() >= self.bounds.sessions.max(1) {
                self.forget_one();
            }
            self.sessions.put(id, last);
        }
    }

    /// How often anything has changed, and how often rows that were there may have gone.
    pub fn changes(&self) -> (u64, u64) {
        (self.edits, self.generation.saturating_add(self.forgotten))
    }

    /// The sums of everything that was ever entered.
    pub fn total(&self) -> Sums {
        self.total
    }

    /// How much of everything there is.
    pub fn sizes(&self) -> Sizes {
        let days = self.oldest.map_or(0, |oldest| self.newest.saturating_sub(oldest) + 1);
        Sizes {
            rows: self.rows.len(),
            days: usize::try_from(days).unwrap_or(usize::MAX),
            sessions: self.sessions.len(),
            keys: self.beside.len(),
            merged: self.merged,
            forgotten: self.forgotten,
        }
    }

    /// The rows from `from` on, as many as are copied at a time.
    pub fn page(&self, from: usize) -> Page {
        let end = (from + PAGE_ROWS).min(self.rows.len());
        Page {
            rows: self.rows.get(from..end).map(<[_]>::to_vec).unwrap_or_default(),
            next: (end < self.rows.len()).then_some(end),
            generation: self.generation,
        }
    }

    /// All rows by session, the ones used last first.
    pub fn sessions(&self) -> Vec<SessionRow> {
        let named = self.sessions.iter().map(|(id, last)| SessionRow {
            who: id.who.clone(),
            name: Some(Arc::clone(&id.name)),
            others: false,
            last: last.at,
            sums: last.sums,
        });
        let beside = self.beside.iter().flat_map(|(who, beside)| {
            [(false, &beside.without), (true, &beside.forgotten)].map(|(others, last)| SessionRow {
                who: who.clone(),
                name: None,
                others,
                last: last.at,
                sums: last.sums,
            })
        });
        named.chain(beside.filter(|row| row.sums != Sums::default())).collect()
    }

    /// Days that are too old have one row together.
    fn row_day(&self, day: u64) -> Option<u64> {
        (day + self.bounds.days.max(1) as u64 > self.newest).then_some(day)
    }

    fn add(&mut self, mut place: Place, sums: &Sums) {
        if *sums == Sums::default() {
            return;
        }
        if let Some(&row) = self.index.get(&place) {
            self.rows[row].1.add(sums);
            return;
        }
        if matches!(place.what, What::Model { .. }) && !self.room_for_a_model(&place.who) {
            self.merged += 1;
            place.what = What::Others;
        }
        if place.what == What::Others && !self.index.contains_key(&place) && !self.has_room() {
            place.who = Who::Others;
        }
        match self.index.get(&place) {
            Some(&row) => self.rows[row].1.add(sums),
            None => self.insert(place, *sums),
        }
    }

    fn has_room(&self) -> bool {
        self.rows.len() + self.bounds.reserved() < self.bounds.rows
    }

    fn room_for_a_model(&self, who: &Who) -> bool {
        self.has_room()
            && self.models_total < self.bounds.models()
            && self.models.get(who).is_none_or(|models| *models < self.bounds.models_of_one())
    }

    fn insert(&mut self, place: Place, sums: Sums) {
        if matches!(place.what, What::Model { .. }) {
            self.models_total += 1;
            *self.models.entry(place.who.clone()).or_default() += 1;
        }
        if let Some(day) = place.day {
            self.oldest = Some(self.oldest.map_or(day, |oldest| oldest.min(day)));
        }
        let place = Arc::new(place);
        self.index.insert(Arc::clone(&place), self.rows.len());
        self.rows.push((place, sums));
    }

    /// Puts every row where it belongs by the day and the bounds that are now.
    fn rebuild(&mut self) {
        let moves = |(place, _): &(Arc<Place>, Sums)| {
            place.day.is_some_and(|day| self.row_day(day).is_none())
        };
        let fits = self.rows.len() + self.bounds.reserved() <= self.bounds.rows;
        if fits && !self.rows.iter().any(moves) {
            return;
        }
        self.generation += 1;
        let rows = std::mem::take(&mut self.rows);
        self.index.clear();
        self.models.clear();
        self.models_total = 0;
        self.oldest = None;
        let merged = self.merged;
        for (place, sums) in rows {
            let mut place = Arc::unwrap_or_clone(place);
            place.day = place.day.and_then(|day| self.row_day(day));
            self.add(place, &sums);
        }
        // That counts requests.
        self.merged = merged;
    }

    fn session(&mut self, who: &Who, session: Option<Arc<str>>, sums: &Sums, at: u64) {
        let Some(name) = session else {
            self.beside(who).without.add(sums, at);
            return;
        };
        let id = SessionId { who: who.clone(), name };
        if let Some(known) = self.sessions.get_mut(&id) {
            known.add(sums, at);
            return;
        }
        if self.sessions.len() >= self.bounds.sessions.max(1) {
            self.forget_one();
        }
        self.sessions.put(id, Last { sums: *sums, at });
    }

    /// The session that was silent for longest becomes part of its key's others.
    fn forget_one(&mut self) {
        if let Some((id, last)) = self.sessions.pop_lru() {
            self.forgotten += 1;
            self.beside(&id.who).forgotten.add(&last.sums, last.at);
        }
    }

    fn beside(&mut self, who: &Who) -> &mut Beside {
        let full = self.beside.len() + 1 >= KEYS_MAX && !self.beside.contains_key(who);
        self.beside.entry(if full { Who::Others } else { who.clone() }).or_default()
    }
}

fn at_least_one(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}
