//! How many connections each address, or each account, holds.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Limit;

/// Counts by owner. Bounded by the connections there are: an owner is in the map only while it holds
/// one.
#[derive(Debug)]
pub(super) struct Shares<K> {
    held: Locked<HashMap<K, u64>>,
    /// The bound on each.
    limit: Arc<Limit>,
}

/// One connection of an owner, given back on drop.
#[derive(Debug)]
pub(super) struct Share<K: Eq + Hash> {
    shares: Arc<Shares<K>>,
    owner: K,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// None yet.
    pub(super) fn new(limit: &Arc<Limit>) -> Arc<Self> {
        let held = Locked::new(Rank::Leaf, HashMap::new());
        Arc::new(Shares { held, limit: Arc::clone(limit) })
    }

    /// One more for `owner`, when it holds fewer than it may.
    pub(super) fn try_take(self: &Arc<Self>, owner: K) -> Option<Share<K>> {
        let max = self.limit.max();
        let count = self.held.with(|held| {
            let count = held.entry(owner.clone()).or_default();
            if *count < max {
                *count += 1;
                return Some(*count);
            }
            if *count == 0 {
                held.remove(&owner);
            }
            None
        });
        match count {
            Some(count) => {
                self.limit.saw(count);
                Some(Share { shares: Arc::clone(self), owner })
            }
            None => {
                self.limit.refuse();
                None
            }
        }
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        self.shares.held.with(|held| {
            if let Some(count) = held.get_mut(&self.owner) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&self.owner);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_holds_at_most_its_share_and_leaves_nothing_behind() {
        let limit = Limit::detached(2);
        let shares = Shares::new(&limit);
        let two = [shares.try_take("a").unwrap(), shares.try_take("a").unwrap()];
        assert!(shares.try_take("a").is_none());
        assert!(shares.try_take("b").is_some());
        assert_eq!((limit.high_water(), limit.refused()), (2, 1));
        drop(two);
        limit.set_max(0);
        assert!(shares.try_take("a").is_none());
        assert!(shares.held.with(|held| held.is_empty()));
    }
}
