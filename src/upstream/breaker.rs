//! The circuit breaker: an upstream that fails is left alone for a while, and asked again by a few
//! probes. Pure: it is told the time and what came of calls; it says who may call.
//!
//! Closed: everybody may. It opens when half of the calls of ten seconds failed (Hystrix's numbers,
//! `reliability.md` section 13), or after five failures in a row where there are too few calls for a
//! rate. Open: nobody may, for `open_time`, twice as long after each probe that fails. Half-open: a
//! few probes at a time may, and one more for each `open_time` without a word of them; one that ends
//! well, or whose answer flows for [`PROVED_AFTER`], closes it, one that fails opens it again.
//!
//! Beside that stands the cool-down: until the moment that the upstream itself named (`Retry-After`)
//! nobody may call. It is no failure, and only an answer of the upstream moves it.

use std::time::{Duration, Instant};

pub mod window;

use window::{Call, Window};

/// A probe that has flowed for this long is as good as one that ended: a long answer must not keep
/// everybody else out.
pub const PROVED_AFTER: Duration = Duration::from_secs(10);

/// After this long without an answer a model may have been unloaded. The calls that wait until it is
/// loaded again are not slow calls.
pub const COLD_AFTER: Duration = Duration::from_secs(60);

/// What a refused caller is told where no moment is known: a probe is on its way.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// The settings of a breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Failures of a hundred calls at which it opens.
    pub failure_percent: u32,
    /// Calls of a window that make a rate.
    pub calls_min: u32,
    /// Failures in a row at which it opens when there are fewer calls than that.
    pub failures_max: u32,
    /// A call that takes longer is slow; `None`: none is.
    pub slow_call: Option<Duration>,
    /// Slow calls of a hundred at which it opens.
    pub slow_percent: u32,
    /// How long it stays open the first time.
    pub open_time: Duration,
    /// How long at most.
    pub open_time_max: Duration,
    /// Probes at a time.
    pub probes: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            failure_percent: 50,
            calls_min: 10,
            failures_max: 5,
            slow_call: None,
            slow_percent: 80,
            open_time: Duration::from_secs(30),
            open_time_max: Duration::from_secs(300),
            probes: 1,
        }
    }
}

/// What a person decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// Nothing: it follows what comes of calls.
    #[default]
    Auto,
    /// Nobody may call.
    Open,
    /// Everybody may, whatever comes of it.
    Closed,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An answer, whose first content took this long.
    Good(Duration),
    /// A refusal that shows it alive: 4xx.
    Alive,
    /// A failure.
    Failed,
    /// Nothing that is the upstream's doing: the client left, the gateway stops, the call was never
    /// made.
    Nothing,
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Everybody may call.
    Closed,
    /// Probes may.
    HalfOpen,
    /// Nobody may.
    Open,
}

impl Stand {
    /// The word in metrics, events and lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Stand::Closed => "closed",
            Stand::HalfOpen => "half_open",
            Stand::Open => "open",
        }
    }
}

/// It stands elsewhere now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it stood.
    pub from: Stand,
    /// Where it stands.
    pub to: Stand,
}

/// Why somebody may not call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is open.
    Open,
    /// Enough probes are on their way.
    Probing,
    /// The upstream asked to be left alone for a while.
    CoolingDown,
    /// A person decided so.
    Forced,
    /// Not the breaker: a person drains the upstream.
    Drained,
    /// Not the breaker, but `requests_per_minute` or `tokens_per_minute`.
    Quota,
}

impl Why {
    /// The word in access lines and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Open | Why::Probing => "open",
            Why::CoolingDown => "cooling_down",
            Why::Forced => "forced_open",
            Why::Drained => "drained",
            Why::Quota => "quota",
        }
    }
}

/// Somebody may not call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Why,
    /// When it is worth another try; `None`: nobody knows.
    pub until: Option<Instant>,
}

/// The right to call. It is not settled by itself: whoever holds it must come back with
/// [`Breaker::settle`], whatever happens.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    /// The state it was given in; what comes of it says nothing of another one.
    generation: u64,
    probe: bool,
    flows: bool,
    /// The model may have had to be loaded first.
    cold: bool,
}

impl Ticket {
    /// Whether this call decides for all others.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probes: u32, flowing: u32, proved_at: Option<Instant>, last: Instant },
}

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    rules: Rules,
    state: State,
    since: Instant,
    generation: u64,
    window: Window,
    /// Failures in a row.
    failures: u32,
    /// How often it opened since it was last closed.
    openings: u32,
    cooling_until: Option<Instant>,
    last_answer: Option<Instant>,
    /// When a call was last settled.
    last_settled: Instant,
    /// Calls that are not settled yet.
    out: u32,
    force: Force,
    random: u64,
}

