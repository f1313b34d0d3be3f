//! Answers that are kept: namespaces with versions, a time to live and a time beyond it, bounds on
//! entries and bytes in one critical section, and single flight: whoever wants what is just being
//! asked for waits for that answer, as data.
//!
//! What is kept is not looked into here: a `V` is cheap to clone (an `Arc`) and comes with its size.
//! The tables are pure ([`store`], [`flight`]); [`Cache`] puts them behind one lock, counts, and
//! drops what leaves outside of it.

mod counters;
pub mod flight;
pub mod store;
pub mod watch;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Registry;

use self::counters::Counters;
use self::flight::{Flight, Follow, Lead, Member};
use self::store::{Bounds, Found, Kept, Left, Lifetime, Store};

pub use crate::config::settings::Namespace;

/// What names a value within its namespace: a SHA-256.
pub type Digest = [u8; 32];

/// How many namespaces there are.
pub const NAMESPACES: usize = Namespace::ALL.len();

/// Most flights at once. Each has a leader, which is a request that runs or waits and so has its
/// own bound; past it a request goes without the cache.
const FLIGHTS_MAX: u64 = 65_536;

/// Dead entries of each namespace that one sweep takes out.
const SWEPT_MAX: usize = 64;

/// The bounds of a cache, all of them live settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// On what is held.
    pub bounds: Bounds,
    /// Requests that wait for another one's answer (`cache.waiting_max`).
    pub waiting: u64,
}

/// A cache. Clones are the same cache.
#[derive(Clone)]
pub struct Cache<V>(Arc<Inner<V>>);

pub(in crate::cache) struct Inner<V> {
    state: Locked<State<V>>,
    counters: Counters,
}

struct State<V> {
    store: Store<V>,
    flights: [HashMap<Digest, Joined<V>>; NAMESPACES],
}

/// A flight and how many are in it.
struct Joined<V> {
    flight: Arc<Flight<V>>,
    members: usize,
}

/// What a look found, and so what the caller is now.
#[derive(Debug)]
pub enum Look<V> {
    /// A good value.
    Hit(V),
    /// An old one, which somebody else asks for again, or which was asked for in vain just now.
    Stale(V),
    /// Nothing, or an old one that is to be asked for again: by the caller.
    Lead(Lead<V>),
    /// Nothing, and somebody asks: wait for that.
    Follow(Follow<V>),
    /// Nothing, and no room to lead or to wait: go without the cache.
    Alone,
}

/// What a look is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// What is kept will do.
    Kept,
    /// Not what is kept: it is to be asked for again, and then kept.
    Refreshed,
}

/// The figures of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is a column of `tidegate cache` and explained there")]
pub struct Stats {
    pub version: u64,
    pub entries: u64,
    pub bytes: u64,
    pub hits: u64,
    pub misses: u64,
    pub stale: u64,
    pub coalesced: u64,
    pub inserted: u64,
    pub evicted: u64,
    pub expired: u64,
    pub cleared: u64,
}

impl<V: Clone + Send> Cache<V> {
    /// An empty cache.
    pub fn new(limits: Limits, registry: &Registry) -> Self {
        let flights = std::array::from_fn(|_| HashMap::new());
        let state = State { store: Store::new(limits.bounds), flights };
        let counters = Counters::new(limits, FLIGHTS_MAX, registry);
        Cache(Arc::new(Inner { state: Locked::new(Rank::Cache, state), counters }))
    }

    /// Looks a value up. One of those who find nothing leads, the others follow.
    pub fn look(&self, namespace: Namespace, digest: &Digest, want: Want, now: Instant) -> Look<V> {
        let inner = &self.0;
        let mut left = Left::default();
        let look = inner.state.with(|state| {
            let found = match want {
                Want::Kept => state.store.get(namespace, digest, now, &mut left),
                Want::Refreshed => Found::Nothing,
            };
            let look = inner.look(state, namespace, digest, found);
            inner.counters.measure(&state.store, &left);
            look
        });
        match &look {
            Look::Hit(_) => inner.counters.of(namespace).hit.inc(),
            Look::Stale(_) => inner.counters.of(namespace).stale.inc(),
            Look::Lead(_) | Look::Alone => inner.missed(namespace),
            Look::Follow(_) => {}
        }
        look
    }

    /// Begins the next version of a namespace: nothing that is held, and nothing that was asked for
    /// before now, is served again. Gives the number of entries dropped.
    pub fn clear(&self, namespace: Namespace) -> u64 {
        let inner = &self.0;
        let (count, held, flights) = inner.state.with(|state| {
            let (count, held) = state.store.clear(namespace);
            let flights = std::mem::take(&mut state.flights[namespace.index()]);
            inner.counters.flights(&state.flights);
            inner.counters.measure(&state.store, &Left::default());
            (count, held, flights)
        });
        inner.counters.of(namespace).cleared.inc();
        drop((held, flights));
        count
    }

    /// Takes other bounds. What has no room under them is evicted.
    pub fn reconfigure(&self, limits: Limits) {
        self.0.counters.set_limits(limits);
        self.evicting(|store, left| store.set_bounds(limits.bounds, left));
    }

