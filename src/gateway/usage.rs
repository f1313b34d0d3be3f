//! The accounts: what requests came to, by model, key, session and day, and the answers to those
//! who ask about it. They are summed in memory; with a store they are there again after a restart.

mod keep;
mod question;
mod report;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::base::clock;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Limit, Registry};
use crate::config::settings::Usage as Settings;
use crate::llm::usage::{Book, Bounds, Entry, KEYS_MAX, Place, SessionRow, Sizes, Sums};
use crate::net::http::{Headers, Response};
use crate::store::usage::Books;

pub use keep::Keeper;
pub use question::{By, Question};

/// Answers that are kept to be given again. Past it: the oldest makes room.
const REPORTS_MAX: usize = 16;

/// Largest answer that is kept, in bytes. A larger one is made anew each time. Together they are at
/// most 4 MiB.
const REPORT_BYTES_MAX: usize = 256 * 1024;

/// How often rows may move while they are read, before they are read all at once.
const READS_MAX: usize = 3;

/// The accounts.
#[derive(Debug)]
pub struct Accounts {
    settings: ArcSwap<Settings>,
    book: Locked<Book>,
    /// Held while an answer is made, so that one makes it and the others find it. Those who finish
    /// a request never wait for this one.
    reports: Locked<Vec<Report>>,
    limits: Limits,
    sessions_ignored: Arc<Counter>,
    /// Since when there are sums, in seconds since 1970.
    started: AtomicU64,
    /// They are kept over a restart.
    kept: AtomicBool,
}

/// An answer that can be given again.
#[derive(Debug)]
struct Report {
    question: Question,
    body: Vec<u8>,
    made: Instant,
}

#[derive(Debug)]
struct Limits {
    rows: Arc<Limit>,
    days: Arc<Limit>,
    sessions: Arc<Limit>,
    keys: Arc<Limit>,
    reports: Arc<Limit>,
}

impl Limits {
    fn new(settings: &Settings, registry: &Registry) -> Limits {
        let limit =
            |name, max: usize, consequence| registry.limit(name, "", max as u64, consequence);
        Limits {
            rows: limit(
                "usage.rows_max",
                settings.rows_max,
                "further models become part of their key's and day's others",
            ),
            days: limit(
                "usage.days_max",
                settings.days_max,
                "the oldest becomes part of what was before",
            ),
            sessions: limit(
                "usage.sessions_max",
                settings.sessions_max,
                "the one that was silent for longest becomes part of its key's others",
            ),
            keys: limit("usage.keys_max", KEYS_MAX, "further keys are told together"),
            reports: limit("usage.reports_max", REPORTS_MAX, "the oldest answer makes room"),
        }
    }

    /// Shows what there is, when something about it has changed.
    fn show(&self, before: &Sizes, after: &Sizes) {
        if before == after {
            return;
        }
        self.rows.set_now(after.rows as u64);
        self.days.set_now(after.days as u64);
        self.sessions.set_now(after.sessions as u64);
        self.keys.set_now(after.keys as u64);
        for _ in before.merged..after.merged {
            self.rows.refuse();
        }
        for _ in before.forgotten..after.forgotten {
            self.sessions.refuse();
        }
    }
}

fn bounds(settings: &Settings) -> Bounds {
    Bounds { rows: settings.rows_max, days: settings.days_max, sessions: settings.sessions_max }
}

impl Accounts {
    /// Empty ones.
    pub fn new(settings: &Settings, registry: &Registry) -> Arc<Self> {
        Arc::new(Accounts {
            settings: ArcSwap::from_pointee(settings.clone()),
            book: Locked::new(Rank::Leaf, Book::new(bounds(settings))),
            reports: Locked::new(Rank::Guard, Vec::new()),
            limits: Limits::new(settings, registry),
            sessions_ignored: registry.counter(
                "tidegate_usage_sessions_ignored_total",
                "Requests whose session has no proper name; they count as without one.",
                &[],
            ),
            started: AtomicU64::new(clock::unix().as_secs()),
            kept: AtomicBool::new(false),
        })
    }

    /// Takes over new bounds; what was entered stays.
    pub fn reconfigure(&self, settings: &Settings) {
        self.settings.store(Arc::new(settings.clone()));
        let limits = &self.limits;
        limits.rows.set_max(settings.rows_max as u64);
        limits.days.set_max(settings.days_max as u64);
        limits.sessions.set_max(settings.sessions_max as u64);
        let (before, after) = self.book.with(|book| {
            let before = book.sizes();
            book.resize(bounds(settings));
            (before, book.sizes())
        });
        limits.show(&before, &after);
        let old = self.reports.with(std::mem::take);
        limits.reports.set_now(0);
        drop(old);
    }