impl Breaker {
    /// A closed one. `seed` makes its jitter.
    pub fn new(rules: Rules, seed: u64, now: Instant) -> Self {
        Breaker {
            rules,
            state: State::Closed,
            since: now,
            generation: 0,
            window: Window::new(now),
            failures: 0,
            openings: 0,
            cooling_until: None,
            last_answer: None,
            last_settled: now,
            out: 0,
            force: Force::Auto,
            // An xorshift of zero stays zero.
            random: seed | 1,
        }
    }

    /// Asks for the right to call. What changed by that, if anything, comes beside it.
    pub fn admit(&mut self, now: Instant) -> (Result<Ticket, Refused>, Option<Change>) {
        match self.force {
            Force::Open => return (Err(Refused { why: Why::Forced, until: None }), None),
            Force::Closed => return (Ok(self.ticket(now, false)), None),
            Force::Auto => {}
        }
        if let Some(until) = self.cooling_until.filter(|until| now < *until) {
            return (Err(Refused { why: Why::CoolingDown, until: Some(until) }), None);
        }
        let change = self.wake(now);
        let patience = self.probe_patience();
        let admitted = match &mut self.state {
            State::Closed => Ok(self.ticket(now, false)),
            State::Open { until } => Err(Refused { why: Why::Open, until: Some(*until) }),
            State::HalfOpen { probes, last, .. }
                if *probes < self.rules.probes
                    || now.saturating_duration_since(*last) >= patience =>
            {
                *probes += 1;
                *last = now;
                Ok(self.ticket(now, true))
            }
            State::HalfOpen { .. } => {
                Err(Refused { why: Why::Probing, until: Some(now + PROBE_WAIT) })
            }
        };
        (admitted, change)
    }

    /// The first content of this call's answer is out.
    pub fn flows(&mut self, ticket: &mut Ticket, now: Instant) {
        if ticket.generation != self.generation || !ticket.probe || ticket.flows {
            return;
        }
        if let State::HalfOpen { flowing, proved_at, .. } = &mut self.state {
            ticket.flows = true;
            *flowing += 1;
            proved_at.get_or_insert(now + PROVED_AFTER);
        }
    }

    /// A call is over.
    pub fn settle(&mut self, ticket: Ticket, verdict: Verdict, now: Instant) -> Option<Change> {
        self.out = self.out.saturating_sub(1);
        self.last_settled = now;
        if matches!(verdict, Verdict::Good(_) | Verdict::Alive) {
            self.last_answer = Some(now);
        }
        if ticket.generation != self.generation || self.force != Force::Auto {
            return None;
        }
        if let State::HalfOpen { probes, flowing, proved_at, .. } = &mut self.state {
            *probes = probes.saturating_sub(1);
            if ticket.flows {
                *flowing = flowing.saturating_sub(1);
                if *flowing == 0 {
                    *proved_at = None;
                }
            }
            return match verdict {
                Verdict::Good(_) | Verdict::Alive => Some(self.close(now)),
                Verdict::Failed => Some(self.open(now)),
                Verdict::Nothing => None,
            };
        }
        let slow = |took| !ticket.cold && self.rules.slow_call.is_some_and(|slow| took >= slow);
        match verdict {
            Verdict::Nothing => return None,
            Verdict::Failed => {
                self.failures = self.failures.saturating_add(1);
                self.window.count(Call { failed: true, slow: false }, now);
            }
            Verdict::Good(took) => {
                self.failures = 0;
                self.window.count(Call { failed: false, slow: slow(took) }, now);
            }
            Verdict::Alive => {
                self.failures = 0;
                self.window.count(Call { failed: false, slow: false }, now);
            }
        }
        self.judge(now)
    }

    /// The upstream asked to be left alone until then. Two answers that name two moments: the later
    /// one counts.
    pub fn cool_down(&mut self, until: Instant) {
        self.cooling_until = self.cooling_until.max(Some(until));
    }

    /// Other settings. Where it stands stays.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// A person decides. Back to [`Force::Auto`] it begins anew, closed.
    pub fn force(&mut self, force: Force, now: Instant) -> Option<Change> {
        if force == self.force {
            return None;
        }
        let from = self.stand();
        self.force = force;
        self.cooling_until = None;
        self.turn(State::Closed, now);
        self.openings = 0;
        let to = self.stand();
        (from != to).then_some(Change { from, to })
    }

