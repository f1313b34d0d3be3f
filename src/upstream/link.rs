//! A link: what the gateway holds of one upstream over all requests and reloads. Its connections,
//! its permits, its retry budget.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Error, Kind, Result};
use crate::base::events::Events;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Gauge, Limit, Registry, Unit};
use crate::base::permits::Permits;
use crate::config::settings::{BaseUrl, Breaker, Secret, Upstream, UpstreamKind};
use crate::net::outbound::{Origin, Pool, ProxyAddr, Resolver};

use super::adaptive::{Adaptive, Timed};
use super::breaker::{Force, Rules};
use super::breakers::{Breakers, Pass, Unavailable, View};
use super::budget::RetryBudget;
use super::outcome;
use super::rate::{Charge, Rate};

/// One upstream's settings, with what outlives them.
pub struct Link {
    /// The settings now.
    pub settings: Arc<Upstream>,
    /// The bulkhead: `upstream.concurrency_max`, `upstream.waiting_max`.
    pub permits: Arc<Permits>,
    /// Connections; `None` for `echo`.
    pub pool: Option<Arc<Pool>>,
    /// `Authorization`, ready for the wire.
    pub authorization: Option<Secret>,
    /// Its circuit breakers.
    pub breakers: Arc<Breakers>,
    /// Its requests and tokens a minute.
    pub rate: Arc<Rate>,
    /// What is counted of it.
    pub counts: Counts,
    /// `upstream.concurrency_adaptive`.
    adaptive: Arc<Locked<Option<Adaptive>>>,
    budget: Arc<Locked<RetryBudget>>,
    retries: Arc<Counter>,
    retries_refused: Arc<Counter>,
    retries_left: Arc<Gauge>,
}

/// What is counted of an upstream. The counters of every request are looked up once.
pub struct Counts {
    registry: Arc<Registry>,
    upstream: String,
    answered: Arc<Counter>,
    /// Input and output tokens, as the upstream told them.
    tokens: [Arc<Counter>; 2],
    /// `upstream.stream_line_max`.
    line: Arc<Limit>,
    /// `upstream.answer_max`.
    answer: Arc<Limit>,
    cost: Arc<Counter>,
    /// What is less than the unit of `cost`, summed until it is more.
    cost_parts: AtomicU64,
    unpriced: Arc<Counter>,
}

const ATTEMPTS: (&str, &str) = (
    "tidegate_upstream_attempts_total",
    "Attempts at upstreams, by outcome (ok, or an error's code).",
);
const TOKENS: (&str, &str) = (
    "tidegate_tokens_total",
    "Tokens, as upstreams report them; estimated ones for streams that were cut.",
);

const COST: (&str, &str) = (
    "tidegate_cost_micro_total",
    "Cost of tokens whose price is known, in millionths of usage.currency.",
);
const UNPRICED: (&str, &str) = (
    "tidegate_usage_missing_price_total",
    "Answers with tokens whose price is not known; what they cost is missing in the cost.",
);
/// Costs come in as millionths of a millionth.
const COST_PARTS: u64 = 1_000_000;

impl Counts {
    fn new(registry: &Arc<Registry>, settings: &Upstream) -> Self {
        let upstream = &*settings.name;
        let each = |name, max: usize, consequence| {
            registry.limit_each(Unit::Bytes, name, upstream, max as u64, consequence)
        };
        let labels = [("upstream", upstream), ("outcome", "ok")];
        let answered = registry.counter(ATTEMPTS.0, ATTEMPTS.1, &labels);
        let tokens =
            ["input", "output"].map(|direction| tokens(registry, upstream, direction, "false"));
        let labels = [("upstream", upstream)];
        Counts {
            registry: Arc::clone(registry),
            upstream: upstream.to_owned(),
            answered,
            tokens,
            line: each(
                "upstream.stream_line_max",
                settings.stream_line_max,
                "next in chain, else an in-band error",
            ),
            answer: each("upstream.answer_max", settings.answer_max, "next in chain, else 502"),
            cost: registry.counter(COST.0, COST.1, &labels),
            cost_parts: AtomicU64::new(0),
            unpriced: registry.counter(UNPRICED.0, UNPRICED.1, &labels),
        }
    }

    /// An attempt gave an answer.
    pub fn answered(&self) {
        self.answered.inc();
    }

    /// An attempt failed.
    pub fn failed(&self, code: &'static str) {
        if code == Kind::UpstreamLineTooLong.row().code {
            self.line.refuse();
        }
        let labels = [("upstream", &*self.upstream), ("outcome", code)];
        self.registry.counter(ATTEMPTS.0, ATTEMPTS.1, &labels).inc();
    }

    /// The longest event of a stream had so many bytes.
    pub fn line(&self, bytes: usize) {
        self.line.saw(bytes as u64);
    }

