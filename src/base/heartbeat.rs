//! Heartbeats of the threads that must not hang. `/livez` reads them, and so does the search for stalls;
//! nothing here calls out.
//!
//! A thread beats each time round its loop. When it waits for work without a bound it rests, which
//! is not silence. While it blocks on something it says on what and until when that is fine, so that
//! a worker in a long exchange is not taken for one that hangs, and one that hangs can be told with
//! its reason. A thread that ends takes its beat with it, unless it ends by a panic: then the beat
//! stays and goes stale, because somebody counted on that thread.
//!
//! What a thread does is one word: saying it costs one or two relaxed stores.

use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::clock;
use super::error::Phase;
use super::lock::{Locked, Rank};
use super::metrics::{Limit, Registry};

/// Most beats at once: one for each thread that lives long, workers among them. Past it: a thread is
/// not watched, and [`Heartbeats::unwatched`] counts it.
pub const BEATS_MAX: usize = 4096;

/// How much longer than announced a wait may take: the system wakes nobody to the millisecond.
const SLACK: Duration = Duration::from_secs(2);

/// Bits of a word that say what the thread does; those above say until when that is fine, in
/// milliseconds after `Heartbeats::start`.
const DOING_BITS: u32 = 16;
/// In the place of a time: for as long as it takes.
const FOREVER: u64 = u64::MAX >> DOING_BITS;

/// What a thread does, or what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Its work.
    Working,
    /// It waits for its sockets.
    Sockets,
    /// It waits for its queue.
    Queue,
    /// It waits for an upstream and its client, in this phase of a call.
    Call(Phase),
    /// It waits for a client to take its answer.
    Client,
    /// It waits for a name to be resolved.
    Name,
    /// It waits for the disk.
    Disk,
    /// It waits for a lock of this rank.
    Lock(Rank),
    /// It waits for a child process.
    Child,
    /// It waits for another thread's answer.
    Answer,
    /// It pauses on purpose.
    Pause,
}

/// Every phase; its place is what a word holds of it.
const PHASES: [Phase; 8] = [
    Phase::Resolve,
    Phase::Connect,
    Phase::Send,
    Phase::FirstToken,
    Phase::Answer,
    Phase::Idle,
    Phase::Attempt,
    Phase::Request,
];

impl Doing {
    fn pack(self) -> u64 {
        let place = |phase| PHASES.iter().position(|known| *known == phase).unwrap_or(0) as u64;
        match self {
            Doing::Working => 0,
            Doing::Sockets => 1,
            Doing::Queue => 2,
            Doing::Call(phase) => 3 | place(phase) << 8,
            Doing::Client => 4,
            Doing::Name => 5,
            Doing::Disk => 6,
            Doing::Lock(rank) => 7 | (rank as u64) << 8,
            Doing::Child => 8,
            Doing::Answer => 9,
            Doing::Pause => 10,
        }
    }

    fn unpack(word: u64) -> Self {
        let detail = usize::try_from(word >> 8 & 0xff).unwrap_or(0);
        match word & 0xff {
            1 => Doing::Sockets,
            2 => Doing::Queue,
            3 => Doing::Call(PHASES.get(detail).copied().unwrap_or(Phase::Attempt)),
            4 => Doing::Client,
            5 => Doing::Name,
            6 => Doing::Disk,
            7 => Doing::Lock(Rank::numbered(detail)),
            8 => Doing::Child,
            9 => Doing::Answer,
            10 => Doing::Pause,
            _ => Doing::Working,
        }
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doing::Working => f.write_str("its work"),
            Doing::Sockets => f.write_str("its sockets"),
            Doing::Queue => f.write_str("its queue"),
            Doing::Call(phase) => write!(f, "an upstream and its client ({})", phase.as_str()),
            Doing::Client => f.write_str("a client that does not read"),
            Doing::Name => f.write_str("the resolution of a name"),
            Doing::Disk => f.write_str("the disk"),
            Doing::Lock(rank) => write!(f, "a lock of rank {rank:?}"),
            Doing::Child => f.write_str("a child process"),
            Doing::Answer => f.write_str("another thread's answer"),
            Doing::Pause => f.write_str("a pause"),
        }
    }
}

/// All beats of a process.
#[derive(Debug)]
pub struct Heartbeats {
    start: Instant,
    beats: Locked<Vec<Arc<State>>>,
    limit: Arc<Limit>,
}

