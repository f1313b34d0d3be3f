//! Requests that must not be carried out twice, and answers that are not made twice. A client that lost its connection, or its patience,
//! sends the same idempotency key again: while the first is under way it waits for the same outcome,
//! and for a while after it gets that outcome again. Reports about usage are kept in the same way.
//!
//! A key belongs to an account and a method: nobody hears of what others asked for. Time comes in as
//! an argument. Nothing is called under the lock.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::methods::Reply;
use super::refusal::Refusal;
use crate::base::bounded::{Lru, Map};
use crate::base::clock;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Lease, Limit, Registry, Unit};

/// How long an outcome is given again (the protocol's, `peers.md` 6.2).
pub const TTL: Duration = Duration::from_secs(5 * 60);
/// How long a report is given again (the protocol's, `peers.md` 6.8).
pub const REPORT_TTL: Duration = Duration::from_secs(30);
/// Reports that are kept. Past it: the oldest is made anew when it is asked for.
pub const REPORTS_MAX: usize = 64;
/// Requests with a key that are under way. Past it: refused.
pub const RUNNING_MAX: usize = 1024;
/// Longest key, in bytes. Past it: refused.
pub const KEY_BYTES_MAX: usize = 256;
/// Largest answer that is kept, in bytes. A larger one is only remembered as given.
pub const OUTCOME_BYTES_MAX: usize = 64 * 1024;
/// Bytes of all answers that are kept. Past it: they are only remembered as given.
pub const OUTCOMES_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Those who wait for the outcome of one request. Past it: refused.
pub const WAITERS_MAX: usize = 16;

/// What came of a request: the answer as JSON text, or why not.
pub type Outcome = Result<String, Refusal>;

/// Who waits for an outcome. Dropped when there will be none.
pub type Waiter = Box<dyn FnOnce(&Outcome) + Send>;

/// Whose key it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Id {
    account: Option<Arc<str>>,
    method: &'static str,
    key: Box<str>,
}

/// A request that was carried out.
struct Kept {
    /// `None`: the answer was too large to keep.
    outcome: Option<Arc<Outcome>>,
    until: Instant,
    _bytes: Option<Lease>,
}

struct Tables {
    running: Map<Id, Vec<Waiter>>,
    /// The oldest is the least recently used one: looking does not count as a use.
    kept: Lru<Id, Kept>,
}

/// What is under way and what came of requests, by their keys.
pub struct Idempotency {
    tables: Locked<Tables>,
    bytes: Arc<Limit>,
    ttl: Duration,
}

/// What there is to do about a request.
#[derive(Debug)]
pub enum Begun {
    /// It is the first: carry it out and tell the ticket what came of it.
    First(Ticket),
    /// It was carried out before; this came of it, to be answered again.
    Known(Arc<Outcome>),
    /// It is under way; who waits was taken over and is told.
    Joined,
}

impl Idempotency {
    /// None so far; `kept` bounds the outcomes that are kept (`nodes.idempotency_max`).
    pub fn of_requests(registry: &Registry, kept: Arc<Limit>) -> Arc<Self> {
        let bytes = registry.limit_of(
            Unit::Bytes,
            "nodes.idempotency_bytes",
            "",
            OUTCOMES_BYTES_MAX,
            "a repeated request hears that it was carried out, not what came of it",
        );
        let running = RUNNING_MAX as u64;
        let running =
            registry.limit("nodes.idempotency_running_max", "", running, "refused as UNAVAILABLE");
        Idempotency::new(TTL, running, kept, bytes)
    }

    /// No reports so far.
    pub fn of_reports(registry: &Registry) -> Arc<Self> {
        let (name, max) = ("nodes.reports_max", REPORTS_MAX as u64);
        let kept = registry.limit(name, "", max, "the oldest is made anew when it is asked for");
        let anew = "the report is made anew each time";
        let (name, max) = ("nodes.reports_bytes", OUTCOMES_BYTES_MAX);
        let bytes = registry.limit_of(Unit::Bytes, name, "", max, anew);
        let (name, max) = ("nodes.reports_running_max", REPORTS_MAX as u64);
        let running = registry.limit(name, "", max, "refused as UNAVAILABLE");
        Idempotency::new(REPORT_TTL, running, kept, bytes)
    }

    fn new(ttl: Duration, running: Arc<Limit>, kept: Arc<Limit>, bytes: Arc<Limit>) -> Arc<Self> {
        let tables = Tables { running: Map::new(running), kept: Lru::new(kept) };
        Arc::new(Idempotency { tables: Locked::new(Rank::Leaf, tables), bytes, ttl })
    }

