//! Permits: a bound on how many do something at once, where those who wait are data, not threads.
//!
//! A waiter leaves a callback; the drop of a [`Permit`] hands it to the first waiter (first come,
//! first served, no barging). The callback runs on the thread that released, outside the lock; it
//! should only pass the permit on. A [`Ticket`] that is dropped leaves the queue.

use std::collections::VecDeque;
use std::sync::Arc;

use super::lock::{Locked, Rank};
use super::metrics::Limit;

type Notify = Box<dyn FnOnce(Permit) + Send>;

struct Waiters {
    queue: VecDeque<(u64, Notify)>,
    next: u64,
    held: u64,
    max: u64,
}

/// A bounded number of permits and a bounded queue of those who wait for one.
pub struct Permits {
    state: Locked<Waiters>,
    held: Arc<Limit>,
    waiting: Arc<Limit>,
}

/// The right to go on. Dropping it passes it to the next in the queue.
pub struct Permit {
    from: Arc<Permits>,
}

/// A place in the queue. Dropping it gives the place up.
pub struct Ticket {
    from: Arc<Permits>,
    id: u64,
}

/// What [`Permits::acquire_or_wait`] gave.
pub enum Place {
    /// There was a free one.
    Granted(Permit),
    /// The callback will be called, unless the ticket is dropped first.
    Queued(Ticket),
    /// The queue is full.
    Full,
}

impl Permits {
    /// As many permits as `held` allows, and as many waiters as `waiting` does. Both limits are
    /// kept up to date as gauges.
    pub fn new(held: Arc<Limit>, waiting: Arc<Limit>) -> Arc<Self> {
        let max = held.max();
        let state = Waiters { queue: VecDeque::new(), next: 0, held: 0, max };
        Arc::new(Permits { state: Locked::new(Rank::Waiting, state), held, waiting })
    }

