//! Looks and points as bytes: most numbers are small and whole, and most points are like the one before.
//!
//! What cannot be read is left out: a blob comes from a file that may have been damaged.

use super::point::{Point, Shape};

/// The first byte of a part: how the rest is to be read.
const VERSION: u8 = 1;

/// Most slots of a part that are read.
const SLOTS_MAX: u64 = 4096;

/// Most buckets of a point that are read.
const BUCKETS_MAX: u64 = 1024;

/// The largest whole number that a float holds exactly.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// A point is like the one before in looks and time.
const SAME_COVER: u8 = 1;
/// All its looks had one value.
const CONSTANT: u8 = 2;
/// And that value is the one before's.
const SAME_VALUE: u8 = 4;

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "less than 128")]
    out.push(number as u8);
}

fn put_value(out: &mut Vec<u8>, value: f64) {
    let fits = (0.0..WHOLE_MAX).contains(&value) && value.is_sign_positive();
    if fits && value.fract() == 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole, and within the bound"
        )]
        put_number(out, (value as u64) << 1);
    } else {
        out.push(1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn put_buckets(out: &mut Vec<u8>, buckets: &[u64]) {
    let used = || buckets.iter().enumerate().filter(|(_, count)| **count > 0);
    put_number(out, used().count() as u64);
    let mut next = 0;
    for (at, count) in used() {
        put_number(out, (at - next) as u64);
        put_number(out, *count);
        next = at + 1;
    }
}

/// Reads what was written; every read may find the end.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn value(&mut self) -> Option<f64> {
        let number = self.number()?;
        if number != 1 {
            return (number & 1 == 0).then_some((number >> 1) as f64);
        }
        let (bytes, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(f64::from_le_bytes(*bytes))
    }

    fn buckets(&mut self) -> Option<Vec<u64>> {
        let used = self.number().filter(|used| *used <= BUCKETS_MAX)?;
        let mut buckets = Vec::new();
        for _ in 0..used {
            let gap = self.number().filter(|gap| *gap <= BUCKETS_MAX)?;
            let at = buckets.len() + usize::try_from(gap).ok()?;
            if at as u64 > BUCKETS_MAX {
                return None;
            }
            buckets.resize(at, 0);
            buckets.push(self.number()?);
        }
        Some(buckets)
    }
}

/// Adds what a look saw of one series.
pub fn put_seen(out: &mut Vec<u8>, series: u32, shape: Shape, point: &Point) {
    put_number(out, u64::from(series) << 1 | u64::from(shape == Shape::Histogram));
    put_value(out, point.sum);
    if shape == Shape::Histogram {
        put_buckets(out, &point.buckets);
    }
}

/// Hands what a look saw of those series that `wanted` says yes to to `take`, with whether it is a
/// distribution.
pub fn seen(
    data: &[u8],
    millis: u64,
    wanted: impl Fn(u32) -> bool,
    mut take: impl FnMut(u32, bool, Point),
) -> Option<()> {
    let mut reader = Reader(data);
    while !reader.0.is_empty() {
        let tag = reader.number()?;
        let series = u32::try_from(tag >> 1).ok()?;
        let sum = reader.value()?;
        let point = if tag & 1 == 0 {
            Point::value(sum, millis)
        } else {
            let buckets = reader.buckets()?;
            Point::spread(sum, buckets, millis)
        };
        if wanted(series) {
            take(series, tag & 1 == 1, point);
        }
    }
    Some(())
}

/// The points of a part, slot by slot; those of which nothing was seen have no looks.
pub fn part(shape: Shape, slots: &[Point]) -> Vec<u8> {
    let mut out = vec![VERSION];
    let mut next = 0;
    let mut before = Point::default();
    for (at, point) in slots.iter().enumerate().filter(|(_, point)| point.count > 0) {
        put_number(&mut out, (at - next) as u64);
        next = at + 1;
        let mut flags = 0;
        if (point.count, point.millis) == (before.count, before.millis) {
            flags |= SAME_COVER;
        }
        if shape != Shape::Histogram && constant(point) {
            flags |= CONSTANT;
            if constant(&before) && point.last.to_bits() == before.last.to_bits() {
                flags |= SAME_VALUE;
            }
        }
        out.push(flags);
        if flags & SAME_COVER == 0 {
            put_number(&mut out, point.count);
            put_number(&mut out, point.millis);
        }
        match shape {
            Shape::Histogram => {
                put_value(&mut out, point.sum);
                put_buckets(&mut out, &point.buckets);
            }
            _ if flags & SAME_VALUE != 0 => {}
            _ if flags & CONSTANT != 0 => put_value(&mut out, point.last),
            _ => [point.sum, point.min, point.max, point.last]
                .iter()
                .for_each(|value| put_value(&mut out, *value)),
        }
        before = point.clone();
    }
    out
}

/// Whether all its looks had one value.
fn constant(point: &Point) -> bool {
    let same = point.min.to_bits() == point.max.to_bits();
    let same = same && point.last.to_bits() == point.min.to_bits();
    same && (point.last * point.count as f64).to_bits() == point.sum.to_bits()
}

/// Hands the points of a part to `take`, each with its slot. What is damaged ends it.
pub fn points(shape: Shape, data: &[u8], mut take: impl FnMut(usize, &Point)) -> Option<()> {
    let mut reader = Reader(data);
    if reader.byte()? != VERSION {
        return None;
    }
    let mut slot = 0;
    let mut point = Point::default();
    while !reader.0.is_empty() {
        let gap = reader.number().filter(|gap| *gap <= SLOTS_MAX)?;
        slot += usize::try_from(gap).ok()?;
        let flags = reader.byte()?;
        if flags & SAME_COVER == 0 {
            point.count = reader.number()?;
            point.millis = reader.number()?;
        }
        if shape == Shape::Histogram {
            point.sum = reader.value()?;
            point.buckets = reader.buckets()?;
        } else if flags & CONSTANT != 0 {
            let value = if flags & SAME_VALUE == 0 { reader.value()? } else { point.last };
            point.sum = value * point.count as f64;
            (point.min, point.max, point.last) = (value, value, value);
        } else {
            point.sum = reader.value()?;
            point.min = reader.value()?;
            point.max = reader.value()?;
            point.last = reader.value()?;
        }
        take(slot, &point);
        slot += 1;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(shape: Shape, data: &[u8], slots: usize) -> Vec<Point> {
        let mut out = vec![Point::default(); slots];
        points(shape, data, |slot, point| out[slot].clone_from(point)).unwrap();
        out
    }

    fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            (0u32..3).prop_map(f64::from),
            (0u64..1 << 60).prop_map(|n| n as f64),
            -1e9..1e9f64,
            Just(-0.0),
            Just(f64::MAX),
        ]
    }

    fn any_scalar() -> impl Strategy<Value = Point> {
        let few = proptest::collection::vec(any_value(), 0..4);
        few.prop_map(|values| {
            let mut point = Point::default();
            values.iter().for_each(|value| point.append(&Point::value(*value, 10_000)));
            point
        })
    }

    fn any_spread() -> impl Strategy<Value = Point> {
        let buckets = proptest::collection::vec(prop_oneof![Just(0u64), 0u64..1 << 40], 0..22);
        (any_value(), buckets, 1u64..100_000)
            .prop_map(|(sum, buckets, millis)| Point::spread(sum, buckets, millis))
    }

    proptest! {
        #[test]
        fn parts_come_back_as_they_were(scalars in proptest::collection::vec(any_scalar(), 0..61),
                                        spreads in proptest::collection::vec(any_spread(), 0..61)) {
            let data = part(Shape::Gauge, &scalars);
            prop_assert_eq!(&read(Shape::Gauge, &data, scalars.len()), &scalars);
            let data = part(Shape::Histogram, &spreads);
            prop_assert_eq!(&read(Shape::Histogram, &data, spreads.len()), &spreads);
        }

        #[test]
        fn looks_come_back_as_they_were(seen_points in proptest::collection::vec(
            (0u32..1 << 31, any_value(), any_spread()), 0..20)) {
            let mut data = Vec::new();
            let mut put = Vec::new();
            for (series, value, spread) in seen_points {
                let scalar = Point::value(value, 7);
                put_seen(&mut data, series, Shape::Counter, &scalar);
                put.push((series, scalar));
                let spread = Point { millis: 7, ..spread };
                put_seen(&mut data, series, Shape::Histogram, &spread);
                put.push((series, spread));
            }
            let mut got = Vec::new();
            seen(&data, 7, |_| true, |series, _, point| got.push((series, point))).unwrap();
            prop_assert_eq!(got, put);
        }

        #[test]
        fn damaged_bytes_end_it_and_no_more(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = seen(&data, 1, |_| true, |_, _, _| ());
            for shape in [Shape::Gauge, Shape::Histogram] {
                let _ = points(shape, &data, |_, _| ());
                let versioned: Vec<u8> = [VERSION].into_iter().chain(data.iter().copied()).collect();
                let _ = points(shape, &versioned, |slot, _| assert!(slot < 1 << 20));
            }
        }
    }

    #[test]
    fn what_rests_takes_next_to_nothing() {
        let mut minute = Point::default();
        (0..6).for_each(|_| minute.append(&Point::value(123_456_789.0, 10_000)));
        let hour = vec![minute; 60];
        assert!(part(Shape::Gauge, &hour).len() < 150, "{}", part(Shape::Gauge, &hour).len());
    }
}
