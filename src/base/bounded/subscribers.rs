//! Who wants to be told: a bounded list that nobody can forget to leave.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;

use super::Part;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Limit;

/// A bounded list of subscribers, each with what it takes to tell it (a channel's sender). A leak
/// shows itself: the list is full, and says which place in the code holds most of it.
#[derive(Debug)]
pub struct Subscribers<T> {
    inner: Locked<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    /// By number, so in the order in which they came.
    all: BTreeMap<u64, Subscriber<T>>,
    next: u64,
    part: Part,
}

#[derive(Debug)]
struct Subscriber<T> {
    owner: String,
    site: &'static Location<'static>,
    value: T,
}

/// A place on the list; dropping it leaves the list.
#[derive(Debug)]
#[must_use = "dropping a subscription ends it"]
pub struct Subscription<T> {
    list: Arc<Subscribers<T>>,
    number: u64,
}

/// The list is full.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{max} subscriptions are taken, {most} of them by {site} (the last one for {owner})")]
pub struct Full {
    /// How many there may be.
    pub max: u64,
    /// The place in the code that holds most, as `file:line`.
    pub site: String,
    /// How many it holds.
    pub most: usize,
    /// For whom it took the last one.
    pub owner: String,
}

impl<T> Subscribers<T> {
    /// An empty list of at most `limit.max()` subscribers.
    pub fn new(limit: Arc<Limit>) -> Arc<Self> {
        let inner = Inner { all: BTreeMap::new(), next: 0, part: Part::new(limit) };
        Arc::new(Subscribers { inner: Locked::new(Rank::Leaf, inner) })
    }

    /// Takes a place on the list for `owner`, until the subscription is dropped.
    ///
    /// # Errors
    /// When the list is full; the refusal is counted, and says who holds most.
    #[track_caller]
    pub fn subscribe(self: &Arc<Self>, owner: &str, value: T) -> Result<Subscription<T>, Full> {
        let site = Location::caller();
        let owner = owner.to_owned();
        let taken = self.inner.with(|inner| {
            if inner.part.full(inner.all.len()) {
                inner.part.limit.refuse();
                return Err(inner.full());
            }
            let number = inner.next;
            inner.next += 1;
            inner.all.insert(number, Subscriber { owner, site, value });
            inner.part.set(inner.all.len());
            Ok(number)
        });
        Ok(Subscription { list: Arc::clone(self), number: taken? })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner.with(|inner| inner.all.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone> Subscribers<T> {
    /// What it takes to tell each, in the order in which they came. Telling is done outside the lock.
    pub fn all(&self) -> Vec<T> {
        self.inner.with(|inner| inner.all.values().map(|one| one.value.clone()).collect())
    }
}

impl<T> Inner<T> {
    fn full(&self) -> Full {
        let mut sites: BTreeMap<(&str, u32), (usize, &str)> = BTreeMap::new();
        for one in self.all.values() {
            let site = sites.entry((one.site.file(), one.site.line())).or_default();
            *site = (site.0 + 1, &one.owner);
        }
        let most = sites.iter().max_by_key(|(_, (count, _))| *count);
        let max = self.part.limit.max();
        match most {
            Some(((file, line), (most, owner))) => {
                let owner = (*owner).to_owned();
                Full { max, site: format!("{file}:{line}"), most: *most, owner }
            }
            None => Full { max, site: "nobody".to_owned(), most: 0, owner: String::new() },
        }
    }
}

impl<T> Drop for Subscription<T> {
    fn drop(&mut self) {
        let gone = self.list.inner.with(|inner| {
            let gone = inner.all.remove(&self.number);
            inner.part.set(inner.all.len());
            gone
        });
        // A value's own drop may do anything; not under the lock.
        drop(gone);
    }
}