    /// Gives this part of the bytes that are held back, least recently used first: 1.0 is all. For
    /// a machine that is short of memory.
    pub fn trim(&self, fraction: f64) {
        let fraction = if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) };
        self.evicting(|store, left| {
            let (_, bytes) = store.totals();
            #[expect(clippy::cast_precision_loss, reason = "a part of it is meant roughly")]
            #[expect(clippy::cast_possible_truncation, reason = "at most what it was")]
            #[expect(clippy::cast_sign_loss, reason = "not negative")]
            let kept = (bytes as f64 * (1.0 - fraction)) as u64;
            store.shrink_to(kept, left);
        });
    }

    /// Drops what can no longer be served; a few at a time, for a caller that comes every second.
    pub fn sweep(&self, now: Instant) {
        self.evicting(|store, left| store.sweep(now, SWEPT_MAX, left));
    }

    /// The figures of a namespace.
    pub fn stats(&self, namespace: Namespace) -> Stats {
        let (version, (entries, bytes)) = self
            .0
            .state
            .with(|state| (state.store.version(namespace), state.store.size(namespace)));
        self.0.counters.stats(namespace, Stats { version, entries, bytes, ..Stats::default() })
    }

    fn evicting(&self, evict: impl FnOnce(&mut Store<V>, &mut Left<V>)) {
        let mut left = Left::default();
        self.0.state.with(|state| {
            evict(&mut state.store, &mut left);
            self.0.counters.measure(&state.store, &left);
        });
    }
}

impl<V> std::fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

impl<V: Clone> Inner<V> {
    /// Makes of what was found what the caller is.
    fn look(
        self: &Arc<Self>,
        state: &mut State<V>,
        namespace: Namespace,
        digest: &Digest,
        found: Found<V>,
    ) -> Look<V> {
        let stale = match found {
            Found::Fresh(value) => return Look::Hit(value),
            Found::Stale { value, retry: false } => return Look::Stale(value),
            Found::Stale { value, retry: true } => Some(value),
            Found::Nothing => None,
        };
        let member = |flight: &Arc<Flight<V>>| Member {
            cache: Arc::clone(self),
            namespace,
            digest: *digest,
            flight: Arc::clone(flight),
        };
        let version = state.store.version(namespace);
        if let Some(joined) = state.flights[namespace.index()].get_mut(digest) {
            if let Some(value) = stale {
                return Look::Stale(value);
            }
            let Some(place) = self.counters.waiting.try_take(1) else { return Look::Alone };
            joined.members += 1;
            return Look::Follow(Follow::new(member(&joined.flight), place));
        }
        if self.counters.flights.now() >= self.counters.flights.max() {
            self.counters.flights.refuse();
            return stale.map_or(Look::Alone, Look::Stale);
        }
        let (flight, permit) = Flight::begin(version);
        let lead = Lead::new(member(&flight), permit, stale);
        state.flights[namespace.index()].insert(*digest, Joined { flight, members: 1 });
        self.counters.flights(&state.flights);
        Look::Lead(lead)
    }

    #[expect(clippy::too_many_arguments, reason = "a flight, and all that is known of its answer")]
    /// A flight has its answer: it is kept, when it has a lifetime, and nobody joins any more.
    fn land(
        &self,
        namespace: Namespace,
        digest: &Digest,
        flight: &Arc<Flight<V>>,
        value: &V,
        size: u64,
        lifetime: Option<Lifetime>,
        now: Instant,
    ) {
        let mut left = Left::default();
        let kept = self.state.with(|state| {
            self.remove(state, namespace, digest, flight);
            let kept = lifetime.map(|lifetime| {
                let version = flight.version;
                let value = value.clone();
                let store = &mut state.store;
                store.insert(namespace, *digest, value, size, version, lifetime, now, &mut left)
            });
            self.counters.measure(&state.store, &left);
            kept
        });
        if let Some(kept @ (Kept::Stored | Kept::TooLarge)) = kept {
            self.counters.offered(size, kept == Kept::Stored);
        }
        if kept == Some(Kept::Stored) {
            self.counters.of(namespace).inserted.inc();
        }
    }

    /// Nobody joins this flight any more.
    fn forget(&self, namespace: Namespace, digest: &Digest, flight: &Arc<Flight<V>>) {
        self.state.with(|state| self.remove(state, namespace, digest, flight));
    }

    fn hold_off(&self, namespace: Namespace, digest: &Digest, now: Instant) {
        self.state.with(|state| state.store.hold_off(namespace, digest, now));
    }

    fn remove(
        &self,
        state: &mut State<V>,
        namespace: Namespace,
        digest: &Digest,
        flight: &Arc<Flight<V>>,
    ) {
        let flights = &mut state.flights[namespace.index()];
        // After a clear there may be another one of the same name.
        if flights.get(digest).is_some_and(|joined| Arc::ptr_eq(&joined.flight, flight)) {
            flights.remove(digest);
            self.counters.flights(&state.flights);
        }
    }

    fn missed(&self, namespace: Namespace) {
        self.counters.of(namespace).miss.inc();
    }

    fn stood_in(&self, namespace: Namespace) {
        self.counters.of(namespace).stale.inc();
    }

    fn coalesced(&self, namespace: Namespace) {
        self.counters.of(namespace).coalesced.inc();
    }
}

impl<V> Inner<V> {
    /// A member leaves; with the last one goes the flight.
    fn leave(&self, namespace: Namespace, digest: &Digest, flight: &Arc<Flight<V>>) {
        self.state.with(|state| {
            let flights = &mut state.flights[namespace.index()];
            let Some(joined) = flights.get_mut(digest) else { return };
            if !Arc::ptr_eq(&joined.flight, flight) {
                return;
            }
            joined.members -= 1;
            if joined.members == 0 {
                flights.remove(digest);
                self.counters.flights(&state.flights);
            }
        });
    }
}
