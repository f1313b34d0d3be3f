//! The page is read back by a parser that takes only what the format allows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;

type LabelSet = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Read {
    help: String,
    kind: String,
    samples: Vec<(String, LabelSet, f64)>,
}

/// Reads a page, and checks everything that the format asks for.
fn read(page: &[u8]) -> BTreeMap<String, Read> {
    let text = std::str::from_utf8(page).unwrap();
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let mut families: BTreeMap<String, Read> = BTreeMap::new();
    let mut open = String::new();
    let mut helped = String::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!families.contains_key(name), "two groups of {name}");
            check_name(name);
            helped = name.to_owned();
            let family = Read { help: unescape(help), ..Read::default() };
            families.insert(name.to_owned(), family);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "TYPE follows its HELP");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            let family = families.get_mut(name).unwrap();
            assert!(family.kind.is_empty());
            kind.clone_into(&mut family.kind);
            name.clone_into(&mut open);
        } else {
            assert!(!line.is_empty() && !line.starts_with('#'), "{line:?}");
            let (name, labels, value) = read_sample(line);
            assert!(seen.insert((name.clone(), labels.clone())), "twice: {line}");
            let family = families.get_mut(&open).unwrap();
            let suffix = name.strip_prefix(&open).unwrap_or_else(|| panic!("{line} in {open}"));
            match &*family.kind {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
                _ => assert_eq!(suffix, "", "{line}"),
            }
            family.samples.push((suffix.to_owned(), labels, value));
        }
    }
    for (name, family) in &families {
        assert!(!family.samples.is_empty(), "{name} has no samples");
        assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name}: {}", family.kind);
        if family.kind == "histogram" {
            check_histogram(family);
        }
    }
    families
}

fn check_name(name: &str) {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    assert!(name.starts_with(first), "{name}");
    assert!(name.chars().all(|c| first(c) || c.is_ascii_digit()), "{name}");
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(c @ ('\\' | '"')) => out.push(c),
                other => panic!("\\{other:?} in {text}"),
            },
            c => out.push(c),
        }
    }
    out
}