#[derive(Debug)]
struct State {
    name: String,
    /// Whether the process is of no use without this thread.
    essential: bool,
    silence_max: Duration,
    /// `Heartbeats::start`.
    start: Instant,
    /// Until when it is fine, and what it does.
    word: AtomicU64,
    /// When it last went on, in milliseconds after `start`.
    since_ms: AtomicU64,
    /// The system's number of the thread, once it runs; 0 where there is none.
    number: AtomicU32,
    /// Whether the thread knows that this is its beat.
    entered: AtomicBool,
}

/// The beat of one thread. Dropped when the thread ends.
#[derive(Debug)]
pub struct Beat {
    state: Arc<State>,
    all: Arc<Heartbeats>,
}

/// What is known of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// The thread's name.
    pub name: String,
    /// Whether the process is of no use without it.
    pub essential: bool,
    /// What it does.
    pub doing: Doing,
    /// How long ago it last went on; `None` while it waits for work.
    pub silence: Option<Duration>,
    /// How long that may be, for what it does.
    pub silence_max: Duration,
    /// The system's number of the thread.
    pub number: Option<u32>,
}

impl Pulse {
    /// Whether it was silent for longer than it may.
    pub fn late(&self) -> bool {
        self.silence.is_some_and(|silence| silence > self.silence_max)
    }
}

thread_local! {
    /// The beat of this thread, for those who block and do not know on whose thread they run.
    static CURRENT: OnceCell<Arc<State>> = const { OnceCell::new() };
}

/// Runs `f` with this thread's beat, where it has one.
fn current<R>(f: impl FnOnce(&State) -> R) -> Option<R> {
    CURRENT.try_with(|current| current.get().map(|state| f(state))).ok().flatten()
}

/// The calling thread blocks until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it says that the wait is over"]
pub struct Waiting {
    watched: bool,
}

/// The calling thread is about to block on `doing`, which is fine until `until`. For wrappers around
/// blocking calls; on a thread without a beat it does nothing.
#[inline]
pub fn waiting(doing: Doing, until: Instant) -> Waiting {
    Waiting { watched: current(|state| state.allow(doing, until + SLACK)).is_some() }
}

impl Drop for Waiting {
    #[inline]
    fn drop(&mut self) {
        if self.watched {
            current(|state| state.tick(clock::now()));
        }
    }
}

/// The calling thread waits for a lock until this is dropped. It has no more time for that than it had
/// for its work.
#[derive(Debug)]
pub(super) struct LockWait {
    before: Option<u64>,
}

impl LockWait {
    /// The lock is taken by another thread.
    #[cold]
    pub(super) fn begin(rank: Rank) -> Self {
        let before = current(|state| {
            let before = state.word.load(Relaxed);
            let mut until = before >> DOING_BITS;
            if until == FOREVER {
                until = state.ms(clock::now() + state.silence_max);
            }
            state.word.store(until << DOING_BITS | Doing::Lock(rank).pack(), Relaxed);
            before
        });
        LockWait { before }
    }
}

impl Drop for LockWait {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            current(|state| state.word.store(before, Relaxed));
        }
    }
}

impl State {
    fn ms(&self, at: Instant) -> u64 {
        let ms = at.saturating_duration_since(self.start).as_millis();
        u64::try_from(ms).unwrap_or(FOREVER - 1).min(FOREVER - 1)
    }

    fn allow(&self, doing: Doing, until: Instant) {
        self.word.store(self.ms(until) << DOING_BITS | doing.pack(), Relaxed);
    }

    fn tick(&self, now: Instant) {
        self.since_ms.store(self.ms(now), Relaxed);
        self.allow(Doing::Working, now + self.silence_max);
    }

    fn pulse(&self, now_ms: u64) -> Pulse {
        let (word, since) = (self.word.load(Relaxed), self.since_ms.load(Relaxed));
        let until = word >> DOING_BITS;
        let silence = Duration::from_millis(now_ms.saturating_sub(since));
        let number = self.number.load(Relaxed);
        Pulse {
            name: self.name.clone(),
            essential: self.essential,
            doing: Doing::unpack(word),
            silence: (until != FOREVER).then_some(silence),
            silence_max: Duration::from_millis(until.saturating_sub(since)),
            number: (number != 0).then_some(number),
        }
    }

    fn late(&self, now_ms: u64) -> bool {
        let until = self.word.load(Relaxed) >> DOING_BITS;
        until != FOREVER && now_ms > until
    }
}

impl Default for Heartbeats {
    fn default() -> Self {
        Heartbeats::bounded(Limit::detached(BEATS_MAX as u64))
    }
}

