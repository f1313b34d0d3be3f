//! Ranked locks: the lock order in writing, checked in debug builds.
//!
//! A thread may take a lock only when its rank is above that of every lock it holds. No I/O, no
//! blocking send or receive, no join, sleep or log inside [`Locked::with`]; every blocking wrapper
//! begins with [`assert_none_held`].

#[expect(clippy::disallowed_types, reason = "the one wrapper")]
use std::sync::Mutex;
use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::heartbeat::LockWait;

/// The lock order, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// Reload: one at a time.
    Reload = 1,
    /// The engine's table of running exchanges.
    Exchanges,
    /// The cache's tables: a new flight's permit is taken inside.
    Cache,
    /// The queue of those who wait for a permit.
    Waiting,
    /// Name resolution cache.
    Resolver,
    /// An upstream's idle connections.
    Pool,
    /// Catalog snapshots.
    Catalog,
    /// Retry budgets and other small per-upstream state.
    Guard,
    /// Metric families.
    Metrics,
    /// Log writer state.
    Log,
    /// Held for good by a drill, and by nobody else.
    Drill,
    /// A leaf: nothing is locked inside it.
    Leaf,
}

/// Every rank.
const RANKS: [Rank; 12] = [
    Rank::Reload,
    Rank::Exchanges,
    Rank::Cache,
    Rank::Waiting,
    Rank::Resolver,
    Rank::Pool,
    Rank::Catalog,
    Rank::Guard,
    Rank::Metrics,
    Rank::Log,
    Rank::Drill,
    Rank::Leaf,
];

impl Rank {
    /// The rank of this number; the innermost for one that no rank has.
    pub(super) fn numbered(number: usize) -> Rank {
        RANKS.into_iter().find(|rank| *rank as usize == number).unwrap_or(Rank::Leaf)
    }
}

#[cfg(debug_assertions)]
thread_local! {
    /// Bit `n` is set while a lock of rank `n` is held by this thread.
    static HELD: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Restores the thread's set of held ranks, also when the closure unwinds.
#[cfg(debug_assertions)]
struct Mark(u32);

#[cfg(debug_assertions)]
impl Mark {
    fn enter(rank: Rank) -> Self {
        HELD.with(|held| {
            let before = held.get();
            assert!(
                before >> (rank as u32) == 0,
                "lock order: {rank:?} taken while ranks {before:#b} are held"
            );
            held.set(before | 1 << (rank as u32));
            Mark(before)
        })
    }
}

#[cfg(debug_assertions)]
impl Drop for Mark {
    fn drop(&mut self) {
        HELD.with(|held| held.set(self.0));
    }
}

/// Debug builds stop here when the calling thread holds a lock. Blocking calls begin with this.
#[inline]
pub fn assert_none_held() {
    #[cfg(debug_assertions)]
    HELD.with(|held| {
        assert!(held.get() == 0, "a blocking call while ranks {:#b} are held", held.get());
    });
}

/// A value behind a ranked lock.
#[derive(Debug)]
pub struct Locked<T> {
    rank: Rank,
    #[expect(clippy::disallowed_types, reason = "the one wrapper")]
    value: Mutex<T>,
}

impl<T> Locked<T> {
    /// A new value of the given rank.
    pub fn new(rank: Rank, value: T) -> Self {
        #[expect(clippy::disallowed_types, reason = "the one wrapper")]
        Locked { rank, value: Mutex::new(value) }
    }

    /// Runs `f` with the value. The guard and what it borrows cannot leave `f`. A poisoned lock is
    /// used as it is: what stands behind locks here is caches and counts, never the truth.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(debug_assertions)]
        let _mark = Mark::enter(self.rank);
        let mut guard = match self.value.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => self.wait(),
        };
        f(&mut guard)
    }

    /// Another thread has it. Whoever watches over this one is told what it waits for.
    #[cold]
    fn wait(&self) -> MutexGuard<'_, T> {
        let _waiting = LockWait::begin(self.rank);
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_is_found_by_its_number() {
        for (number, rank) in (1..).zip(RANKS) {
            assert_eq!((rank as usize, Rank::numbered(number)), (number, rank));
        }
        assert_eq!(RANKS.last(), Some(&Rank::Leaf), "the innermost is the last of all");
        assert_eq!(RANKS.len(), Rank::Leaf as usize, "a rank is not among them");
    }

    #[test]
    fn locks_nest_in_rank_order_only() {
        let outer = Locked::new(Rank::Pool, 1);
        let inner = Locked::new(Rank::Leaf, 2);
        assert_eq!(outer.with(|a| inner.with(|b| *a + *b)), 3);
        if cfg!(debug_assertions) {
            let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                inner.with(|_| outer.with(|_| ()));
            }));
            assert!(wrong.is_err(), "the wrong order must be caught");
        }
        // The mark was restored while unwinding.
        assert_none_held();
    }
}
