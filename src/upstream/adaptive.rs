//! How many exchanges an upstream is given at once, found out from how long it takes: Netflix's
//! gradient2 (`Gradient2Limit` of concurrency-limits), as Envoy's adaptive concurrency has it too. Pure:
//! it is told the time.
//!
//! A window of at least a second compares how long calls take now with how long they take in the long
//! run. When that is much longer they queue behind each other at the upstream, and the limit goes
//! down in proportion; else it grows by a few. Time to the first content of streams and time of whole
//! answers are different things and are compared apart. An upstream that says it is overloaded, or
//! does not answer in time, lowers the limit by a tenth.
//!
//! One thing differs from gradient2. There the long run follows all that it sees, and so a load that
//! lasts makes its own queues normal: simulated, the limit doubled every eight minutes. Here it rises
//! only where nothing queues because of us: while the limit is not used up, and when the limit is so
//! low already that a slower upstream must be what there is.

use std::time::{Duration, Instant};

/// A window has at least this length and this many calls (Netflix's `WindowedLimit`: one second, ten).
const WINDOW: Duration = Duration::from_secs(1);
const SAMPLES_MIN: u32 = 10;

/// Windows that the long run is an average of, and those that it begins with as they are.
const LONG_WINDOWS: f64 = 600.0;
const WARM_UP: u32 = 10;

/// How much of a window's result is taken over (Netflix: 0.2).
const SMOOTHING: f64 = 0.2;

/// What the limit grows by, and what may queue at the upstream (Netflix: 4).
const QUEUE: f64 = 4.0;

/// Calls may take this much longer than in the long run before that counts (Netflix's first versions:
/// 1.5): answers of models differ in length.
const TOLERANCE: f64 = 1.5;

/// The limit does not settle lower than this by being slow: then half of it and [`QUEUE`] are as much.
const FLOOR: f64 = 2.0 * QUEUE + 1.0;

/// From the floor on, up to this limit, the long run is learned anew.
const LEARNING_MAX: f64 = 2.0 * FLOOR;

/// How much of a window the long run takes over then.
const LEARNING_SMOOTHING: f64 = 0.1;

/// No window lowers the limit by more than this.
const GRADIENT_MIN: f64 = 0.5;

/// What is left of the limit in a window in which the upstream said that it is overloaded.
const BACKOFF: f64 = 0.9;

/// Where it begins (Netflix: 20).
const INITIAL: f64 = 20.0;

/// What a time was taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// The first content of a stream.
    FirstContent = 0,
    /// A whole answer.
    Whole = 1,
}

#[derive(Clone, Copy, Debug, Default)]
struct Average {
    value: f64,
    windows: u32,
}

impl Average {
    /// Takes a window in, of a limit that is `used` up, or `learning` what is normal.
    fn add(&mut self, value: f64, used: bool, learning: bool) {
        self.windows = self.windows.saturating_add(1);
        let part = match () {
            () if self.windows <= WARM_UP => 1.0 / f64::from(self.windows),
            () if learning => LEARNING_SMOOTHING,
            () if !used || value < self.value => 2.0 / (LONG_WINDOWS + 1.0),
            () => 0.0,
        };
        self.value += (value - self.value) * part;
    }
}

#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    /// Sum of seconds and number of calls, by what was timed.
    sums: [(f64, u32); 2],
    in_flight: u64,
    overloaded: bool,
}

impl Window {
    fn new(now: Instant) -> Self {
        Window { since: now, sums: [(0.0, 0); 2], in_flight: 0, overloaded: false }
    }
}

/// A limit that adapts itself.
#[derive(Debug)]
pub struct Adaptive {
    min: f64,
    max: f64,
    limit: f64,
    long: [Average; 2],
    /// The limit was as low as it gets, and has not grown far from there.
    learning: bool,
    window: Window,
}

impl Adaptive {
    /// One between these bounds.
    pub fn new(min: usize, max: usize, now: Instant) -> Self {
        let mut adaptive = Adaptive {
            min: 1.0,
            max: 1.0,
            limit: INITIAL,
            long: [Average::default(); 2],
            learning: false,
            window: Window::new(now),
        };
        adaptive.set_bounds(min, max);
        adaptive
    }

    /// Other bounds.
    #[expect(clippy::cast_precision_loss, reason = "bounds are below 65536")]
    pub fn set_bounds(&mut self, min: usize, max: usize) {
        self.max = max.max(1) as f64;
        self.min = (min.max(1) as f64).min(self.max);
        self.limit = self.limit.clamp(self.min, self.max);
    }

