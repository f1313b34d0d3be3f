//! What the cache counts.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::base::metrics::{Counter, Gauge, Limit, Registry, Unit};

use super::store::{Left, Store};
use super::{Limits, NAMESPACES, Namespace, Stats};

const LOOKS: (&str, &str) = (
    "tidegate_cache_requests_total",
    "Requests that the cache could serve, by namespace and result: hit, miss (asked the upstream), \
     stale (an old answer, also after a miss that failed), coalesced (with another one's answer).",
);
const CHANGES: (&str, &str) = (
    "tidegate_cache_entries_total",
    "Entries of the cache that came and went, by namespace and what happened: inserted, evicted, \
     expired.",
);

/// The counters of one namespace, looked up once.
pub(super) struct Counts {
    pub hit: Arc<Counter>,
    pub miss: Arc<Counter>,
    pub stale: Arc<Counter>,
    pub coalesced: Arc<Counter>,
    pub inserted: Arc<Counter>,
    pub cleared: Arc<Counter>,
    evicted: Arc<Counter>,
    expired: Arc<Counter>,
    bytes: Arc<Gauge>,
}

/// All of them.
pub(super) struct Counters {
    spaces: [Counts; NAMESPACES],
    entries: Arc<Limit>,
    bytes: Arc<Limit>,
    /// On each answer.
    entry: Arc<Limit>,
    pub waiting: Arc<Limit>,
    pub flights: Arc<Limit>,
}

impl Counters {
    pub fn new(limits: Limits, flights_max: u64, registry: &Registry) -> Self {
        let space = |namespace: Namespace| {
            let name = namespace.as_str();
            let look = |result| {
                let labels = [("namespace", name), ("result", result)];
                registry.counter(LOOKS.0, LOOKS.1, &labels)
            };
            let change = |change| {
                let labels = [("namespace", name), ("change", change)];
                registry.counter(CHANGES.0, CHANGES.1, &labels)
            };
            let own = [("namespace", name)];
            Counts {
                hit: look("hit"),
                miss: look("miss"),
                stale: look("stale"),
                coalesced: look("coalesced"),
                inserted: change("inserted"),
                evicted: change("evicted"),
                expired: change("expired"),
                cleared: registry.counter(
                    "tidegate_cache_cleared_total",
                    "How often a namespace of the cache was cleared.",
                    &own,
                ),
                bytes: registry.gauge(
                    "tidegate_cache_bytes",
                    "Bytes of the cache, by namespace.",
                    &own,
                ),
            }
        };
        let evicts = "the least recently used entry is dropped";
        let alone = "the request is asked for without the cache";
        Counters {
            spaces: Namespace::ALL.map(space),
            entries: registry.limit("cache.entries_max", "", limits.bounds.entries, evicts),
            bytes: registry.limit_of(
                Unit::Bytes,
                "cache.bytes_max",
                "",
                limits.bounds.bytes,
                evicts,
            ),
            entry: registry.limit_each(
                Unit::Bytes,
                "cache.entry_max",
                "",
                limits.bounds.entry,
                "the answer is not kept",
            ),
            waiting: registry.limit("cache.waiting_max", "", limits.waiting, alone),
            flights: registry.limit("cache.flights_max", "", flights_max, alone),
        }
    }

    pub fn of(&self, namespace: Namespace) -> &Counts {
        &self.spaces[namespace.index()]
    }

    /// An answer of so many bytes was kept, or was too large for it.
    pub fn offered(&self, size: u64, stored: bool) {
        if stored {
            self.entry.saw(size);
        } else {
            self.entry.refuse();
        }
    }

    pub fn set_limits(&self, limits: Limits) {
        self.entries.set_max(limits.bounds.entries);
        self.bytes.set_max(limits.bounds.bytes);
        self.entry.set_max(limits.bounds.entry);
        self.waiting.set_max(limits.waiting);
    }

    /// Keeps the gauges in step with the store, and counts what left it. Called under its lock, so
    /// that two threads cannot tell their figures in the wrong order.
    pub fn measure<V: Clone>(&self, store: &Store<V>, left: &Left<V>) {
        let (entries, bytes) = store.totals();
        self.entries.set_now(entries);
        self.bytes.set_now(bytes);
        for namespace in Namespace::ALL {
            let counts = self.of(namespace);
            let index = namespace.index();
            counts.bytes.set(store.size(namespace).1);
            if left.evicted[index] > 0 {
                counts.evicted.add(left.evicted[index]);
            }
            if left.expired[index] > 0 {
                counts.expired.add(left.expired[index]);
            }
        }
    }

    /// Keeps the gauge of flights in step.
    pub fn flights<K: Eq + Hash, J>(&self, flights: &[HashMap<K, J>; NAMESPACES]) {
        self.flights.set_now(flights.iter().map(|flights| flights.len() as u64).sum());
    }

    /// Entries and bytes as the gauges tell them.
    #[cfg(test)]
    pub fn gauges(&self) -> (u64, u64) {
        (self.entries.now(), self.bytes.now())
    }

    /// Fills in what is counted here.
    pub fn stats(&self, namespace: Namespace, stats: Stats) -> Stats {
        let counts = self.of(namespace);
        Stats {
            hits: counts.hit.value(),
            misses: counts.miss.value(),
            stale: counts.stale.value(),
            coalesced: counts.coalesced.value(),
            inserted: counts.inserted.value(),
            evicted: counts.evicted.value(),
            expired: counts.expired.value(),
            cleared: counts.cleared.value(),
            ..stats
        }
    }
}
