//! RFC 3339 times, as people and Ollama write them.

/// Seconds since 1970 of `2026-03-01T10:00:00.123456789+01:00`; `None` for what is not such a time,
/// or lies before 1970 (Go's zero time is in the year 1).
pub fn unix_seconds(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0'))
        })
    };
    let at = |index: usize, wanted: &[u8]| bytes.get(index).is_some_and(|b| wanted.contains(b));
    let separated = at(4, b"-") && at(7, b"-") && at(10, b"Tt ") && at(13, b":") && at(16, b":");
    if !separated {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let inside = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    if !inside {
        return None;
    }
    let mut zone = 19;
    if at(zone, b".") {
        zone += 1;
        while at(zone, b"0123456789") {
            zone += 1;
        }
    }
    let offset = match bytes.get(zone)? {
        b'Z' | b'z' if bytes.len() == zone + 1 => 0,
        sign @ (b'+' | b'-') if bytes.len() == zone + 6 && at(zone + 3, b":") => {
            let away = number(zone + 1, zone + 3)? * 3600 + number(zone + 4, zone + 6)? * 60;
            if *sign == b'+' { away } else { -away }
        }
        _ => return None,
    };
    let time = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    u64::try_from(time).ok()
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. The year is counted from March, so
/// that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let in_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leaps + in_year - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::unix_seconds;
    use crate::base::time_format::rfc3339;

    #[test]
    fn times_of_every_form_are_read() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(unix_seconds(text), expected, "{text}");
        };
        check("1970-01-01T00:00:00Z", Some(0));
        check("2000-02-29T23:59:60.9z", Some(951_868_800));
        check("2026-03-01T10:00:00.123456789+01:00", Some(1_772_355_600));
        check("2026-03-01T04:00:00-05:00", Some(1_772_355_600));
        check("0001-01-01T00:00:00Z", None);
        check("2026-03-01", None);
        check("2026-03-01T10:00:00", None);
        check("2026-13-01T10:00:00Z", None);
        check("2026-03-01T10:00:00+1:00", None);
        check("2026-03-01T10:00:00Zulu", None);
        check("", None);
    }

    proptest::proptest! {
        #[test]
        fn what_we_write_is_read_back(seconds in 0u64..250_000_000_000) {
            let text = rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), 3);
            proptest::prop_assert_eq!(unix_seconds(&text), Some(seconds));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = unix_seconds(&text);
        }
    }
}
