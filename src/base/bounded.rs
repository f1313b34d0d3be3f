//! Containers with a limit: each keeps the [`Limit`] that it was made with in step with its size,
//! and gives its part back when it is dropped. What happens at the limit is chosen by the type:
//! [`Map`] and [`Set`] refuse, [`Lru`] lets its least recently used entry go, [`History`] its oldest,
//! [`Subscribers`] refuse and name the place that holds most.
//!
//! A limit whose maximum is changed holds from the next insertion on. Refusals and evictions are
//! counted by the limit.

mod subscribers;

use std::borrow::Borrow;
use std::collections::hash_map::{Entry, HashMap};
use std::collections::vec_deque::{self, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use lru::LruCache;

pub use subscribers::{Full, Subscribers, Subscription};

use super::metrics::Limit;

/// A container's part of its limit.
#[derive(Debug)]
struct Part {
    limit: Arc<Limit>,
    size: u64,
}

impl Part {
    fn new(limit: Arc<Limit>) -> Self {
        Part { limit, size: 0 }
    }

    /// Whether `size` is as much as there may be.
    fn full(&self, size: usize) -> bool {
        size as u64 >= self.limit.max()
    }

    /// Says what the size is now.
    fn set(&mut self, size: usize) {
        let size = size as u64;
        self.limit.change(self.size, size);
        self.size = size;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.limit.change(self.size, 0);
    }
}

/// A map that refuses new keys when it is full.
#[derive(Debug)]
pub struct Map<K, V> {
    entries: HashMap<K, V>,
    part: Part,
}

impl<K: Eq + Hash, V> Map<K, V> {
    /// An empty map of at most `limit.max()` entries.
    pub fn new(limit: Arc<Limit>) -> Self {
        Map { entries: HashMap::new(), part: Part::new(limit) }
    }

    /// Puts a value, and gives back the one that was there.
    ///
    /// # Errors
    /// The value, when the key is new and the map is full; the refusal is counted.
    pub fn insert(&mut self, key: K, value: V) -> Result<Option<V>, V> {
        let full = self.part.full(self.entries.len());
        let before = match self.entries.entry(key) {
            Entry::Occupied(mut entry) => Some(entry.insert(value)),
            Entry::Vacant(_) if full => {
                self.part.limit.refuse();
                return Err(value);
            }
            Entry::Vacant(entry) => {
                entry.insert(value);
                None
            }
        };
        self.part.set(self.entries.len());
        Ok(before)
    }

    /// The value of a key, made when there is none; `None` when that finds no room.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> Option<&mut V> {
        let len = self.entries.len();
        let full = self.part.full(len);
        match self.entries.entry(key) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(_) if full => {
                self.part.limit.refuse();
                None
            }
            Entry::Vacant(entry) => {
                self.part.set(len + 1);
                Some(entry.insert(make()))
            }
        }
    }

    /// The value of a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.get(key)
    }

    /// The value of a key, to change.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.get_mut(key)
    }

    /// Takes a key out.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let value = self.entries.remove(key);
        self.part.set(self.entries.len());
        value
    }

    /// Takes out what `keep` says no to.
    pub fn retain(&mut self, keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain(keep);
        self.part.set(self.entries.len());
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A set that refuses new members when it is full.
#[derive(Debug)]
pub struct Set<K>(Map<K, ()>);

impl<K: Eq + Hash> Set<K> {
    /// An empty set of at most `limit.max()` members.
    pub fn new(limit: Arc<Limit>) -> Self {
        Set(Map::new(limit))
    }

    /// Takes a member in. False when it is new and the set is full; the refusal is counted.
    pub fn insert(&mut self, member: K) -> bool {
        self.0.insert(member, ()).is_ok()
    }

    /// Whether it is a member.
    pub fn contains(&self, member: &K) -> bool {
        self.0.get(member).is_some()
    }

    /// Lets a member go; false when it was none.
    pub fn remove(&mut self, member: &K) -> bool {
        self.0.remove(member).is_some()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A map that lets its least recently used entry go for a new one when it is full.
#[derive(Debug)]
pub struct Lru<K: Eq + Hash, V> {
    entries: LruCache<K, V>,
    part: Part,
}

impl<K: Eq + Hash, V> Lru<K, V> {
    /// An empty map of at most `limit.max()` entries.
    pub fn new(limit: Arc<Limit>) -> Self {
        // The crate's own bound cannot change while it is full without giving up what it holds.
        Lru { entries: LruCache::unbounded(), part: Part::new(limit) }
    }

    /// Puts a value at a key, as the most recently used. Gives back what went for it: the old value
    /// of the key, or the least recently used entry. With a maximum of 0 that is this very one.
    pub fn put(&mut self, key: K, value: V) -> Option<(K, V)> {
        let replaced = self.entries.push(key, value);
        let gone = if replaced.is_none() && self.entries.len() as u64 > self.part.limit.max() {
            self.part.limit.refuse();
            self.entries.pop_lru()
        } else {
            replaced
        };
        self.part.set(self.entries.len());
        gone
    }

    /// Takes out the least recently used entry, when there are more than there may be. To be called
    /// until it gives nothing, after the maximum was lowered.
    pub fn pop_excess(&mut self) -> Option<(K, V)> {
        let excess = self.entries.len() as u64 > self.part.limit.max();
        if excess { self.pop_lru() } else { None }
    }

    /// The least recently used entry.
    pub fn oldest(&self) -> Option<(&K, &V)> {
        self.entries.peek_lru()
    }

    /// Takes out the least recently used entry.
    pub fn pop_lru(&mut self) -> Option<(K, V)> {
        let gone = self.entries.pop_lru();
        self.part.set(self.entries.len());
        gone
    }

    /// The value of a key, which is the most recently used from now on.
    pub fn get<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.get_mut(key)
    }

    /// The value of a key, without using it.
    pub fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.peek(key)
    }

    /// Takes a key out.
    pub fn pop<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let value = self.entries.pop(key);
        self.part.set(self.entries.len());
        value
    }

    /// All entries, most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A sequence that lets its oldest entry go for a new one when it is full.
#[derive(Debug)]
pub struct History<T> {
    entries: VecDeque<T>,
    part: Part,
}

impl<T> History<T> {
    /// An empty history of at most `limit.max()` entries.
    pub fn new(limit: Arc<Limit>) -> Self {
        History { entries: VecDeque::new(), part: Part::new(limit) }
    }

    /// Adds an entry; gives back the one that went for it, which counts as a refusal.
    pub fn push(&mut self, entry: T) -> Option<T> {
        self.entries.push_back(entry);
        let oldest = if self.entries.len() as u64 > self.part.limit.max() {
            self.part.limit.refuse();
            self.entries.pop_front()
        } else {
            None
        };
        self.part.set(self.entries.len());
        oldest
    }

    /// Takes out the oldest entry.
    pub fn pop(&mut self) -> Option<T> {
        let oldest = self.entries.pop_front();
        self.part.set(self.entries.len());
        oldest
    }

    /// All entries, oldest first.
    pub fn iter(&self) -> vec_deque::Iter<'_, T> {
        self.entries.iter()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests;