    /// The limit now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 65536"
    )]
    pub fn limit(&self) -> u64 {
        self.limit as u64
    }

    /// A call was answered after `took`, with so many under way. Gives a new limit when there is one.
    pub fn answered(
        &mut self,
        timed: Timed,
        took: Duration,
        in_flight: u64,
        now: Instant,
    ) -> Option<u64> {
        let (sum, count) = &mut self.window.sums[timed as usize];
        *sum += took.as_secs_f64();
        *count += 1;
        self.window.in_flight = self.window.in_flight.max(in_flight);
        self.turn(now)
    }

    /// A call failed because there is too much of them, or was not answered in time.
    pub fn overloaded(&mut self, now: Instant) -> Option<u64> {
        self.window.overloaded = true;
        self.turn(now)
    }

    /// Ends the window when it is due.
    fn turn(&mut self, now: Instant) -> Option<u64> {
        let window = self.window;
        let samples: u32 = window.sums.iter().map(|(_, count)| count).sum();
        let due = now.saturating_duration_since(window.since) >= WINDOW;
        if !due || (samples < SAMPLES_MIN && !window.overloaded) {
            return None;
        }
        self.window = Window::new(now);
        let before = self.limit();
        let used = as_f64(window.in_flight) >= self.limit / 2.0;
        let gradient = self.gradient(&window, samples, used);
        if window.overloaded {
            self.limit *= BACKOFF;
        } else if used {
            // Fewer under way say nothing about a higher limit.
            let target = self.limit * gradient + QUEUE;
            self.limit = self.limit * (1.0 - SMOOTHING) + target * SMOOTHING;
        }
        self.limit = self.limit.clamp(self.min, self.max);
        (self.limit() != before).then(|| self.limit())
    }

    /// How calls of now compare with those of the long run: 1 for as fast, less for slower.
    fn gradient(&mut self, window: &Window, samples: u32, used: bool) -> f64 {
        if self.limit <= self.min.max(FLOOR) {
            self.learning = true;
        } else if self.limit > self.min.max(LEARNING_MAX) {
            self.learning = false;
        }
        let mut weighted = 0.0;
        for ((sum, count), long) in window.sums.iter().zip(&mut self.long) {
            if *count == 0 {
                continue;
            }
            let short = (sum / f64::from(*count)).max(f64::EPSILON);
            long.add(short, used, self.learning);
            // After an overload the long run is too long: it comes back faster than it went.
            if long.value / short > 2.0 {
                long.value *= 0.9;
            }
            let gradient = (TOLERANCE * long.value / short).clamp(GRADIENT_MIN, 1.0);
            weighted += gradient * f64::from(*count);
        }
        if samples == 0 { 1.0 } else { weighted / f64::from(samples) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact far beyond any number of calls")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use proptest::prelude::*;

    /// An upstream that serves `slots` at once, each in `service`; the others queue there. Whoever calls
    /// it does so as often as the limit lets them.
    struct World {
        adaptive: Adaptive,
        slots: u64,
        service: Duration,
        demand: u64,
        now: Instant,
    }

    impl World {
        fn new(slots: u64) -> Self {
            let now = clock::now();
            World {
                adaptive: Adaptive::new(2, 200, now),
                slots,
                service: Duration::from_millis(100),
                demand: u64::MAX,
                now,
            }
        }

        fn run(&mut self, seconds: u64) -> u64 {
            let end = self.now + Duration::from_secs(seconds);
            while self.now < end {
                let in_flight = self.adaptive.limit().min(self.demand).max(1);
                let rounds = as_f64(in_flight) / as_f64(self.slots);
                let took = self.service.mul_f64(rounds.max(1.0));
                self.now += took;
                for _ in 0..in_flight {
                    self.adaptive.answered(Timed::Whole, took, in_flight, self.now);
                }
            }
            self.adaptive.limit()
        }
    }

    #[test]
    fn it_finds_about_what_the_upstream_serves_at_once() {
        for slots in [8, 16, 64] {
            let mut world = World::new(slots);
            // Long enough to learn how long a call takes, with few of them at first.
            world.demand = slots / 2;
            world.run(60);
            world.demand = u64::MAX;
            let limit = world.run(120);
            assert!(limit >= slots && limit <= slots * 5 / 2, "{limit} for {slots}");
            // And it stays there, however long the load lasts.
            let later = world.run(1200);
            assert!(later >= slots && later <= slots * 5 / 2, "{later} for {slots}");
        }
    }

    #[test]
    fn it_goes_down_when_the_upstream_can_do_less_and_comes_back_up() {
        let mut world = World::new(40);
        world.demand = 20;
        world.run(60);
        world.demand = u64::MAX;
        let before = world.run(120);
        world.slots = 8;
        let down = world.run(30);
        assert!(down < before / 2, "{before} became {down}");
        world.slots = 40;
        let up = world.run(120);
        assert!(up >= 40, "{down} became {up}");
    }

    #[test]
    fn an_upstream_that_is_slower_for_good_is_taken_as_it_is() {
        let mut world = World::new(40);
        world.demand = 20;
        world.run(60);
        world.demand = u64::MAX;
        world.run(120);
        world.service = Duration::from_millis(300);
        let limit = world.run(600);
        assert!(limit >= 40, "{limit}");
    }

    #[test]
    fn an_upstream_that_says_no_is_given_less() {
        let mut world = World::new(1000);
        world.demand = 200;
        let before = world.run(300);
        assert_eq!(before, 200, "it never queues");
        for _ in 0..60 {
            world.now += WINDOW;
            world.adaptive.overloaded(world.now);
        }
        assert_eq!(world.adaptive.limit(), 2, "down to concurrency_min, and no lower");
    }

    #[test]
    fn little_traffic_moves_nothing() {
        let mut world = World::new(1000);
        world.demand = 5;
        assert_eq!(world.run(600), 20);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_whatever_it_hears(
            min in 1_usize..50,
            more in 0_usize..500,
            heard in prop::collection::vec((0_u64..5_000, 0_u64..600_000, 0_u64..1000, any::<bool>()), 1..400),
        ) {
            let mut now = clock::now();
            let max = min + more;
            let mut adaptive = Adaptive::new(min, max, now);
            for (gap, took, in_flight, first) in heard {
                now += Duration::from_millis(gap);
                let timed = if first { Timed::FirstContent } else { Timed::Whole };
                let took = Duration::from_millis(took);
                adaptive.answered(timed, took, in_flight, now);
                if took.is_zero() {
                    adaptive.overloaded(now);
                }
                prop_assert!((min as u64..=max as u64).contains(&adaptive.limit()));
            }
        }
    }
}
