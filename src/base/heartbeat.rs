//! Heartbeats of the loops that must not stop. `/livez` reads them; nothing here calls out.
//!
//! A thread beats each time round its loop. When it waits for work without a bound it rests, which
//! is not silence. A thread that ends takes its beat with it, unless it ends by a panic: then the
//! beat stays and goes stale, because somebody counted on that thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::clock;
use super::lock::{Locked, Rank};
use super::metrics::{Limit, Registry};

/// Most beats at once. There is one for each long-lived thread (`ARCHITECTURE.md` lists them), not
/// one for each worker. Past it: a thread is not watched, and [`Heartbeats::unwatched`] counts it.
pub const BEATS_MAX: usize = 256;

/// In the place of a time: the thread waits for work.
const RESTING: u64 = u64::MAX;

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
    silence_max: Duration,
    /// When it last beat, in milliseconds after `Heartbeats::start`, or [`RESTING`].
    last_ms: AtomicU64,
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
    /// How long ago it beat; `None` while it waits for work.
    pub silence: Option<Duration>,
    /// How long it may be silent.
    pub silence_max: Duration,
}

impl Pulse {
    /// Whether it was silent for longer than it may.
    pub fn late(&self) -> bool {
        self.silence.is_some_and(|silence| silence > self.silence_max)
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

    /// Watches a thread from now on. `silence_max` is the longest time between two beats that is
    /// still healthy: several times the longest wait of its loop.
    pub fn register(self: &Arc<Self>, name: &str, silence_max: Duration) -> Beat {
        let state = Arc::new(State {
            name: name.to_owned(),
            silence_max,
            last_ms: AtomicU64::new(self.ms(clock::now())),
        });
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
        let pulse = |state: &Arc<State>| {
            let last_ms = state.last_ms.load(Relaxed);
            let silence = Duration::from_millis(now_ms.saturating_sub(last_ms));
            Pulse {
                name: state.name.clone(),
                silence: (last_ms != RESTING).then_some(silence),
                silence_max: state.silence_max,
            }
        };
        self.beats.with(|beats| beats.iter().map(pulse).collect())
    }

    /// Threads that were not watched because there were too many.
    pub fn unwatched(&self) -> u64 {
        self.limit.refused()
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(RESTING - 1)
    }
}

impl Beat {
    /// The loop goes round.
    pub fn tick(&self) {
        self.tick_at(clock::now());
    }

    /// The same, for a loop that knows the time.
    pub fn tick_at(&self, now: Instant) {
        self.state.last_ms.store(self.all.ms(now), Relaxed);
    }

    /// The loop waits for work, for as long as it takes. The next [`Beat::tick`] ends the rest.
    pub fn rest(&self) {
        self.state.last_ms.store(RESTING, Relaxed);
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A panic while resting must show as well.
            self.tick();
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
}
