//! The breakers of one upstream: one for its address, fed by failures to connect, and one for each of
//! its models, fed by everything else.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::base::error::Error;
use crate::base::events::Events;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Gauge, Limit, Registry};

use super::breaker::{Breaker, Change, Force, Refused, Rules, Stand, Verdict, Why};
use super::outcome;

mod pass;
#[cfg(test)]
mod tests;
mod view;

pub use pass::Pass;
pub use view::{Cause, Unavailable, View};

/// Models of one upstream that have a breaker of their own. Clients name models, so there is a
/// bound; at it a further one has only the breaker of the upstream's address until there is room.
pub const BREAKERS_MAX: usize = 256;

/// Most bytes of a failure's sentence that are kept.
const CAUSE_BYTES_MAX: usize = 256;

/// A search for breakers that nobody needs is not repeated sooner.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

const STATE: (&str, &str) = (
    "tidegate_upstream_breaker_state",
    "Breakers of declared models, and of each upstream's address (without a model): 0 closed, 1 half-open, 2 open.",
);

/// The breakers of one upstream.
pub struct Breakers {
    upstream: String,
    inner: Locked<Inner>,
    /// Nobody is to be sent here any more; also where breakers are off.
    drained: AtomicBool,
    limit: Arc<Limit>,
    registry: Arc<Registry>,
    events: Arc<Events>,
    skipped: [Arc<Counter>; 3],
    changes: [Arc<Counter>; 3],
}

struct Inner {
    /// `upstream.breaker`.
    on: bool,
    rules: Rules,
    cooldown_max: Duration,
    address: Entry,
    models: HashMap<Arc<str>, Entry>,
    seed: u64,
    swept_at: Instant,
}

struct Entry {
    breaker: Breaker,
    /// When what a person decided ends by itself.
    forced_until: Option<Instant>,
    cause: Option<Cause>,
    /// Of what is declared.
    gauge: Option<Arc<Gauge>>,
}

/// A change to tell, and of which model.
type Told = Option<(Option<Arc<str>>, Change, String)>;

impl Entry {
    fn new(rules: Rules, seed: u64, now: Instant) -> Self {
        let breaker = Breaker::new(rules, seed, now);
        Entry { breaker, forced_until: None, cause: None, gauge: None }
    }

    fn failed(&mut self, error: &Error, now: Instant) {
        let short = |text: String| -> Arc<str> { text[..boundary(&text)].into() };
        let count = self.cause.as_ref().map_or(0, |cause| cause.count) + 1;
        self.cause = Some(Cause {
            code: error.row().code,
            told: short(outcome::in_our_words(error)),
            full: short(error.to_string()),
            at: now,
            count,
        });
    }

    /// What a person decided ends, when its time has come.
    fn unforce(&mut self, now: Instant) -> Option<Change> {
        self.forced_until.take_if(|until| *until <= now)?;
        self.breaker.force(Force::Auto, now)
    }

    /// Keeps the gauge up to date, and makes what is to be told of a change.
    fn told(&self, model: Option<&Arc<str>>, change: Option<Change>) -> Told {
        let change = change?;
        if let Some(gauge) = &self.gauge {
            gauge.set(level(change.to));
        }
        let why = match (&self.cause, change.to) {
            (Some(cause), Stand::Open) => format!("{} ({})", cause.told, cause.code),
            _ => String::new(),
        };
        Some((model.cloned(), change, why))
    }

    fn view(&mut self, upstream: &str, model: Option<&str>, now: Instant) -> View {
        let (calls, failed) = self.breaker.counts(now);
        let until = |when: Instant| when.saturating_duration_since(now);
        let since = |when: Instant| now.saturating_duration_since(when);
        View {
            upstream: upstream.to_owned(),
            model: model.map(str::to_owned),
            stand: self.breaker.stand(),
            force: self.breaker.forced(),
            forced_for: self.forced_until.map(until),
            drained: false,
            since: since(self.breaker.since()),
            next_try: self.breaker.next_try(now).map(until),
            cooling_down: self.breaker.cooling_until(now).map(until),
            calls,
            failed,
            cause: self.cause.clone().map(|cause| (cause.clone(), since(cause.at))),
        }
    }
}

