//! Durations, sizes, rates and prices as people write them: `"30s"`, `"20MiB"`, `"1KiB/s"`, `0.15`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};

const KIB: u64 = 1024;

/// A duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// A price of a million tokens, in millionths of the currency: what a decimal with six digits
/// behind its point holds exactly, and a binary fraction would not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price(pub u64);

/// Millionths of the currency in one.
pub const MICROS: u64 = 1_000_000;

/// Digits behind the point of a price.
const PRICE_DIGITS: usize = 6;

impl Span {
    /// Whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }
}

impl Size {
    /// Kibibytes.
    pub const fn kib(kib: u64) -> Self {
        Size(kib * KIB)
    }

    /// Mebibytes.
    pub const fn mib(mib: u64) -> Self {
        Size(mib * KIB * KIB)
    }
}

/// Exact: the largest unit that divides the duration.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let unit = units.iter().find(|(_, unit)| millis >= *unit && millis.is_multiple_of(*unit));
        match unit {
            _ if !self.0.as_nanos().is_multiple_of(1_000_000) => {
                humantime::format_duration(self.0).fmt(f)
            }
            Some((name, unit)) => write!(f, "{}{name}", millis / unit),
            None if millis == 0 => f.write_str("0s"),
            None => write!(f, "{millis}ms"),
        }
    }
}

/// Exact: the largest unit that divides the size.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", KIB.pow(3)), ("MiB", KIB.pow(2)), ("KiB", KIB)];
        let unit =
            units.iter().find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes));
        match unit {
            Some((name, bytes)) => write!(f, "{}{name}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

/// Exact: as many digits behind the point as it takes.
impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, parts) = (self.0 / MICROS, self.0 % MICROS);
        if parts == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{parts:0PRICE_DIGITS$}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// Why a text is none of these: what is wrong with it, without the text itself.
pub type Unfit = &'static str;

impl FromStr for Span {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        if !text.is_empty() && text.trim().chars().all(|c| c.is_ascii_digit() || c == '.') {
            return Err("has no unit");
        }
        humantime::parse_duration(text).map(Span).map_err(|e| match e {
            humantime::DurationError::UnknownUnit { .. } => "has an unknown unit",
            humantime::DurationError::NumberOverflow => "is too large or too fine",
            _ => "is not a duration",
        })
    }
}

impl FromStr for Size {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        text.trim()
            .parse::<bytesize::ByteSize>()
            .map(|s| Size(s.as_u64()))
            .map_err(|_| "is not a size")
    }
}

impl FromStr for Rate {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let per_second = text.trim().strip_suffix("/s").unwrap_or(text);
        per_second.parse::<Size>().map(|s| Rate(s.0)).map_err(|_| "is not a rate")
    }
}

impl FromStr for Price {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let text = text.trim();
        let (whole, parts) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if text.starts_with('-') {
            return Err("is below 0");
        }
        if !digits(whole) || !digits(parts) {
            return Err("is no price");
        }
        let parts = parts.trim_end_matches('0');
        if parts.len() > PRICE_DIGITS {
            return Err("has more than six digits behind its point");
        }
        // The digits behind the point, filled up to six of them.
        let parts = format!("{parts:0<PRICE_DIGITS$}").parse::<u64>().unwrap_or_default();
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(MICROS));
        match whole.and_then(|whole| whole.checked_add(parts)) {
            Some(micros) => Ok(Price(micros)),
            None => Err("is too large"),
        }
    }
}

/// What a value of a size or a rate may be in TOML: a text, or a bare count of bytes.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Written {
    Bytes(u64),
    Text(String),
}

