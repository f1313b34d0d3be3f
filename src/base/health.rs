//! Readiness: the phase of the process, and a board of checks that parts of it keep up to date.
//! Whoever asks reads what is known; asking never runs a check.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::clock;
use super::lock::{Locked, Rank};
use super::metrics::{Limit, Registry};

/// Most checks on a board. Past it: a check is not shown, and the check `board` fails and says so.
pub const CHECKS_MAX: usize = 256;
/// Most bytes of a reason; the rest is cut.
pub const REASON_BYTES_MAX: usize = 256;
/// A check that is renewed at intervals counts as failed after this many of them.
const STALE_INTERVALS: u32 = 3;

/// The phases of a process, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Not everything runs yet.
    Starting,
    /// Requests are welcome.
    Ready,
    /// Running requests end, new ones are refused.
    Draining,
    /// The last threads end.
    Stopping,
}

impl Phase {
    /// The word in answers and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Stopping => "stopping",
        }
    }
}

/// What it means for the process that a check fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affects {
    /// It is not ready.
    #[default]
    Readiness,
    /// It is degraded.
    Degraded,
    /// Nothing: it is shown.
    Nothing,
}

impl Affects {
    /// The word in answers and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Affects::Readiness => "readiness",
            Affects::Degraded => "degraded",
            Affects::Nothing => "none",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing yet. Not ready.
    Pending,
    /// Good.
    Ok,
    /// Worse than it should be, but ready: shown with its reason.
    Degraded(String),
    /// Not ready, and why.
    Failed(String),
}

impl State {
    /// Whether requests can be served.
    pub fn passes(&self) -> bool {
        matches!(self, State::Ok | State::Degraded(_))
    }
}

/// One check. Parts hold it and set it; setting is cheap.
#[derive(Debug)]
pub struct Check {
    name: String,
    found: Locked<Found>,
}

#[derive(Debug)]
struct Found {
    state: State,
    at: Instant,
    /// How often it is renewed, when it is.
    interval: Option<Duration>,
    affects: Affects,
    /// Since when it is in this state, whatever the reasons.
    since: Instant,
    /// The last reason for which it was not good.
    last: Option<(String, Instant)>,
    /// When it is run again, where that is known.
    next: Option<Instant>,
}

impl Found {
    fn new(state: State, interval: Option<Duration>) -> Self {
        let at = clock::now();
        let affects = Affects::default();
        Found { state, at, interval, affects, since: at, last: None, next: None }
    }

    /// A check that should have been renewed and was not has failed.
    fn state(&self, now: Instant) -> State {
        let age = now.saturating_duration_since(self.at);
        match self.interval {
            Some(interval) if age > interval * STALE_INTERVALS => {
                State::Failed(format!("not renewed for {} s", age.as_secs()))
            }
            _ => self.state.clone(),
        }
    }
}

/// A check as it is at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its name on the board.
    pub name: String,
    /// What it found.
    pub state: State,
    /// What it means when it fails.
    pub affects: Affects,
    /// How long it has been in this state.
    pub since: Duration,
    /// How long ago it was last set.
    pub age: Duration,
    /// How often it is renewed, when it is.
    pub interval: Option<Duration>,
    /// The last reason for which it was not good, and how long ago.
    pub last: Option<(String, Duration)>,
    /// In how long it is run again, where that is known.
    pub next: Option<Duration>,
}

impl Look {
    /// What it counts as for the process.
    pub fn counts(&self) -> State {
        counted(self.affects, self.state.clone())
    }
}

/// What a state counts as.
fn counted(affects: Affects, state: State) -> State {
    match (affects, state) {
        (Affects::Readiness, state) => state,
        (Affects::Nothing, _) => State::Ok,
        // Not known yet is nothing bad to say of it.
        (Affects::Degraded, State::Pending) => State::Ok,
        (Affects::Degraded, State::Failed(why)) => State::Degraded(why),
        (Affects::Degraded, state) => state,
    }
}

impl Check {
    /// Its name on the board.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It is good.
    pub fn ok(&self) {
        self.set(State::Ok);
    }

    /// It is worse than it should be, but requests can be served.
    pub fn degraded(&self, reason: impl Into<Cow<'static, str>>) {
        self.set(State::Degraded(one_line(&reason.into())));
    }

    /// Requests cannot be served.
    pub fn failed(&self, reason: impl Into<Cow<'static, str>>) {
        self.set(State::Failed(one_line(&reason.into())));
    }

    /// It was looked at again, and stays as it is; perhaps with a reason to be told of later.
    pub fn renew(&self, reason: Option<&str>) {
        let at = clock::now();
        let reason = reason.map(|reason| (one_line(reason), at));
        self.found.with(|found| {
            found.at = at;
            if reason.is_some() {
                found.last = reason;
            }
        });
    }

