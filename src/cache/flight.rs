//! Single flight: of those who want the same, one asks and the others wait for the answer.
//!
//! A flight is a [`Permits`] of one permit. The leader holds it; those who follow wait for it as
//! data, each until its own deadline. When the leader has an answer, it leaves it in the flight and
//! lets the followers through, some at a time. When it has none (its upstream failed, it panicked,
//! its client left), its permit goes, by its drop, to the first in the queue, who leads then: one,
//! never all at once.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::base::error::{Class, Error, Kind};
use crate::base::metrics::{Lease, Limit};
use crate::base::permits::{Permit, Permits};

use super::store::Lifetime;
use super::{Digest, Inner, Namespace};

/// Followers that are let through at a time once there is an answer. Each passes its turn on when
/// it is done, so a crowd of followers never fills the queue of the workers.
const FOLLOWERS_AT_ONCE: u64 = 16;

/// Leaders that may fail before the followers are told the last failure. With more, those at the
/// end of a long queue would wait for everybody's failure in turn; with one, a single slip of the
/// network would fail them all.
const FAILURES_MAX: u32 = 3;

/// What came of a flight.
enum Outcome<V> {
    /// The answer, for everybody.
    Answer(V),
    /// The same failure for everybody.
    Failed(Arc<Error>),
    /// An answer that cannot be shared: each goes alone.
    Nothing,
}

/// One question that is being asked.
pub(super) struct Flight<V> {
    permits: Arc<Permits>,
    outcome: OnceLock<Outcome<V>>,
    failures: AtomicU32,
    /// The version of its namespace when it began.
    pub(super) version: u64,
}

impl<V> Flight<V> {
    /// A flight, and the permit of its leader.
    pub(super) fn begin(version: u64) -> (Arc<Self>, Option<Permit>) {
        // Bounded where followers join: `cache.waiting_max`, over all flights.
        let permits = Permits::new(Limit::detached(1), Limit::detached(u64::MAX));
        let leader = permits.try_acquire();
        let (outcome, failures) = (OnceLock::new(), AtomicU32::new(0));
        (Arc::new(Flight { permits, outcome, failures, version }), leader)
    }

    fn end(&self, outcome: Outcome<V>) {
        if self.outcome.set(outcome).is_ok() {
            self.permits.set_max(FOLLOWERS_AT_ONCE);
        }
    }
}

/// A place in a flight, as leader or follower. A flight without members is forgotten.
pub(super) struct Member<V> {
    pub(super) cache: Arc<Inner<V>>,
    pub(super) namespace: Namespace,
    pub(super) digest: Digest,
    pub(super) flight: Arc<Flight<V>>,
}

impl<V> Drop for Member<V> {
    fn drop(&mut self) {
        self.cache.leave(self.namespace, &self.digest, &self.flight);
    }
}

/// The one who asks. Dropped without a result, the next follower leads.
pub struct Lead<V> {
    // Before the member: the permit is passed on while the flight can still be found.
    permit: Option<Permit>,
    stale: Option<V>,
    member: Member<V>,
}

/// One who waits for the leader's answer.
pub struct Follow<V> {
    member: Member<V>,
    /// Of `cache.waiting_max`.
    _place: Lease,
}

/// What a follower finds when its wait is over.
pub enum Landed<V> {
    /// The leader's answer.
    Answer(V),
    /// The failure that all leaders met.
    Failed(Error),
    /// Nobody has an answer: this one leads now.
    Lead(Lead<V>),
    /// The answer is none that can be shared: to be asked without the cache.
    Alone,
}

impl<V: Clone> Lead<V> {
    pub(super) fn new(member: Member<V>, permit: Option<Permit>, stale: Option<V>) -> Self {
        Lead { permit, stale, member }
    }

    /// Whether there is an old answer that may be served should the new one fail.
    pub fn has_stale(&self) -> bool {
        self.stale.is_some()
    }

    /// The answer is here: it goes to all who follow, and, with a lifetime, into the cache. `size`
    /// is that of the value, in bytes.
    pub fn complete(self, value: V, size: u64, lifetime: Option<Lifetime>, now: Instant) {
        let Member { cache, namespace, digest, flight } = &self.member;
        cache.land(*namespace, digest, flight, &value, size, lifetime, now);
        flight.end(Outcome::Answer(value));
    }

    /// There is an answer, but none that others could use: each of them goes alone.
    pub fn not_shared(self) {
        let Member { cache, namespace, digest, flight } = &self.member;
        cache.forget(*namespace, digest, flight);
        flight.end(Outcome::Nothing);
    }

    /// There is no answer. What everybody would hear is told to all who follow at once, and so is
    /// whatever the last of several leaders met; else the next of them tries. Gives the old answer,
    /// if there is one, unless the request itself is to blame.
    pub fn failed(mut self, error: &Error, now: Instant) -> Option<V> {
        let excused = !matches!(error.row().class, Class::Validation | Class::Auth);
        let stale = self.stale.take().filter(|_| excused);
        self.tell(error, stale.is_some(), now);
        stale
    }

    fn tell(&self, error: &Error, stale: bool, now: Instant) {
        let Member { cache, namespace, digest, flight } = &self.member;
        if stale {
            cache.hold_off(*namespace, digest, now);
            cache.stood_in(*namespace);
        }
        let failures = match error.kind() {
            // About this one client, or about us.
            Kind::ClientGone
            | Kind::ClientStalled
            | Kind::RequestTotalTimeout
            | Kind::Draining
            | Kind::Internal => return,
            _ if error.row().class == Class::Validation => FAILURES_MAX,
            _ => flight.failures.fetch_add(1, Relaxed) + 1,
        };
        if failures >= FAILURES_MAX {
            cache.forget(*namespace, digest, flight);
            flight.end(Outcome::Failed(Arc::new(error.again())));
        }
    }
}

impl<V: Clone> Follow<V> {
    pub(super) fn new(member: Member<V>, place: Lease) -> Self {
        Follow { member, _place: place }
    }

    /// What to wait for.
    pub fn permits(&self) -> Arc<Permits> {
        Arc::clone(&self.member.flight.permits)
    }

    /// The wait took too long: this one asks without the cache.
    pub fn gave_up(self) {
        self.member.cache.missed(self.member.namespace);
    }

    /// The wait is over.
    pub fn landed(self, permit: Permit) -> Landed<V> {
        match self.member.flight.outcome.get() {
            Some(Outcome::Answer(value)) => {
                let value = value.clone();
                self.member.cache.coalesced(self.member.namespace);
                Landed::Answer(value)
            }
            Some(Outcome::Failed(error)) => Landed::Failed(error.again()),
            Some(Outcome::Nothing) => {
                self.member.cache.missed(self.member.namespace);
                Landed::Alone
            }
            None => {
                self.member.cache.missed(self.member.namespace);
                Landed::Lead(Lead::new(self.member, Some(permit), None))
            }
        }
    }
}

impl<V> std::fmt::Debug for Lead<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lead(permit: {})", self.permit.is_some())
    }
}

impl<V> std::fmt::Debug for Follow<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Follow")
    }
}
