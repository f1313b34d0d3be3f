//! The way out: everybody is told, and then closed one after another, so that those who come back do
//! not come all at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::base::lock::{Locked, Rank};

use super::peer::Peer;

/// The code and reason of those Closes.
pub(super) const CLOSE: (u16, &str) = (1012, "service restart");

/// Between two Closes where there is time for it: a hundred clients a second come back.
const GAP: Duration = Duration::from_millis(10);

/// Of the drain time, what is kept for the last answers to Closes: a quarter, at most this.
const MARGIN_MAX: Duration = Duration::from_secs(6);

/// Who is still to be closed, and when.
#[derive(Debug)]
pub(super) struct Drain {
    on: AtomicBool,
    plan: Locked<VecDeque<(Instant, Arc<Peer>)>>,
}

impl Drain {
    pub(super) fn new() -> Self {
        Drain { on: AtomicBool::new(false), plan: Locked::new(Rank::Leaf, VecDeque::new()) }
    }

    /// From here on nobody is let in.
    pub(super) fn begin(&self) {
        self.on.store(true, SeqCst);
    }

    /// Whether it has begun.
    pub(super) fn on(&self) -> bool {
        self.on.load(SeqCst)
    }

    /// Closes these within `time`.
    pub(super) fn plan(&self, peers: Vec<Arc<Peer>>, now: Instant, time: Duration) {
        let seed = u64::from(std::process::id());
        let times = times(peers.len(), time, seed);
        let plan = times.into_iter().map(|after| now + after).zip(peers).collect();
        self.plan.with(|place| *place = plan);
    }

    /// Those whose time has come.
    pub(super) fn due(&self, now: Instant) -> Vec<Arc<Peer>> {
        self.plan.with(|plan| {
            let due = plan.iter().take_while(|(at, _)| *at <= now).count();
            plan.drain(..due).map(|(_, peer)| peer).collect()
        })
    }
}

/// When each of so many is closed: evenly, each somewhere in its own part of the time.
fn times(peers: usize, time: Duration, seed: u64) -> Vec<Duration> {
    let time = time.saturating_sub(MARGIN_MAX.min(time / 4));
    let count = u32::try_from(peers.max(1)).unwrap_or(u32::MAX);
    let gap = GAP.min(time / count);
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..peers)
        .map(|index| {
            // xorshift64: nobody gains by guessing it.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let jitter = gap.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64);
            gap * u32::try_from(index).unwrap_or(u32::MAX) + jitter
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_spread_evenly_over_the_time_that_there_is() {
        let second = Duration::from_secs(1);
        for (peers, drain, span) in [
            (1, 30 * second, GAP),
            (100, 30 * second, GAP * 100),
            (2000, 30 * second, 20 * second),
            (10_000, 30 * second, 24 * second),
            (1000, second, 3 * second / 4),
            (5, Duration::ZERO, Duration::ZERO),
        ] {
            let times = times(peers, drain, 7);
            assert_eq!(times.len(), peers);
            assert!(times.is_sorted(), "{peers}");
            assert!(times.iter().all(|at| *at <= span), "{peers} {:?}", times.last());
            // No part of the time has more than its share: twice it, where two parts meet.
            if peers >= 100 {
                let part = span / 10;
                for begin in 0..10 {
                    let within = |at: &&Duration| (part * begin..part * (begin + 1)).contains(*at);
                    let count = times.iter().filter(within).count();
                    assert!(count.abs_diff(peers / 10) <= 2, "{peers}: {count} in part {begin}");
                }
            }
        }
    }
}