fn read_sample(line: &str) -> (String, LabelSet, f64) {
    let name_end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(name_end);
    check_name(name);
    let mut labels = LabelSet::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (key, after) = rest.split_once("=\"").unwrap();
            check_name(key);
            let mut end = 0;
            let bytes = after.as_bytes();
            while bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            let before = labels.insert(key.to_owned(), unescape(&after[..end]));
            assert!(before.is_none(), "label twice: {line}");
            rest = &after[end + 1..];
            match rest.as_bytes()[0] {
                b',' => rest = &rest[1..],
                b'}' => break rest = &rest[1..],
                _ => panic!("{line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap();
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        _ => value.parse().unwrap(),
    };
    (name.to_owned(), labels, value)
}

fn check_histogram(family: &Read) {
    let mut series: BTreeMap<LabelSet, Vec<(f64, f64)>> = BTreeMap::new();
    for (suffix, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        let buckets = series.entry(labels).or_default();
        match &**suffix {
            "_bucket" => {
                let bound = bound.unwrap();
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
                let (last_bound, last) = buckets.last().copied().unwrap_or((-1.0, 0.0));
                assert!(bound > last_bound && *value >= last, "not cumulative: {family:?}");
                buckets.push((bound, *value));
            }
            "_count" => assert_eq!(buckets.last(), Some(&(f64::INFINITY, *value))),
            _ => assert!(bound.is_none() && value.is_finite()),
        }
    }
}

fn page(registry: &Registry) -> BTreeMap<String, Read> {
    let mut out = Vec::new();
    render(registry, &Levels::default(), Format::Text, &mut out);
    read(&out)
}

fn value(page: &BTreeMap<String, Read>, name: &str, suffix: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: LabelSet = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let found = page[name].samples.iter().find(|(s, l, _)| s == suffix && *l == labels);
    found.unwrap_or_else(|| panic!("no {name}{suffix} {labels:?} in {:?}", page[name])).2
}

#[test]
fn everything_in_the_registry_comes_back_from_the_page() {
    let registry = Registry::default();
    registry.counter("tidegate_a_total", "Back\\slash and\nnewline.", &[]).add(3);
    for odd in ["plain", "", "quo\"te", "back\\slash", "new\nline", "é{},=", "\\n"] {
        registry.counter("tidegate_odd_total", "Odd.", &[("x", odd), ("y", "1")]).add(7);
    }
    registry.gauge("tidegate_g", "G.", &[]).set(u64::MAX);
    let histogram = registry.histogram("tidegate_h_seconds", "H.", &[("route", "chat")]);
    for ms in [1, 30, 700, 7_000_000] {
        histogram.observe(Duration::from_millis(ms));
    }
    let limit = registry.limit("upstream.concurrency_max", "local", 2, "wait");
    let _held = limit.try_take(1);
    drop(limit.try_take(1));
    drop(limit.try_take(9));
    registry.limit("server.queue_max", "", 5, "503");

    let page = page(&registry);
    assert_eq!(page["tidegate_a_total"].help, "Back\\slash and\nnewline.");
    assert_eq!(value(&page, "tidegate_a_total", "", &[]), 3.0);
    for odd in ["plain", "", "quo\"te", "back\\slash", "new\nline", "é{},=", "\\n"] {
        assert_eq!(value(&page, "tidegate_odd_total", "", &[("x", odd), ("y", "1")]), 7.0);
    }
    assert_eq!(value(&page, "tidegate_g", "", &[]), u64::MAX as f64);
    let bucket =
        |le| value(&page, "tidegate_h_seconds", "_bucket", &[("le", le), ("route", "chat")]);
    assert_eq!(
        [bucket("0.0005"), bucket("0.001"), bucket("1"), bucket("600")],
        [0.0, 1.0, 3.0, 3.0]
    );
    assert_eq!(value(&page, "tidegate_h_seconds", "_count", &[("route", "chat")]), 4.0);
    assert_eq!(value(&page, "tidegate_h_seconds", "_sum", &[("route", "chat")]), 7000.731);
    let column = |name, limit, owner| value(&page, name, "", &[("limit", limit), ("owner", owner)]);
    let local = |name| column(name, "upstream.concurrency_max", "local");
    assert_eq!(local("tidegate_limit_now"), 1.0);
    assert_eq!(local("tidegate_limit_high_water"), 2.0);
    assert_eq!(local("tidegate_limit_max"), 2.0);
    assert_eq!(local("tidegate_limit_refused_total"), 1.0);
    assert_eq!(column("tidegate_limit_max", "server.queue_max", ""), 5.0);
}

#[test]
fn an_empty_registry_still_tells_of_the_process_and_the_build() {
    let page = page(&Registry::default());
    let expected = [
        "process_max_fds",
        "process_open_fds",
        "tidegate_build_info",
        "tidegate_log_lines_suppressed_total",
        "tidegate_metric_series_dropped_total",
    ];
    for name in expected {
        assert!(page.contains_key(name), "{name}");
    }
    if cfg!(target_os = "linux") {
        let more = [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_threads",
            "process_virtual_memory_bytes",
        ];
        for name in more {
            assert!(page.contains_key(name), "{name}");
        }
    }
    assert_eq!(page["tidegate_build_info"].samples[0].1["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_page_made_while_everything_counts_is_still_consistent() {
    let registry = std::sync::Arc::new(Registry::default());
    let histogram = registry.histogram("tidegate_h_seconds", "H.", &[]);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = std::sync::Arc::clone(&done);
    let busy = crate::base::thread::spawn("busy", move || {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            histogram.observe(Duration::from_millis(3));
        }
    })
    .unwrap();
    for _ in 0..50 {
        page(&registry);
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    busy.join();
}

#[test]
fn numbers_are_written_as_go_writes_them() {
    let cases = [
        (0.0, "0"),
        (0.00025, "0.00025"),
        (600.0, "600"),
        (f64::INFINITY, "+Inf"),
        (f64::NEG_INFINITY, "-Inf"),
        (f64::NAN, "NaN"),
    ];
    for (value, expected) in cases {
        assert_eq!(number(value), expected);
    }
}

/// Reads a page of OpenMetrics 1.0 and checks what it asks for beyond the text format. Names come back as
/// the text format has them.
fn read_open(page: &[u8]) -> BTreeMap<String, Read> {
    let text = std::str::from_utf8(page).unwrap();
    let text = text.strip_suffix("# EOF\n").expect("the end is marked");
    assert!(!text.contains("# EOF") && !text.contains('\r'));
    let mut families: BTreeMap<String, Read> = BTreeMap::new();
    let (mut open, mut helped, mut unit) = (String::new(), true, None);
    let mut seen = BTreeSet::new();
    let full = |name: &str, kind: &str| match kind {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.to_owned(),
    };
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(helped, "HELP of {open} is missing");
            let (name, kind) = rest.split_once(' ').unwrap();
            check_name(name);
            assert!(["counter", "gauge", "histogram", "info"].contains(&kind), "{line}");
            assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{line}");
            assert!(seen.insert(name.to_owned()), "two groups of {name}");
            (open, helped, unit) = (name.to_owned(), false, None);
            let family = Read { kind: kind.to_owned(), ..Read::default() };
            families.insert(full(name, kind), family);
            continue;
        }
        let kind = families.iter().find(|(name, read)| **name == full(&open, &read.kind));
        let (key, kind) = kind.map(|(name, read)| (name.clone(), read.kind.clone())).unwrap();
        if let Some(rest) = line.strip_prefix("# UNIT ") {
            assert!(!helped && unit.is_none(), "UNIT stands between TYPE and HELP: {line}");
            let (name, told) = rest.split_once(' ').unwrap();
            assert!(name == open && name.ends_with(&format!("_{told}")), "{line}");
            unit = Some(told.to_owned());
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(name == open && !helped, "{line}");
            helped = true;
            assert!(!help.replace("\\\"", "").contains('"'), "{line}");
            families.get_mut(&key).unwrap().help = unescape(help);
        } else {
            assert!(helped && !line.starts_with('#') && !line.is_empty(), "{line:?}");
            let (name, mut labels, value) = read_sample(line);
            let suffix = name.strip_prefix(&open).unwrap_or_else(|| panic!("{line} in {open}"));
            let allowed: &[&str] = match &*kind {
                "counter" => &["_total"],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(allowed.contains(&suffix), "{line}");
            if let Some(bound) = labels.get_mut("le") {
                assert!(bound == "+Inf" || bound.contains(['.', 'e']), "{line}");
                *bound = bound.strip_suffix(".0").unwrap_or(bound).to_owned();
            }
            let suffix = if ["_total", "_info"].contains(&suffix) { "" } else { suffix };
            let family = families.get_mut(&key).unwrap();
            family.samples.push((suffix.to_owned(), labels, value));
        }
    }
    assert!(helped);
    for family in families.values_mut() {
        if family.kind == "info" {
            "gauge".clone_into(&mut family.kind);
        }
    }
    families
}

#[test]
fn both_formats_say_the_same() {
    let registry = Registry::default();
    registry.counter("tidegate_a_total", "Back\\slash, \"quotes\" and\nnewline.", &[]).add(3);
    for odd in ["plain", "", "quo\"te", "back\\slash", "new\nline", "é{},=", "\\n"] {
        registry.counter("tidegate_odd_total", "Odd.", &[("x", odd), ("y", "1")]).add(7);
    }
    let histogram = registry.histogram("tidegate_h_seconds", "H.", &[("route", "chat")]);
    histogram.observe(Duration::from_millis(30));
    registry.limit("server.queue_max", "", 5, "503");
    let write = |format| {
        let mut out = Vec::new();
        render(&registry, &Levels::default(), format, &mut out);
        out
    };
    // What the system says changes from page to page.
    let ours = |families: BTreeMap<String, Read>| {
        let ours = |name: &str| name.starts_with("tidegate_") && !name.contains("_process_");
        let ours = move |name: &str| {
            ours(name) && !name.contains("_system_") && !name.contains("_container_")
        };
        families.into_iter().filter(|(name, _)| ours(name)).collect::<Vec<_>>()
    };
    let (text, open) = (read(&write(Format::Text)), read_open(&write(Format::OpenMetrics)));
    let names = |families: &BTreeMap<String, Read>| families.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&text), names(&open));
    assert_eq!(format!("{:?}", ours(text)), format!("{:?}", ours(open)));
    let open = String::from_utf8(write(Format::OpenMetrics)).unwrap();
    assert!(
        open.contains("# TYPE tidegate_h_seconds histogram\n# UNIT tidegate_h_seconds seconds\n")
    );
    assert!(
        open.contains("# TYPE process_cpu_seconds counter\n# UNIT process_cpu_seconds seconds\n")
    );
    assert!(open.contains("tidegate_h_seconds_bucket{route=\"chat\",le=\"1.0\"} 1\n"));
}
