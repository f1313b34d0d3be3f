//! What is summed of requests.

use super::{Charge, Entry, Outcome};

/// Millionths of a millionth in a millionth: costs are summed finer than they are shown, so that a
/// thousand small requests do not all round to nothing.
const PARTS: u128 = 1_000_000;

/// Sums over requests. Every one of them only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Requests for which an upstream was looked for.
    pub requests: u64,
    /// Those that nobody answered.
    pub failed: u64,
    /// Those that were cut after their first content.
    pub cut: u64,
    /// Those whose client left.
    pub cancelled: u64,
    /// Those that were answered from the gateway's own cache.
    pub replayed: u64,
    /// Answers whose tokens are estimates, in whole or in part.
    pub estimated: u64,
    /// Tokens of prompts.
    pub input: u64,
    /// Tokens of answers.
    pub output: u64,
    /// Tokens of prompts that upstreams had in their caches; part of `input`.
    pub cached: u64,
    /// Answers with a known price.
    pub priced: u64,
    /// Answers with tokens and without a known price. What they cost is not in `cost`.
    pub unpriced: u64,
    /// In millionths of a millionth of the currency.
    pub cost: u128,
}

impl Sums {
    /// One request, without what was spent at upstreams that did not answer.
    pub fn of(entry: &Entry) -> Sums {
        let one = u64::from;
        let mut sums = Sums {
            requests: 1,
            failed: one(entry.outcome == Outcome::Failed),
            cut: one(entry.outcome == Outcome::Cut),
            cancelled: one(entry.outcome == Outcome::Cancelled),
            replayed: one(entry.replayed),
            ..Sums::default()
        };
        if let Some(charge) = &entry.charge {
            sums.charge(charge);
        }
        sums
    }

    /// Adds tokens and their cost.
    pub fn charge(&mut self, charge: &Charge) {
        let Charge { usage, cost } = charge;
        if usage.input == 0 && usage.output == 0 {
            return;
        }
        self.add(&Sums {
            input: usage.input,
            output: usage.output,
            cached: usage.cached,
            estimated: u64::from(usage.estimated),
            priced: u64::from(cost.is_some()),
            unpriced: u64::from(cost.is_none()),
            cost: cost.unwrap_or_default(),
            ..Sums::default()
        });
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &Sums) {
        let pairs = [
            (&mut self.requests, other.requests),
            (&mut self.failed, other.failed),
            (&mut self.cut, other.cut),
            (&mut self.cancelled, other.cancelled),
            (&mut self.replayed, other.replayed),
            (&mut self.estimated, other.estimated),
            (&mut self.input, other.input),
            (&mut self.output, other.output),
            (&mut self.cached, other.cached),
            (&mut self.priced, other.priced),
            (&mut self.unpriced, other.unpriced),
        ];
        for (sum, more) in pairs {
            *sum = sum.saturating_add(more);
        }
        self.cost = self.cost.saturating_add(other.cost);
    }

    /// What is known of the cost, in millionths of the currency, rounded to the nearest. `None` when
    /// nothing is: tokens whose price nobody said did not cost nothing.
    pub fn cost_micros(&self) -> Option<u64> {
        if self.priced == 0 && self.unpriced > 0 {
            return None;
        }
        let micros = (self.cost + PARTS / 2) / PARTS;
        Some(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}
