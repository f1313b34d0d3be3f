//! Limits on what clients may ask for: requests and tokens a minute, for all of them together, for
//! each address and for each key, over every route or one kind of them.
//!
//! A request has to be within every limit that covers it. All are asked first and then charged; when
//! one of them ran out in between, because of another thread, what was charged is given back. So a
//! refused request costs nothing, and no limit ever admits more than it says.
//!
//! Requests are charged when their head is complete, before a body is taken. Tokens are charged by
//! estimate once the body is read, and settled when the [`Bill`] is dropped, however the request ends.

mod bill;
mod fields;
mod rule;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::error::{Error, Kind};
use crate::base::gcra::{Gcra, Verdict};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Limit, Registry};
use crate::config::settings::{Config, Key, OWN_LIMIT, Per, Routes};

use super::table::{Fades, Table};

pub use bill::Bill;
pub use fields::Fields;

use rule::{Bound, Place, Rule};

/// What is used of one limit by one client, or by all that share it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    requests: Gcra,
    tokens: Gcra,
}

impl Fades for Bucket {
    fn faded(&self, now: Instant) -> bool {
        self.requests.idle(now) && self.tokens.idle(now)
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Requests.
    Requests,
    /// Tokens of prompts and answers.
    Tokens,
}

impl What {
    /// The word in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            What::Requests => "requests",
            What::Tokens => "tokens",
        }
    }
}

/// Who asks, and what for.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// The name of the key that was shown.
    pub key: Option<&'a str>,
    /// The client's address, as [`super::client::address`] has it.
    pub address: IpAddr,
    /// The kind of route.
    pub routes: Routes,
}

/// An address under a limit. Limits have numbers, since their names are long.
type AddressKey = (IpAddr, u32);

/// What is used, over all reloads. One for the process.
pub struct Rates {
    registry: Arc<Registry>,
    addresses: Arc<Table<AddressKey, Bucket>>,
    /// Bounded by the configuration: what it no longer names is dropped when it is taken over.
    kept: Locked<Kept>,
}

/// How many addresses are remembered.
fn room(registry: &Registry, addresses_max: usize) -> Arc<Limit> {
    let consequence = "the address that asked longest ago is forgotten";
    registry.limit("server.addresses_max", "rates", addresses_max as u64, consequence)
}

/// What belongs to limits and keys by their names.
#[derive(Clone, Default)]
struct Kept {
    /// By limit and key; the key is empty for what all share.
    buckets: HashMap<(String, String), Arc<Locked<Bucket>>>,
    numbers: HashMap<String, u32>,
    last: u32,
}

impl Rates {
    /// Nothing used yet, room for `addresses_max` addresses.
    pub fn new(registry: &Arc<Registry>, addresses_max: usize) -> Self {
        Rates {
            addresses: Arc::new(Table::new(room(registry, addresses_max))),
            registry: Arc::clone(registry),
            kept: Locked::new(Rank::Guard, Kept::default()),
        }
    }

    /// The limits of a configuration. What is used stays used, by the names of limits and keys.
    pub fn plan(&self, config: &Config) -> Arc<Plan> {
        let mut plan = Plan::default();
        let Kept { buckets: old_buckets, numbers: old_numbers, last } =
            self.kept.with(|old| old.clone());
        let mut kept = Kept { last, ..Kept::default() };
        let mut bucket = |limit: &str, key: &str| {
            let name = (limit.to_owned(), key.to_owned());
            let fresh = || Arc::new(Locked::new(Rank::Guard, Bucket::default()));
            let bucket = old_buckets.get(&name).cloned().unwrap_or_else(fresh);
            kept.buckets.insert(name, Arc::clone(&bucket));
            bucket
        };
        let rule = |name: &str, routes, requests, tokens| {
            Arc::new(Rule::new(name, routes, requests, tokens, &self.registry))
        };
        let mut per_key = Vec::new();
        for limit in &config.limits {
            let rule = rule(&limit.name, limit.routes, limit.requests, limit.tokens);
            match limit.per {
                Per::All => {
                    let place = Place::Here(bucket(&limit.name, ""));
                    plan.shared.push(Bound { rule, place });
                }
                Per::Address => {
                    let number = old_numbers.get(&limit.name).copied().unwrap_or_else(|| {
                        kept.last = kept.last.wrapping_add(1);
                        kept.last
                    });
                    kept.numbers.insert(limit.name.clone(), number);
                    let place = Place::Addresses(Arc::clone(&self.addresses), number);
                    plan.shared.push(Bound { rule, place });
                }
                Per::Key => per_key.push(rule),
            }
        }
        for Key { name, requests, tokens, .. } in &config.keys {
            let mut bounds = Vec::new();
            if requests.is_some() || tokens.is_some() {
                let rule = rule(OWN_LIMIT, None, *requests, *tokens);
                bounds.push(Bound { rule, place: Place::Here(bucket(OWN_LIMIT, name)) });
            }
            for rule in &per_key {
                let place = Place::Here(bucket(&rule.name, name));
                bounds.push(Bound { rule: Arc::clone(rule), place });
            }
            if !bounds.is_empty() {
                plan.keys.insert(name.clone(), bounds);
            }
        }
        plan.kept = kept;
        Arc::new(plan)
    }