    /// The session that a request names.
    pub fn session(&self, headers: &Headers) -> Option<Arc<str>> {
        match session::named(headers) {
            Ok(session) => session.map(Into::into),
            Err(session::Unfit) => {
                self.sessions_ignored.inc();
                None
            }
        }
    }

    /// Enters a request that is over.
    pub fn enter(&self, entry: Entry) {
        let (before, after) = self.book.with(|book| {
            let before = book.sizes();
            book.enter(entry);
            (before, book.sizes())
        });
        self.limits.show(&before, &after);
    }

    /// Adds what an earlier process summed.
    fn restore(&self, books: Books) {
        self.started.fetch_min(books.started, Relaxed);
        let rows = books.rows.into_iter().map(keep::place).collect();
        let sessions = books.sessions.into_iter().map(keep::session_row).collect();
        let (before, after) = self.book.with(|book| {
            let before = book.sizes();
            book.restore(rows, sessions);
            (before, book.sizes())
        });
        self.limits.show(&before, &after);
    }

    /// From now on they are saved.
    fn are_kept(&self) {
        self.kept.store(true, Relaxed);
    }

    /// By what changes are seen: of anything, and of which rows there are.
    fn changes(&self) -> (u64, u64) {
        self.book.with(|book| book.changes())
    }

    /// A copy of everything, to be kept.
    fn books(&self) -> Books {
        let sessions = self.book.with(|book| book.sessions());
        Books {
            started: self.started.load(Relaxed),
            rows: self.rows().iter().map(keep::row).collect(),
            sessions: sessions.iter().map(keep::session).collect(),
        }
    }

    /// The answer to a question.
    pub fn answer(&self, question: &Question) -> Response {
        let settings = self.settings.load_full();
        let body = self.reports.with(|reports| {
            let now = clock::now();
            reports.retain(|report| now.duration_since(report.made) < settings.cache_ttl);
            if let Some(known) = reports.iter().find(|report| report.question == *question) {
                return known.body.clone();
            }
            let body = self.make(question, &settings);
            if settings.cache_ttl > Duration::ZERO && body.len() <= REPORT_BYTES_MAX {
                if reports.len() >= REPORTS_MAX {
                    reports.remove(0);
                    self.limits.reports.refuse();
                }
                let (question, body) = (question.clone(), body.clone());
                reports.push(Report { question, body, made: now });
            }
            self.limits.reports.set_now(reports.len() as u64);
            body
        });
        Response::json(200, body).with("cache-control", "no-store")
    }

    fn make(&self, question: &Question, settings: &Settings) -> Vec<u8> {
        let rows = self.rows();
        let sessions = match question.by {
            By::Session => self.sessions(),
            _ => Vec::new(),
        };
        let facts = report::Facts {
            currency: &settings.currency,
            now: clock::unix().as_secs(),
            started: self.started.load(Relaxed),
            kept: self.kept.load(Relaxed),
            days_max: settings.days_max as u64,
        };
        report::write(question, &facts, &rows, &sessions)
    }

    /// The sums of sessions, and of what has none of its own.
    pub(super) fn sessions(&self) -> Vec<SessionRow> {
        self.book.with(|book| book.sessions())
    }

    /// A copy of all rows, made in pages: nobody who finishes a request waits for more than one.
    pub(super) fn rows(&self) -> Vec<(Arc<Place>, Sums)> {
        for _ in 0..READS_MAX {
            let mut page = self.book.with(|book| book.page(0));
            let (mut rows, generation) = (page.rows, page.generation);
            while let Some(next) = page.next {
                page = self.book.with(|book| book.page(next));
                rows.append(&mut page.rows);
                if page.generation != generation {
                    break;
                }
            }
            if page.generation == generation {
                return rows;
            }
        }
        // Once a day at most do rows move.
        self.book.with(|book| {
            let (mut rows, mut next) = (Vec::new(), Some(0));
            while let Some(from) = next {
                let page = book.page(from);
                rows.extend(page.rows);
                next = page.next;
            }
            rows
        })
    }
}

#[cfg(test)]
mod tests;
