//! What is known, what is being asked, and what to ask next. Pure: time and answers in, values and
//! jobs out; the threads stand in `catalog.rs`.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use lru::LruCache;

use super::fetch::Source;
use super::question::{Fault, Key, Known, Outcome, What};
use super::slot::{Slot, pause};

/// Descriptions kept. Past it: the least recently used one is asked for again.
pub const SHOWS_MAX: usize = 256;
/// Most bytes of the descriptions kept. Past it: the least recently used ones are asked for again.
/// One has 20 to 100 KiB, most of it licence and tensors.
pub const SHOW_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest description kept. A larger one (verbose, with its vocabulary) is handed to who asked.
pub const SHOW_KEPT_BYTES_MAX: usize = 1024 * 1024;
/// Questions asked or waiting to be asked. Past it: no new ones, and callers get what is known.
pub const FLIGHTS_MAX: usize = 64;
/// Questions to one upstream at once, so that one that hangs leaves threads for the others.
pub const PER_UPSTREAM_MAX: usize = 2;
/// Threads that ask.
pub const THREADS_MAX: usize = 4;
/// Questions at once to upstreams that were away last time: one thread is left for the others.
pub const DOUBTFUL_MAX: usize = THREADS_MAX - 1;
/// What a look found.
#[derive(Debug, Default)]
pub struct Found {
    /// The answer, fresh or old.
    pub known: Option<Known>,
    /// Whether it is fresh.
    pub fresh: bool,
    /// Why the last question got no answer.
    pub fault: Option<Fault>,
    /// When the question was asked that is on its way.
    pub asked: Option<Instant>,
    /// Whether this look asked it.
    pub started: bool,
    /// Whether it could not be asked because there are too many.
    pub refused: bool,
}

/// A question for a thread.
pub struct Job {
    pub(super) key: Key,
    pub(super) source: Arc<Source>,
    generation: u64,
}

/// What changed with an answer.
#[derive(Debug, Default)]
pub struct Landed {
    /// Who waited for it.
    pub waiters: Vec<(Sender<Outcome>, Outcome)>,
    /// The upstream answers again (true), or is away since now (false).
    pub turned: Option<bool>,
    /// It is the first failure of this question in a row.
    pub first_failure: bool,
    /// More questions wait for a thread.
    pub more: bool,
}

#[derive(Debug)]
struct Upstream {
    name: Arc<str>,
    source: Arc<Source>,
    generation: u64,
    list: Slot,
    ps: Slot,
    /// Questions on their way.
    running: usize,
    /// Questions in a row to which it was away.
    failures: u32,
    pause_until: Option<Instant>,
    fault: Option<Fault>,
}

#[derive(Debug)]
struct Flight {
    key: Key,
    generation: u64,
    asked: Instant,
    running: bool,
    waiters: Vec<Sender<Outcome>>,
}

/// Everything behind the lock.
#[derive(Debug)]
pub struct State {
    upstreams: Vec<Upstream>,
    shows: LruCache<Key, Slot>,
    show_bytes: usize,
    flights: Vec<Flight>,
    generation: u64,
    /// No more questions.
    pub(super) closed: bool,
    /// Threads started.
    pub(super) threads: usize,
}

impl Default for State {
    fn default() -> Self {
        State {
            upstreams: Vec::new(),
            shows: LruCache::new(NonZeroUsize::new(SHOWS_MAX).unwrap_or(NonZeroUsize::MIN)),
            show_bytes: 0,
            flights: Vec::new(),
            generation: 0,
            closed: false,
            threads: 0,
        }
    }
}

impl State {
    /// Looks, and asks when it is due.
    pub fn look(&mut self, key: &Key, now: Instant) -> Found {
        let mut found = self.peek(key, now);
        let due = !found.fresh && found.asked.is_none() && !self.closed;
        if !due || self.pause(key).is_some_and(|until| now < until) {
            return found;
        }
        let Some(upstream) = self.upstreams.iter().find(|u| u.name == key.upstream) else {
            return found;
        };
        if self.flights.len() >= FLIGHTS_MAX {
            found.refused = true;
            return found;
        }
        self.flights.push(Flight {
            key: key.clone(),
            generation: upstream.generation,
            asked: now,
            running: false,
            waiters: Vec::new(),
        });
        found.asked = Some(now);
        found.started = true;
        found
    }

