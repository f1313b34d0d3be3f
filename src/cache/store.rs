//! What the cache holds: values by namespace and digest, bounded by number and by bytes, the least
//! recently used leaves first. Pure: times come in, and what leaves is handed out, so that it is
//! dropped after the lock.

use std::time::{Duration, Instant};

use lru::LruCache;

use super::{Digest, NAMESPACES, Namespace};

/// What an entry costs beside its value: key, times, links and its places in two tables. Counted
/// as a flat rate, so that many tiny entries are no way around `cache.bytes_max`.
pub(super) const ENTRY_BYTES: u64 = 256;

/// After a failed refresh an old value is served for this long before the upstream is asked again:
/// one request in five seconds pays for an upstream that is away, not each.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long a value is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Served as it is.
    pub ttl: Duration,
    /// Beyond that: served while it is asked for again, and when that fails.
    pub stale_for: Duration,
}

/// The bounds of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most entries.
    pub entries: u64,
    /// Most bytes, over all entries, with [`ENTRY_BYTES`] for each.
    pub bytes: u64,
    /// Largest value, in bytes.
    pub entry: u64,
}

struct Entry<V> {
    value: V,
    /// With [`ENTRY_BYTES`].
    bytes: u64,
    /// When it was last used, in uses of the whole store.
    used: u64,
    fresh_until: Instant,
    stale_until: Instant,
    /// Not before this is a stale value asked for again.
    retry_at: Instant,
}

/// One namespace.
struct Space<V> {
    version: u64,
    entries: LruCache<Digest, Entry<V>>,
    bytes: u64,
}

/// What is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<V> {
    /// A good value.
    Fresh(V),
    /// An old one that may be served; `retry`: it is time to ask again.
    Stale { value: V, retry: bool },
    /// Nothing.
    Nothing,
}

/// What became of a value that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Stored,
    /// Larger than one value may be.
    TooLarge,
    /// Its namespace was cleared since it was asked for.
    Outdated,
}

/// Values that left, and why: for the counters, and to be dropped outside the lock.
#[derive(Debug)]
pub(super) struct Left<V> {
    pub values: Vec<V>,
    pub evicted: [u64; NAMESPACES],
    pub expired: [u64; NAMESPACES],
}

impl<V> Default for Left<V> {
    fn default() -> Self {
        Left { values: Vec::new(), evicted: [0; NAMESPACES], expired: [0; NAMESPACES] }
    }
}

/// See the module.
pub(super) struct Store<V> {
    spaces: [Space<V>; NAMESPACES],
    bounds: Bounds,
    uses: u64,
    entries: u64,
    bytes: u64,
}

impl<V: Clone> Store<V> {
    pub fn new(bounds: Bounds) -> Self {
        // Bounded by `bounds`, over all namespaces together.
        let space = || Space { version: 0, entries: LruCache::unbounded(), bytes: 0 };
        let spaces = std::array::from_fn(|_| space());
        Store { spaces, bounds, uses: 0, entries: 0, bytes: 0 }
    }

    /// Entries and bytes of everything.
    pub fn totals(&self) -> (u64, u64) {
        (self.entries, self.bytes)
    }

    /// Entries and bytes of one namespace.
    pub fn size(&self, namespace: Namespace) -> (u64, u64) {
        let space = &self.spaces[namespace.index()];
        (space.entries.len() as u64, space.bytes)
    }

    /// Which generation of a namespace this is; clearing begins the next.
    pub fn version(&self, namespace: Namespace) -> u64 {
        self.spaces[namespace.index()].version
    }

    /// Looks a value up, and counts that as its use.
    pub fn get(
        &mut self,
        namespace: Namespace,
        digest: &Digest,
        now: Instant,
        left: &mut Left<V>,
    ) -> Found<V> {
        let space = &mut self.spaces[namespace.index()];
        let Some(entry) = space.entries.get_mut(digest) else { return Found::Nothing };
        if now >= entry.stale_until {
            if let Some(entry) = space.entries.pop(digest) {
                self.gone(namespace, entry, left);
                left.expired[namespace.index()] += 1;
            }
            return Found::Nothing;
        }
        self.uses += 1;
        entry.used = self.uses;
        let value = entry.value.clone();
        if now < entry.fresh_until {
            Found::Fresh(value)
        } else {
            Found::Stale { value, retry: now >= entry.retry_at }
        }
    }

