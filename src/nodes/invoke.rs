//! Calls of commands that nodes have not answered yet. Pure: time and events in, whom to tell out.
//!
//! A call belongs to the one connection that it was sent to: nobody else can answer it, and when that
//! connection ends it has failed at once. Who asked and left has no part in it any more, but the call
//! goes on: it is under way at its node, and whoever comes back with its idempotency key gets the
//! answer. (Keys are `idempotency.rs`'s; a call holds the ticket of its key.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::bounded::Map;
use crate::base::metrics::{Limit, Registry, Unit};

/// Calls of one connection that may be under way: one client shall not take the places of all.
pub const EACH_MAX: usize = 128;
/// The longest time that a node may be given; who asks for 0 asks for this.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(10 * 60);

/// Somebody who waits for a call.
pub trait Asker {
    /// The number of the connection that it came by; none for who asks by other ways.
    fn connection(&self) -> Option<u64>;
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The call's id on the wire, new.
    pub id: Arc<str>,
    /// Of which node.
    pub node: Arc<str>,
    /// The number of its connection.
    pub connection: u64,
    /// Which command.
    pub command: Box<str>,
    /// What is needed to have it wait, when the node may refuse it for now.
    pub later: Option<Later>,
    /// When the node's time is over.
    pub deadline: Instant,
}

/// What a command needs that waits for its node.
#[derive(Clone, Debug)]
pub struct Later {
    /// Its parameters, as JSON text.
    pub params: Option<Box<str>>,
    /// Its idempotency key: it waits once.
    pub key: Box<str>,
}

/// Why a call is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// As many are under way as may be.
    Full,
    /// As many of this connection are.
    TooManyOfOne,
}

/// What became of an answer.
#[derive(Debug)]
pub enum Answered<A, T> {
    /// It is told.
    Done(Box<Ended<A, T>>),
    /// No such call: it came late, or twice.
    Late,
    /// The call was sent to another connection.
    NotYours,
}

/// A call that is over.
#[derive(Debug)]
pub struct Ended<A, T> {
    /// What was asked for.
    pub ask: Ask,
    /// When it began.
    pub since: Instant,
    /// Whom to tell, if he is still there.
    pub asker: Option<A>,
    /// The ticket of its key.
    pub ticket: T,
}

/// Calls under way, by id. What is given back is for the caller to drop: under no lock.
#[derive(Debug)]
pub struct Calls<A, T> {
    calls: Map<Arc<str>, Ended<A, T>>,
    each: Arc<Limit>,
}

/// The bounds, as they are registered.
#[derive(Clone, Debug)]
pub struct Bounds {
    calls: Arc<Limit>,
    each: Arc<Limit>,
}

impl Bounds {
    /// Registers them, or gives them new values: calls under way.
    pub fn register(registry: &Registry, calls: usize) -> Self {
        let busy = "UNAVAILABLE, to be tried again";
        let (entries, each) = (Unit::Entries, EACH_MAX as u64);
        Bounds {
            calls: registry.limit("nodes.pending_max", "", calls as u64, busy),
            each: registry.limit_each(entries, "nodes.pending_each_max", "", each, busy),
        }
    }
}

impl<A: Asker, T> Calls<A, T> {
    /// None yet.
    pub fn new(bounds: Bounds) -> Self {
        Calls { calls: Map::new(bounds.calls), each: bounds.each }
    }

    /// Begins a call, which is to be sent now.
    ///
    /// # Errors
    /// What was given, and why not.
    pub fn begin(
        &mut self,
        ask: Ask,
        asker: A,
        ticket: T,
        now: Instant,
    ) -> Result<(), Box<(Why, A, T)>> {
        if let Some(of) = asker.connection() {
            let his = |call: &Ended<A, T>| call.asker.as_ref().and_then(A::connection) == Some(of);
            let count = self.calls.iter().filter(|(_, call)| his(call)).count() as u64;
            if count >= self.each.max() {
                self.each.refuse();
                return Err(Box::new((Why::TooManyOfOne, asker, ticket)));
            }
            self.each.saw(count + 1);
        }
        let id = Arc::clone(&ask.id);
        let call = Ended { ask, since: now, asker: Some(asker), ticket };
        match self.calls.insert(id, call) {
            Ok(_) => Ok(()),
            Err(Ended { asker: Some(asker), ticket, .. }) => {
                Err(Box::new((Why::Full, asker, ticket)))
            }
            // It was given one.
            Err(_) => Ok(()),
        }
    }

    /// The node's answer to `id`, by the connection of this number.
    pub fn answer(&mut self, id: &str, connection: u64) -> Answered<A, T> {
        match self.calls.get(id) {
            Some(call) if call.ask.connection != connection => return Answered::NotYours,
            _ => {}
        }
        match self.calls.remove(id) {
            Some(call) => Answered::Done(Box::new(call)),
            None => Answered::Late,
        }
    }

    /// Whether `id` is under way at the connection of this number.
    pub fn under_way(&self, id: &str, connection: u64) -> bool {
        self.calls.get(id).is_some_and(|call| call.ask.connection == connection)
    }

    /// Takes a call back that could not be sent.
    pub fn take_back(&mut self, id: &str) -> Option<Ended<A, T>> {
        self.calls.remove(id)
    }

    /// The connection of this number has ended. The calls that were sent to it have failed; who
    /// asked by it does not wait any more.
    pub fn gone(&mut self, connection: u64) -> (Vec<Ended<A, T>>, Vec<A>) {
        let failed = self.take(|call| call.ask.connection == connection);
        let mut left = Vec::new();
        self.calls.retain(|_, call| {
            let his = |asker: &mut A| asker.connection() == Some(connection);
            left.extend(call.asker.take_if(his));
            true
        });
        (failed, left)
    }

    /// Calls whose time is over.
    pub fn expired(&mut self, now: Instant) -> Vec<Ended<A, T>> {
        self.take(|call| call.ask.deadline <= now)
    }

    /// Every call: the room closes.
    pub fn all(&mut self) -> Vec<Ended<A, T>> {
        self.take(|_| true)
    }

    /// When [`Calls::expired`] has something to give.
    pub fn next(&self) -> Option<Instant> {
        self.calls.iter().map(|(_, call)| call.ask.deadline).min()
    }

    /// Calls under way.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    fn take(&mut self, over: impl Fn(&Ended<A, T>) -> bool) -> Vec<Ended<A, T>> {
        let ids = self.calls.iter().filter(|(_, call)| over(call)).map(|(id, _)| Arc::clone(id));
        let ids: Vec<_> = ids.collect();
        ids.into_iter().filter_map(|id| self.calls.remove(&*id)).collect()
    }
}

#[cfg(test)]
mod tests;