    /// A permit, when one is free and nobody waits.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let granted = self.state.with(|state| {
            let free = state.held < state.max && state.queue.is_empty();
            if free {
                state.held += 1;
                self.held.set_now(state.held);
            }
            free
        });
        granted.then(|| Permit { from: Arc::clone(self) })
    }

    /// A permit, or a place in the queue. `notify` is called at most once, with a permit, from
    /// whichever thread released it.
    pub fn acquire_or_wait(
        self: &Arc<Self>,
        notify: impl FnOnce(Permit) + Send + 'static,
    ) -> Place {
        if let Some(permit) = self.try_acquire() {
            return Place::Granted(permit);
        }
        self.state.with(|state| {
            // A permit may have come back between the two looks.
            if state.held < state.max && state.queue.is_empty() {
                state.held += 1;
                self.held.set_now(state.held);
                return Place::Granted(Permit { from: Arc::clone(self) });
            }
            if state.queue.len() as u64 >= self.waiting.max() {
                self.waiting.refuse();
                return Place::Full;
            }
            let id = state.next;
            state.next += 1;
            state.queue.push_back((id, Box::new(notify)));
            self.waiting.set_now(state.queue.len() as u64);
            Place::Queued(Ticket { from: Arc::clone(self), id })
        })
    }

    /// Changes the number of permits (a live setting); more permits wake waiters at once.
    pub fn set_max(self: &Arc<Self>, max: u64) {
        self.held.set_max(max);
        let mut woken = Vec::new();
        self.state.with(|state| {
            state.max = max;
            while state.held < state.max {
                let Some((_, notify)) = state.queue.pop_front() else { break };
                state.held += 1;
                woken.push(notify);
            }
            self.held.set_now(state.held);
            self.waiting.set_now(state.queue.len() as u64);
        });
        for notify in woken {
            notify(Permit { from: Arc::clone(self) });
        }
    }

    /// How many permits are out.
    pub fn held(&self) -> u64 {
        self.held.now()
    }

    /// The bound on permits, as a gauge.
    pub fn held_limit(&self) -> &Arc<Limit> {
        &self.held
    }

    /// The bound on waiters, whose refusals are counted by this limit.
    pub fn waiting(&self) -> &Arc<Limit> {
        &self.waiting
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let next = self.from.state.with(|state| {
            // Above a lowered maximum the permit is not passed on.
            let next = if state.held <= state.max { state.queue.pop_front() } else { None };
            if next.is_none() {
                state.held -= 1;
            }
            self.from.held.set_now(state.held);
            self.from.waiting.set_now(state.queue.len() as u64);
            next
        });
        if let Some((_, notify)) = next {
            notify(Permit { from: Arc::clone(&self.from) });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.from.state.with(|state| {
            state.queue.retain(|(id, _)| *id != self.id);
            self.from.waiting.set_now(state.queue.len() as u64);
        });
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, bounded};

    fn permits(max: u64, waiting: u64) -> Arc<Permits> {
        Permits::new(Limit::detached(max), Limit::detached(waiting))
    }

    fn wait(permits: &Arc<Permits>) -> (Place, Receiver<Permit>) {
        let (sender, receiver) = bounded(1);
        let place = permits.acquire_or_wait(move |permit| {
            let _ = sender.try_send(permit);
        });
        (place, receiver)
    }

    #[test]
    fn a_released_permit_goes_to_the_first_in_the_queue_and_nobody_barges_in() {
        let permits = permits(1, 2);
        let first = permits.try_acquire().unwrap();
        let (place_a, a) = wait(&permits);
        let (place_b, b) = wait(&permits);
        assert!(matches!((&place_a, &place_b), (Place::Queued(_), Place::Queued(_))));
        assert!(matches!(wait(&permits).0, Place::Full));
        assert_eq!(permits.waiting().refused(), 1);
        drop(first);
        let second = a.try_recv().unwrap();
        assert!(permits.try_acquire().is_none(), "b waits");
        assert!(b.try_recv().is_err());
        drop(second);
        drop(b.try_recv().unwrap());
        assert_eq!(permits.held(), 0);
    }

    #[test]
    fn a_dropped_ticket_leaves_and_an_unwanted_grant_goes_on_to_the_next() {
        let permits = permits(1, 8);
        let first = permits.try_acquire().unwrap();
        let (left, _gone) = wait(&permits);
        drop(left);
        // This waiter's receiver is gone: its permit is dropped in the callback and moves on.
        let (_stays, receiver) = wait(&permits);
        drop(receiver);
        let (_last, last) = wait(&permits);
        drop(first);
        assert!(last.try_recv().is_ok());
        assert_eq!(permits.held(), 0);
        assert_eq!(permits.waiting().now(), 0);
    }

    #[test]
    fn more_permits_wake_waiters_and_fewer_take_effect_as_they_come_back() {
        let permits = permits(1, 8);
        let first = permits.try_acquire().unwrap();
        let (_place, receiver) = wait(&permits);
        permits.set_max(2);
        let second = receiver.try_recv().unwrap();
        permits.set_max(1);
        let (_place, receiver) = wait(&permits);
        drop(first);
        assert!(receiver.try_recv().is_err(), "one is still out");
        drop(second);
        assert!(receiver.try_recv().is_ok());
    }

    /// What an actor of [`every_order_of_three_actors_keeps_the_bounds_and_leaves_nothing`] does when
    /// it has to wait.
    #[derive(Clone, Copy, Debug)]
    enum Manner {
        /// It waits for its permit, and gives it back.
        Waits,
        /// It leaves the queue, also when its permit is on its way.
        Leaves,
        /// Nobody hears its grant.
        Deaf,
    }

    enum Actor {
        Before,
        Waiting(Ticket, Receiver<Permit>),
        Holding(#[expect(dead_code, reason = "held for its drop")] Permit),
        Done,
    }

    impl Actor {
        /// One step; false when there is none to take now.
        fn step(&mut self, permits: &Arc<Permits>, manner: Manner) -> bool {
            *self = match std::mem::replace(self, Actor::Done) {
                Actor::Before => match wait(permits) {
                    (Place::Granted(permit), _) => Actor::Holding(permit),
                    (Place::Queued(ticket), receiver) => match manner {
                        Manner::Deaf => Actor::Waiting(ticket, bounded(0).1),
                        _ => Actor::Waiting(ticket, receiver),
                    },
                    (Place::Full, _) => Actor::Done,
                },
                Actor::Waiting(ticket, receiver) => match (manner, receiver.try_recv()) {
                    (Manner::Waits, Ok(permit)) => Actor::Holding(permit),
                    (Manner::Waits, Err(_)) => {
                        *self = Actor::Waiting(ticket, receiver);
                        return false;
                    }
                    (Manner::Leaves | Manner::Deaf, _) => Actor::Done,
                },
                Actor::Holding(_) => Actor::Done,
                Actor::Done => return false,
            };
            true
        }
    }

    /// All state is behind one lock, so the orders of whole calls are all the orders there are.
    #[test]
    fn every_order_of_three_actors_keeps_the_bounds_and_leaves_nothing() {
        let manners = [Manner::Waits, Manner::Leaves, Manner::Deaf];
        let mut orders = 0;
        for code in 0..27 {
            let manner = |actor: usize| manners[code / [1, 3, 9][actor] % 3];
            // Each order as the digits of a number to the base of three: who goes next.
            for order in 0..3_u32.pow(9) {
                for (max, waiting) in [(1, 2), (2, 1)] {
                    let permits = permits(max, waiting);
                    let mut actors = [Actor::Before, Actor::Before, Actor::Before];
                    for turn in 0..9 {
                        let actor = (order / 3_u32.pow(turn) % 3) as usize;
                        actors[actor].step(&permits, manner(actor));
                        let queued = permits.state.with(|state| state.queue.len() as u64);
                        let held = permits.held();
                        assert!(held <= max && queued <= waiting, "{held} held, {queued} queued");
                        assert!(queued == 0 || held == max, "somebody waits for a free permit");
                    }
                    // Whoever is not done goes on until nobody can.
                    while (0..3).any(|actor| actors[actor].step(&permits, manner(actor))) {}
                    assert!(actors.iter().all(|actor| matches!(actor, Actor::Done)), "stuck");
                    assert_eq!((permits.held(), permits.waiting().now()), (0, 0));
                    orders += 1;
                }
            }
        }
        assert_eq!(orders, 27 * 19_683 * 2);
    }

    #[test]
    fn threads_that_fight_for_permits_leave_none_behind() {
        let permits = permits(3, 1000);
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let permits = Arc::clone(&permits);
                crate::base::thread::spawn("t", move || {
                    for _ in 0..500 {
                        match wait(&permits) {
                            (Place::Granted(permit), _) => drop(permit),
                            (Place::Queued(_ticket), receiver) => {
                                drop(receiver.recv().unwrap());
                            }
                            (Place::Full, _) => unreachable!("8 waiters at most"),
                        }
                    }
                })
                .unwrap()
            })
            .collect();
        drop(workers);
        assert_eq!((permits.held(), permits.waiting().now()), (0, 0));
    }
}