    /// Begins a request. `wait` makes who waits when the same is under way; it is not called
    /// otherwise.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for no proper key or one whose answer was not kept, `UNAVAILABLE` when
    /// there is too much under way.
    pub fn begin(
        self: &Arc<Self>,
        account: Option<&Arc<str>>,
        method: &'static str,
        key: &str,
        now: Instant,
        wait: impl FnOnce() -> Waiter,
    ) -> Result<Begun, Refusal> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let text = format!("idempotencyKey must have 1 to {KEY_BYTES_MAX} bytes");
            return Err(Refusal::invalid(text));
        }
        self.forget(now);
        let id = Id { account: account.cloned(), method, key: key.into() };
        // What is under way is joined in a second step, so that nothing of the caller's runs under
        // the lock; it may have ended by then.
        let mut waiter = None;
        match self.tables.with(|tables| look(tables, &id, &mut waiter)) {
            Look::Running => waiter = Some(wait()),
            found => return self.told(found, id),
        }
        let found = self.tables.with(|tables| look(tables, &id, &mut waiter));
        let told = self.told(found, id);
        // Who waits is told what would have been the answer, and only once.
        let Some(waiter) = waiter else { return told };
        match told {
            Ok(Begun::Known(outcome)) => waiter(&outcome),
            Err(refusal) => waiter(&Err(refusal)),
            // The first was given up.
            Ok(Begun::First(ticket)) => drop((ticket, waiter)),
            Ok(Begun::Joined) => {}
        }
        Ok(Begun::Joined)
    }

    fn told(self: &Arc<Self>, found: Look, id: Id) -> Result<Begun, Refusal> {
        match found {
            Look::Known(outcome) => outcome.map(Begun::Known).ok_or_else(given),
            Look::Joined => Ok(Begun::Joined),
            Look::Running | Look::Crowded => Err(busy("too many wait for the same request")),
            Look::Full => Err(busy("too many requests are under way")),
            Look::First => Ok(Begun::First(Ticket { all: Arc::clone(self), id: Some(id) })),
        }
    }

    /// The same, where whoever joins gets the outcome as an answer.
    ///
    /// # Errors
    /// As [`Idempotency::begin`].
    pub fn begin_or_reply(
        self: &Arc<Self>,
        account: Option<&Arc<str>>,
        method: &'static str,
        key: &str,
        later: impl FnOnce() -> Reply,
    ) -> Result<Begun, Refusal> {
        self.begin(account, method, key, clock::now(), || {
            let reply = later();
            Box::new(move |outcome: &Outcome| reply.send(outcome))
        })
    }

    /// Forgets outcomes whose time is over, and those that are too many since a reload. Called at each beginning; the room's thread may call it
    /// so that nothing stays while nobody asks.
    pub fn forget(&self, now: Instant) {
        loop {
            let gone = self.tables.with(|tables| {
                let over = tables.kept.oldest().is_some_and(|(_, kept)| kept.until <= now);
                if over { tables.kept.pop_lru() } else { tables.kept.pop_excess() }
            });
            if gone.is_none() {
                return;
            }
        }
    }

    fn end(&self, id: Id, outcome: Option<Outcome>, now: Instant) {
        // What may be tried again is not kept: the next try is a new one.
        let outcome = outcome.map(Arc::new);
        let lasting = outcome.as_ref().filter(|outcome| match &***outcome {
            Ok(_) => true,
            Err(refusal) => refusal.retry_after.is_none(),
        });
        let kept = lasting.map(|outcome| self.keep(outcome, now));
        // A report may be made again, a request must not be carried out again.
        let kept = kept.filter(|kept| kept.outcome.is_some() || self.ttl == TTL);
        let (waiters, gone) = self.tables.with(|tables| {
            let waiters = tables.running.remove(&id);
            (waiters, kept.and_then(|kept| tables.kept.put(id, kept)))
        });
        drop(gone);
        if let Some(outcome) = outcome {
            for waiter in waiters.into_iter().flatten() {
                waiter(&outcome);
            }
        }
    }

    fn keep(&self, outcome: &Arc<Outcome>, now: Instant) -> Kept {
        let size = match &**outcome {
            Ok(text) => text.len(),
            Err(refusal) => refusal.shape().to_string().len(),
        };
        let lease = if size <= OUTCOME_BYTES_MAX { self.bytes.try_take(size as u64) } else { None };
        let outcome = lease.is_some().then(|| Arc::clone(outcome));
        Kept { outcome, until: now + self.ttl, _bytes: lease }
    }
}

/// What is known of a key.
enum Look {
    Known(Option<Arc<Outcome>>),
    Running,
    Joined,
    Crowded,
    Full,
    First,
}

fn look(tables: &mut Tables, id: &Id, waiter: &mut Option<Waiter>) -> Look {
    if let Some(kept) = tables.kept.peek(id) {
        return Look::Known(kept.outcome.clone());
    }
    if let Some(waiters) = tables.running.get_mut(id) {
        if waiters.len() >= WAITERS_MAX {
            return Look::Crowded;
        }
        return match waiter.take() {
            Some(waiter) => {
                waiters.push(waiter);
                Look::Joined
            }
            None => Look::Running,
        };
    }
    match tables.running.insert(id.clone(), Vec::new()) {
        Ok(_) => Look::First,
        Err(_) => Look::Full,
    }
}

fn busy(text: &'static str) -> Refusal {
    Refusal::unavailable(text).retry(Duration::from_secs(1))
}

fn given() -> Refusal {
    Refusal::invalid("this request was carried out before; its answer was too large to keep")
        .with(json!({"reason": "answer_not_kept"}))
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Idempotency")
    }
}

/// The duty to say what came of a request. Dropped, there is no outcome: those who wait are told so,
/// and the key counts as new.
pub struct Ticket {
    all: Arc<Idempotency>,
    id: Option<Id>,
}

impl Ticket {
    /// This came of it: it is kept, and told to those who wait. A refusal that may be tried again is
    /// told and not kept.
    pub fn end(mut self, outcome: &Outcome) {
        if let Some(id) = self.id.take() {
            self.all.end(id, Some(outcome.clone()), clock::now());
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).finish()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.all.end(id, None, clock::now());
        }
    }
}

#[cfg(test)]
mod tests;
