//! What an upstream may be asked for in a minute: requests and tokens. A request that comes too early
//! waits for its moment as data, one behind the other, or the chain goes on.
//!
//! The moment is reserved when the request comes, so the order is that of coming. Tokens are charged by
//! estimate and settled by what the answer used. A tenth of a minute's count may be used at once: an
//! upstream that counts in windows of its own would see two minutes' counts in one otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::gcra::{Gcra, Quota};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Limit, Registry};
use crate::base::permits::Permits;

/// Of a minute's count, the part that may be used at once.
const BURST_PART: u64 = 10;

/// Requests that wait for their moment at one upstream.
const WAITING_MAX: u64 = 1024;

/// The limits of one upstream.
pub struct Rate {
    inner: Locked<Inner>,
    /// Those who wait. No permit is ever given: they wait until their moment.
    queue: Arc<Permits>,
    waits: Arc<Counter>,
    limited: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: Bucket,
    tokens: Bucket,
}

#[derive(Debug, Default)]
struct Bucket {
    quota: Option<Quota>,
    state: Gcra,
}

impl Bucket {
    fn set(&mut self, per_minute: u64) {
        let quota = Quota::per_minute(per_minute, Some((per_minute / BURST_PART).max(1)));
        if self.quota != quota {
            *self = Bucket { quota, state: Gcra::default() };
        }
    }

    fn reserve(&mut self, now: Instant, n: u64, longest: Duration) -> Result<Duration, Duration> {
        match &self.quota {
            Some(quota) if n > 0 => self.state.reserve(quota, now, n, longest),
            _ => Ok(Duration::ZERO),
        }
    }

    fn credit(&mut self, now: Instant, n: u64) {
        if let Some(quota) = &self.quota {
            self.state.credit(quota, now, n);
        }
    }

    fn debit(&mut self, now: Instant, n: u64) {
        if let Some(quota) = &self.quota {
            self.state.debit(quota, now, n);
        }
    }
}

impl Rate {
    /// Without limits.
    pub fn new(upstream: &str, registry: &Registry) -> Arc<Self> {
        let consequence = "next in chain, else 503";
        let waiting =
            registry.limit("upstream.rate_waiting_max", upstream, WAITING_MAX, consequence);
        let counter = |name, help| registry.counter(name, help, &[("upstream", upstream)]);
        Arc::new(Rate {
            inner: Locked::new(Rank::Guard, Inner::default()),
            queue: Permits::new(Limit::detached(0), waiting),
            waits: counter(
                "tidegate_upstream_rate_waits_total",
                "Requests that waited for an upstream's requests_per_minute or tokens_per_minute.",
            ),
            limited: counter(
                "tidegate_upstream_rate_limited_total",
                "Requests that left an upstream out because its moment would have come too late.",
            ),
        })
    }

    /// Other settings; zero: no limit. One that did not change keeps its state.
    pub fn reconfigure(&self, requests_per_minute: u64, tokens_per_minute: u64) {
        self.inner.with(|inner| {
            inner.requests.set(requests_per_minute);
            inner.tokens.set(tokens_per_minute);
        });
    }

    /// Reserves a request of about so many tokens, a minute's count at most: what it uses beyond that
    /// is charged when it is known. With it comes when it may be made, at most `longest` from now.
    ///
    /// # Errors
    /// When it could be made, which is later than that. Nothing is reserved.
    pub fn reserve(
        self: &Arc<Self>,
        tokens: u64,
        now: Instant,
        longest: Duration,
    ) -> Result<(Charge, Option<Instant>), Instant> {
        let reserved = self.inner.with(|inner| {
            if inner.requests.quota.is_none() && inner.tokens.quota.is_none() {
                return Ok(None);
            }
            let request = inner.requests.reserve(now, 1, longest)?;
            // What a client lets the model say is only a number. Taken as it stands, one request
            // would take the upstream from everybody else, for as long as it runs.
            let tokens = tokens.min(inner.tokens.quota.map_or(0, |quota| quota.count()));
            match inner.tokens.reserve(now, tokens, longest) {
                Ok(wait) => Ok(Some((wait.max(request), tokens))),
                Err(wait) => {
                    inner.requests.credit(now, 1);
                    Err(wait)
                }
            }
        });
        match reserved {
            Ok(None) => Ok((Charge::free(), None)),
            Ok(Some((wait, tokens))) => {
                let charge = Charge { rate: Some(Arc::clone(self)), requests: 1, tokens };
                let waits = !wait.is_zero();
                if waits {
                    self.waits.inc();
                }
                Ok((charge, waits.then(|| now + wait)))
            }
            Err(wait) => {
                self.limited.inc();
                Err(now + wait)
            }
        }
    }

    /// Where to wait for the moment.
    pub fn queue(&self) -> &Arc<Permits> {
        &self.queue
    }
}

/// What was charged for one request. Dropped before it was used, it is given back. That lets a
/// later one have an earlier moment than the ones who wait already: at no time is more used than
/// the count allows, but for an instant the burst may be passed by those who left.
pub struct Charge {
    rate: Option<Arc<Rate>>,
    /// Given back on drop.
    requests: u64,
    /// Given back on drop.
    tokens: u64,
}

impl Charge {
    /// For an upstream without limits.
    pub fn free() -> Self {
        Charge { rate: None, requests: 0, tokens: 0 }
    }

