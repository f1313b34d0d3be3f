//! What a metric came to lately: for rules and for those who look.

use super::point::{Point, Shape};
use crate::observe::slope;

/// A metric over a stretch of the last minutes, all series that were asked for taken together: counters
/// and gauges are added, histograms merged. What cannot be said, such as the average of nothing, is
/// `NaN`, which is neither above nor below any threshold.
#[derive(Clone, Debug)]
pub struct Window {
    /// What the metric is.
    pub shape: Shape,
    /// Looks that saw it.
    pub samples: usize,
    /// The time that they cover, in seconds: less than was asked for when the daemon is younger.
    pub seconds: f64,
    /// Gauge: the level. Counter: its rate in a second at the last look. Histogram: the average of the
    /// last look that took something in.
    pub last: f64,
    /// The least of these.
    pub min: f64,
    /// The greatest of these.
    pub max: f64,
    /// Gauge: the average level. Counter: the rate. Histogram: the average of what was observed.
    pub avg: f64,
    /// Gauge: from the first look to the last. Counter: what it grew by. Histogram: how much was
    /// observed.
    pub increase: f64,
    /// `increase` in a second.
    pub rate: f64,
    /// Each look that had a value: seconds since the first, and what `last` would have been.
    values: Vec<(f64, f64)>,
    whole: Point,
    bounds: &'static [f64],
}

impl Window {
    /// Of these looks, each with its time in seconds, oldest first. `None` when there is none.
    pub(super) fn new(
        shape: Shape,
        looks: &[(f64, Point)],
        bounds: &'static [f64],
    ) -> Option<Window> {
        let start = looks.first()?.0;
        let mut whole = Point::default();
        looks.iter().for_each(|(_, point)| whole.append(point));
        let value = |point: &Point| match shape {
            Shape::Gauge => point.sum,
            Shape::Counter => point.sum / point.seconds(),
            Shape::Histogram => point.sum / point.observed() as f64,
        };
        let values = looks.iter().map(|(at, point)| (at - start, value(point)));
        let values: Vec<(f64, f64)> = values.filter(|(_, value)| value.is_finite()).collect();
        let last = values.last().map_or(f64::NAN, |(_, value)| *value);
        let seconds = whole.seconds();
        let (increase, avg) = match shape {
            Shape::Gauge => (whole.last - looks.first()?.1.last, whole.sum / whole.count as f64),
            Shape::Counter => (whole.sum, whole.sum / seconds),
            Shape::Histogram => {
                let observed = whole.observed() as f64;
                (observed, whole.sum / observed)
            }
        };
        Some(Window {
            shape,
            samples: looks.len(),
            seconds,
            last,
            min: values.iter().map(|(_, value)| *value).fold(f64::NAN, f64::min),
            max: values.iter().map(|(_, value)| *value).fold(f64::NAN, f64::max),
            avg,
            increase,
            rate: increase / seconds,
            values,
            whole,
            bounds,
        })
    }

    /// The value below which a share `q` (0 to 1) lies. Histogram: of what was observed, by its buckets;
    /// else of the looks. `NaN` when there is nothing.
    pub fn quantile(&self, q: f64) -> f64 {
        if self.shape == Shape::Histogram {
            return self.whole.quantile(q, self.bounds).unwrap_or(f64::NAN);
        }
        let mut values: Vec<f64> = self.values.iter().map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
        let at = (q.clamp(0.0, 1.0) * last as f64).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the last index"
        )]
        values.get(at as usize).copied().unwrap_or(f64::NAN)
    }

    /// Each look that had a value: seconds since the first, and the value. At most one for each of the
    /// looks that are kept.
    pub fn values(&self) -> &[(f64, f64)] {
        &self.values
    }

    /// How fast the values grow, in a second, by the line through them that bursts do not bend; `None`
    /// with fewer than two.
    pub fn slope(&self) -> Option<f64> {
        slope::line(&self.values).map(|line| line.per_second)
    }

    /// Until a gauge that grows like this reaches `limit`, in seconds; `None` when it does not grow. It is
    /// 0 when it is there.
    pub fn seconds_to(&self, limit: f64) -> Option<f64> {
        let slope = self.slope().filter(|slope| *slope > 0.0)?;
        Some(((limit - self.last) / slope).max(0.0))
    }
}