    /// A whole answer had so many bytes.
    pub fn answer(&self, bytes: usize) {
        self.answer.saw(bytes as u64);
    }

    /// A whole answer was too large.
    pub fn answer_too_large(&self) {
        self.answer.refuse();
    }

    /// What the tokens of an answer cost, in millionths of a millionth of the currency; `None` when
    /// that is not known.
    pub fn cost(&self, cost: Option<u128>) {
        let Some(cost) = cost else { return self.unpriced.inc() };
        let parts = u128::from(COST_PARTS);
        let whole = u64::try_from(cost / parts).unwrap_or(u64::MAX);
        let rest = u64::try_from(cost % parts).unwrap_or_default();
        let before = self.cost_parts.fetch_add(rest, Relaxed);
        let carried = before.wrapping_add(rest) / COST_PARTS - before / COST_PARTS;
        self.cost.add(whole.saturating_add(carried));
    }

    /// Tokens of an answer; `estimated` when the upstream did not tell them.
    pub fn tokens(&self, input: u64, output: u64, estimated: bool) {
        if estimated {
            tokens(&self.registry, &self.upstream, "input", "true").add(input);
            tokens(&self.registry, &self.upstream, "output", "true").add(output);
        } else {
            self.tokens[0].add(input);
            self.tokens[1].add(output);
        }
    }
}

fn tokens(registry: &Registry, upstream: &str, direction: &str, estimated: &str) -> Arc<Counter> {
    let labels = [("upstream", upstream), ("direction", direction), ("estimated", estimated)];
    registry.counter(TOKENS.0, TOKENS.1, &labels)
}

impl Link {
    /// Counts a request for the retry budget.
    pub fn count_request(&self) {
        let now = clock::now();
        self.budget.with(|budget| budget.request(now));
    }

    /// Whether there is a connection that could be used at once.
    pub fn has_idle(&self) -> bool {
        self.pool.as_ref().is_some_and(|pool| pool.idle() > 0)
    }

    /// Takes one retry from the budget, when it has one.
    pub fn may_retry(&self) -> bool {
        let now = clock::now();
        let (may, left) = self.budget.with(|budget| (budget.try_retry(now), budget.left(now)));
        self.retries_left.set(u64::from(left));
        if may {
            self.retries.inc()
        } else {
            self.retries_refused.inc()
        }
        may
    }

    /// Reserves a request of about so many tokens, to be made at most `longest` from now; with it
    /// comes its moment when that is later than now.
    ///
    /// # Errors
    /// When there is no room before.
    pub fn reserve(
        &self,
        tokens: u64,
        longest: Duration,
    ) -> std::result::Result<(Charge, Option<Instant>), Unavailable> {
        let Upstream { name, requests_per_minute, tokens_per_minute, .. } = &*self.settings;
        if *requests_per_minute == 0 && *tokens_per_minute == 0 {
            return Ok((Charge::free(), None));
        }
        let reserved = self.rate.reserve(tokens, clock::now(), longest);
        reserved.map_err(|when| Unavailable::over_quota(name, when))
    }

    /// An attempt ended well.
    pub fn answered(&self, pass: Pass, timed: Timed) {
        self.counts.answered();
        let now = clock::now();
        let in_flight = self.permits.held();
        self.adapt(|adaptive| adaptive.answered(timed, pass.latency(now), in_flight, now));
        pass.answered(now);
    }

    /// An attempt failed. When the time that ran out is the request's own, it counts only if the
    /// attempt had `fair_after` of it.
    pub fn failed(&self, pass: Pass, error: &Error, fair_after: Duration) {
        self.counts.failed(error.row().code);
        let now = clock::now();
        let fair = now.saturating_duration_since(pass.begun()) >= fair_after;
        if outcome::overloaded(error, fair) {
            self.adapt(|adaptive| adaptive.overloaded(now));
        }
        pass.failed(error, fair, now);
    }

    fn adapt(&self, step: impl FnOnce(&mut Adaptive) -> Option<u64>) {
        if self.settings.concurrency_adaptive
            && let Some(limit) = self.adaptive.with(|adaptive| adaptive.as_mut().and_then(step))
        {
            self.permits.set_max(limit);
        }
    }

    /// Puts its settings in force.
    fn adopt(&self) {
        let now = clock::now();
        let settings = &self.settings;
        let (min, max) = (settings.concurrency_min, settings.concurrency_max);
        let limit = self.adaptive.with(|adaptive| {
            if !settings.concurrency_adaptive {
                *adaptive = None;
                return max as u64;
            }
            let adaptive = adaptive.get_or_insert_with(|| Adaptive::new(min, max, now));
            adaptive.set_bounds(min, max);
            adaptive.limit()
        });
        self.permits.waiting().set_max(settings.waiting_max as u64);
        self.permits.set_max(limit);
        self.counts.line.set_max(settings.stream_line_max as u64);
        self.counts.answer.set_max(settings.answer_max as u64);
        self.breakers.reconfigure(rules(settings), settings.cooldown_max, now);
        self.rate.reconfigure(settings.requests_per_minute, settings.tokens_per_minute);
        if let Some(pool) = &self.pool {
            pool.show_max();
        }
    }
}