/// Where to cut a failure's sentence.
fn boundary(text: &str) -> usize {
    let end = text.len().min(CAUSE_BYTES_MAX);
    (0..=end).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn level(stand: Stand) -> u64 {
    match stand {
        Stand::Closed => 0,
        Stand::HalfOpen => 1,
        Stand::Open => 2,
    }
}

impl Inner {
    fn seed(&mut self) -> u64 {
        // Knuth's constants for a linear congruence; the breakers only need different ones.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed
    }

    /// Throws away what forgetting changes nothing about.
    fn sweep(&mut self, now: Instant) {
        self.models.retain(|_, entry| entry.gauge.is_some() || !entry.breaker.blank(now));
    }

    /// Sees to it that the model has a breaker; false when there is no room.
    fn ensure(&mut self, model: &str, limit: &Limit, now: Instant) -> bool {
        if self.models.contains_key(model) {
            return true;
        }
        if self.models.len() >= BREAKERS_MAX {
            if now.saturating_duration_since(self.swept_at) >= SWEEP_INTERVAL {
                self.swept_at = now;
                self.sweep(now);
            }
            if self.models.len() >= BREAKERS_MAX {
                limit.refuse();
                return false;
            }
        }
        let entry = Entry::new(self.rules, self.seed(), now);
        self.models.insert(model.into(), entry);
        limit.set_now(self.models.len() as u64);
        true
    }
}

impl Breakers {
    /// All closed, and on. `seed` makes their jitter.
    pub fn new(
        upstream: &str,
        registry: &Arc<Registry>,
        events: &Arc<Events>,
        seed: u64,
        now: Instant,
    ) -> Arc<Self> {
        let consequence = "a further model has no breaker of its own";
        let limit =
            registry.limit("upstream.breakers_max", upstream, BREAKERS_MAX as u64, consequence);
        let skipped = ["open", "cooling_down", "forced_open"].map(|why| {
            let help = "Requests that left an upstream out because of its breaker, by reason.";
            let labels = [("upstream", upstream), ("reason", why)];
            registry.counter("tidegate_upstream_skipped_total", help, &labels)
        });
        let changes = [Stand::Closed, Stand::HalfOpen, Stand::Open].map(|to| {
            let help = "Changes of an upstream's breakers, by where they stand then.";
            let labels = [("upstream", upstream), ("to", to.as_str())];
            registry.counter("tidegate_upstream_breaker_changes_total", help, &labels)
        });
        let rules = Rules::default();
        let mut address = Entry::new(rules, seed, now);
        address.gauge = Some(registry.gauge(STATE.0, STATE.1, &[("upstream", upstream)]));
        let inner = Inner {
            on: true,
            rules,
            cooldown_max: Duration::from_secs(60),
            address,
            models: HashMap::new(),
            seed,
            swept_at: now,
        };
        Arc::new(Breakers {
            upstream: upstream.to_owned(),
            inner: Locked::new(Rank::Guard, inner),
            drained: AtomicBool::new(false),
            limit,
            registry: Arc::clone(registry),
            events: Arc::clone(events),
            skipped,
            changes,
        })
    }

    /// Other settings: where the breakers stand stays. `None` turns them off and forgets them.
    pub fn reconfigure(&self, rules: Option<Rules>, cooldown_max: Duration, now: Instant) {
        self.inner.with(|inner| {
            inner.cooldown_max = cooldown_max;
            inner.on = rules.is_some();
            match rules {
                Some(rules) => {
                    inner.rules = rules;
                    // Connecting is fast or it fails: there is no slow way of it.
                    inner.address.breaker.set_rules(Rules { slow_call: None, ..rules });
                    for entry in inner.models.values_mut() {
                        entry.breaker.set_rules(rules);
                    }
                }
                None => {
                    let gauge = inner.address.gauge.take();
                    inner.address = Entry::new(inner.rules, inner.seed(), now);
                    inner.address.gauge = gauge;
                    inner.models.clear();
                }
            }
        });
        self.show();
    }

    /// These models are declared: each has its breaker from the start, and its gauge.
    pub fn declare(&self, models: &[&str], now: Instant) {
        let gauges: Vec<_> = models.iter().map(|model| (*model, self.gauge(model))).collect();
        let retired = self.inner.with(|inner| {
            let mut retired: Vec<Arc<str>> = Vec::new();
            for (model, entry) in &mut inner.models {
                if entry.gauge.is_some() && !models.contains(&&**model) {
                    entry.gauge = None;
                    retired.push(Arc::clone(model));
                }
            }
            for (model, gauge) in gauges {
                if inner.on
                    && inner.ensure(model, &self.limit, now)
                    && let Some(entry) = inner.models.get_mut(model)
                {
                    entry.gauge = Some(gauge);
                }
            }
            retired
        });
        for model in retired {
            let labels = [("upstream", &*self.upstream), ("model", &*model)];
            self.registry.forget(STATE.0, &labels);
        }
        self.show();
    }

    fn gauge(&self, model: &str) -> Arc<Gauge> {
        let labels = [("upstream", &*self.upstream), ("model", model)];
        self.registry.gauge(STATE.0, STATE.1, &labels)
    }

    fn show(&self) {
        self.inner.with(|inner| {
            for entry in std::iter::once(&inner.address).chain(inner.models.values()) {
                if let Some(gauge) = &entry.gauge {
                    gauge.set(level(entry.breaker.stand()));
                }
            }
            self.limit.set_now(inner.models.len() as u64);
        });
    }

    /// Asks for the right to call `model`.
    ///
    /// # Errors
    /// Why it may not be called now.
    pub fn admit(self: &Arc<Self>, model: &str, now: Instant) -> Result<Pass, Unavailable> {
        if self.drained.load(Relaxed) {
            let (why, upstream) = (Why::Drained, self.upstream.clone());
            self.skipped[2].inc();
            return Err(Unavailable { why, until: None, upstream, cause: None });
        }
        let mut pass = Pass::free(now);
        let mut told = [None, None];
        let refused = self.inner.with(|inner| {
            if !inner.on {
                return None;
            }
            let refuse = |refused: Refused, entry: &Entry| Unavailable {
                why: refused.why,
                until: refused.until,
                upstream: self.upstream.clone(),
                cause: entry.cause.clone(),
            };
            // The address first: it may save the model's probe.
            let (admitted, change) = inner.address.breaker.admit(now);
            told[0] = inner.address.told(None, change);
            match admitted {
                Ok(ticket) => pass.address = Some(ticket),
                Err(refused) => return Some(refuse(refused, &inner.address)),
            }
            if !inner.ensure(model, &self.limit, now) {
                return None;
            }
            let name = Arc::clone(inner.models.get_key_value(model)?.0);
            let entry = inner.models.get_mut(model)?;
            let (admitted, change) = entry.breaker.admit(now);
            told[1] = entry.told(Some(&name), change);
            match admitted {
                Ok(ticket) => {
                    pass.model = Some((name, ticket));
                    None
                }
                Err(refused) => {
                    let refused = refuse(refused, entry);
                    if let Some(ticket) = pass.address.take() {
                        inner.address.breaker.settle(ticket, Verdict::Nothing, now);
                    }
                    Some(refused)
                }
            }
        });
        self.tell(told);
        if let Some(refused) = refused {
            let reason = match refused.why {
                Why::Open | Why::Probing => 0,
                Why::CoolingDown => 1,
                Why::Forced | Why::Drained | Why::Quota => 2,
            };
            self.skipped[reason].inc();
            return Err(refused);
        }
        if pass.address.is_some() {
            pass.breakers = Some(Arc::clone(self));
        }
        Ok(pass)
    }

    /// Sets a breaker by hand, until a time when there is one: of one model, or of the upstream's
    /// address. False when there is no such breaker (and no room for it).
    pub fn force(
        &self,
        model: Option<&str>,
        force: Force,
        until: Option<Instant>,
        now: Instant,
    ) -> bool {
        let told = self.inner.with(|inner| {
            if !inner.on {
                return None;
            }
            let entry = match model {
                None => &mut inner.address,
                Some(model) if inner.ensure(model, &self.limit, now) => {
                    inner.models.get_mut(model)?
                }
                Some(_) => return None,
            };
            entry.forced_until = until.filter(|_| force != Force::Auto);
            let change = entry.breaker.force(force, now);
            Some(entry.told(model.map(Arc::from).as_ref(), change))
        });
        let known = told.is_some();
        self.tell(told);
        known
    }

    /// Sends nobody to this upstream any more, or does again. Calls that run go on.
    pub fn drain(&self, drained: bool) {
        self.drained.store(drained, Relaxed);
    }

    /// Whether nobody is sent here.
    pub fn drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// All of them, the address first, then by model.
    pub fn list(&self, now: Instant) -> Vec<View> {
        let drained = self.drained();
        let mut list = self.inner.with(|inner| {
            if !inner.on && !drained {
                return Vec::new();
            }
            let mut list = vec![inner.address.view(&self.upstream, None, now)];
            for (model, entry) in &mut inner.models {
                list.push(entry.view(&self.upstream, Some(model), now));
            }
            list
        });
        list.sort_by(|a, b| a.model.cmp(&b.model));
        for view in &mut list {
            view.drained = drained;
        }
        list
    }

    /// Throws away the breakers that nobody needs, and ends what was decided by hand for a while.
    pub fn sweep(&self, now: Instant) {
        let told = self.inner.with(|inner| {
            let change = inner.address.unforce(now);
            let mut told = vec![inner.address.told(None, change)];
            for (model, entry) in &mut inner.models {
                let change = entry.unforce(now);
                if change.is_some() {
                    told.push(entry.told(Some(model), change));
                }
            }
            inner.sweep(now);
            self.limit.set_now(inner.models.len() as u64);
            told
        });
        self.tell(told);
    }

    fn tell(&self, told: impl IntoIterator<Item = Told>) {
        for (model, change, why) in told.into_iter().flatten() {
            self.changes[usize::try_from(level(change.to)).unwrap_or(0)].inc();
            let subject = match &model {
                Some(model) => format!("{}/{model}", self.upstream),
                None => self.upstream.clone(),
            };
            let (level, kind) = match change.to {
                Stand::Open => (log::Level::Warn, "breaker_opened"),
                Stand::HalfOpen => (log::Level::Info, "breaker_half_open"),
                Stand::Closed => (log::Level::Info, "breaker_closed"),
            };
            self.events.record(level, kind, &subject, why);
        }
    }
}
