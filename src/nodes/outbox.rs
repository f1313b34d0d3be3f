//! What waits to be sent to one connection: bounded in bytes and in number, each event of a class
//! that says what happens at the bound.
//!
//! Others put in, the connection's own thread takes out and writes; the bell wakes it at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Lease, Limit};
use crate::net::websocket::Bell;

/// What becomes of an event when its consumer is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It is worth nothing once there are newer ones: it is dropped when more than
    /// [`Bounds::telemetry`] waits. The consumer sees the gap in `seq`.
    Telemetry,
    /// It must arrive: a consumer that cannot take it is closed (1008).
    Control,
}

/// An event for one connection or many; its payload is shared.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its payload, as JSON text.
    pub payload: Arc<str>,
    /// What becomes of it when its consumer is slow.
    pub class: Class,
    /// The versions of presence and health that it tells of.
    pub version: Option<StateVersion>,
}

/// How often presence and health have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateVersion {
    /// Presence.
    pub presence: u64,
    /// Health.
    pub health: u64,
}

/// What is to be sent.
#[derive(Debug)]
pub enum Item {
    /// A whole frame: an answer, or what comes before the handshake's end.
    Frame(Box<str>),
    /// An event, and its number on this connection.
    Event(Event, u64),
    /// The end: nothing is sent after it.
    Close(u16, &'static str),
}

impl Item {
    /// Bytes that it counts for.
    fn bytes(&self) -> u64 {
        match self {
            Item::Frame(text) => text.len() as u64 + ITEM_BYTES,
            Item::Event(event, _) => event.payload.len() as u64 + ITEM_BYTES,
            Item::Close(..) => 0,
        }
    }
}

/// What an item costs beside its text, in bytes.
const ITEM_BYTES: u64 = 96;

/// So much of each connection never depends on the sum over all, in bytes: what others do not read
/// closes nobody whose own queue is nearly empty. It adds at most `connections_max` times this.
const FLOOR_BYTES: u64 = 1024;

/// Places of the queue that are kept when it is empty.
const ITEMS_KEPT: usize = 16;

/// The bounds of one outbox.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes that may wait for one connection: `nodes.buffered_max`. A message that is larger by
    /// itself is taken when nothing else waits, or it could never be sent.
    pub bytes: u64,
    /// Bytes from which on telemetry is dropped.
    pub telemetry: u64,
}

/// What came of putting something in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It waits to be sent.
    Taken,
    /// It was dropped, and its number left out.
    Dropped,
    /// The connection cannot take it, and is being closed.
    Overfull,
    /// The connection is closed, or about to be.
    Closed,
}

/// What waits for one connection.
#[derive(Debug)]
pub struct Outbox {
    inner: Locked<Inner>,
    bell: Bell,
    bounds: Bounds,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    items: VecDeque<Item>,
    /// The bytes that wait.
    waiting: u64,
    /// What of them is above the floor: a part of the sum over all connections,
    /// `nodes.buffered_total_max`.
    bytes: Lease,
    /// The number of the last event.
    seq: u64,
    closed: bool,
}

impl Outbox {
    /// An empty one.
    pub fn new(bell: Bell, bounds: Bounds, total: &Arc<Limit>) -> Self {
        let (items, bytes) = (VecDeque::new(), total.nothing());
        let inner = Inner { items, waiting: 0, bytes, seq: 0, closed: false };
        let inner = Locked::new(Rank::Leaf, inner);
        Outbox { inner, bell, bounds, dropped: AtomicU64::new(0) }
    }

    /// Puts a whole frame in.
    pub fn frame(&self, text: String) -> Put {
        self.put(|inner| (Item::Frame(text.into_boxed_str()), Class::Control, inner.seq))
    }

    /// Puts the answer to the handshake in, and leaves the writer asleep until [`Outbox::wake`]: who
    /// reads it shall be known everywhere already.
    pub fn welcome(&self, text: String) -> Put {
        let frame = Item::Frame(text.into_boxed_str());
        self.put_in(|inner| (frame, Class::Control, inner.seq)).0
    }