/// All links there are, over reloads.
pub struct Links {
    registry: Arc<Registry>,
    events: Arc<Events>,
    resolver: Arc<Resolver>,
    known: Locked<HashMap<String, Arc<Link>>>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Links")
    }
}

impl Links {
    /// None yet.
    pub fn new(registry: Arc<Registry>, events: Arc<Events>, resolver: Arc<Resolver>) -> Self {
        let known = Locked::new(Rank::Catalog, HashMap::new());
        Links { registry, events, resolver, known }
    }

    /// The links of a configuration, bounded by it. A link whose address, proxy and roots did not
    /// change has the connections, permits and budget of the one there was. Nothing changes until
    /// they are taken over with [`Links::adopt`].
    ///
    /// # Errors
    /// When an upstream's CA file cannot be used.
    pub fn build(&self, upstreams: &[Arc<Upstream>]) -> Result<HashMap<String, Arc<Link>>> {
        let known = self.known.with(|known| known.clone());
        let mut links = HashMap::with_capacity(upstreams.len());
        for settings in upstreams {
            let old = known.get(&settings.name);
            links.insert(settings.name.clone(), Arc::new(self.link(settings, old)?));
        }
        Ok(links)
    }

    /// Makes these the links there are, with their bounds, now that nothing can fail any more.
    pub fn adopt(&self, links: &HashMap<String, Arc<Link>>) {
        for link in links.values() {
            link.adopt();
        }
        let replaced = self.known.with(|known| std::mem::replace(known, links.clone()));
        // Closes connections of links that are gone, outside the lock.
        drop(replaced);
    }

    /// Closes connections that were idle for long, and forgets breakers that nobody needs.
    pub fn sweep(&self) {
        let now = clock::now();
        let known: Vec<_> = self.known.with(|known| known.values().cloned().collect());
        for link in &known {
            if let Some(pool) = &link.pool {
                pool.sweep(now);
            }
            link.breakers.sweep(now);
            let left = link.budget.with(|budget| budget.left(now));
            link.retries_left.set(u64::from(left));
        }
    }

    /// Every breaker, by upstream and model.
    pub fn breakers(&self) -> Vec<View> {
        let now = clock::now();
        let known: Vec<_> = self.known.with(|known| known.values().cloned().collect());
        let mut list: Vec<_> = known.iter().flat_map(|link| link.breakers.list(now)).collect();
        list.sort_by(|a, b| (&a.upstream, &a.model).cmp(&(&b.upstream, &b.model)));
        list
    }

    /// Closes every idle connection.
    pub fn close_idle(&self) {
        let known: Vec<_> = self.known.with(|known| known.values().cloned().collect());
        known.iter().filter_map(|link| link.pool.as_ref()).for_each(|pool| pool.close_idle());
    }

    /// Sets a breaker by hand, for so long where that is said: of a model, or without one of the
    /// upstream's address.
    ///
    /// # Errors
    /// When there is no such upstream, or no breaker of it.
    pub fn force(
        &self,
        upstream: &str,
        model: Option<&str>,
        force: Force,
        lasting: Option<Duration>,
    ) -> Result<()> {
        let link = self.named(upstream)?;
        let now = clock::now();
        let until = lasting.map(|lasting| now + lasting);
        if link.breakers.force(model, force, until, now) {
            return Ok(());
        }
        let what = format!("upstream {upstream} has no breaker for that; drain it instead");
        Err(Error::new(Kind::Unsupported, what))
    }

    /// Sends nobody to an upstream any more, or does again.
    ///
    /// # Errors
    /// When there is no such upstream.
    pub fn drain(&self, upstream: &str, drained: bool) -> Result<()> {
        self.named(upstream)?.breakers.drain(drained);
        Ok(())
    }

