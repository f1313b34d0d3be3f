//! Wall-clock times as text: RFC 3339 for logs and answers, IMF-fixdate for the `Date` header.
//! Both are UTC and allocate at most once, so that a line of log costs well under a microsecond.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of an IMF-fixdate, in bytes: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub const HTTP_DATE_BYTES: usize = 29;
/// Length of an RFC 3339 time without a fraction, in bytes: `1994-11-06T08:49:37Z`.
const RFC3339_BYTES: usize = 20;
/// Most digits of a fraction: nanoseconds, the unit of [`SystemTime`].
pub const FRACTION_DIGITS_MAX: usize = 9;

const SECONDS_PER_DAY: i64 = 86_400;
/// 0000-01-01T00:00:00Z and 9999-12-31T23:59:59Z, in seconds since the epoch. Both formats have
/// four digits for the year; a clock set outside of them is shown as the nearer end.
const SECONDS_MIN: i64 = -62_167_219_200;
const SECONDS_MAX: i64 = 253_402_300_799;

const WEEKDAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// `2026-11-22T10:46:52.123Z`, with this many digits of a second (at most
/// [`FRACTION_DIGITS_MAX`]; none: no point either). Digits are cut, not rounded, so that a time
/// never shows as later than it was.
pub fn rfc3339(time: SystemTime, fraction_digits: usize) -> String {
    let mut out = Vec::with_capacity(RFC3339_BYTES + 1 + FRACTION_DIGITS_MAX);
    push_rfc3339(&mut out, time, fraction_digits);
    String::from_utf8(out).unwrap_or_default()
}

/// The same, added to a buffer.
pub fn push_rfc3339(out: &mut Vec<u8>, time: SystemTime, fraction_digits: usize) {
    let civil = Civil::from(time);
    let mut text = *b"0000-00-00T00:00:00.";
    put(&mut text[0..4], civil.year);
    put(&mut text[5..7], civil.month);
    put(&mut text[8..10], civil.day);
    put(&mut text[11..13], civil.hour);
    put(&mut text[14..16], civil.minute);
    put(&mut text[17..19], civil.second);
    let digits = fraction_digits.min(FRACTION_DIGITS_MAX);
    if digits == 0 {
        out.extend_from_slice(&text[..19]);
    } else {
        let mut fraction = [0; FRACTION_DIGITS_MAX];
        put(&mut fraction, civil.nanos);
        out.extend_from_slice(&text);
        out.extend_from_slice(&fraction[..digits]);
    }
    out.push(b'Z');
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
pub fn http_date(time: SystemTime) -> String {
    String::from_utf8_lossy(&http_date_bytes(time)).into_owned()
}

/// The same, for a codec that keeps it for a second: no allocation.
pub fn http_date_bytes(time: SystemTime) -> [u8; HTTP_DATE_BYTES] {
    let civil = Civil::from(time);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    text[0..3].copy_from_slice(WEEKDAYS[civil.weekday]);
    put(&mut text[5..7], civil.day);
    text[8..11].copy_from_slice(MONTHS[civil.month as usize - 1]);
    put(&mut text[12..16], civil.year);
    put(&mut text[17..19], civil.hour);
    put(&mut text[20..22], civil.minute);
    put(&mut text[23..25], civil.second);
    text
}

/// Writes a number in decimal, right aligned, zeros before it; digits that do not fit are lost.
fn put(field: &mut [u8], mut number: u32) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// A time in the proleptic Gregorian calendar, UTC.
struct Civil {
    year: u32,
    /// 1 to 12.
    month: u32,
    /// 1 to 31.
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    nanos: u32,
    /// Days since a Thursday, 0 to 6: 1970-01-01 was one.
    weekday: usize,
}

impl Civil {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "remainders of a division by a day and by a week"
    )]
    fn from(time: SystemTime) -> Civil {
        let (seconds, nanos) = since_epoch(time);
        let (days, second_of_day) =
            (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY) as u32);
        let (year, month, day) = civil_from_days(days);
        Civil {
            year,
            month,
            day,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
            nanos,
            weekday: days.rem_euclid(7) as usize,
        }
    }
}

/// Seconds since the epoch, rounded down and within four-digit years, and the nanoseconds above.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    let clamp = |since: Duration| i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let (seconds, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (clamp(after), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => (-clamp(before), 0),
                nanos => ((-clamp(before)).saturating_sub(1), 1_000_000_000 - nanos),
            }
        }
    };
    match seconds {
        SECONDS_MIN..=SECONDS_MAX => (seconds, nanos),
        ..SECONDS_MIN => (SECONDS_MIN, 0),
        _ => (SECONDS_MAX, 999_999_999),
    }
}

