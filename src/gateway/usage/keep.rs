//! The books over restarts: loaded once the store is there, and saved every few seconds when they
//! have changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Accounts;
use crate::base::clock;
use crate::base::lock::{Locked, Rank};
use crate::llm::usage::{Place, SessionRow, Sums, What, Who};
use crate::store::usage::{self as kept, Books};
use crate::store::{Stand, Store};

/// Between two times that changes are saved: so much is lost at most when the process is killed.
pub(super) const SAVE: Duration = Duration::from_secs(5);

/// While it waits for a load at the end.
const LOOK: Duration = Duration::from_millis(2);

/// What a load came to.
type Slot = Arc<Locked<Option<Option<Books>>>>;

/// Keeps the books of some accounts. Told of the time by whoever owns it.
#[derive(Debug)]
pub struct Keeper {
    accounts: Arc<Accounts>,
    store: Arc<Store>,
    /// A load that was asked for.
    loading: Option<Slot>,
    loaded: bool,
    /// What was saved last.
    saved: Option<Mark>,
    next: Instant,
}

/// By what changes are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    edits: u64,
    /// Rows that were saved may be gone when one of these has changed.
    moved: u64,
    epoch: u64,
}

impl Keeper {
    /// One that has not loaded anything yet.
    pub fn new(accounts: Arc<Accounts>, store: Arc<Store>, now: Instant) -> Keeper {
        let (loading, saved) = (None, None);
        Keeper { accounts, store, loading, loaded: false, saved, next: now }
    }

    /// To be called about once a second. Nothing here waits.
    pub fn tick(&mut self, now: Instant) {
        if !self.loaded {
            self.load();
        } else if now >= self.next {
            self.next = now + SAVE;
            self.save();
        }
    }

    /// Before anything is saved: what is summed until then is added to what was.
    fn load(&mut self) {
        if let Some(slot) = &self.loading {
            if let Some(books) = slot.with(Option::take) {
                if let Some(books) = books {
                    self.accounts.restore(books);
                }
                self.accounts.are_kept();
                (self.loaded, self.loading) = (true, None);
            } else if Arc::strong_count(slot) == 1 {
                // The job was refused, or failed: once more.
                self.loading = None;
            }
            return;
        }
        if self.store.durable().stand() != Stand::Open {
            return;
        }
        let slot: Slot = Arc::new(Locked::new(Rank::Leaf, None));
        let filled = Arc::clone(&slot);
        let asked = self.store.durable().submit("usage_load", move |tx| {
            let books = kept::load(tx)?;
            filled.with(|slot| *slot = Some(books));
            Ok(())
        });
        self.loading = asked.is_ok().then_some(slot);
    }

    /// The last time: also when there was no time to load yet.
    pub fn finish(&mut self, until: Instant) {
        while !self.loaded
            && matches!(self.store.durable().stand(), Stand::Open | Stand::Opening)
            && clock::now() < until
        {
            self.load();
            std::thread::sleep(LOOK);
        }
        self.save();
    }

    /// Has what has changed written.
    pub(super) fn save(&mut self) {
        let durable = self.store.durable();
        if !self.loaded {
            return;
        }
        if durable.stand() != Stand::Open {
            // What was on its way may not have arrived.
            self.saved = None;
            return;
        }
        let (edits, moved) = self.accounts.changes();
        let mark = Mark { edits, moved, epoch: durable.epoch() };
        if self.saved == Some(mark) {
            return;
        }
        let whole =
            self.saved.is_none_or(|saved| (saved.moved, saved.epoch) != (moved, mark.epoch));
        let books = self.accounts.books();
        let asked = durable.submit("usage", move |tx| kept::save(tx, &books, whole));
        // A refusal is counted where it is made; the next time everything is written.
        self.saved = asked.is_ok().then_some(mark);
    }
}

pub(super) fn row((place, sums): &(Arc<Place>, Sums)) -> kept::Row {
    let (asked, answered) = match &place.what {
        What::Others => (None, None),
        What::Model { asked, answered } => (Some(asked.to_string()), answered.as_ref()),
    };
    kept::Row {
        day: place.day,
        who: who(&place.who),
        asked,
        answered: answered.map(|(upstream, model)| (upstream.to_string(), model.to_string())),
        sums: counts(sums),
    }
}

pub(super) fn place(row: kept::Row) -> (Place, Sums) {
    let what = match row.asked {
        None => What::Others,
        Some(asked) => What::Model {
            asked: asked.into(),
            answered: row.answered.map(|(upstream, model)| (upstream.into(), model.into())),
        },
    };
    (Place { day: row.day, who: whose(row.who), what }, sums(&row.sums))
}

pub(super) fn session(row: &SessionRow) -> kept::Session {
    let what = match (&row.name, row.others) {
        (Some(name), _) => kept::What::Session(name.to_string()),
        (None, false) => kept::What::Without,
        (None, true) => kept::What::Forgotten,
    };
    kept::Session { who: who(&row.who), what, last: row.last, sums: counts(&row.sums) }
}

pub(super) fn session_row(session: kept::Session) -> SessionRow {
    let (name, others) = match session.what {
        kept::What::Session(name) => (Some(name.into()), false),
        kept::What::Without => (None, false),
        kept::What::Forgotten => (None, true),
    };
    let (who, last) = (whose(session.who), session.last);
    SessionRow { who, name, others, last, sums: sums(&session.sums) }
}

fn who(who: &Who) -> kept::Who {
    match who {
        Who::Key(name) => kept::Who::Key(name.to_string()),
        Who::Nobody => kept::Who::Nobody,
        Who::Others => kept::Who::Others,
    }
}

fn whose(who: kept::Who) -> Who {
    match who {
        kept::Who::Key(name) => Who::Key(name.into()),
        kept::Who::Nobody => Who::Nobody,
        kept::Who::Others => Who::Others,
    }
}

/// Their order in the file; new ones come last.
fn counts(sums: &Sums) -> kept::Sums {
    let counts = [
        sums.requests,
        sums.failed,
        sums.cut,
        sums.cancelled,
        sums.replayed,
        sums.estimated,
        sums.input,
        sums.output,
        sums.cached,
        sums.priced,
        sums.unpriced,
    ];
    kept::Sums { counts, cost: sums.cost }
}

fn sums(kept: &kept::Sums) -> Sums {
    let [
        requests,
        failed,
        cut,
        cancelled,
        replayed,
        estimated,
        input,
        output,
        cached,
        priced,
        unpriced,
    ] = kept.counts;
    Sums {
        requests,
        failed,
        cut,
        cancelled,
        replayed,
        estimated,
        input,
        output,
        cached,
        priced,
        unpriced,
        cost: kept.cost,
    }
}
