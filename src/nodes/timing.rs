//! The time of one connection: when it pings, when its peer is dead, when a tick is due. Pure: it is
//! told the time and what happened, and says what to do.

use std::time::{Duration, Instant};

/// What it goes by.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// From the beginning to the end of the handshake.
    pub handshake: Duration,
    /// Between two pings; zero: none.
    pub ping: Duration,
    /// From a ping to a sign of life.
    pub pong: Duration,
    /// Between two ticks.
    pub tick: Duration,
    /// How long the peer may take nothing of what is unsent.
    pub write: Duration,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send a ping.
    Ping,
    /// Send a tick, which is so late.
    Tick(Duration),
    /// The handshake took too long: refuse the peer.
    Handshake,
    /// No sign of life since the ping: cut the connection.
    Dead,
    /// The peer takes nothing: close the connection.
    Stuck,
}

/// The clocks of one connection.
#[derive(Debug)]
pub struct Timing {
    periods: Periods,
    /// Until the handshake's end.
    handshake_by: Option<Instant>,
    /// None before the handshake's end, and when there are no pings.
    ping_at: Option<Instant>,
    /// None before it.
    tick_at: Option<Instant>,
    /// When the last ping was sent.
    pinged: Instant,
    /// While no sign of life came since.
    pong_by: Option<Instant>,
    /// While something is unsent.
    write_by: Option<Instant>,
    /// Nothing is read, so that no sign of life can be seen.
    deaf: bool,
}

/// After a while in which nothing was read: the time in which what came meanwhile is looked at.
const HEARING: Duration = Duration::from_secs(1);

/// The clocks that say nothing until something happens wait for this long.
const IDLE: Duration = Duration::from_secs(60);

impl Timing {
    /// Of a connection that begins now.
    pub fn new(periods: Periods, now: Instant) -> Self {
        Timing {
            periods,
            handshake_by: Some(now + periods.handshake),
            ping_at: None,
            tick_at: None,
            pinged: now,
            pong_by: None,
            write_by: None,
            deaf: false,
        }
    }

    /// The handshake is over, well.
    pub fn welcomed(&mut self, now: Instant) {
        self.handshake_by = None;
        self.tick_at = Some(now + self.periods.tick);
        self.ping_at = (!self.periods.ping.is_zero()).then(|| now + self.periods.ping);
    }

    /// Whether the handshake is not over.
    pub fn shaking_hands(&self) -> bool {
        self.handshake_by.is_some()
    }

    /// The last byte of the peer came at this time.
    pub fn heard(&mut self, at: Instant) {
        if at >= self.pinged {
            self.pong_by = None;
        }
    }

    /// From now on nothing is read, or again.
    pub fn deaf(&mut self, deaf: bool, now: Instant) {
        if self.deaf && !deaf {
            self.pong_by = self.pong_by.map(|by| by.max(now + HEARING));
        }
        self.deaf = deaf;
    }

    /// So many bytes are unsent, of which the peer's system took some at `moved`. As long as it
    /// takes some it lives, though its pong stands behind them.
    pub fn unsent(&mut self, bytes: usize, moved: Instant) {
        if bytes == 0 {
            self.write_by = None;
            return;
        }
        self.write_by = Some(moved + self.periods.write);
        self.pong_by = self.pong_by.map(|by| by.max(moved + self.periods.pong));
    }

    /// What is to be done at `now`, one thing at a time.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        let over = |by: Option<Instant>| by.is_some_and(|by| by <= now);
        if over(self.handshake_by) {
            return Some(Due::Handshake);
        }
        if over(self.pong_by) && !self.deaf {
            return Some(Due::Dead);
        }
        if over(self.write_by) {
            return Some(Due::Stuck);
        }
        if let Some(at) = self.tick_at.filter(|at| *at <= now) {
            self.tick_at = Some(next(at, self.periods.tick, now));
            return Some(Due::Tick(now.saturating_duration_since(at)));
        }
        if let Some(at) = self.ping_at.filter(|at| *at <= now) {
            self.ping_at = Some(next(at, self.periods.ping, now));
            self.pinged = now;
            self.pong_by = Some(now + self.periods.pong);
            return Some(Due::Ping);
        }
        None
    }

    /// When to look again, if nothing happens before.
    pub fn next(&self, now: Instant) -> Instant {
        let pong_by = self.pong_by.filter(|_| !self.deaf);
        let clocks = [self.handshake_by, self.ping_at, self.tick_at, pong_by, self.write_by];
        clocks.into_iter().flatten().min().unwrap_or(now + IDLE)
    }
}