    /// Keeps a value that was asked for in this version of its namespace, in place of the one there
    /// was. What has no room any more leaves.
    #[expect(clippy::too_many_arguments, reason = "a value and all that is known of it")]
    pub fn insert(
        &mut self,
        namespace: Namespace,
        digest: Digest,
        value: V,
        size: u64,
        version: u64,
        lifetime: Lifetime,
        now: Instant,
        left: &mut Left<V>,
    ) -> Kept {
        if version != self.version(namespace) {
            left.values.push(value);
            return Kept::Outdated;
        }
        let bytes = size.saturating_add(ENTRY_BYTES);
        if size > self.bounds.entry || bytes > self.bounds.bytes || self.bounds.entries == 0 {
            left.values.push(value);
            return Kept::TooLarge;
        }
        self.uses += 1;
        // Instants of a far future cannot be added up on every system.
        let after = |from: Instant, span: Duration| from.checked_add(span).unwrap_or(from);
        let fresh_until = after(now, lifetime.ttl);
        let entry = Entry {
            value,
            bytes,
            used: self.uses,
            fresh_until,
            stale_until: after(fresh_until, lifetime.stale_for),
            retry_at: fresh_until,
        };
        let space = &mut self.spaces[namespace.index()];
        space.bytes += bytes;
        self.bytes += bytes;
        self.entries += 1;
        if let Some(before) = space.entries.put(digest, entry) {
            self.gone(namespace, before, left);
        }
        let bounds = self.bounds;
        self.evict_over(bounds.entries, bounds.bytes, left);
        Kept::Stored
    }

    /// A stale value could not be asked for again: it is served for a while before the next try.
    pub fn hold_off(&mut self, namespace: Namespace, digest: &Digest, now: Instant) {
        if let Some(entry) = self.spaces[namespace.index()].entries.peek_mut(digest) {
            entry.retry_at = now.checked_add(RETRY_AFTER).unwrap_or(now);
        }
    }

    /// Takes other bounds; what has no room under them leaves.
    pub fn set_bounds(&mut self, bounds: Bounds, left: &mut Left<V>) {
        self.bounds = bounds;
        self.evict_over(bounds.entries, bounds.bytes, left);
    }

    /// Makes the least recently used leave until this many bytes are held at most.
    pub fn shrink_to(&mut self, bytes: u64, left: &mut Left<V>) {
        self.evict_over(u64::MAX, bytes, left);
    }

    /// Makes leave what nobody would be served any more, as long as that is what was used longest
    /// ago, at most `entries_max` of it.
    pub fn sweep(&mut self, now: Instant, entries_max: usize, left: &mut Left<V>) {
        for namespace in Namespace::ALL {
            for _ in 0..entries_max {
                let space = &mut self.spaces[namespace.index()];
                let dead = space.entries.peek_lru().is_some_and(|(_, e)| now >= e.stale_until);
                if !dead {
                    break;
                }
                if let Some((_, entry)) = space.entries.pop_lru() {
                    self.gone(namespace, entry, left);
                    left.expired[namespace.index()] += 1;
                }
            }
        }
    }

    /// Begins the next version of a namespace. Gives what it held, to be dropped after the lock.
    pub fn clear(&mut self, namespace: Namespace) -> (u64, impl Send + use<V>)
    where
        V: Send,
    {
        let space = &mut self.spaces[namespace.index()];
        space.version += 1;
        let held = std::mem::replace(&mut space.entries, LruCache::unbounded());
        let count = held.len() as u64;
        self.bytes -= std::mem::take(&mut space.bytes);
        self.entries -= count;
        (count, held)
    }

    fn evict_over(&mut self, entries: u64, bytes: u64, left: &mut Left<V>) {
        while self.entries > entries || self.bytes > bytes {
            // The oldest of each namespace is at its end: the oldest of all is among them.
            let oldest = Namespace::ALL
                .into_iter()
                .filter_map(|namespace| {
                    let (_, entry) = self.spaces[namespace.index()].entries.peek_lru()?;
                    Some((entry.used, namespace))
                })
                .min_by_key(|(used, _)| *used);
            let Some((_, namespace)) = oldest else { return };
            if let Some((_, entry)) = self.spaces[namespace.index()].entries.pop_lru() {
                self.gone(namespace, entry, left);
                left.evicted[namespace.index()] += 1;
            }
        }
    }

    fn gone(&mut self, namespace: Namespace, entry: Entry<V>, left: &mut Left<V>) {
        self.spaces[namespace.index()].bytes -= entry.bytes;
        self.bytes -= entry.bytes;
        self.entries -= 1;
        left.values.push(entry.value);
    }

    /// What the entries themselves say: for tests of the accounting.
    #[cfg(test)]
    pub fn counted(&self) -> (u64, u64) {
        let all = || self.spaces.iter().flat_map(|space| space.entries.iter());
        (all().count() as u64, all().map(|(_, entry)| entry.bytes).sum())
    }
}

#[cfg(test)]
mod tests;
