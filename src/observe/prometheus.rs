//! The metrics page, in Prometheus' text format 0.0.4.

use std::io::Write as _;

use super::process::Process;
use crate::base::logsite;
use crate::base::metrics::{Family, Histogram, Labels, Limit, Metric, NamedLimit, Registry};

/// The page's `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes every series of the registry, every limit, and the figures of the process.
pub fn render(registry: &Registry, out: &mut Vec<u8>) {
    let (families, limits) = registry.gather();
    let mut page = Page { out };
    page.build_info();
    page.process(&Process::now());
    for family in &families {
        page.family(family);
    }
    page.limits(&limits);
    let help = "Series that are not on this page: there were too many, or their name was taken.";
    page.single("tidegate_metric_series_dropped_total", help, "counter", registry.dropped());
    let help = "Log lines left out because one place logged too many.";
    let suppressed = logsite::suppressed_total();
    page.single("tidegate_log_lines_suppressed_total", help, "counter", suppressed);
}

struct Page<'a> {
    out: &'a mut Vec<u8>,
}

impl Page<'_> {
    /// `# HELP` and `# TYPE`, once for each name and before its samples.
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.put(format_args!("# HELP {name} "));
        for b in help.bytes() {
            match b {
                b'\\' => self.out.extend_from_slice(b"\\\\"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                _ => self.out.push(b),
            }
        }
        self.put(format_args!("\n# TYPE {name} {kind}\n"));
    }

    /// One sample. `le` is the bound of a histogram's bucket.
    fn sample<T: AsRef<str>>(
        &mut self,
        name: &str,
        labels: &[(&'static str, T)],
        le: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        self.out.extend_from_slice(name.as_bytes());
        let labels = labels.iter().map(|(key, text)| (*key, text.as_ref()));
        let mut before = b'{';
        for (key, text) in labels.chain(le.map(|le| ("le", le))) {
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

    fn single(&mut self, name: &str, help: &str, kind: &str, value: impl std::fmt::Display) {
        self.head(name, help, kind);
        self.sample::<&str>(name, &[], None, value);
    }

    fn family(&mut self, family: &Family) {
        let Some((_, first)) = family.series.first() else { return };
        let kind = match first {
            Metric::Counter(_) => "counter",
            Metric::Gauge(_) => "gauge",
            Metric::Histogram(_) => "histogram",
        };
        self.head(family.name, family.help, kind);
        for (labels, metric) in &family.series {
            match metric {
                Metric::Counter(counter) => {
                    self.sample(family.name, labels, None, counter.value());
                }
                Metric::Gauge(gauge) => self.sample(family.name, labels, None, gauge.value()),
                Metric::Histogram(histogram) => self.histogram(family.name, labels, histogram),
            }
        }
    }

    /// Buckets are cumulative here. The count is taken from them, so that it agrees with the last
    /// one however much is recorded meanwhile.
    fn histogram(&mut self, name: &str, labels: &Labels, histogram: &Histogram) {
        let sum = histogram.sum();
        let mut count = 0;
        let bucket = format!("{name}_bucket");
        let bounds = histogram.bounds().iter().copied().chain([f64::INFINITY]);
        for (bound, here) in bounds.zip(histogram.counts()) {
            count += here;
            self.sample(&bucket, labels, Some(&number(bound)), count);
        }
        self.sample(&format!("{name}_sum"), labels, None, number(sum));
        self.sample(&format!("{name}_count"), labels, None, count);
    }

    fn limits(&mut self, limits: &[NamedLimit]) {
        type Read = fn(&Limit) -> u64;
        let columns: [(&str, &str, &str, Read); 4] = [
            ("tidegate_limit_now", "How much of a limited thing there is.", "gauge", Limit::now),
            (
                "tidegate_limit_high_water",
                "How much of it there was at most.",
                "gauge",
                Limit::high_water,
            ),
            ("tidegate_limit_max", "How much of it there may be.", "gauge", Limit::max),
            (
                "tidegate_limit_refused_total",
                "How often the limit was hit.",
                "counter",
                Limit::refused,
            ),
        ];
        if limits.is_empty() {
            return;
        }
        for (name, help, kind, read) in columns {
            self.head(name, help, kind);
            // Of a bound on each thing there is no `now`.
            let shown = |limit: &&NamedLimit| !(limit.each && name == "tidegate_limit_now");
            for limit in limits.iter().filter(shown) {
                let labels = [("limit", limit.name), ("owner", &*limit.owner)];
                self.sample(name, &labels, None, read(&limit.limit));
            }
        }
    }

    fn build_info(&mut self) {
        let name = "tidegate_build_info";
        self.head(name, "The program that runs.", "gauge");
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("os", std::env::consts::OS),
            ("arch", std::env::consts::ARCH),
        ];
        self.sample(name, &labels, None, 1);
    }

    fn process(&mut self, process: &Process) {
        let floats = [
            (
                "process_cpu_seconds_total",
                "User and system CPU time spent, in seconds.",
                "counter",
                process.cpu_seconds,
            ),
            (
                "process_start_time_seconds",
                "Start of the process, in seconds since the Unix epoch.",
                "gauge",
                process.start_time_seconds,
            ),
        ];
        for (name, help, kind, value) in floats {
            if let Some(value) = value {
                self.single(name, help, kind, number(value));
            }
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
                self.single(name, help, "gauge", value);
            }
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
