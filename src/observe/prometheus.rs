//! The metrics page, in Prometheus' text format 0.0.4.

use std::io::Write as _;

use super::reading::{Head, Kind, Reader, Reading, Value};
use crate::base::metrics::{Histogram, Registry};

/// The page's `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes every series of the registry, every limit, and the figures of the process.
pub fn render(registry: &Registry, out: &mut Vec<u8>) {
    let mut page = Page { out, name: String::new() };
    Reading::take(registry).walk(&mut page);
}

struct Page<'a> {
    out: &'a mut Vec<u8>,
    /// The family that is being written.
    name: String,
}

impl Reader for Page<'_> {
    /// `# HELP` and `# TYPE`, once for each name and before its samples.
    fn family(&mut self, head: Head<'_>) {
        head.name.clone_into(&mut self.name);
        let kind = match head.kind {
            Kind::Counter | Kind::SystemCounter => "counter",
            Kind::Gauge | Kind::Info => "gauge",
            Kind::Histogram => "histogram",
        };
        self.put(format_args!("# HELP {} ", head.name));
        for b in head.help.bytes() {
            match b {
                b'\\' => self.out.extend_from_slice(b"\\\\"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                _ => self.out.push(b),
            }
        }
        self.put(format_args!("\n# TYPE {} {kind}\n", head.name));
    }

    fn series(&mut self, labels: &[(&str, &str)], value: Value<'_>) {
        match value {
            Value::Count(count) => self.sample("", labels, None, count),
            Value::Number(value) => self.sample("", labels, None, number(value)),
            Value::Histogram(histogram) => self.histogram(labels, histogram),
        }
    }
}

impl Page<'_> {
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
            self.sample("_bucket", labels, Some(&number(bound)), count);
        }
        self.sample("_sum", labels, None, number(sum));
        self.sample("_count", labels, None, count);
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