    /// A plan comes into force: what belongs to no limit and no key of it is forgotten.
    pub fn adopt(&self, plan: &Plan, addresses_max: usize) {
        let kept = plan.kept.clone();
        let old = self.kept.with(|old| std::mem::replace(old, kept));
        // Freed here, outside the lock.
        drop(old);
        room(&self.registry, addresses_max);
    }

    /// Forgets addresses whose limits are whole again. To be called now and then.
    pub fn sweep(&self, now: Instant) {
        self.addresses.sweep(now);
    }
}

/// The limits of one configuration.
#[derive(Default)]
pub struct Plan {
    /// For all, and for each address.
    shared: Vec<Bound>,
    /// For each key, by its name.
    keys: HashMap<String, Vec<Bound>>,
    kept: Kept,
}

impl Plan {
    /// Whether there is no limit at all.
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.keys.is_empty()
    }

    /// Charges one request to every limit that covers it, or to none.
    ///
    /// # Errors
    /// [`Kind::RateLimited`].
    pub fn request(&self, who: &Who<'_>, now: Instant) -> Result<(), Error> {
        self.charge(who, now, What::Requests, 1)
    }

    /// Charges tokens by estimate; the bill settles them. `None` when no limit covers them.
    ///
    /// # Errors
    /// [`Kind::RateLimited`]; [`Kind::TokensAboveLimit`] when no wait would help.
    pub fn tokens(
        self: &Arc<Self>,
        who: &Who<'_>,
        now: Instant,
        estimate: u64,
    ) -> Result<Option<Bill>, Error> {
        if self.is_empty() || self.covering(who).find(|b| b.limits(What::Tokens)).is_none() {
            return Ok(None);
        }
        self.charge(who, now, What::Tokens, estimate)?;
        Ok(Some(Bill::new(Arc::clone(self), who, estimate)))
    }

    fn charge(&self, who: &Who<'_>, now: Instant, what: What, amount: u64) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let covering = self.covering(who).filter(|bound| bound.limits(what));
        // One limit alone needs no question before its charge.
        if covering.clone().nth(1).is_some() {
            for bound in covering.clone() {
                let verdict = bound.check(who.address, now, what, amount);
                if !verdict.allowed() {
                    return Err(bound.rule.refusal(what, amount, verdict));
                }
            }
        }
        for (index, bound) in covering.clone().enumerate() {
            let verdict = bound.charge(who.address, now, what, amount);
            if !verdict.allowed() {
                for charged in covering.take(index) {
                    charged.credit(who.address, now, what, amount);
                }
                return Err(bound.rule.refusal(what, amount, verdict));
            }
        }
        Ok(())
    }

    /// The limits that cover a request.
    fn covering<'a>(&'a self, who: &Who<'_>) -> impl Iterator<Item = &'a Bound> + Clone {
        let own = match who.key {
            Some(key) if !self.keys.is_empty() => self.keys.get(key),
            _ => None,
        };
        let routes = who.routes;
        let all = self.shared.iter().chain(own.into_iter().flatten());
        all.filter(move |bound| bound.rule.covers(routes))
    }
}

/// When a refusal says to come again.
fn wait(verdict: Verdict) -> Option<Duration> {
    match verdict {
        Verdict::Limited { wait } => Some(wait),
        Verdict::Allowed | Verdict::Never => None,
    }
}

/// The refusal of what is above a limit.
fn refusal(rule: &Rule, what: What, amount: u64, verdict: Verdict) -> Error {
    let (name, unit) = (&rule.name, what.as_str());
    let quota = rule.quota(what);
    let (count, burst) = quota.map_or((0, 0), |quota| (quota.count(), quota.burst()));
    match (verdict, wait(verdict)) {
        (Verdict::Never, _) => {
            let context = format!(
                "this request is estimated at {amount} {unit}, and the limit {name:?} lets \
                 {burst} through at once; shorten the prompt or lower max_tokens"
            );
            Error::new(Kind::TokensAboveLimit, context)
        }
        (_, wait) => {
            let seconds = wait.unwrap_or_default().as_secs_f64();
            let context = format!(
                "the limit {name:?} of {count} {unit} a minute is used up; \
                 try again in {seconds:.1} s"
            );
            Error::new(Kind::RateLimited, context).retry_after(wait)
        }
    }
}
