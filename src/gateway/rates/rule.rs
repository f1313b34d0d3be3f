//! One limit, and where what is used of it is kept.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::base::error::Error;
use crate::base::gcra::{Gcra, Level, Quota, Verdict};
use crate::base::lock::Locked;
use crate::base::metrics::{Counter, Registry};
use crate::config::settings::Routes;
use crate::gateway::table::Table;

use super::{AddressKey, Bucket, What};

/// One limit.
pub(super) struct Rule {
    pub(super) name: String,
    routes: Option<Routes>,
    requests: Option<Quota>,
    tokens: Option<Quota>,
    /// The item of `RateLimit-Policy`, for requests and for tokens.
    pub(super) policies: [String; 2],
    /// What the item of `RateLimit` begins with, for requests and for tokens.
    pub(super) items: [String; 2],
    /// The bursts as texts, for requests and for tokens.
    pub(super) bursts: [String; 2],
    refused: [Arc<Counter>; 2],
}

impl Rule {
    pub(super) fn new(
        name: &str,
        routes: Option<Routes>,
        requests: Option<Quota>,
        tokens: Option<Quota>,
        registry: &Registry,
    ) -> Self {
        let refused = |what: What| {
            registry.counter(
                "tidegate_rate_limited_total",
                "Requests refused by a limit, by its name and by what was used up.",
                &[("rate_limit", name), ("what", what.as_str())],
            )
        };
        let policy = |quota: Option<Quota>, suffix: &str, unit: &str| match quota {
            Some(quota) => {
                let (count, seconds) = (quota.count(), quota.period().as_secs());
                format!("\"{name}{suffix}\";q={count};w={seconds}{unit}")
            }
            None => String::new(),
        };
        Rule {
            name: name.to_owned(),
            routes,
            requests,
            tokens,
            policies: [policy(requests, "", ""), policy(tokens, "-tokens", ";qu=\"tokens\"")],
            items: [format!("\"{name}\";r="), format!("\"{name}-tokens\";r=")],
            bursts: [requests, tokens]
                .map(|quota| quota.map_or(String::new(), |quota| quota.burst().to_string())),
            refused: [refused(What::Requests), refused(What::Tokens)],
        }
    }

    pub(super) fn covers(&self, routes: Routes) -> bool {
        self.routes.is_none_or(|own| own == routes)
    }

    pub(super) fn quota(&self, what: What) -> Option<&Quota> {
        match what {
            What::Requests => self.requests.as_ref(),
            What::Tokens => self.tokens.as_ref(),
        }
    }

    /// The error to send, counted.
    pub(super) fn refusal(&self, what: What, amount: u64, verdict: Verdict) -> Error {
        self.refused[what as usize].inc();
        super::refusal(self, what, amount, verdict)
    }
}

/// Where what is used of a limit is kept.
pub(super) enum Place {
    /// All who are meant share it.
    Here(Arc<Locked<Bucket>>),
    /// Each address has its own, under this number.
    Addresses(Arc<Table<AddressKey, Bucket>>, u32),
}

/// A limit and its place.
pub(super) struct Bound {
    pub(super) rule: Arc<Rule>,
    pub(super) place: Place,
}

impl Bound {
    /// Whether it says anything about this.
    pub(super) fn limits(&self, what: What) -> bool {
        self.rule.quota(what).is_some()
    }

    pub(super) fn check(&self, who: IpAddr, now: Instant, what: What, amount: u64) -> Verdict {
        let Some(quota) = self.rule.quota(what) else { return Verdict::Allowed };
        self.bucket(who).of(what).check(quota, now, amount)
    }

    pub(super) fn charge(&self, who: IpAddr, now: Instant, what: What, amount: u64) -> Verdict {
        let charge = |gcra: &mut Gcra, quota: &Quota| gcra.charge(quota, now, amount);
        self.change(who, now, what, charge).unwrap_or(Verdict::Allowed)
    }

    /// Gives back what was not used.
    pub(super) fn credit(&self, who: IpAddr, now: Instant, what: What, amount: u64) {
        self.change(who, now, what, |gcra, quota| gcra.credit(quota, now, amount));
    }

    /// Charges what was used already.
    pub(super) fn debit(&self, who: IpAddr, now: Instant, what: What, amount: u64) {
        self.change(who, now, what, |gcra, quota| gcra.debit(quota, now, amount));
    }

    /// What is used now.
    pub(super) fn bucket(&self, who: IpAddr) -> Bucket {
        match &self.place {
            Place::Here(bucket) => bucket.with(|bucket| *bucket),
            Place::Addresses(table, number) => {
                table.peek(&(who, *number), |bucket| *bucket).unwrap_or_default()
            }
        }
    }

    /// How full the limit is with this in its bucket.
    pub(super) fn level(&self, bucket: &Bucket, now: Instant, what: What) -> Option<Level> {
        Some(bucket.of(what).level(self.rule.quota(what)?, now))
    }

    fn change<R>(
        &self,
        who: IpAddr,
        now: Instant,
        what: What,
        f: impl FnOnce(&mut Gcra, &Quota) -> R,
    ) -> Option<R> {
        let quota = self.rule.quota(what)?;
        let change = |bucket: &mut Bucket| f(bucket.of_mut(what), quota);
        Some(match &self.place {
            Place::Here(bucket) => bucket.with(change),
            Place::Addresses(table, number) => table.with((who, *number), now, change),
        })
    }
}

impl Bucket {
    fn of(&self, what: What) -> &Gcra {
        match what {
            What::Requests => &self.requests,
            What::Tokens => &self.tokens,
        }
    }

    fn of_mut(&mut self, what: What) -> &mut Gcra {
        match what {
            What::Requests => &mut self.requests,
            What::Tokens => &mut self.tokens,
        }
    }
}
