//! How fast something grows: the slope of a line through samples, after Theil and Sen. It is the
//! median of the slopes between all pairs, so that bursts, and up to 29 % of samples that are far
//! off, do not bend it; a line by least squares follows each of them.
//! (P. K. Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63, 1968.)

/// Most samples that a line is laid through; further ones, the oldest, are left out. All pairs of
/// 96 are 4,560 slopes, some hundred microseconds.
pub const SAMPLES_MAX: usize = 96;

/// A line through samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// What it grows by in a second.
    pub per_second: f64,
    /// Where it begins, at the first sample.
    pub start: f64,
    /// The time between the first and the last sample, in seconds.
    pub span: f64,
}

impl Line {
    /// What it grew by from the first sample to the last.
    pub fn growth(&self) -> f64 {
        self.per_second * self.span
    }
}

/// The line through samples of (seconds, value), in the order of their times. None when there are
/// fewer than two times.
pub fn line(samples: &[(f64, f64)]) -> Option<Line> {
    let samples = &samples[samples.len().saturating_sub(SAMPLES_MAX)..];
    let (first, last) = (samples.first()?, samples.last()?);
    let mut slopes = Vec::with_capacity(samples.len() * samples.len().saturating_sub(1) / 2);
    for (at, a) in samples.iter().enumerate() {
        let later = samples[at + 1..].iter().filter(|b| b.0 > a.0);
        slopes.extend(later.map(|b| (b.1 - a.1) / (b.0 - a.0)));
    }
    let per_second = median(&mut slopes)?;
    let mut starts: Vec<f64> = samples.iter().map(|s| s.1 - per_second * (s.0 - first.0)).collect();
    Some(Line { per_second, start: median(&mut starts)?, span: last.0 - first.0 })
}

fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_straight_line_is_found_exactly_and_bursts_do_not_bend_it() {
        let straight = |n: u32| (f64::from(n) * 60.0, 1000.0 + f64::from(n) * 30.0);
        let mut samples: Vec<_> = (0..60).map(straight).collect();
        let exact = Line { per_second: 0.5, start: 1000.0, span: 59.0 * 60.0 };
        assert_eq!(line(&samples), Some(exact));
        for at in [3, 4, 5, 20, 21, 50, 51, 52, 53, 59] {
            samples[at].1 += 1e9;
        }
        let found = line(&samples).unwrap();
        assert!((found.per_second - 0.5).abs() < 0.2, "{found:?}");
    }

    #[test]
    fn a_step_is_no_slope_and_too_little_is_no_line() {
        let stepped: Vec<_> =
            (0..60).map(|n| (f64::from(n), if n < 10 { 0.0 } else { 1e6 })).collect();
        assert_eq!(line(&stepped).unwrap().per_second, 0.0);
        assert_eq!(line(&[]), None);
        assert_eq!(line(&[(1.0, 5.0)]), None);
        assert_eq!(line(&[(1.0, 5.0), (1.0, 9.0)]), None, "one time, twice");
    }

    proptest! {
        /// Whatever comes, the slope is one of those between two samples, and finite.
        #[test]
        fn the_slope_is_between_the_steepest_and_the_flattest(
            values in proptest::collection::vec(0u32..1_000_000, 2..150),
        ) {
            let samples: Vec<_> =
                values.iter().enumerate().map(|(n, v)| (n as f64, f64::from(*v))).collect();
            let found = line(&samples).unwrap();
            let steps = samples.windows(2).map(|two| two[1].1 - two[0].1);
            let (low, high) = steps.fold((f64::MAX, f64::MIN), |(l, h), s| (l.min(s), h.max(s)));
            prop_assert!(found.per_second >= low && found.per_second <= high);
        }
    }
}