/// The time after `at`: in step, unless whole periods were missed.
fn next(at: Instant, period: Duration, now: Instant) -> Instant {
    let next = at + period;
    if next > now { next } else { now + period }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn periods() -> Periods {
        Periods {
            handshake: 15 * SECOND,
            ping: 25 * SECOND,
            pong: 10 * SECOND,
            tick: 15 * SECOND,
            write: 30 * SECOND,
        }
    }

    fn open() -> (Timing, Instant) {
        let start = clock::now();
        let mut timing = Timing::new(periods(), start);
        timing.welcomed(start);
        (timing, start)
    }

    /// Everything that is due until `until`, looked for when the machine itself says so, and when.
    fn run(timing: &mut Timing, from: Instant, until: Instant) -> Vec<(Duration, Due)> {
        let (mut now, mut all) = (from, Vec::new());
        loop {
            while let Some(due) = timing.due(now) {
                all.push((now - from, due));
                if matches!(due, Due::Dead | Due::Stuck | Due::Handshake) {
                    return all;
                }
            }
            let next = timing.next(now);
            assert!(next > now, "no progress at {:?}", now - from);
            if next > until {
                return all;
            }
            now = next;
        }
    }

    #[test]
    fn a_peer_that_never_says_who_it_is_is_refused_in_time() {
        let start = clock::now();
        let mut timing = Timing::new(periods(), start);
        timing.heard(start + SECOND);
        let all = run(&mut timing, start, start + 60 * SECOND);
        assert_eq!(all, [(15 * SECOND, Due::Handshake)]);
    }

    #[test]
    fn a_silent_peer_is_dead_after_ping_and_pong_whenever_it_fell_silent() {
        for silent in 0..100 {
            let (mut timing, start) = open();
            let mut now = start;
            let last = start + silent * SECOND;
            // It answers each ping at once until it falls silent.
            let dead = loop {
                match timing.due(now) {
                    Some(Due::Dead) => break now,
                    Some(Due::Ping) if now <= last => timing.heard(now),
                    Some(_) => {}
                    None => now = timing.next(now),
                }
            };
            assert!(dead - last <= 35 * SECOND, "{silent}: {:?}", dead - last);
        }
    }

    #[test]
    fn pings_and_ticks_keep_their_step_for_days() {
        let (mut timing, start) = open();
        let (mut now, mut pings, mut ticks) = (start, 0_i64, 0_i64);
        let days = start + Duration::from_secs(5 * 24 * 3600);
        let mut late = Duration::ZERO;
        while now < days {
            match timing.due(now) {
                Some(Due::Ping) => {
                    pings += 1;
                    timing.heard(now + 3 * MS);
                }
                Some(Due::Tick(_)) => ticks += 1,
                Some(other) => panic!("{other:?}"),
                None => {
                    // The system wakes the thread a little late, each time otherwise.
                    late = if late > 400 * MS { Duration::ZERO } else { late + 7 * MS };
                    now = timing.next(now) + late;
                }
            }
        }
        let seconds = 5 * 24 * 3600_i64;
        assert!((seconds / 25 - pings).abs() <= 1, "{pings}");
        assert!((seconds / 15 - ticks).abs() <= 1, "{ticks}");
    }

    #[test]
    fn after_a_pause_of_the_whole_machine_nothing_is_made_up_for() {
        let (mut timing, start) = open();
        let later = start + Duration::from_secs(3600);
        let mut all = Vec::new();
        while let Some(due) = timing.due(later) {
            all.push(due);
        }
        assert_eq!(all, [Due::Tick(3585 * SECOND), Due::Ping]);
        assert_eq!(timing.next(later), later + 10 * SECOND);
    }

    #[test]
    fn a_peer_that_takes_what_is_sent_lives_and_one_that_does_not_is_stuck() {
        let (mut timing, start) = open();
        // A long message on a slow line: it moves each second, and the pong stands behind it.
        for second in 0..600 {
            let now = start + second * SECOND;
            timing.unsent(1000, now);
            while let Some(due) = timing.due(now) {
                assert!(matches!(due, Due::Tick(_) | Due::Ping), "{due:?} at {second}");
            }
        }
        let stopped = start + 599 * SECOND;
        let all = run(&mut timing, stopped, stopped + 60 * SECOND);
        let (after, due) = all.last().unwrap();
        assert!(*due == Due::Dead && *after <= 11 * SECOND, "{all:?}");
        let mut quiet = Timing::new(Periods { ping: Duration::ZERO, ..periods() }, start);
        quiet.welcomed(start);
        quiet.unsent(1, start);
        let all = run(&mut quiet, start, start + 60 * SECOND);
        assert_eq!(all.last(), Some(&(30 * SECOND, Due::Stuck)));
    }

    #[test]
    fn whoever_is_not_listened_to_is_not_dead() {
        let (mut timing, start) = open();
        let at = |seconds| start + seconds * SECOND;
        timing.deaf(true, at(20));
        let all = run(&mut timing, start, at(300));
        assert!(all.iter().all(|(_, due)| matches!(due, Due::Tick(_) | Due::Ping)), "{all:?}");
        timing.deaf(false, at(300));
        timing.heard(at(300));
        assert!(run(&mut timing, at(300), at(301)).is_empty());
        // Or nothing had come.
        timing.deaf(true, at(324));
        let pinged = run(&mut timing, at(324), at(330));
        assert!(pinged.contains(&(SECOND, Due::Ping)), "{pinged:?}");
        timing.deaf(false, at(340));
        let all = run(&mut timing, at(340), at(400));
        assert_eq!(all.last(), Some(&(SECOND, Due::Dead)), "{all:?}");
    }
}
