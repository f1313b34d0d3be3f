//! Limits over the last half hour: whether they refuse, and when they are reached if they grow on.

use std::time::Duration;

use super::at::At;
use super::input::LimitSeen;
use crate::base::bounded::Map;
use crate::base::metrics::Registry;
use crate::observe::slope;

/// Most limits that are followed. Past it: a further one is judged by its share only.
pub const LIMITS_MAX: usize = 1024;
/// Between two samples.
const STEP: Duration = Duration::from_secs(30);
/// Samples that are kept: half an hour of them.
const SAMPLES_MAX: usize = 60;
/// Samples that make a line: ten minutes of them.
const SAMPLES_MIN: usize = 20;
/// Below this share of a limit nothing is kept of it: most limits are there nearly always.
const SHARE_MIN: f64 = 0.05;
/// What it must have grown by within the samples, as a share of the limit.
const GROWTH_MIN: f64 = 0.05;
/// How far from the line the middle one of the samples may be, as a share of the growth.
const RESIDUAL_MAX: f64 = 0.15;
/// A limit that refused is one that refuses for so long.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// All limits that were seen.
#[derive(Debug)]
pub struct Trends {
    tracks: Map<(String, String), Track>,
}

#[derive(Debug, Default)]
struct Track {
    refused: u64,
    refused_at: Option<At>,
    samples: Vec<(At, f64)>,
    at: At,
}

/// When a limit is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TimeLeft {
    /// It is not on its way there.
    Ever,
    /// In so many seconds.
    Seconds(f64),
    /// Not known yet.
    Unknown,
}

impl Trends {
    /// None yet.
    pub fn new(registry: &Registry) -> Self {
        let (max, consequence) = (LIMITS_MAX as u64, "judged by its share only");
        Trends { tracks: Map::new(registry.limit("alerts.limits_max", "", max, consequence)) }
    }

    /// Takes a look in.
    pub fn look(&mut self, now: At, limits: &[LimitSeen]) {
        for limit in limits {
            let key = (limit.name.clone(), limit.owner.clone());
            let fresh = || Track { refused: limit.refused, ..Track::default() };
            let Some(track) = self.tracks.get_or_insert_with(key, fresh) else { continue };
            track.at = now;
            if limit.refused > track.refused {
                track.refused_at = Some(now);
            }
            track.refused = limit.refused;
            if share(limit) < SHARE_MIN {
                track.samples = Vec::new();
            } else if track.samples.last().is_none_or(|(at, _)| now.since(*at) >= STEP) {
                if track.samples.len() == SAMPLES_MAX {
                    track.samples.remove(0);
                }
                #[expect(clippy::cast_precision_loss, reason = "a share of it is what counts")]
                track.samples.push((now, limit.now as f64));
            }
        }
        self.tracks.retain(|_, track| track.at == now);
    }

    /// Whether it refused just now.
    pub fn refuses(&self, limit: &LimitSeen, now: At) -> bool {
        let track = self.track(limit);
        let at = track.and_then(|track| track.refused_at);
        at.is_some_and(|at| now.since(at) < REFUSED_FOR)
    }

    /// When it is reached if it grows on as it did. Only a growth that is steady counts: no step, and
    /// no burst.
    pub fn time_left(&self, limit: &LimitSeen) -> TimeLeft {
        let Some(track) = self.track(limit) else { return TimeLeft::Ever };
        if track.samples.len() < SAMPLES_MIN {
            return if share(limit) < SHARE_MIN { TimeLeft::Ever } else { TimeLeft::Unknown };
        }
        let Some((first, _)) = track.samples.first() else { return TimeLeft::Unknown };
        let samples: Vec<(f64, f64)> =
            track.samples.iter().map(|(at, now)| (at.since(*first).as_secs_f64(), *now)).collect();
        let Some(line) = slope::line(&samples) else { return TimeLeft::Unknown };
        #[expect(clippy::cast_precision_loss, reason = "a share of it is what counts")]
        let (now, max) = (limit.now as f64, limit.max as f64);
        let growth = line.growth();
        if line.per_second <= 0.0 || growth < max * GROWTH_MIN {
            return TimeLeft::Ever;
        }
        let mut away: Vec<f64> = samples
            .iter()
            .map(|(at, have)| (have - line.start - line.per_second * at).abs())
            .collect();
        away.sort_by(f64::total_cmp);
        if away.get(away.len() / 2).is_none_or(|middle| *middle > growth * RESIDUAL_MAX) {
            return TimeLeft::Ever;
        }
        TimeLeft::Seconds(((max - now) / line.per_second).max(0.0))
    }

    fn track(&self, limit: &LimitSeen) -> Option<&Track> {
        self.tracks.get(&(limit.name.clone(), limit.owner.clone()))
    }
}

/// How much of a limit is used, from 0 on.
pub fn share(limit: &LimitSeen) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a share of it is what counts")]
    let (now, max) = (limit.now as f64, limit.max as f64);
    if max > 0.0 { now / max } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(now: u64) -> LimitSeen {
        LimitSeen {
            name: "x_max".into(),
            owner: String::new(),
            now,
            max: 1000,
            refused: 0,
            makes_room: false,
        }
    }

    /// What is told after the values of each half minute.
    fn after(values: impl Iterator<Item = u64>) -> TimeLeft {
        let mut trends = Trends::new(&Registry::default());
        let mut last = limit(0);
        for (at, now) in values.enumerate() {
            last = limit(now);
            trends.look(At(at as u64 * 30_000), std::slice::from_ref(&last));
        }
        trends.time_left(&last)
    }

    #[test]
    fn a_steady_growth_is_told_with_its_time_and_others_are_not() {
        // 10 in half a minute: from 500 on it takes 25 minutes.
        let TimeLeft::Seconds(left) = after((0..41).map(|n| 100 + n * 10)) else {
            panic!("no time")
        };
        assert!((left - 1500.0).abs() < 60.0, "{left}");
        assert_eq!(after((0..10).map(|n| 100 + n * 10)), TimeLeft::Unknown, "too short");
        assert_eq!(after((0..60).map(|_| 900)), TimeLeft::Ever, "full, but at rest");
        assert_eq!(
            after((0..60).map(|n| if n < 30 { 100 } else { 800 })),
            TimeLeft::Ever,
            "a step"
        );
        let noise = (0..60).map(|n: u64| 300 + (n * 7919 % 61) * 9);
        assert_eq!(after(noise), TimeLeft::Ever, "noise");
        assert_eq!(after((0..60).map(|n| 900 - n * 5)), TimeLeft::Ever, "it goes down");
        assert_eq!(after((0..60).map(|n| n / 3)), TimeLeft::Ever, "hardly used");
    }

    #[test]
    fn a_refusal_is_seen_for_half_a_minute() {
        let mut trends = Trends::new(&Registry::default());
        let mut seen = LimitSeen { refused: 7, ..limit(5) };
        trends.look(At(0), std::slice::from_ref(&seen));
        assert!(!trends.refuses(&seen, At(0)), "what was before is not new");
        seen.refused = 8;
        trends.look(At(5000), std::slice::from_ref(&seen));
        assert!(trends.refuses(&seen, At(5000)));
        trends.look(At(40_000), std::slice::from_ref(&seen));
        assert!(!trends.refuses(&seen, At(40_000)));
    }
}