    /// Looks, and asks nothing.
    pub fn peek(&mut self, key: &Key, now: Instant) -> Found {
        let asked = self.flights.iter().find(|flight| flight.key == *key).map(|f| f.asked);
        let away = self.upstreams.iter().find(|u| u.name == key.upstream);
        let away = away.and_then(|upstream| upstream.fault.clone());
        let Some(slot) = self.slot(key) else {
            return Found { asked, fault: away, ..Found::default() };
        };
        let fault = slot.fault.clone().or(away);
        let age = |at: Instant| now.saturating_duration_since(at);
        let known = slot
            .known
            .clone()
            .filter(|(_, at)| key.what.stale_for().is_none_or(|stale_for| age(*at) < stale_for));
        let fresh = known.as_ref().is_some_and(|(_, at)| age(*at) < key.what.fresh_for());
        Found { known: known.map(|(known, _)| known), fresh, fault, asked, ..Found::default() }
    }

    /// Waits for a question that is on its way.
    pub fn wait(&mut self, key: &Key) -> Option<Receiver<Outcome>> {
        let flight = self.flights.iter_mut().find(|flight| flight.key == *key)?;
        let (sender, receiver) = bounded(1);
        flight.waiters.push(sender);
        Some(receiver)
    }

    /// The next question for a thread, if there is one that may be asked now.
    pub fn pick(&mut self) -> Option<Job> {
        if self.closed {
            return None;
        }
        let away = self.upstreams.iter().filter(|upstream| upstream.failures > 0);
        let doubtful: usize = away.map(|upstream| upstream.running).sum();
        let rank = |flight: &Flight| {
            let upstream = self.upstreams.iter().find(|u| u.name == flight.key.upstream)?;
            let free = upstream.running < PER_UPSTREAM_MAX
                && (upstream.failures == 0 || doubtful < DOUBTFUL_MAX);
            (!flight.running && free).then_some(upstream.failures)
        };
        let ranked = self.flights.iter().enumerate();
        // The first of the best, so that none waits for ever.
        let best = ranked
            .filter_map(|(index, flight)| Some((rank(flight)?, index)))
            .min()
            .map(|(_, index)| index)?;
        let flight = &mut self.flights[best];
        flight.running = true;
        let upstream = self.upstreams.iter_mut().find(|u| u.name == flight.key.upstream)?;
        upstream.running += 1;
        let (key, source) = (flight.key.clone(), Arc::clone(&upstream.source));
        Some(Job { key, source, generation: flight.generation })
    }

    /// Takes the end of a question.
    pub fn land(&mut self, job: &Job, outcome: Outcome, now: Instant) -> Landed {
        let mut landed = Landed::default();
        let ours = |flight: &Flight| flight.key == job.key && flight.generation == job.generation;
        if let Some(index) = self.flights.iter().position(ours) {
            let flight = self.flights.swap_remove(index);
            let waiters = flight.waiters.into_iter();
            landed.waiters.extend(waiters.map(|waiter| (waiter, outcome.clone())));
        }
        let same = |u: &&mut Upstream| u.generation == job.generation;
        let Some(upstream) = self.upstreams.iter_mut().find(same) else {
            // It left the configuration, or is another server now.
            landed.more = self.flights.iter().any(|flight| !flight.running);
            return landed;
        };
        upstream.running = upstream.running.saturating_sub(1);
        let away = outcome.as_ref().err().filter(|fault| fault.away());
        let was_away = upstream.failures > 0;
        if let Some(fault) = away {
            upstream.failures = upstream.failures.saturating_add(1);
            upstream.pause_until = Some(now + pause(upstream.failures));
            upstream.fault = Some(fault.clone());
            landed.turned = (!was_away).then_some(false);
            // What else was to be asked of it gets the same answer, instead of a thread each.
            let fault = fault.clone();
            let lost = |f: &mut Flight| !f.running && f.generation == job.generation;
            for flight in self.flights.extract_if(.., |flight| lost(flight)) {
                let waiters = flight.waiters.into_iter();
                landed.waiters.extend(waiters.map(|waiter| (waiter, Err(fault.clone()))));
            }
        } else {
            landed.turned = was_away.then_some(true);
            upstream.failures = 0;
            upstream.pause_until = None;
            upstream.fault = None;
        }
        landed.first_failure = self.keep(&job.key, outcome, now) == 1;
        landed.more = self.flights.iter().any(|flight| !flight.running);
        landed
    }

    /// Gives up on everything that waits for a thread.
    pub fn abandon(&mut self, fault: &Fault) -> Vec<(Sender<Outcome>, Outcome)> {
        let waiting = self.flights.extract_if(.., |flight| !flight.running);
        waiting.flat_map(|f| f.waiters).map(|waiter| (waiter, Err(fault.clone()))).collect()
    }

