//! What is remembered of clients for a while: a map in shards, each bounded, that forgets what says
//! nothing any more, and the longest unused when it is full.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use lru::LruCache;

use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Limit;

/// Shards: so many clients can be looked up at the same time.
const SHARDS: usize = 8;

/// Entries that one insertion, or one sweep of one shard, throws away at most: what holds a lock is
/// bounded.
const FORGET_MAX: usize = 64;

/// A value that one day says nothing any more.
pub trait Fades: Default {
    /// Whether it is as good as a new one.
    fn faded(&self, now: Instant) -> bool;
}

/// A bounded map.
pub struct Table<K, V> {
    shards: Box<[Locked<LruCache<K, V>>]>,
    /// Seeded at random, so that nobody can aim at one shard. The quicker one of `lru` has seeds under
    /// which addresses in a row meet only half of the shards.
    hasher: RandomState,
    entries: AtomicUsize,
    limit: Arc<Limit>,
}

impl<K: Hash + Eq, V: Fades> Table<K, V> {
    /// An empty one. The limit is its bound, which may change, and counts what was forgotten early.
    pub fn new(limit: Arc<Limit>) -> Self {
        // A cache with a capacity would take its memory at once.
        let shard = |_| Locked::new(Rank::Leaf, LruCache::unbounded());
        let shards = (0..SHARDS).map(shard).collect();
        Table { shards, hasher: RandomState::new(), entries: AtomicUsize::new(0), limit }
    }

    /// Runs `f` with the value of a key, a new one where there is none.
    pub fn with<R>(&self, key: K, now: Instant, f: impl FnOnce(&mut V) -> R) -> R {
        let max = usize::try_from(self.limit.max()).unwrap_or(usize::MAX).div_ceil(SHARDS).max(1);
        let (result, changed) = self.shard(&key).with(|shard| {
            let before = shard.len();
            if shard.contains(&key) {
                return (f(shard.get_or_insert_mut(key, V::default)), 0);
            }
            forget(shard, now);
            while shard.len() >= max && shard.pop_lru().is_some() {
                self.limit.refuse();
            }
            let result = f(shard.get_or_insert_mut(key, V::default));
            (result, shard.len().wrapping_sub(before))
        });
        self.count(changed);
        result
    }

    /// Runs `f` with the value of a key, if there is one. This is no use of it.
    pub fn peek<R>(&self, key: &K, f: impl FnOnce(&V) -> R) -> Option<R> {
        self.shard(key).with(|shard| shard.peek(key).map(f))
    }

    /// The same, to change it.
    pub fn peek_mut<R>(&self, key: &K, f: impl FnOnce(&mut V) -> R) -> Option<R> {
        self.shard(key).with(|shard| shard.peek_mut(key).map(f))
    }

    /// Whether there is nothing in it. Costs next to nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.load(Relaxed) == 0
    }

    /// Throws away what has faded. To be called now and then.
    pub fn sweep(&self, now: Instant) {
        for shard in &self.shards {
            let changed = shard.with(|shard| {
                let before = shard.len();
                forget(shard, now);
                shard.len().wrapping_sub(before)
            });
            self.count(changed);
        }
    }

    /// Throws everything away.
    pub fn clear(&self) {
        for shard in &self.shards {
            let old = shard.with(|shard| std::mem::replace(shard, LruCache::unbounded()));
            self.count(0_usize.wrapping_sub(old.len()));
        }
    }

    fn shard(&self, key: &K) -> &Locked<LruCache<K, V>> {
        let hash = self.hasher.hash_one(key);
        #[expect(clippy::cast_possible_truncation, reason = "any bits do")]
        let index = hash as usize % self.shards.len();
        &self.shards[index]
    }

    /// `changed` is a difference of two lengths, which wraps around below zero.
    fn count(&self, changed: usize) {
        if changed != 0 {
            let now = self.entries.fetch_add(changed, Relaxed).wrapping_add(changed);
            self.limit.set_now(now as u64);
        }
    }
}

/// Throws away what has faded, beginning with the longest unused.
fn forget<K: Hash + Eq, V: Fades>(shard: &mut LruCache<K, V>, now: Instant) {
    for _ in 0..FORGET_MAX {
        if shard.peek_lru().is_none_or(|(_, value)| !value.faded(now)) {
            break;
        }
        shard.pop_lru();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::clock;

    #[derive(Default)]
    struct Until(Option<Instant>);

    impl Fades for Until {
        fn faded(&self, now: Instant) -> bool {
            self.0.is_none_or(|until| until <= now)
        }
    }

    #[test]
    fn a_full_table_forgets_the_longest_unused_and_counts_it() {
        let limit = Limit::detached(64);
        let table = Table::new(Arc::clone(&limit));
        let now = clock::now();
        let until = now + Duration::from_secs(9);
        for key in 0..1000_u32 {
            table.with(key, now, |value: &mut Until| value.0 = Some(until));
            assert!(limit.now() <= 64);
        }
        assert_eq!(limit.now(), 64);
        assert_eq!(limit.refused(), 1000 - 64);
        assert_eq!(table.peek(&999, |value| value.0), Some(Some(until)));
        assert!(table.peek(&0, |_| ()).is_none());
        limit.set_max(8);
        table.with(2000, now, |value| value.0 = Some(until));
        assert!(limit.now() < 64, "a smaller bound is kept from the next entry on");
    }

    #[test]
    fn what_has_faded_is_thrown_away_and_is_no_loss() {
        let limit = Limit::detached(1 << 20);
        let table = Table::new(Arc::clone(&limit));
        let now = clock::now();
        for key in 0..100_u32 {
            let until = now + Duration::from_secs(1 + u64::from(key % 2) * 9);
            table.with(key, now, |value: &mut Until| value.0 = Some(until));
        }
        assert!(!table.is_empty());
        table.sweep(now + Duration::from_secs(20));
        assert!(table.is_empty());
        assert_eq!((limit.now(), limit.high_water(), limit.refused()), (0, 100, 0));
        table.with(1, now, |value| value.0 = Some(now));
        table.clear();
        assert!(table.is_empty());
        assert_eq!(limit.now(), 0);
    }
}