/// Year, month and day of a count of days since 1970-01-01, for years 0 to 9999. The method is
/// `civil_from_days` of Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms"
/// (howardhinnant.github.io/date_algorithms.html): years begin in March, so that the leap day is
/// their last one, and fall into eras of 400 years, which all have the same length.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`since_epoch` keeps the days within years 0 to 9999"
)]
fn civil_from_days(days: i64) -> (u32, u32, u32) {
    const DAYS_PER_ERA: i64 = 146_097;
    // 0000-03-01 is day -719,468. A year before that keeps January and February of year 0 whole.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let day_of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as u32, month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64, nanos: u32) -> SystemTime {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let second = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
        second + Duration::from_nanos(u64::from(nanos))
    }

    fn check(seconds: i64, stamp: &str, date: &str) {
        assert_eq!(rfc3339(at(seconds, 0), 0), stamp);
        assert_eq!(http_date(at(seconds, 0)), date);
    }

    #[test]
    fn known_times_are_written_as_their_standards_have_them() {
        check(0, "1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 GMT");
        // The example of RFC 9110 section 5.6.7.
        check(784_111_777, "1994-11-06T08:49:37Z", "Sun, 06 Nov 1994 08:49:37 GMT");
        check(951_782_400, "2000-02-29T00:00:00Z", "Tue, 29 Feb 2000 00:00:00 GMT");
        check(951_868_800, "2000-03-01T00:00:00Z", "Wed, 01 Mar 2000 00:00:00 GMT");
        check(1_234_567_890, "2009-02-13T23:31:30Z", "Fri, 13 Feb 2009 23:31:30 GMT");
        check(1_709_164_799, "2024-02-28T23:59:59Z", "Wed, 28 Feb 2024 23:59:59 GMT");
        check(1_709_164_800, "2024-02-29T00:00:00Z", "Thu, 29 Feb 2024 00:00:00 GMT");
        check(1_735_689_599, "2024-12-31T23:59:59Z", "Tue, 31 Dec 2024 23:59:59 GMT");
        // Not a leap year, although divisible by four.
        check(4_107_542_400, "2100-03-01T00:00:00Z", "Mon, 01 Mar 2100 00:00:00 GMT");
        check(-1, "1969-12-31T23:59:59Z", "Wed, 31 Dec 1969 23:59:59 GMT");
    }

    #[test]
    fn fractions_are_cut_to_the_digits_asked_for() {
        let time = at(0, 123_456_789);
        for (digits, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (1, "1970-01-01T00:00:00.1Z"),
            (3, "1970-01-01T00:00:00.123Z"),
            (9, "1970-01-01T00:00:00.123456789Z"),
            (10, "1970-01-01T00:00:00.123456789Z"),
        ] {
            assert_eq!(rfc3339(time, digits), expected);
        }
        assert_eq!(rfc3339(at(0, 999_999_999), 3), "1970-01-01T00:00:00.999Z", "never later");
        assert_eq!(rfc3339(at(-1, 250_000_000), 3), "1969-12-31T23:59:59.250Z");
    }

    #[test]
    fn a_clock_outside_of_four_digit_years_shows_the_nearer_end() {
        let edges = [(SECONDS_MIN, "0000-01-01"), (SECONDS_MAX, "9999-12-31")];
        for (seconds, day) in edges {
            assert!(rfc3339(at(seconds, 0), 0).starts_with(day));
        }
        assert_eq!(rfc3339(at(SECONDS_MIN - 1, 0), 0), "0000-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(SECONDS_MAX + 1, 0), 0), "9999-12-31T23:59:59Z");
        assert_eq!(http_date(at(i64::MAX / 2, 0)), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #[test]
        fn every_time_reads_as_another_implementation_writes_it(
            seconds in 0..=SECONDS_MAX, nanos in 0..1_000_000_000u32,
        ) {
            let time = at(seconds, nanos);
            prop_assert_eq!(rfc3339(time, 3), humantime::format_rfc3339_millis(time).to_string());
            prop_assert_eq!(rfc3339(time, 9), humantime::format_rfc3339_nanos(time).to_string());
        }

        #[test]
        fn a_day_later_is_the_next_day_of_the_week(seconds in SECONDS_MIN..SECONDS_MAX - 86_400) {
            let day = |offset| http_date_bytes(at(seconds + offset, 0))[0..3].to_vec();
            let index = |name: Vec<u8>| WEEKDAYS.iter().position(|w| w[..] == name[..]).unwrap();
            prop_assert_eq!((index(day(0)) + 1) % 7, index(day(86_400)));
        }
    }
}