    /// What it is at `now`: a check that should have been renewed and was not has failed.
    pub fn state(&self, now: Instant) -> State {
        self.found.with(|found| found.state(now))
    }

    /// What it counts as at `now`.
    pub fn counts(&self, now: Instant) -> State {
        self.found.with(|found| counted(found.affects, found.state(now)))
    }

    /// All that is known of it at `now`.
    pub fn look(&self, now: Instant) -> Look {
        let age = |at: Instant| now.saturating_duration_since(at);
        self.found.with(|found| Look {
            name: self.name.clone(),
            state: found.state(now),
            affects: found.affects,
            since: age(found.since),
            age: age(found.at),
            interval: found.interval,
            last: found.last.as_ref().map(|(why, at)| (why.clone(), age(*at))),
            next: found.next.map(|next| next.saturating_duration_since(now)),
        })
    }

    /// What it means when it fails; [`Affects::Readiness`] until somebody says otherwise.
    pub fn set_affects(&self, affects: Affects) {
        self.found.with(|found| found.affects = affects);
    }

    /// When it is run again.
    pub fn runs_next(&self, at: Instant) {
        self.found.with(|found| found.next = Some(at));
    }

    fn set(&self, state: State) {
        let at = clock::now();
        self.found.with(|found| {
            if let State::Degraded(why) | State::Failed(why) = &state {
                found.last = Some((why.clone(), at));
            }
            if std::mem::discriminant(&state) != std::mem::discriminant(&found.state) {
                found.since = at;
            }
            (found.state, found.at) = (state, at);
        });
    }
}