    /// The request is made. Its tokens are settled by [`Charge::settle`], or given back on drop.
    pub fn used(&mut self) {
        self.requests = 0;
    }

    /// Nobody says what the answer used: the estimate stays charged.
    pub fn keep(&mut self) {
        self.tokens = 0;
    }

    /// The answer used so many tokens.
    pub fn settle(&mut self, tokens: u64) {
        let estimate = std::mem::take(&mut self.tokens);
        let Some(rate) = &self.rate else { return };
        let now = clock::now();
        rate.inner.with(|inner| {
            if tokens >= estimate {
                inner.tokens.debit(now, tokens - estimate);
            } else {
                inner.tokens.credit(now, estimate - tokens);
            }
        });
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Some(rate) = self.rate.take().filter(|_| self.requests + self.tokens > 0) else {
            return;
        };
        let now = clock::now();
        rate.inner.with(|inner| {
            inner.requests.credit(now, self.requests);
            inner.tokens.credit(now, self.tokens);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn rate(requests: u64, tokens: u64) -> Arc<Rate> {
        let rate = Rate::new("up", &Registry::default());
        rate.reconfigure(requests, tokens);
        rate
    }

    /// Reserves and uses; gives the wait.
    fn take(rate: &Arc<Rate>, tokens: u64, now: Instant, longest: Duration) -> Option<Duration> {
        let (mut charge, when) = rate.reserve(tokens, now, longest).ok()?;
        charge.used();
        charge.settle(tokens);
        Some(when.map_or(Duration::ZERO, |when| when - now))
    }

    #[test]
    fn without_limits_nobody_waits() {
        let rate = rate(0, 0);
        let now = clock::now();
        assert!((0..10_000).all(|_| take(&rate, 1 << 40, now, Duration::ZERO).is_some()));
    }

    #[test]
    fn a_tenth_goes_at_once_and_the_others_one_behind_the_other() {
        let rate = rate(60, 0);
        let now = clock::now();
        let waits: Vec<u64> =
            (0..10).filter_map(|_| take(&rate, 0, now, MINUTE)).map(|w| w.as_secs()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        let refused = rate.reserve(0, now, Duration::from_secs(4)).err().unwrap();
        assert_eq!(refused, now + Duration::from_secs(5));
        assert_eq!((rate.waits.value(), rate.limited.value()), (4, 1));
    }

    #[test]
    fn whoever_leaves_gives_its_moment_back() {
        let rate = rate(60, 600);
        for _ in 0..1000 {
            // What is given back is so at the time of the clock.
            let now = clock::now();
            let reserve = || rate.reserve(10, now, Duration::ZERO);
            let held: Vec<_> = (0..6).map(|_| reserve().unwrap()).collect();
            assert!(reserve().is_err());
            drop(held);
        }
    }

    #[test]
    fn tokens_are_settled_by_what_was_used() {
        let rate = rate(0, 600);
        let now = clock::now();
        let (mut charge, _) = rate.reserve(50, now, Duration::ZERO).unwrap();
        charge.used();
        charge.settle(10);
        drop(charge);
        assert_eq!(take(&rate, 50, now, Duration::ZERO), Some(Duration::ZERO), "40 came back");
        let (mut charge, when) = rate.reserve(10, now, MINUTE).unwrap();
        assert!(when.is_some());
        charge.settle(40);
        let wait = take(&rate, 10, now, MINUTE).unwrap();
        assert!(wait >= Duration::from_secs(4), "30 more were used: {wait:?}");
    }

    #[test]
    fn a_request_takes_a_minute_at_most_until_its_use_is_known() {
        let rate = rate(0, 600);
        let now = clock::now();
        let (mut charge, when) = rate.reserve(u64::MAX, now, Duration::ZERO).unwrap();
        assert!(when.is_none());
        charge.used();
        let wait = rate.reserve(10, now, MINUTE).unwrap().1.unwrap() - now;
        assert!(wait <= MINUTE, "{wait:?}");
        charge.settle(1200);
        assert!(rate.reserve(10, now, MINUTE).is_err(), "all that was used counts");
    }

    #[test]
    fn a_refused_token_charge_leaves_the_requests_alone() {
        let rate = rate(10, 10);
        let now = clock::now();
        assert!(take(&rate, 1, now, Duration::ZERO).is_some());
        for _ in 0..100 {
            assert!(rate.reserve(1, now, Duration::from_secs(1)).is_err());
        }
        assert_eq!(
            take(&rate, 1, now + Duration::from_secs(6), Duration::ZERO),
            Some(Duration::ZERO)
        );
    }

    proptest! {
        #[test]
        fn no_minute_holds_more_than_its_count_and_a_tenth(
            per_minute in 1_u64..200,
            gaps in prop::collection::vec(0_u64..5000, 1..300),
        ) {
            let rate = rate(per_minute, 0);
            let mut now = clock::now();
            let mut used = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let Some(wait) = take(&rate, 0, now, Duration::from_secs(20)) {
                    used.push(now + wait);
                }
            }
            prop_assert!(used.is_sorted(), "first come, first served");
            let most = per_minute + (per_minute / BURST_PART).max(1);
            for (index, first) in used.iter().enumerate() {
                let within = used[index..].iter().take_while(|at| **at < *first + MINUTE).count();
                prop_assert!(within as u64 <= most, "{} of {}", within, most);
            }
        }
    }
}
