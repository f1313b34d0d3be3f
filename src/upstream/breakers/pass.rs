//! The right to one call, from the breakers of its upstream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Breakers;
use crate::base::error::Error;
use crate::upstream::breaker::{Ticket, Verdict};
use crate::upstream::outcome::{self, Outcome};

/// The right to one call. Dropped without a verdict it says nothing about the upstream.
pub struct Pass {
    pub(super) breakers: Option<Arc<Breakers>>,
    pub(super) address: Option<Ticket>,
    pub(super) model: Option<(Arc<str>, Ticket)>,
    begun: Instant,
    flows_at: Option<Instant>,
}

impl Pass {
    /// One that no breaker gave.
    pub fn free(now: Instant) -> Self {
        Pass { breakers: None, address: None, model: None, begun: now, flows_at: None }
    }

    /// Whether this call decides for all others.
    pub fn is_probe(&self) -> bool {
        let model = self.model.as_ref().map(|(_, ticket)| ticket);
        self.address.as_ref().is_some_and(Ticket::is_probe) || model.is_some_and(Ticket::is_probe)
    }

    /// The call itself begins: what was waited for before is not the upstream's.
    pub fn begins(&mut self, now: Instant) {
        self.begun = now;
    }

    /// When the call began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// There is a new connection to the upstream. That is all that a probe of its address has to show:
    /// what comes of the call is its model's, and may take minutes, in which every model of the
    /// upstream would be left alone.
    pub fn connected(&mut self, now: Instant) {
        let Some(breakers) = &self.breakers else { return };
        let Some(ticket) = self.address.take_if(|ticket| ticket.is_probe()) else { return };
        let told = breakers.inner.with(|inner| {
            let change = inner.address.breaker.settle(ticket, Verdict::Alive, now);
            inner.address.told(None, change)
        });
        breakers.tell([told, None]);
    }

    /// The first content of the answer is out.
    pub fn flows(&mut self, now: Instant) {
        self.flows_at.get_or_insert(now);
        let Some(breakers) = &self.breakers else { return };
        breakers.inner.with(|inner| {
            if let Some(ticket) = &mut self.address {
                inner.address.breaker.flows(ticket, now);
            }
            if let Some((model, ticket)) = &mut self.model
                && let Some(entry) = inner.models.get_mut(model)
            {
                entry.breaker.flows(ticket, now);
            }
        });
    }

    /// From the call's beginning to its first content; to its end where none flowed.
    pub fn latency(&self, now: Instant) -> Duration {
        self.flows_at.unwrap_or(now).saturating_duration_since(self.begun)
    }

    /// The call ended well.
    pub fn answered(self, now: Instant) {
        self.settle(Outcome::Good, None, now);
    }

    /// The call ended with this error. `fair` as in [`outcome::of_error`].
    pub fn failed(self, error: &Error, fair: bool, now: Instant) {
        self.settle(outcome::of_error(error, fair), Some(error), now);
    }

    fn settle(mut self, outcome: Outcome, error: Option<&Error>, now: Instant) {
        let took = self.latency(now);
        self.finish(outcome, error, took, now);
    }

    fn finish(&mut self, outcome: Outcome, error: Option<&Error>, took: Duration, now: Instant) {
        let Some(breakers) = self.breakers.take() else { return };
        let (address, model) = verdicts(outcome, took);
        let (address_ticket, model_ticket) = (self.address.take(), self.model.take());
        let told = breakers.inner.with(|inner| {
            let mut told = [None, None];
            if let Some(ticket) = address_ticket {
                if let (Verdict::Failed, Some(error)) = (address, error) {
                    inner.address.failed(error, now);
                }
                let change = inner.address.breaker.settle(ticket, address, now);
                told[0] = inner.address.told(None, change);
            }
            let cooldown_max = inner.cooldown_max;
            if let Some((name, ticket)) = model_ticket
                && let Some(entry) = inner.models.get_mut(&name)
            {
                if let Some(error) = error {
                    let cool = outcome::cool_down(error, cooldown_max);
                    if model == Verdict::Failed || cool.is_some() {
                        entry.failed(error, now);
                    }
                    if let Some(wait) = cool {
                        entry.breaker.cool_down(now + wait);
                    }
                }
                let change = entry.breaker.settle(ticket, model, now);
                told[1] = entry.told(Some(&name), change);
            }
            told
        });
        breakers.tell(told);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.breakers.is_some() {
            self.finish(Outcome::Nothing, None, Duration::ZERO, self.begun);
        }
    }
}

/// What an outcome says to the breaker of the address, and to the model's.
fn verdicts(outcome: Outcome, took: Duration) -> (Verdict, Verdict) {
    match outcome {
        Outcome::Good => (Verdict::Alive, Verdict::Good(took)),
        Outcome::Alive => (Verdict::Alive, Verdict::Alive),
        // Whoever fails is there.
        Outcome::Failed => (Verdict::Alive, Verdict::Failed),
        Outcome::Unreachable => (Verdict::Failed, Verdict::Nothing),
        Outcome::Nothing => (Verdict::Nothing, Verdict::Nothing),
    }
}