/// A reason as it may stand in a line of an answer: short, and without controls.
fn one_line(reason: &str) -> String {
    let mut out = String::with_capacity(reason.len().min(REASON_BYTES_MAX));
    for c in reason.chars() {
        if out.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

/// The board.
#[derive(Debug)]
pub struct Board {
    phase: AtomicU8,
    checks: Locked<Vec<Arc<Check>>>,
    limit: Arc<Limit>,
    /// Fails when the board is full.
    full: Arc<Check>,
}

impl Default for Board {
    fn default() -> Self {
        Board::bounded(Limit::detached(CHECKS_MAX as u64))
    }
}

fn new_check(name: &str, state: State, interval: Option<Duration>) -> Arc<Check> {
    let found = Locked::new(Rank::Leaf, Found::new(state, interval));
    Arc::new(Check { name: name.to_owned(), found })
}

impl Board {
    /// An empty board, in the first phase.
    pub fn new(registry: &Registry) -> Arc<Self> {
        let (max, consequence) = (CHECKS_MAX as u64, "not ready: the check board fails");
        Arc::new(Board::bounded(registry.limit("checks_max", "", max, consequence)))
    }

    fn bounded(limit: Arc<Limit>) -> Self {
        Board {
            phase: AtomicU8::new(Phase::Starting as u8),
            checks: Locked::new(Rank::Leaf, Vec::new()),
            limit,
            full: new_check("board", State::Ok, None),
        }
    }

    /// The check of this name; the same one for the same name. A new one is pending.
    pub fn check(&self, name: &str) -> Arc<Check> {
        self.add(name, None)
    }

    /// A check that its part renews at least this often. When it does not, it has failed.
    pub fn check_every(&self, name: &str, interval: Duration) -> Arc<Check> {
        self.add(name, Some(interval))
    }

    /// The check of this name, when there is one.
    pub fn find(&self, name: &str) -> Option<Arc<Check>> {
        self.checks.with(|checks| checks.iter().find(|check| check.name == name).cloned())
    }

    /// Takes a check off the board, with the part that it stood for.
    pub fn remove(&self, name: &str) {
        self.checks.with(|checks| {
            checks.retain(|check| check.name != name);
            self.limit.set_now(checks.len() as u64);
        });
    }

    /// All checks, in the order in which they came.
    pub fn checks(&self) -> Vec<Arc<Check>> {
        let mut checks = self.checks.with(|checks| checks.clone());
        if !self.full.state(clock::now()).passes() {
            checks.push(Arc::clone(&self.full));
        }
        checks
    }

    /// Enters a phase.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        let phase = self.phase.load(Relaxed);
        let all = [Phase::Starting, Phase::Ready, Phase::Draining];
        all.into_iter().find(|known| *known as u8 == phase).unwrap_or(Phase::Stopping)
    }

    /// Whether requests are welcome at `now`: the phase is [`Phase::Ready`] and no check fails.
    pub fn ready(&self, now: Instant) -> bool {
        self.phase() == Phase::Ready && self.checks().iter().all(|check| check.counts(now).passes())
    }

    /// Every check as it is at `now`, in the order in which they came.
    pub fn looks(&self, now: Instant) -> Vec<Look> {
        self.checks().iter().map(|check| check.look(now)).collect()
    }

    fn add(&self, name: &str, interval: Option<Duration>) -> Arc<Check> {
        let fresh = new_check(name, State::Pending, interval);
        let added = self.checks.with(|checks| {
            if let Some(known) = checks.iter().find(|check| check.name == name) {
                return Some(Arc::clone(known));
            }
            if checks.len() as u64 >= self.limit.max() {
                self.limit.refuse();
                return None;
            }
            checks.push(Arc::clone(&fresh));
            self.limit.set_now(checks.len() as u64);
            Some(Arc::clone(&fresh))
        });
        added.unwrap_or_else(|| {
            self.full.failed(format!("{CHECKS_MAX} checks are on it, {name} found no room"));
            fresh
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_the_phase_and_every_check() {
        let board = Board::default();
        let now = clock::now();
        assert!(!board.ready(now), "starting is not ready");
        board.set_phase(Phase::Ready);
        assert!(board.ready(now));
        let check = board.check("listener");
        assert!(!board.ready(now), "pending is not ready");
        check.ok();
        assert!(board.ready(now));
        check.degraded("slow");
        assert!(board.ready(now));
        check.failed("gone");
        assert!(!board.ready(now));
        assert_eq!(check.state(now), State::Failed("gone".into()));
        board.remove("listener");
        assert!(board.ready(now));
        for phase in [Phase::Draining, Phase::Stopping] {
            board.set_phase(phase);
            assert_eq!(board.phase(), phase);
            assert!(!board.ready(now));
        }
    }

    #[test]
    fn a_check_that_is_not_renewed_fails() {
        let interval = Duration::from_secs(10);
        let board = Board::default();
        let check = board.check_every("disk", interval);
        check.ok();
        let now = clock::now();
        assert_eq!(check.state(now + interval * 2), State::Ok);
        assert!(matches!(check.state(now + interval * 4), State::Failed(_)));
        check.ok();
        assert_eq!(check.state(clock::now()), State::Ok);
    }

    #[test]
    fn the_same_name_is_the_same_check_and_the_board_is_bounded() {
        let board = Board::default();
        board.set_phase(Phase::Ready);
        for n in 0..CHECKS_MAX {
            board.check(&n.to_string()).ok();
        }
        assert!(Arc::ptr_eq(&board.check("0"), &board.check("0")));
        assert!(board.ready(clock::now()));
        board.check("one more").ok();
        assert!(
            !board.ready(clock::now()),
            "a check that nobody sees must not look like a good one"
        );
        let last = board.checks().pop().unwrap();
        assert_eq!(last.name(), "board");
    }

    #[test]
    fn a_check_that_does_not_count_keeps_nobody_away() {
        let board = Board::default();
        board.set_phase(Phase::Ready);
        let check = board.check("check:db");
        check.set_affects(Affects::Degraded);
        let now = clock::now();
        assert!(board.ready(now), "not known yet");
        check.failed("refused");
        assert_eq!(check.counts(now), State::Degraded("refused".into()));
        assert!(board.ready(now));
        check.set_affects(Affects::Nothing);
        assert_eq!(check.counts(now), State::Ok);
        assert_eq!(check.state(now), State::Failed("refused".into()), "it is shown");
        check.set_affects(Affects::Readiness);
        assert!(!board.ready(now));
    }

    #[test]
    fn a_look_tells_since_when_and_the_last_reason() {
        let board = Board::default();
        let check = board.check("disk");
        check.failed("full");
        check.failed("fuller");
        check.runs_next(clock::now() + Duration::from_secs(60));
        let now = clock::now() + Duration::from_secs(10);
        let look = check.look(now);
        assert_eq!(look.state, State::Failed("fuller".into()));
        assert!(look.since >= look.age && look.age >= Duration::from_secs(9), "{look:?}");
        assert!(look.next.unwrap() <= Duration::from_secs(51), "{look:?}");
        check.ok();
        let look = check.look(now);
        assert_eq!(look.last.unwrap().0, "fuller");
        assert!(look.since <= Duration::from_secs(10));
    }

    #[test]
    fn a_reason_is_one_short_line() {
        let board = Board::default();
        let check = board.check("x");
        check.failed("a\r\nb");
        assert_eq!(check.state(clock::now()), State::Failed("a  b".into()));
        check.failed("é".repeat(REASON_BYTES_MAX));
        let State::Failed(reason) = check.state(clock::now()) else { unreachable!() };
        assert_eq!(reason.len(), REASON_BYTES_MAX);
    }
}
