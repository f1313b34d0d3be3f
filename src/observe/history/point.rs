//! What a series came to in a stretch of time, and how two stretches are put together. No clock, no
//! I/O.

/// What the values of a series are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// What a counter grew by.
    Counter,
    /// A level.
    Gauge,
    /// A distribution of what was observed.
    Histogram,
}

impl Shape {
    /// The word in answers and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Shape::Counter => "counter",
            Shape::Gauge => "gauge",
            Shape::Histogram => "histogram",
        }
    }

    /// The shape of this word.
    pub fn parse(word: &str) -> Option<Shape> {
        [Shape::Counter, Shape::Gauge, Shape::Histogram]
            .into_iter()
            .find(|shape| shape.as_str() == word)
    }
}

/// A stretch of one series. Of none there is no point: what was not seen is not 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// Looks that it is made of.
    pub count: u64,
    /// Time that it covers, in milliseconds.
    pub millis: u64,
    /// Of a counter: what it grew by. Of a gauge: the sum of its values. Of a histogram: the sum of
    /// what was observed.
    pub sum: f64,
    /// The least value of a gauge, or growth of a counter, at one look.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The last.
    pub last: f64,
    /// Of a histogram: how much was observed in each bucket. Shorter by the empty ones at its end.
    pub buckets: Vec<u64>,
}

impl Point {
    /// What one look saw: a level, or what a counter grew by in `millis`.
    pub fn value(value: f64, millis: u64) -> Point {
        let (sum, min, max, last) = (value, value, value, value);
        Point { count: 1, millis, sum, min, max, last, buckets: Vec::new() }
    }

    /// What one look saw of a histogram: observed since the last one, bucket by bucket.
    pub fn spread(sum: f64, buckets: Vec<u64>, millis: u64) -> Point {
        let mut point = Point { count: 1, millis, sum, buckets, ..Point::default() };
        point.trim();
        point
    }

    /// Puts a later stretch of the same series behind this one.
    pub fn append(&mut self, later: &Point) {
        if self.count == 0 {
            self.clone_from(later);
            return;
        }
        if later.count == 0 {
            return;
        }
        self.count += later.count;
        self.millis += later.millis;
        self.sum += later.sum;
        self.min = self.min.min(later.min);
        self.max = self.max.max(later.max);
        self.last = later.last;
        self.add_buckets(&later.buckets);
    }

    /// Lays the same stretch of another series over this one: what both are together.
    pub fn overlay(&mut self, other: &Point) {
        if self.count == 0 {
            self.clone_from(other);
            return;
        }
        if other.count == 0 {
            return;
        }
        self.count = self.count.max(other.count);
        self.millis = self.millis.max(other.millis);
        self.sum += other.sum;
        self.min += other.min;
        self.max += other.max;
        self.last += other.last;
        self.add_buckets(&other.buckets);
    }

    fn add_buckets(&mut self, other: &[u64]) {
        if self.buckets.len() < other.len() {
            self.buckets.resize(other.len(), 0);
        }
        for (own, more) in self.buckets.iter_mut().zip(other) {
            *own = own.saturating_add(*more);
        }
    }

    fn trim(&mut self) {
        let used = self.buckets.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        self.buckets.truncate(used);
    }

    /// How much was observed, of a histogram.
    pub fn observed(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The time that it covers, in seconds.
    pub fn seconds(&self) -> f64 {
        self.millis as f64 / 1000.0
    }

    /// The value below which a share `q` (0 to 1) of what was observed lies: within its bucket as if
    /// spread evenly, and the last bound for what lies above all. `None` when nothing was observed.
    pub fn quantile(&self, q: f64, bounds: &[f64]) -> Option<f64> {
        let total = self.observed();
        if total == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total as f64;
        let mut below = 0.0;
        for (at, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let here = *count as f64;
            if below + here >= rank {
                let lower = if at == 0 { 0.0 } else { *bounds.get(at - 1)? };
                let Some(upper) = bounds.get(at) else { return bounds.last().copied() };
                return Some(lower + (upper - lower) * ((rank - below) / here).clamp(0.0, 1.0));
            }
            below += here;
        }
        bounds.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: &[f64] = &[1.0, 2.0, 4.0];

    #[test]
    fn stretches_in_a_row_add_up_and_keep_the_last_value() {
        let mut point = Point::default();
        for value in [3.0, 1.0, 2.0] {
            point.append(&Point::value(value, 10_000));
        }
        point.append(&Point::default());
        assert_eq!((point.count, point.millis, point.sum), (3, 30_000, 6.0));
        assert_eq!((point.min, point.max, point.last), (1.0, 3.0, 2.0));
    }

    #[test]
    fn series_at_the_same_time_are_laid_over_each_other() {
        let mut point = Point::value(3.0, 10_000);
        point.overlay(&Point::value(4.0, 10_000));
        assert_eq!((point.count, point.millis, point.sum, point.last), (1, 10_000, 7.0, 7.0));
        let mut spread = Point::spread(1.0, vec![1, 0, 0, 0], 10_000);
        spread.overlay(&Point::spread(3.0, vec![0, 0, 2, 0], 10_000));
        assert_eq!((spread.observed(), spread.buckets), (3, vec![1, 0, 2]));
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let point = Point::spread(0.0, vec![2, 2, 0, 0], 1);
        assert_eq!(point.quantile(0.5, BOUNDS), Some(1.0));
        assert_eq!(point.quantile(0.75, BOUNDS), Some(1.5));
        assert_eq!(point.quantile(1.0, BOUNDS), Some(2.0));
        assert_eq!(point.quantile(7.0, BOUNDS), Some(2.0));
        // Above every bound nothing more is known.
        assert_eq!(Point::spread(0.0, vec![0, 0, 0, 5], 1).quantile(0.5, BOUNDS), Some(4.0));
        assert_eq!(Point::spread(0.0, vec![0, 0], 1).quantile(0.5, BOUNDS), None);
    }
}