    /// Takes the upstreams of a new configuration. What is known of a server that stays is kept; a
    /// list is asked for again when anything about it changed. Gives back what is no longer used.
    pub fn reconfigure(&mut self, sources: Vec<Arc<Source>>) -> Vec<Arc<Source>> {
        let mut before = std::mem::take(&mut self.upstreams);
        let mut dropped = Vec::new();
        for source in sources {
            let name: Arc<str> = source.config().name.as_str().into();
            let old = before.iter().position(|u| u.name == name).map(|i| before.swap_remove(i));
            let kept = old.and_then(|mut old| {
                if old.source.same(&source) {
                    return Some(old);
                }
                let stays = old.source.same_server(&source);
                dropped.push(Arc::clone(&old.source));
                if !stays {
                    self.forget(&name);
                    return None;
                }
                // Another key or way: it may show other models.
                old.list.age();
                old.ps = Slot::default();
                self.flights.retain(|flight| flight.key.upstream != name);
                Some(Upstream {
                    generation: self.next_generation(),
                    source: Arc::clone(&source),
                    running: 0,
                    failures: 0,
                    pause_until: None,
                    fault: None,
                    ..old
                })
            });
            let upstream = kept.unwrap_or_else(|| Upstream {
                name,
                source,
                generation: self.next_generation(),
                list: Slot::default(),
                ps: Slot::default(),
                running: 0,
                failures: 0,
                pause_until: None,
                fault: None,
            });
            self.upstreams.push(upstream);
        }
        for gone in before {
            self.forget(&gone.name);
            dropped.push(gone.source);
        }
        dropped
    }

    /// The sources of all upstreams.
    pub fn sources(&self) -> Vec<Arc<Source>> {
        self.upstreams.iter().map(|upstream| Arc::clone(&upstream.source)).collect()
    }

    /// Questions asked or waiting, descriptions kept, and their bytes.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.flights.len(), self.shows.len(), self.show_bytes)
    }

    /// Questions that a thread is asking.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.flights.iter().filter(|flight| flight.running).count()
    }

    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Everything about an upstream that is gone. Who waits is told by the end of its channel.
    fn forget(&mut self, name: &Arc<str>) {
        self.flights.retain(|flight| flight.key.upstream != *name);
        let theirs = self.shows.iter().map(|(key, _)| key).filter(|key| key.upstream == *name);
        let theirs: Vec<Key> = theirs.cloned().collect();
        for key in theirs {
            if let Some(slot) = self.shows.pop(&key) {
                self.show_bytes -= slot.bytes();
            }
        }
    }

    fn slot(&mut self, key: &Key) -> Option<&Slot> {
        if matches!(key.what, What::Show { .. }) {
            return self.shows.get(key);
        }
        let upstream = self.upstreams.iter().find(|u| u.name == key.upstream)?;
        Some(if key.what == What::List { &upstream.list } else { &upstream.ps })
    }

    /// Until when the question is not asked.
    fn pause(&self, key: &Key) -> Option<Instant> {
        let upstream = self.upstreams.iter().find(|u| u.name == key.upstream)?;
        let slot = match key.what {
            What::List => Some(&upstream.list),
            What::Ps => Some(&upstream.ps),
            What::Show { .. } => self.shows.peek(key),
        };
        slot.and_then(|slot| slot.pause_until).max(upstream.pause_until)
    }

    /// Keeps an answer, or remembers a failure. Gives back the failures in a row.
    fn keep(&mut self, key: &Key, outcome: Outcome, now: Instant) -> u32 {
        if !matches!(key.what, What::Show { .. }) {
            let upstream = self.upstreams.iter_mut().find(|u| u.name == key.upstream);
            let slot =
                upstream.map(|u| if key.what == What::List { &mut u.list } else { &mut u.ps });
            return slot.map_or(0, |slot| slot.take(outcome, now));
        }
        let mut slot = self.shows.pop(key).unwrap_or_default();
        self.show_bytes -= slot.bytes();
        let failures = slot.take(outcome, now);
        if slot.bytes() > SHOW_KEPT_BYTES_MAX {
            return failures;
        }
        self.show_bytes += slot.bytes();
        if let Some((_, old)) = self.shows.push(key.clone(), slot) {
            self.show_bytes -= old.bytes();
        }
        while self.show_bytes > SHOW_BYTES_MAX {
            let Some((_, old)) = self.shows.pop_lru() else { break };
            self.show_bytes -= old.bytes();
        }
        failures
    }
}

#[cfg(test)]
mod tests;
