//! Everything that is measured, read once. The metrics page and the history are both made from a
//! [`Reading`], so that they have the same names, labels and values.

use std::sync::Arc;

use super::levels::{self, Figure, Levels};
use super::process::Process;
use crate::base::logsite;
use crate::base::metrics::{Family, Histogram, Limit, Metric, NamedLimit, Registry};

/// What kind of number a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins with 0 when the process does.
    Counter,
    /// Only grows, and began before the process did: the system counts it.
    SystemCounter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
    /// Says something in its labels; its value is 1.
    Info,
}

/// One value.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A count.
    Count(u64),
    /// Any number.
    Number(f64),
    /// A distribution.
    Histogram(&'a Histogram),
}

impl Value<'_> {
    /// As a number; of a distribution there is none.
    pub fn number(self) -> Option<f64> {
        match self {
            Value::Count(count) => Some(count as f64),
            Value::Number(number) => Some(number),
            Value::Histogram(_) => None,
        }
    }
}

/// What all series of a name have in common.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The name, with its unit and, for counters, `_total`.
    pub name: &'a str,
    /// One sentence.
    pub help: &'a str,
    /// What its values are.
    pub kind: Kind,
}

/// Takes a reading in, family after family, each with at least one series.
pub trait Reader {
    /// A family begins.
    fn family(&mut self, head: Head<'_>);
    /// One of its series.
    fn series(&mut self, labels: &[(&str, &str)], value: Value<'_>);
}

/// Everything as it is at one moment. Taking it reads files of the system; walking it does not.
#[derive(Clone, Debug)]
pub struct Reading {
    families: Vec<Family>,
    limits: Vec<NamedLimit>,
    process: Process,
    around: Arc<Vec<Figure>>,
    dropped: u64,
    suppressed: u64,
}

impl Reading {
    /// Reads.
    pub fn take(registry: &Registry, levels: &Levels) -> Reading {
        let (families, limits) = registry.gather();
        Reading {
            families,
            limits,
            process: Process::now(),
            around: levels.figures(),
            dropped: registry.dropped(),
            suppressed: logsite::suppressed_total(),
        }
    }

    /// Hands everything to `reader`, the same families in the same order each time.
    pub fn walk(&self, reader: &mut dyn Reader) {
        build_info(reader);
        process(&self.process, reader);
        levels::walk(&self.around, reader);
        self.families.iter().for_each(|family| family_of(family, reader));
        limits(&self.limits, reader);
        let help =
            "Series that are not on this page: there were too many, or their name was taken.";
        count("tidegate_metric_series_dropped_total", help, Kind::Counter, self.dropped, reader);
        let help = "Log lines left out because one place logged too many.";
        let name = "tidegate_log_lines_suppressed_total";
        count(name, help, Kind::Counter, self.suppressed, reader);
    }
}

/// A family of one series without labels.
fn single(name: &str, help: &str, kind: Kind, value: Value<'_>, reader: &mut dyn Reader) {
    reader.family(Head { name, help, kind });
    reader.series(&[], value);
}

fn count(name: &str, help: &str, kind: Kind, value: u64, reader: &mut dyn Reader) {
    single(name, help, kind, Value::Count(value), reader);
}

fn build_info(reader: &mut dyn Reader) {
    let (name, help) = ("tidegate_build_info", "The program that runs.");
    reader.family(Head { name, help, kind: Kind::Info });
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("os", std::env::consts::OS),
        ("arch", std::env::consts::ARCH),
    ];
    reader.series(&labels, Value::Count(1));
}

fn process(process: &Process, reader: &mut dyn Reader) {
    if let Some(seconds) = process.cpu_seconds {
        let help = "User and system CPU time spent, in seconds.";
        let value = Value::Number(seconds);
        single("process_cpu_seconds_total", help, Kind::Counter, value, reader);
    }
    if let Some(seconds) = process.start_time_seconds {
        let help = "Start of the process, in seconds since the Unix epoch.";
        let value = Value::Number(seconds);
        single("process_start_time_seconds", help, Kind::Gauge, value, reader);
    }
    let counts = [
        ("process_resident_memory_bytes", "Resident memory.", process.resident_bytes),
        (
            "tidegate_process_anonymous_bytes",
            "Resident memory that is no file's: heap and stacks.",
            process.anonymous_bytes,
        ),
        ("process_virtual_memory_bytes", "Virtual memory.", process.virtual_bytes),
        ("process_open_fds", "Open file descriptors.", process.open_fds),
        ("process_max_fds", "Most file descriptors allowed.", process.max_fds),
        ("process_threads", "Threads.", process.threads),
    ];
    for (name, help, value) in counts {
        if let Some(value) = value {
            count(name, help, Kind::Gauge, value, reader);
        }
    }
}

fn family_of(family: &Family, reader: &mut dyn Reader) {
    let Some((_, first)) = family.series.first() else { return };
    let kind = match first {
        Metric::Counter(_) => Kind::Counter,
        Metric::Gauge(_) => Kind::Gauge,
        Metric::Histogram(_) => Kind::Histogram,
    };
    reader.family(Head { name: family.name, help: family.help, kind });
    let mut labels: Vec<(&str, &str)> = Vec::new();
    for (own, metric) in &family.series {
        labels.clear();
        labels.extend(own.iter().map(|(key, text)| (*key, text.as_str())));
        let value = match metric {
            Metric::Counter(counter) => Value::Count(counter.value()),
            Metric::Gauge(gauge) => Value::Count(gauge.value()),
            Metric::Histogram(histogram) => Value::Histogram(histogram),
        };
        reader.series(&labels, value);
    }
}

fn limits(limits: &[NamedLimit], reader: &mut dyn Reader) {
    type Read = fn(&Limit) -> u64;
    let columns: [(&str, &str, Kind, Read); 4] = [
        ("tidegate_limit_now", "How much of a limited thing there is.", Kind::Gauge, Limit::now),
        (
            "tidegate_limit_high_water",
            "How much of it there was at most.",
            Kind::Gauge,
            Limit::high_water,
        ),
        ("tidegate_limit_max", "How much of it there may be.", Kind::Gauge, Limit::max),
        (
            "tidegate_limit_refused_total",
            "How often the limit was hit.",
            Kind::Counter,
            Limit::refused,
        ),
    ];
    for (name, help, kind, read) in columns {
        // Of a bound on each thing there is no `now`.
        let shown = |limit: &&NamedLimit| !(limit.each && name == "tidegate_limit_now");
        for (at, limit) in limits.iter().filter(shown).enumerate() {
            if at == 0 {
                reader.family(Head { name, help, kind });
            }
            let labels = [("limit", limit.name), ("owner", &*limit.owner)];
            reader.series(&labels, Value::Count(read(&limit.limit)));
        }
    }
}