    /// Wakes the writer.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// Puts an event in; it gets its number here, a dropped one too.
    pub fn event(&self, event: Event) -> Put {
        self.put(|inner| {
            let (class, seq) = (event.class, inner.seq + 1);
            (Item::Event(event, seq), class, seq)
        })
    }

    /// Ends the connection after what waits; the first reason counts.
    pub fn close(&self, code: u16, reason: &'static str) {
        let first = self.inner.with(|inner| {
            let first = !inner.closed;
            if first {
                inner.items.push_back(Item::Close(code, reason));
                inner.closed = true;
            }
            first
        });
        if first {
            self.bell.ring();
        }
    }

    /// Ends it at once: what waits is thrown away.
    pub fn close_now(&self, code: u16, reason: &'static str) {
        let old = self.inner.with(|inner| {
            inner.closed = true;
            let old = std::mem::take(&mut inner.items);
            inner.items.push_back(Item::Close(code, reason));
            inner.waiting = 0;
            inner.bytes.shrink_to(0);
            old
        });
        drop(old);
        self.bell.ring();
    }

    /// The next to be sent. Its bytes are given back here: the writer holds one at a time.
    pub fn take(&self) -> Option<Item> {
        self.inner.with(|inner| {
            let item = inner.items.pop_front()?;
            inner.waiting = inner.waiting.saturating_sub(item.bytes());
            inner.bytes.shrink_to(inner.waiting.saturating_sub(FLOOR_BYTES));
            if inner.items.is_empty() && inner.items.capacity() > ITEMS_KEPT {
                inner.items = VecDeque::new();
            }
            Some(item)
        })
    }

    /// Whether a frame of so many bytes would find room now.
    pub fn room(&self, bytes: usize) -> bool {
        let max = self.bounds.bytes;
        let waiting = self.bytes();
        waiting == 0 || waiting.saturating_add(bytes as u64 + ITEM_BYTES) <= max
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.inner.with(|inner| inner.waiting)
    }

    /// Whether nothing more is taken.
    pub fn closed(&self) -> bool {
        self.inner.with(|inner| inner.closed)
    }