    /// Where it stands.
    pub fn stand(&self) -> Stand {
        match (self.force, &self.state) {
            (Force::Open, _) => Stand::Open,
            (Force::Closed, _) | (_, State::Closed) => Stand::Closed,
            (_, State::Open { .. }) => Stand::Open,
            (_, State::HalfOpen { .. }) => Stand::HalfOpen,
        }
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// What a person decided.
    pub fn forced(&self) -> Force {
        self.force
    }

    /// When the next call is allowed, where one is not allowed now and that is known.
    pub fn next_try(&self, now: Instant) -> Option<Instant> {
        let open = match self.state {
            State::Open { until } if self.force == Force::Auto => Some(until),
            _ => None,
        };
        open.max(self.cooling_until).filter(|until| now < *until)
    }

    /// Until when the upstream asked to be left alone.
    pub fn cooling_until(&self, now: Instant) -> Option<Instant> {
        self.cooling_until.filter(|until| now < *until)
    }

    /// Calls and failures of the window.
    pub fn counts(&mut self, now: Instant) -> (u32, u32) {
        let sums = self.window.sums(now);
        (sums.calls, sums.failed)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Calls that are not settled yet.
    pub fn out(&self) -> u32 {
        self.out
    }

    /// Probes that are on their way.
    pub fn probing(&self) -> u32 {
        match self.state {
            State::HalfOpen { probes, .. } => probes,
            _ => 0,
        }
    }

    /// Whether it can be forgotten: nobody is out, and nothing is counted; or what is counted is so
    /// old that an open one would ask again.
    pub fn blank(&mut self, now: Instant) -> bool {
        if self.force != Force::Auto || self.out > 0 || self.cooling_until(now).is_some() {
            return false;
        }
        let old = now.saturating_duration_since(self.last_settled) >= self.rules.open_time_max;
        let fresh = matches!(self.state, State::Closed)
            && self.failures == 0
            && self.window.sums(now).calls == 0;
        old || fresh
    }

    fn ticket(&mut self, now: Instant, probe: bool) -> Ticket {
        self.out = self.out.saturating_add(1);
        let quiet = |last: Instant| {
            let cold = self.rules.slow_call.map_or(COLD_AFTER, |slow| slow.max(COLD_AFTER));
            now.saturating_duration_since(last) > cold
        };
        let cold = self.last_answer.is_none_or(quiet);
        Ticket { generation: self.generation, probe, flows: false, cold }
    }

    /// After this long without a word of its probes one more may try: whoever asked may want an answer
    /// that takes minutes, in which everybody else would be kept out. A dead upstream costs no more
    /// by that than by probes that fail.
    fn probe_patience(&self) -> Duration {
        self.rules.open_time.max(PROVED_AFTER)
    }

    /// What time alone changes: an open one lets probes pass, a probe that flows has proved it well.
    fn wake(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Open { until } if now >= until => {
                let from = self.stand();
                let state = State::HalfOpen { probes: 0, flowing: 0, proved_at: None, last: now };
                self.turn(state, now);
                Some(Change { from, to: Stand::HalfOpen })
            }
            State::HalfOpen { proved_at: Some(at), .. } if now >= at => Some(self.close(now)),
            _ => None,
        }
    }

    fn judge(&mut self, now: Instant) -> Option<Change> {
        let sums = self.window.sums(now);
        let share = |part: u32, percent: u32| {
            u64::from(part) * 100 >= u64::from(sums.calls) * u64::from(percent)
        };
        let opens = if sums.calls < self.rules.calls_min {
            self.failures >= self.rules.failures_max
        } else {
            share(sums.failed, self.rules.failure_percent)
                || (self.rules.slow_call.is_some() && share(sums.slow, self.rules.slow_percent))
        };
        opens.then(|| self.open(now))
    }

    fn open(&mut self, now: Instant) -> Change {
        let from = self.stand();
        let doubled = self.rules.open_time.saturating_mul(1 << self.openings.min(16));
        let base = doubled.min(self.rules.open_time_max);
        let time = base.mul_f64(self.jitter()).min(self.rules.open_time_max);
        self.openings = self.openings.saturating_add(1);
        self.turn(State::Open { until: now + time }, now);
        Change { from, to: Stand::Open }
    }

    fn close(&mut self, now: Instant) -> Change {
        let from = self.stand();
        self.openings = 0;
        self.turn(State::Closed, now);
        Change { from, to: Stand::Closed }
    }

    fn turn(&mut self, state: State, now: Instant) {
        self.state = state;
        self.since = now;
        self.generation += 1;
        self.window = Window::new(now);
        self.failures = 0;
    }

    /// Between 0.8 and 1.2, so that several gateways do not probe in step.
    fn jitter(&mut self) -> f64 {
        // Marsaglia's xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let unit =
            f64::from(u32::try_from(self.random >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        0.8 + 0.4 * unit
    }
}

#[cfg(test)]
mod tests;