impl Heartbeats {
    /// None yet.
    pub fn new(registry: &Registry) -> Arc<Self> {
        let (max, consequence) = (BEATS_MAX as u64, "further threads are not watched");
        Arc::new(Heartbeats::bounded(registry.limit("heartbeats_max", "", max, consequence)))
    }

    fn bounded(limit: Arc<Limit>) -> Self {
        Heartbeats { start: clock::now(), beats: Locked::new(Rank::Leaf, Vec::new()), limit }
    }

    /// Watches a thread from now on, without which the process is of no use. `silence_max` is the
    /// longest time between two beats that is still healthy: several times the longest wait of its
    /// loop.
    pub fn register(self: &Arc<Self>, name: &str, silence_max: Duration) -> Beat {
        self.watch(name, silence_max, true)
    }

    /// Watches one of several threads of which the others go on: that it hangs is told, and does not
    /// make the process a dead one.
    pub fn register_one_of_many(self: &Arc<Self>, name: &str, silence_max: Duration) -> Beat {
        self.watch(name, silence_max, false)
    }

    fn watch(self: &Arc<Self>, name: &str, silence_max: Duration, essential: bool) -> Beat {
        let state = Arc::new(State {
            name: name.to_owned(),
            essential,
            silence_max,
            start: self.start,
            word: AtomicU64::new(0),
            since_ms: AtomicU64::new(0),
            number: AtomicU32::new(0),
            entered: AtomicBool::new(false),
        });
        state.tick(clock::now());
        self.beats.with(|beats| {
            if (beats.len() as u64) < self.limit.max() {
                beats.push(Arc::clone(&state));
                self.limit.set_now(beats.len() as u64);
            } else {
                self.limit.refuse();
            }
        });
        Beat { state, all: Arc::clone(self) }
    }

    /// Every watched thread, as seen at `now`.
    pub fn pulses(&self, now: Instant) -> Vec<Pulse> {
        let now_ms = self.ms(now);
        self.beats.with(|beats| beats.iter().map(|state| state.pulse(now_ms)).collect())
    }

    /// Those that are late at `now`. Costs little when there are none.
    pub fn late(&self, now: Instant) -> Vec<Pulse> {
        let now_ms = self.ms(now);
        let late = |state: &&Arc<State>| state.late(now_ms);
        let pulse = |state: &Arc<State>| state.pulse(now_ms);
        self.beats.with(|beats| beats.iter().filter(late).map(pulse).collect())
    }

    /// Threads that are watched now.
    pub fn watched(&self) -> usize {
        self.beats.with(|beats| beats.len())
    }

    /// Threads that were not watched because there were too many.
    pub fn unwatched(&self) -> u64 {
        self.limit.refused()
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(FOREVER - 1)
    }
}

impl Beat {
    /// The loop goes round.
    pub fn tick(&self) {
        self.tick_at(clock::now());
    }

    /// The same, for a loop that knows the time.
    #[inline]
    pub fn tick_at(&self, now: Instant) {
        if !self.state.entered.load(Relaxed) {
            self.enter();
        }
        self.state.tick(now);
    }

    /// The loop is about to block on `doing`, which is fine until `until`. The next [`Beat::tick`]
    /// ends it.
    pub fn waits(&self, doing: Doing, until: Instant) {
        self.state.allow(doing, until + SLACK);
    }

    /// The loop waits for work, for as long as it takes. The next [`Beat::tick`] ends the rest.
    pub fn rest(&self) {
        self.state.word.store(FOREVER << DOING_BITS | Doing::Queue.pack(), Relaxed);
    }

    /// The calling thread is the one whose beat this is.
    #[cold]
    fn enter(&self) {
        self.state.entered.store(true, Relaxed);
        let _ = CURRENT.try_with(|current| current.set(Arc::clone(&self.state)));
        self.state.number.store(thread_number().unwrap_or(0), Relaxed);
    }
}