    /// Events that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn put(&self, make: impl FnOnce(&Inner) -> (Item, Class, u64)) -> Put {
        let (put, first) = self.put_in(make);
        if first {
            self.bell.ring();
        }
        put
    }

    /// What came of it, and whether it is the first that waits.
    fn put_in(&self, make: impl FnOnce(&Inner) -> (Item, Class, u64)) -> (Put, bool) {
        let (put, first) = self.inner.with(|inner| {
            if inner.closed {
                return (Put::Closed, false);
            }
            let (item, class, seq) = make(inner);
            inner.seq = seq;
            let (waiting, bytes) = (inner.waiting, item.bytes());
            if class == Class::Telemetry && waiting > self.bounds.telemetry {
                return (Put::Dropped, false);
            }
            // One that is larger than the bound goes alone: a message may be (`nodes.payload_max`).
            let over = waiting > 0 && waiting + bytes > self.bounds.bytes;
            let above = (waiting + bytes).saturating_sub(FLOOR_BYTES);
            let more = above.saturating_sub(inner.bytes.amount());
            if over || more > 0 && !inner.bytes.grow(more) {
                // Telemetry is never a reason to close anybody.
                let telemetry = class == Class::Telemetry;
                return (if telemetry { Put::Dropped } else { Put::Overfull }, false);
            }
            inner.waiting += bytes;
            inner.items.push_back(item);
            (Put::Taken, inner.items.len() == 1)
        });
        match put {
            Put::Dropped => {
                self.dropped.fetch_add(1, Relaxed);
            }
            Put::Overfull => self.close_now(1008, "slow consumer"),
            _ => {}
        }
        (put, first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(bytes: u64, total: &Arc<Limit>) -> Outbox {
        Outbox::new(Bell::new().unwrap(), Bounds { bytes, telemetry: bytes / 4 }, total)
    }

    fn event(class: Class, size: usize) -> Event {
        Event { name: "tick", payload: "x".repeat(size).into(), class, version: None }
    }

    #[test]
    fn what_is_put_in_comes_out_in_order_and_rings_once() {
        let total = Limit::detached(1 << 20);
        let outbox = outbox(1 << 16, &total);
        assert_eq!(outbox.frame("a".to_owned()), Put::Taken);
        assert_eq!(outbox.event(event(Class::Control, 5)), Put::Taken);
        assert!(outbox.bell.hear());
        assert!(!outbox.bell.hear());
        assert!(matches!(outbox.take(), Some(Item::Frame(text)) if &*text == "a"));
        assert!(matches!(outbox.take(), Some(Item::Event(_, 1))));
        assert!(outbox.take().is_none());
        assert_eq!((outbox.bytes(), total.now()), (0, 0));
    }

    #[test]
    fn telemetry_is_dropped_with_a_gap_in_the_numbers_and_control_is_not() {
        let total = Limit::detached(1 << 20);
        let outbox = outbox(4096, &total);
        assert_eq!(outbox.event(event(Class::Control, 1024)), Put::Taken);
        assert_eq!(outbox.event(event(Class::Telemetry, 10)), Put::Dropped);
        assert_eq!(outbox.event(event(Class::Control, 10)), Put::Taken);
        assert_eq!(outbox.dropped(), 1);
        let numbers = std::iter::from_fn(|| outbox.take()).filter_map(|item| match item {
            Item::Event(_, seq) => Some(seq),
            _ => None,
        });
        assert_eq!(numbers.collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_consumer_that_cannot_take_control_is_closed_and_holds_nothing() {
        let total = Limit::detached(1 << 20);
        let outbox = outbox(4096, &total);
        assert_eq!(outbox.frame("x".repeat(3000)), Put::Taken);
        assert_eq!(outbox.event(event(Class::Control, 3000)), Put::Overfull);
        assert_eq!(outbox.frame(String::new()), Put::Closed);
        assert_eq!(total.now(), 0);
        assert!(matches!(outbox.take(), Some(Item::Close(1008, _))));
        assert!(outbox.take().is_none());
    }

    #[test]
    fn a_message_above_the_bound_is_taken_when_it_is_the_only_one() {
        let total = Limit::detached(1 << 20);
        let outbox = outbox(4096, &total);
        assert_eq!(outbox.frame("x".repeat(10_000)), Put::Taken);
        assert_eq!(outbox.frame(String::new()), Put::Overfull);
    }

    #[test]
    fn the_sum_over_all_is_bounded_and_given_back_with_each() {
        let total = Limit::detached(4096);
        let (one, other) = (outbox(1 << 16, &total), outbox(1 << 16, &total));
        assert_eq!(one.frame("x".repeat(3000)), Put::Taken);
        assert_eq!(other.frame("x".repeat(3000)), Put::Overfull);
        assert_eq!(total.refused(), 1);
        drop(one);
        assert_eq!(total.now(), 0);
        assert!(other.closed());
    }

    #[test]
    fn what_others_do_not_read_costs_nobody_a_tick_and_telemetry_closes_nobody() {
        let total = Limit::detached(4096);
        let (slow, well) = (outbox(1 << 16, &total), outbox(1 << 16, &total));
        assert_eq!(slow.frame("x".repeat(5000)), Put::Taken);
        assert_eq!(well.event(event(Class::Telemetry, 100)), Put::Taken);
        assert_eq!(well.frame("x".repeat(500)), Put::Taken);
        assert_eq!(well.event(event(Class::Telemetry, 2000)), Put::Dropped);
        assert!(!well.closed());
        drop(slow);
        assert_eq!(well.event(event(Class::Telemetry, 2000)), Put::Taken);
        while well.take().is_some() {}
        assert_eq!((well.bytes(), total.now()), (0, 0));
    }

    #[test]
    fn the_first_reason_of_a_close_counts_and_comes_after_what_waits() {
        let total = Limit::detached(4096);
        let outbox = outbox(4096, &total);
        outbox.frame("bye".to_owned());
        outbox.close(1012, "service restart");
        outbox.close(1008, "too late");
        assert!(matches!(outbox.take(), Some(Item::Frame(_))));
        assert!(matches!(outbox.take(), Some(Item::Close(1012, _))));
        assert!(outbox.take().is_none());
    }
}