macro_rules! as_people_write_it {
    ($type:ident, $name:literal, $schema:expr, $visit:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let visit: fn(D) -> Result<Result<Self, Unfit>, D::Error> = $visit;
                visit(deserializer)?.map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

as_people_write_it!(
    Span,
    "Duration",
    json_schema!({ "type": "string", "format": "tidegate-duration" }),
    |d| Ok(String::deserialize(d)?.parse())
);

as_people_write_it!(
    Size,
    "Size",
    json_schema!({ "type": ["string", "integer"], "format": "tidegate-size", "minimum": 0 }),
    |d| Ok(match Written::deserialize(d)? {
        Written::Bytes(bytes) => Ok(Size(bytes)),
        Written::Text(text) => text.parse(),
    })
);

as_people_write_it!(
    Rate,
    "Rate",
    json_schema!({ "type": ["string", "integer"], "format": "tidegate-rate", "minimum": 0 }),
    |d| Ok(match Written::deserialize(d)? {
        Written::Bytes(bytes) => Ok(Rate(bytes)),
        Written::Text(text) => text.parse(),
    })
);

// The first step hands a number on as the text that it was in the file.
as_people_write_it!(
    Price,
    "Price",
    json_schema!({ "type": ["string", "number"], "format": "tidegate-price", "minimum": 0 }),
    |d| Ok(String::deserialize(d)?.parse())
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_taken_as_people_write_them() {
        let check = |text: &str, bytes: u64| {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        };
        check("20MiB", 20 << 20);
        check("20 MiB", 20 << 20);
        check("20MB", 20_000_000);
        check("1.5KiB", 1536);
        check("512", 512);
        check(" 16 kib ", 16384);
        for bad in ["", "MiB", "-1MiB", "1 potato", "1e3", "ten"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!("1KiB/s".parse(), Ok(Rate(1024)));
        assert_eq!("1KiB".parse(), Ok(Rate(1024)));
        assert!("1KiB/m".parse::<Rate>().is_err());
    }

    #[test]
    fn a_duration_without_a_unit_is_refused() {
        let check = |text: &str, expected: Result<Span, Unfit>| {
            assert_eq!(text.parse::<Span>(), expected, "{text}");
        };
        check("30s", Ok(Span::seconds(30)));
        check("1m 30s", Ok(Span::seconds(90)));
        check("250ms", Ok(Span(Duration::from_millis(250))));
        check("30", Err("has no unit"));
        check("30 parsecs", Err("has an unknown unit"));
        check("", Err("is not a duration"));
        check("-1s", Err("is not a duration"));
        check("99999999999999999999s", Err("is too large or too fine"));
    }

    #[test]
    fn durations_are_written_in_the_largest_unit_that_fits() {
        for text in ["0s", "1ms", "1500ms", "75s", "2m", "10m", "24h", "1s 500us"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string(), text);
        }
    }

    #[test]
    fn prices_are_exact_decimals() {
        let check = |text: &str, expected: Result<u64, Unfit>| {
            assert_eq!(text.parse::<Price>(), expected.map(Price), "{text}");
        };
        check("0.15", Ok(150_000));
        check("15", Ok(15_000_000));
        check(" 0.0000010 ", Ok(1));
        check("0", Ok(0));
        check("18446744073709.551615", Ok(u64::MAX));
        check("18446744073709.551616", Err("is too large"));
        check("0.0000001", Err("has more than six digits behind its point"));
        check("-1", Err("is below 0"));
        for none in ["", ".", "1.", ".5", "1e3", "inf", "1_0", "1,5", "$1"] {
            check(none, Err("is no price"));
        }
        assert_eq!(Price(37_500).to_string(), "0.0375");
        assert_eq!(Price(2_000_000).to_string(), "2");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            bytes in any::<u64>(), millis in 0_u64..1 << 40, nanos in 0_u64..1 << 40,
        ) {
            // Sizes that are no multiple of 1 KiB are written in bytes, so that none is rounded.
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            prop_assert_eq!(Rate(bytes).to_string().parse(), Ok(Rate(bytes)));
            prop_assert_eq!(Price(bytes).to_string().parse(), Ok(Price(bytes)));
            for span in [Span(Duration::from_millis(millis)), Span(Duration::from_nanos(nanos))] {
                prop_assert_eq!(span.to_string().parse(), Ok(span));
            }
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = text.parse::<Span>();
            let _ = text.parse::<Size>();
            let _ = text.parse::<Rate>();
            let _ = text.parse::<Price>();
        }
    }
}
