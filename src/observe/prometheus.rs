//! The metrics page, in two formats: Prometheus' text format 0.0.4, and OpenMetrics 1.0 for those who ask
//! for it.

mod accept;

use std::io::Write as _;

use super::levels::Levels;
use super::reading::{Head, Kind, Reader, Reading, Value};
use crate::base::metrics::{Histogram, Registry};

/// Units that a name may end with, which OpenMetrics wants to be told.
const UNITS: [&str; 3] = ["seconds", "bytes", "ratio"];

/// A format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that an `Accept` field asks for. Who asks for neither gets 0.0.4, which everybody reads.
    pub fn of(accept: &str) -> Format {
        if accept::prefers_open_metrics(accept) { Format::OpenMetrics } else { Format::Text }
    }

    /// The page's `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes every series of the registry, every limit, and the figures of the process and of what is
/// around it.
pub fn render(registry: &Registry, levels: &Levels, format: Format, out: &mut Vec<u8>) {
    let mut page = Page { out, format, name: String::new(), suffix: "" };
    Reading::take(registry, levels).walk(&mut page);
    if format == Format::OpenMetrics {
        out.extend_from_slice(b"# EOF\n");
    }
}

struct Page<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
    /// The family that is being written; with OpenMetrics without what its samples end with.
    name: String,
    /// What each sample's name ends with beside that.
    suffix: &'static str,
}

impl Reader for Page<'_> {
    /// The lines about a name, once and before its samples.
    fn family(&mut self, head: Head<'_>) {
        let kind = match head.kind {
            Kind::Counter | Kind::SystemCounter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info if self.format == Format::OpenMetrics => "info",
            Kind::Info => "gauge",
            Kind::Histogram => "histogram",
        };
        self.suffix = match (self.format, kind) {
            (Format::OpenMetrics, "counter") => "_total",
            (Format::OpenMetrics, "info") => "_info",
            _ => "",
        };
        head.name.strip_suffix(self.suffix).unwrap_or(head.name).clone_into(&mut self.name);
        match self.format {
            Format::Text => {
                self.help(head.help);
                self.put(format_args!("# TYPE {} {kind}\n", head.name));
            }
            Format::OpenMetrics => {
                let name = std::mem::take(&mut self.name);
                self.put(format_args!("# TYPE {name} {kind}\n"));
                let ends = |unit: &&&str| {
                    name.strip_suffix(**unit).is_some_and(|rest| rest.ends_with('_'))
                };
                if let Some(unit) = UNITS.iter().find(ends) {
                    self.put(format_args!("# UNIT {name} {unit}\n"));
                }
                self.name = name;
                self.help(head.help);
            }
        }
    }

    fn series(&mut self, labels: &[(&str, &str)], value: Value<'_>) {
        match value {
            Value::Count(count) => self.sample(self.suffix, labels, None, count),
            Value::Number(value) => self.sample(self.suffix, labels, None, number(value)),
            Value::Histogram(histogram) => self.histogram(labels, histogram),
        }
    }
}

impl Page<'_> {
    fn help(&mut self, help: &str) {
        self.out.extend_from_slice(b"# HELP ");
        self.out.extend_from_slice(self.name.as_bytes());
        self.out.push(b' ');
        for b in help.bytes() {
            match b {
                b'\\' => self.out.extend_from_slice(b"\\\\"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                b'"' if self.format == Format::OpenMetrics => {
                    self.out.extend_from_slice(b"\\\"");
                }
                _ => self.out.push(b),
            }
        }
        self.out.push(b'\n');
    }

    /// One sample. `le` is the bound of a histogram's bucket.
    fn sample(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        le: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        self.out.extend_from_slice(self.name.as_bytes());
        self.out.extend_from_slice(suffix.as_bytes());
        let mut before = b'{';
        for (key, text) in labels.iter().copied().chain(le.map(|le| ("le", le))) {
            self.out.push(before);
            before = b',';
            self.put(format_args!("{key}=\""));
            for b in text.bytes() {
                match b {
                    b'\\' => self.out.extend_from_slice(b"\\\\"),
                    b'"' => self.out.extend_from_slice(b"\\\""),
                    b'\n' => self.out.extend_from_slice(b"\\n"),
                    _ => self.out.push(b),
                }
            }
            self.out.push(b'"');
        }
        if before == b',' {
            self.out.push(b'}');
        }
        self.put(format_args!(" {value}\n"));
    }

    /// Buckets are cumulative here. The count is taken from them, so that it agrees with the last
    /// one however much is recorded meanwhile.
    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let sum = histogram.sum();
        let mut count = 0;
        let bounds = histogram.bounds().iter().copied().chain([f64::INFINITY]);
        for (bound, here) in bounds.zip(histogram.counts()) {
            count += here;
            self.sample("_bucket", labels, Some(&self.bound(bound)), count);
        }
        self.sample("_sum", labels, None, number(sum));
        self.sample("_count", labels, None, count);
    }

    /// A bucket's bound: in OpenMetrics always with a point.
    fn bound(&self, bound: f64) -> String {
        match self.format {
            Format::OpenMetrics if bound.is_finite() => format!("{bound:?}"),
            _ => number(bound),
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a vector does not fail.
        let _ = self.out.write_fmt(text);
    }
}

/// A number as Go writes it, which is what readers of the format expect.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests;
