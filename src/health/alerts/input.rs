//! What one look at the process saw: everything that rules are judged by.

use super::at::At;
use crate::base::events::Event;
use crate::base::health::State;
use crate::base::heartbeat::Pulse;
use crate::base::metrics::{Histogram, NamedLimit};

/// One look.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When.
    pub at: At,
    /// The series that rules look at.
    pub series: Vec<Series>,
    /// All limits.
    pub limits: Vec<LimitSeen>,
    /// Whether the process is neither starting nor on its way out.
    pub ready: bool,
    /// All checks of the board.
    pub checks: Vec<(String, State)>,
    /// The threads that are late.
    pub threads: Vec<Pulse>,
    /// Events since the last look.
    pub events: Vec<Event>,
    /// All channels.
    pub channels: Vec<ChannelSeen>,
}

/// One series of a metric.
#[derive(Clone, Debug)]
pub struct Series {
    /// The metric.
    pub name: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Buckets(Buckets),
}

/// A histogram as it was at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    /// The upper bounds, without infinity.
    pub bounds: &'static [f64],
    /// The count in each bucket, the last one above every bound.
    pub counts: Vec<u64>,
    /// The sum of what was seen.
    pub sum: f64,
}

impl Buckets {
    /// Those of a histogram now.
    pub fn of(histogram: &Histogram) -> Self {
        Buckets { bounds: histogram.bounds(), counts: histogram.counts(), sum: histogram.sum() }
    }
}

/// One limit.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitSeen {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// How much is used.
    pub now: u64,
    /// How much may be.
    pub max: u64,
    /// How often it refused.
    pub refused: u64,
    /// Whether it makes room by itself when it is full, as caches and histories do: being full is
    /// how it is meant to be.
    pub makes_room: bool,
}

/// Words of consequences that say that what is old goes for what is new.
const MAKES_ROOM: [&str; 7] = [
    "least recently used",
    "oldest",
    "forgotten",
    "part of what was before",
    "becomes part of",
    "become part of",
    "told together",
];

impl LimitSeen {
    /// A limit now; `None` for a bound on each thing, of which nothing is held, and for one that is off.
    pub fn of(named: &NamedLimit) -> Option<Self> {
        let max = named.limit.max();
        (!named.each && max > 0).then(|| LimitSeen {
            name: named.name.to_owned(),
            owner: named.owner.clone(),
            now: named.limit.now(),
            max,
            refused: named.limit.refused(),
            makes_room: MAKES_ROOM.iter().any(|words| named.consequence.contains(words)),
        })
    }
}

/// One channel.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelSeen {
    /// Its name.
    pub name: String,
    /// Since when nothing got through.
    pub failing_since: Option<At>,
    /// Why.
    pub why: String,
}
