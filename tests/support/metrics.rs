//! A strict reader of the Prometheus text format 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// A page of metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// `name{labels}` as written, and the value.
    pub samples: Vec<Sample>,
    /// Type of each family.
    pub types: BTreeMap<String, String>,
}

/// One line of values.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    /// Reads a page; says what is wrong with it.
    pub fn parse(text: &str) -> Result<Metrics, String> {
        let mut page = Metrics::default();
        let mut helped = BTreeSet::new();
        let mut closed = BTreeSet::new();
        let mut current = String::new();
        let mut series = BTreeSet::new();
        if text.contains('\r') {
            return Err("a carriage return".into());
        }
        if !text.ends_with('\n') {
            return Err("the last line has no end".into());
        }
        for line in text.lines() {
            let fault = |what: &str| Err(format!("{what}: {line}"));
            let mut enter = |family: &str| {
                if family == current {
                    return true;
                }
                closed.insert(std::mem::replace(&mut current, family.to_owned()));
                !closed.contains(family)
            };
            if line.is_empty() {
                continue;
            }
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, _) = rest.split_once(' ').ok_or_else(|| format!("no text: {line}"))?;
                if !helped.insert(name.to_owned()) || !enter(name) {
                    return fault("a second HELP, or a family in two places");
                }
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) =
                    rest.split_once(' ').ok_or_else(|| format!("no type: {line}"))?;
                if !["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind) {
                    return fault("an unknown type");
                }
                if page.types.insert(name.to_owned(), kind.to_owned()).is_some() || !enter(name) {
                    return fault("a second TYPE, or a family in two places");
                }
            } else if line.starts_with('#') {
                continue;
            } else {
                let sample = sample(line).ok_or_else(|| format!("not a sample: {line}"))?;
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|suffix| sample.name.strip_suffix(suffix))
                    .find(|family| page.types.get(*family).is_some_and(|kind| kind == "histogram"))
                    .unwrap_or(&sample.name)
                    .to_owned();
                if !page.types.contains_key(&family) {
                    return fault("a sample before its TYPE");
                }
                if !enter(&family) {
                    return fault("a family in two places");
                }
                if !series.insert((sample.name.clone(), sample.labels.clone())) {
                    return fault("a series twice");
                }
                page.samples.push(sample);
            }
        }
        page.check_histograms()?;
        Ok(page)
    }

    fn check_histograms(&self) -> Result<(), String> {
        for (family, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut last: BTreeMap<BTreeMap<String, String>, (f64, f64)> = BTreeMap::new();
            for sample in self.samples.iter().filter(|s| s.name == format!("{family}_bucket")) {
                let mut labels = sample.labels.clone();
                let bound = labels.remove("le").ok_or(format!("{family}: no le"))?;
                let bound = number(&bound).ok_or(format!("{family}: le {bound}"))?;
                if let Some((below, count)) = last.get(&labels)
                    && (bound <= *below || sample.value < *count)
                {
                    return Err(format!("{family}: buckets are not cumulative"));
                }
                last.insert(labels, (bound, sample.value));
            }
            for (labels, (bound, count)) in last {
                if bound != f64::INFINITY {
                    return Err(format!("{family}: no +Inf"));
                }
                let find = |suffix: &str| {
                    let name = format!("{family}{suffix}");
                    self.samples.iter().find(|s| s.name == name && s.labels == labels)
                };
                if find("_count").is_none_or(|s| s.value != count) || find("_sum").is_none() {
                    return Err(format!("{family}: _count or _sum is missing or differs"));
                }
            }
        }
        Ok(())
    }

    /// The sum over the series of this name that have these labels; `None` when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &&Sample| {
            let wanted =
                |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|v| v == value);
            sample.name == name && labels.iter().all(wanted)
        };
        let mut values = self.samples.iter().filter(has).map(|sample| sample.value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// `tidegate_limit_now`, `_high_water`, `_max` or `_refused_total` of a limit, over its owners but
    /// the ops plane (which this very look at the metrics keeps busy); fails when there is no such limit.
    pub fn limit(&self, what: &str, limit: &str) -> u64 {
        let name = format!("tidegate_limit_{what}");
        let mut values = self
            .samples
            .iter()
            .filter(|s| s.name == name && label(s, "limit") == limit && label(s, "owner") != "ops")
            .map(|s| s.value)
            .peekable();
        assert!(values.peek().is_some(), "no {name}{{limit={limit:?}}}");
        values.sum::<f64>() as u64
    }

    /// The limits of which something is taken now, with how much.
    pub fn held(&self) -> Vec<(String, u64)> {
        let now = self.samples.iter().filter(|s| s.name == "tidegate_limit_now" && s.value != 0.0);
        now.map(|s| (format!("{} {}", label(s, "limit"), label(s, "owner")), s.value as u64))
            .collect()
    }
}

fn label<'a>(sample: &'a Sample, key: &str) -> &'a str {
    sample.labels.get(key).map_or("", String::as_str)
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(valid)
    {
        return None;
    }
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        c @ ('"' | '\\') => c,
                        _ => return None,
                    }),
                    (_, c) => value.push(c),
                }
            };
            if labels.insert(key.to_owned(), value).is_some() {
                return None;
            }
            rest = &after[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = number(rest.strip_prefix(' ')?)?;
    Some(Sample { name: name.to_owned(), labels, value })
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok(),
    }
}

#[test]
fn the_reader_of_metrics_sees_what_is_wrong() {
    let good =
        "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"\\\"\"} 3\n";
    let page = Metrics::parse(good).unwrap();
    assert_eq!(page.sum("a_total", &[]), Some(5.0));
    assert_eq!(page.sum("a_total", &[("x", "\"")]), Some(3.0));
    assert_eq!(page.sum("b", &[]), None);
    let bad = [
        "# TYPE a counter\na 1\na 2\n",
        "a 1\n",
        "# TYPE a counter\na 1",
        "# TYPE a counter\na{x=1} 1\n",
    ];
    for text in bad {
        assert!(Metrics::parse(text).is_err(), "{text}");
    }
    let buckets =
        "# TYPE h histogram\nh_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 2\n";
    assert!(Metrics::parse(buckets).is_err());
}