/// The system's number of the calling thread.
fn thread_number() -> Option<u32> {
    let link = std::fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

impl Drop for Beat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A panic while resting must show as well.
            self.state.tick(clock::now());
        } else {
            self.all.beats.with(|beats| {
                beats.retain(|beat| !Arc::ptr_eq(beat, &self.state));
                self.all.limit.set_now(beats.len() as u64);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn late(all: &Heartbeats, now: Instant) -> Vec<String> {
        all.pulses(now).into_iter().filter(Pulse::late).map(|pulse| pulse.name).collect()
    }

    #[test]
    fn a_silent_thread_is_late_and_a_resting_one_is_not() {
        let all = Arc::new(Heartbeats::default());
        let (park, accept) = (all.register("park", SECOND), all.register("accept-0", SECOND));
        let start = clock::now();
        park.tick_at(start);
        accept.tick_at(start + SECOND * 5);
        assert!(late(&all, start + SECOND).is_empty(), "exactly at its bound it is still alive");
        assert_eq!(late(&all, start + SECOND * 5), ["park"]);
        park.rest();
        assert!(late(&all, start + SECOND * 6).is_empty());
        park.tick_at(start + SECOND * 6);
        assert_eq!(late(&all, start + SECOND * 8), ["park", "accept-0"]);
    }

    #[test]
    fn an_orderly_end_takes_the_beat_along_and_a_panic_does_not() {
        let all = Arc::new(Heartbeats::default());
        drop(all.register("done", SECOND));
        assert!(all.pulses(clock::now()).is_empty());
        let beat = all.register("broken", SECOND);
        let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            beat.rest();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(broken.is_err());
        assert_eq!(late(&all, clock::now() + SECOND * 2), ["broken"]);
    }

    #[test]
    fn beats_are_bounded() {
        let all = Arc::new(Heartbeats::default());
        let beats: Vec<_> = (0..BEATS_MAX + 2).map(|_| all.register("many", SECOND)).collect();
        assert_eq!((all.pulses(clock::now()).len(), all.unwatched()), (BEATS_MAX, 2));
        drop(beats);
        assert!(all.pulses(clock::now()).is_empty());
    }

    #[test]
    fn what_a_thread_does_comes_out_of_its_word_as_it_went_in() {
        let phases = PHASES.map(Doing::Call);
        let ranks = [Rank::Reload, Rank::Metrics, Rank::Leaf].map(Doing::Lock);
        let rest = [Doing::Working, Doing::Sockets, Doing::Queue, Doing::Client, Doing::Name];
        let more = [Doing::Disk, Doing::Child, Doing::Answer, Doing::Pause];
        for doing in phases.into_iter().chain(ranks).chain(rest).chain(more) {
            assert_eq!(Doing::unpack(doing.pack()), doing);
            assert!(doing.pack() < 1 << DOING_BITS);
        }
    }

    #[test]
    fn a_wait_is_fine_until_its_deadline_and_work_begins_anew_behind_it() {
        let all = Arc::new(Heartbeats::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let beat = all.register_one_of_many("data-1", SECOND);
                let start = clock::now();
                beat.tick_at(start);
                let call = waiting(Doing::Call(Phase::Idle), start + SECOND * 60);
                assert!(late(&all, start + SECOND * 61).is_empty());
                let pulse = all.late(start + SECOND * 63).remove(0);
                assert_eq!((pulse.doing, pulse.essential), (Doing::Call(Phase::Idle), false));
                assert_eq!(pulse.number.is_some(), cfg!(target_os = "linux"));
                drop(call);
                let pulse = all.late(clock::now() + SECOND * 2).remove(0);
                assert_eq!(pulse.doing, Doing::Working);
            });
        });
        assert_eq!(all.watched(), 0);
    }

    #[test]
    fn waiting_for_a_lock_is_told_with_its_rank_and_gives_no_more_time() {
        let all = Arc::new(Heartbeats::default());
        let lock = Arc::new(Locked::new(Rank::Pool, 1));
        let (held, holds) = std::sync::mpsc::sync_channel(1);
        let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
        let holder = Arc::clone(&lock);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                holder.with(|_| {
                    held.send(()).unwrap();
                    let _ = released.recv();
                });
            });
            holds.recv().unwrap();
            let start = clock::now();
            let (lock, beats) = (&lock, &all);
            let waiter = scope.spawn(move || {
                let beat = beats.register("waiter", SECOND * 5);
                beat.tick_at(start);
                lock.with(|value| *value += 1);
                // Whoever looks below has seen the wait by now.
                assert_eq!(beats.pulses(start)[0].doing, Doing::Working);
            });
            while all.pulses(start).first().is_none_or(|pulse| pulse.doing == Doing::Working) {
                std::thread::yield_now();
            }
            let pulse = all.late(start + SECOND * 6).remove(0);
            assert_eq!(pulse.doing, Doing::Lock(Rank::Pool));
            assert_eq!(pulse.silence_max, SECOND * 5);
            drop(release);
            waiter.join().unwrap();
        });
    }
}
