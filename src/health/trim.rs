//! What can give room back when the process is short of it: caches register here, and are asked when
//! it comes to that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::overload::Level;
use crate::base::lock::{Locked, Rank};

/// Most trimmers: one for each cache and pool. Past it: not asked, and `register` says so.
pub const TRIMMERS_MAX: usize = 32;

type Trim = Arc<dyn Fn(Level) + Send + Sync>;

/// Everything that can give room back.
pub struct Trimmers {
    known: Locked<Vec<(&'static str, Trim)>>,
}

impl Default for Trimmers {
    fn default() -> Self {
        Trimmers { known: Locked::new(Rank::Leaf, Vec::new()) }
    }
}

impl Trimmers {
    /// `trim` is called on the `overload` thread, once when a level from [`Level::Degraded`] on is
    /// entered, again every ten seconds while it lasts, and once with the lower level when it is left
    /// below that. It must not block for longer than some milliseconds. False when there is no room.
    pub fn register(
        &self,
        name: &'static str,
        trim: impl Fn(Level) + Send + Sync + 'static,
    ) -> bool {
        let trim: Trim = Arc::new(trim);
        self.known.with(|known| {
            let room = known.len() < TRIMMERS_MAX;
            if room {
                known.push((name, trim));
            }
            room
        })
    }

    /// How many are registered, at most [`TRIMMERS_MAX`].
    pub fn registered(&self) -> usize {
        self.known.with(|known| known.len())
    }

    /// Asks all of them. One that panics is named and does not keep the others from it.
    pub fn trim(&self, level: Level) -> Vec<&'static str> {
        let known = self.known.with(|known| known.clone());
        let broken = |(name, trim): (&'static str, Trim)| {
            catch_unwind(AssertUnwindSafe(|| trim(level))).is_err().then_some(name)
        };
        known.into_iter().filter_map(broken).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn all_are_asked_also_behind_one_that_panics_and_their_number_is_bounded() {
        let trimmers = Trimmers::default();
        let asked = Arc::new(AtomicUsize::new(0));
        assert!(trimmers.register("broken", |_| std::panic::resume_unwind(Box::new(()))));
        for _ in 1..TRIMMERS_MAX {
            let asked = Arc::clone(&asked);
            assert!(trimmers.register("cache", move |level| {
                assert_eq!(level, Level::Degraded);
                asked.fetch_add(1, SeqCst);
            }));
        }
        assert!(!trimmers.register("one more", |_| ()));
        assert_eq!(trimmers.trim(Level::Degraded), ["broken"]);
        assert_eq!(asked.load(SeqCst), TRIMMERS_MAX - 1);
    }
}