    /// The upstreams that nobody is sent to, by name.
    pub fn drained(&self) -> Vec<String> {
        let known: Vec<_> = self.known.with(|known| known.values().cloned().collect());
        let drained = known.iter().filter(|link| link.breakers.drained());
        let mut names: Vec<String> = drained.map(|link| link.settings.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// How many calls each upstream has now, by name.
    pub fn running(&self) -> Vec<(String, u64)> {
        let known: Vec<_> = self.known.with(|known| known.values().cloned().collect());
        let held = |link: &Arc<Link>| (link.settings.name.clone(), link.permits.held());
        let mut all: Vec<_> = known.iter().map(held).collect();
        all.sort_unstable();
        all
    }

    fn named(&self, upstream: &str) -> Result<Arc<Link>> {
        let found = self.known.with(|known| {
            known.get(upstream).cloned().ok_or_else(|| {
                let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
                names.sort_unstable();
                names.join(", ")
            })
        });
        found.map_err(|names| {
            let what = format!("there is no upstream {upstream:?}; there are {names}");
            Error::new(Kind::NotFound, what)
        })
    }

    fn link(&self, settings: &Arc<Upstream>, old: Option<&Arc<Link>>) -> Result<Link> {
        let name = settings.name.as_str();
        let same_place = |old: &&Arc<Link>| origin(&old.settings) == origin(settings);
        let pool = match (origin(settings), old.filter(same_place)) {
            (None, _) => None,
            (Some(_), Some(old)) => old.pool.clone(),
            (Some(origin), None) => {
                Some(Arc::new(Pool::new(&origin, Arc::clone(&self.resolver), &self.registry)?))
            }
        };
        let permits = old.map_or_else(|| self.permits(settings), |old| Arc::clone(&old.permits));
        let budget = old.map_or_else(
            || Arc::new(Locked::new(Rank::Guard, RetryBudget::new(clock::now()))),
            |old| Arc::clone(&old.budget),
        );
        let breakers = old.filter(same_place).map_or_else(
            || {
                // Different in each process, so that gateways side by side do not probe in step.
                let seed = RandomState::new().hash_one(name);
                Breakers::new(name, &self.registry, &self.events, seed, clock::now())
            },
            |old| Arc::clone(&old.breakers),
        );
        // What a person decided about an upstream holds wherever it moves.
        breakers.drain(old.is_some_and(|old| old.breakers.drained()));
        let rate = old.map_or_else(|| Rate::new(name, &self.registry), |old| Arc::clone(&old.rate));
        let adaptive = old.map_or_else(
            || Arc::new(Locked::new(Rank::Guard, None)),
            |old| Arc::clone(&old.adaptive),
        );
        let counter = |metric, help| self.registry.counter(metric, help, &[("upstream", name)]);
        let retries = counter(
            "tidegate_upstream_retries_total",
            "Requests sent again, because a pooled connection was stale or a fresh one failed.",
        );
        let retries_refused = counter(
            "tidegate_upstream_retries_refused_total",
            "Requests that were not sent again because the retry budget was used up.",
        );
        let retries_left = self.registry.gauge(
            "tidegate_upstream_retries_left",
            "Retries that the retry budget has left.",
            &[("upstream", name)],
        );
        let bearer = |key: &Secret| Secret::new(format!("Bearer {}", key.expose()));
        Ok(Link {
            settings: Arc::clone(settings),
            permits,
            pool,
            authorization: settings.key.as_ref().map(bearer),
            breakers,
            rate,
            adaptive,
            counts: Counts::new(&self.registry, settings),
            budget,
            retries,
            retries_refused,
            retries_left,
        })
    }

    fn permits(&self, settings: &Upstream) -> Arc<Permits> {
        let limit = |name, max: usize, consequence| {
            self.registry.limit(name, &settings.name, max as u64, consequence)
        };
        Permits::new(
            limit("upstream.concurrency_max", settings.concurrency_max, "wait as data"),
            limit("upstream.waiting_max", settings.waiting_max, "next in chain, else 503"),
        )
    }
}

/// The rules of an upstream's breakers; `None` when it has none. `echo` cannot fail.
fn rules(settings: &Upstream) -> Option<Rules> {
    let Breaker {
        failure_percent,
        calls_min,
        failures_max,
        slow_call,
        slow_percent,
        open_time,
        open_time_max,
        probes,
    } = settings.breaker.filter(|_| settings.kind != UpstreamKind::Echo)?;
    Some(Rules {
        failure_percent,
        calls_min,
        failures_max,
        slow_call,
        slow_percent,
        open_time,
        open_time_max,
        probes,
    })
}

/// Where an upstream is; `None` for `echo`.
pub fn origin(settings: &Upstream) -> Option<Origin> {
    let url = settings.url.as_ref()?;
    let proxy = |proxy: &BaseUrl| ProxyAddr {
        host: proxy.host.clone(),
        port: proxy.port,
        authorization: None,
    };
    Some(Origin {
        name: settings.name.clone(),
        tls: url.tls,
        host: url.host.clone(),
        port: url.port,
        ca_file: settings.ca_file.clone(),
        ca_digest: settings.ca_digest,
        proxy: settings.proxy.as_ref().map(proxy),
        idle_max: settings.concurrency_max,
    })
}
