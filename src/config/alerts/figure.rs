//! What a new rule looks at, and the values and series that it names.

use super::{
    EVENT_WINDOW, Figure, Measure, Pattern, RawAlert, RawMeasure, RawOp, Report, Source, Unit,
    WINDOW, When, join, make_when, shown, without_threshold, without_window,
};
use crate::config::unit::{Size, Span};

/// Most labels of a selector.
const SELECTOR_LABELS_MAX: usize = 8;
/// Most kinds of events that one rule names.
const KINDS_MAX: usize = 16;

/// What a new rule looks at. One of its four is written.
pub(super) fn source(raw: &RawAlert, place: &str, report: &mut Report) -> Option<Source> {
    if raw.metric.is_none() {
        for (key, set) in [("per", raw.per.is_some()), ("by", !raw.by.is_empty())] {
            if set {
                report.fault(&join(place, key), "has no meaning without metric", "take it out");
            }
        }
    }
    if let Some(text) = &raw.metric {
        return metric(raw, text, place, report);
    }
    if let Some(name) = &raw.limit {
        without_window(raw, place, report);
        let time_left = match raw.measure {
            None | Some(RawMeasure::Share) => false,
            Some(RawMeasure::TimeLeft) => true,
            Some(_) => return misfit(place, "share and time_left", report),
        };
        let when = when(raw, !time_left, place, report)?;
        return Some(Source::Limit { name: Pattern::new(name), time_left, when });
    }
    without_threshold(raw, place, report);
    if let Some(name) = &raw.check {
        without_window(raw, place, report);
        let degraded = match raw.measure {
            None | Some(RawMeasure::Failed) => false,
            Some(RawMeasure::Degraded) => true,
            Some(_) => return misfit(place, "failed and degraded", report),
        };
        return Some(Source::Check { name: Pattern::new(name), degraded });
    }
    if raw.measure.is_some() || raw.count_min.is_some() {
        return misfit(place, "none", report);
    }
    let kinds: Vec<Pattern> =
        raw.event.as_deref()?.split('|').map(str::trim).map(Pattern::new).collect();
    if kinds.len() > KINDS_MAX || kinds.iter().any(|kind| kind.text.is_empty() && !kind.open) {
        let text = format!("names an empty kind, or more than {KINDS_MAX}");
        report.fault(&join(place, "event"), text, "write kinds as in \"a|b\"");
        return None;
    }
    Some(Source::Event { kinds, window: raw.window.map_or(EVENT_WINDOW, |span| span.0) })
}

fn misfit<T>(place: &str, fitting: &str, report: &mut Report) -> Option<T> {
    let text = "does not fit what the rule looks at";
    report.fault(&join(place, "measure"), text, format!("those that fit: {fitting}"));
    None
}

fn metric(raw: &RawAlert, text: &str, place: &str, report: &mut Report) -> Option<Source> {
    let measure = match raw.measure {
        None | Some(RawMeasure::Value) => Measure::Value,
        Some(RawMeasure::Increase) => Measure::Increase,
        Some(RawMeasure::Rate) => Measure::Rate,
        Some(RawMeasure::Average) => Measure::Average,
        Some(RawMeasure::P50) => Measure::Quantile(0.5),
        Some(RawMeasure::P90) => Measure::Quantile(0.9),
        Some(RawMeasure::P95) => Measure::Quantile(0.95),
        Some(RawMeasure::P99) => Measure::Quantile(0.99),
        Some(_) => {
            return misfit(place, "value, increase, rate, average, p50, p90, p95 and p99", report);
        }
    };
    let of = select(text, &join(place, "metric"), report)?;
    let per = match &raw.per {
        Some(text) => Some(select(text, &join(place, "per"), report)?),
        None => None,
    };
    if per.is_some() && !matches!(measure, Measure::Value | Measure::Increase) {
        return misfit(place, "value and increase, with per", report);
    }
    let when = when(raw, true, place, report)?;
    Some(Source::Metric(Figure {
        of,
        per,
        by: raw.by.clone(),
        measure,
        window: raw.window.map_or(WINDOW, |span| span.0),
        count_min: raw.count_min.unwrap_or(0),
        when,
    }))
}

/// The threshold must be written.
fn when(raw: &RawAlert, above: bool, place: &str, report: &mut Report) -> Option<When> {
    let Some(text) = &raw.threshold else {
        report.fault(&join(place, "threshold"), "is missing", "write a number or \"90%\"");
        return None;
    };
    let threshold = super::value(text, &join(place, "threshold"), report)?;
    let above = raw.op.map_or(above, |op| op == RawOp::Above);
    Some(make_when(above, threshold, None, raw, place, report))
}

/// `name`, or `name{label="value",…}`.
fn select(
    text: &str,
    place: &str,
    report: &mut Report,
) -> Option<crate::config::settings::alerts::Selector> {
    let parsed = selector(text);
    if parsed.is_none() {
        let text = format!("{} names no series", shown(text));
        let remedy = "write a name as on /metrics, with labels as in name{label=\"value\"}";
        report.fault(place, text, remedy);
    }
    parsed
}

pub(super) fn selector(text: &str) -> Option<crate::config::settings::alerts::Selector> {
    let (name, rest) = match text.split_once('{') {
        Some((name, rest)) => (name, rest.trim().strip_suffix('}')?),
        None => (text, ""),
    };
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let mut labels = Vec::new();
    let mut rest = rest.trim();
    while !rest.is_empty() {
        let (label, after) = rest.split_once('=')?;
        let (value, after) = after.trim().strip_prefix('"')?.split_once('"')?;
        let label = label.trim();
        if !word(label) || labels.len() == SELECTOR_LABELS_MAX {
            return None;
        }
        labels.push((label.to_owned(), Pattern::new(value)));
        let after = after.trim();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    let name = name.trim();
    word(name).then(|| crate::config::settings::alerts::Selector { name: name.to_owned(), labels })
}

/// A number with its unit.
pub(super) fn value(text: &str) -> Option<(f64, Unit)> {
    let text = text.trim();
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
    if let Some(percent) = text.strip_suffix('%') {
        return Some((number(percent.trim())? / 100.0, Unit::Share));
    }
    if let Some(number) = number(text) {
        return Some((number, Unit::Number));
    }
    if let Ok(span) = text.parse::<Span>() {
        return Some((span.0.as_secs_f64(), Unit::Seconds));
    }
    // No setting is that large; a figure loses nothing that matters.
    #[expect(clippy::cast_precision_loss, reason = "figures of metrics are floats too")]
    text.parse::<Size>().ok().map(|size| (size.0 as f64, Unit::Bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbers_shares_times_and_sizes() {
        let check =
            |text: &str, expected: Option<(f64, Unit)>| assert_eq!(value(text), expected, "{text}");
        check("0", Some((0.0, Unit::Number)));
        check("1.5", Some((1.5, Unit::Number)));
        check("90%", Some((0.9, Unit::Share)));
        check("250ms", Some((0.25, Unit::Seconds)));
        check("1h", Some((3600.0, Unit::Seconds)));
        check("1KiB", Some((1024.0, Unit::Bytes)));
        for text in ["", "%", "x", "1 parsec", "nan", "inf", "NaN%"] {
            check(text, None);
        }
    }

    #[test]
    fn series_are_named_as_prometheus_writes_them() {
        let found = selector("a_total{x=\"1\", y=\"u/*\"}").unwrap();
        assert_eq!(found.name, "a_total");
        assert!(found.labels[0].1.fits("1") && !found.labels[0].1.fits("12"));
        assert!(found.labels[1].1.fits("u/m") && !found.labels[1].1.fits("v"));
        assert!(selector("a{}").unwrap().labels.is_empty());
        for text in ["", "{}", "a{", "a{x}", "a{x=1}", "a{x=\"1\" y=\"2\"}", "a b", "a{=\"\"}"] {
            assert_eq!(selector(text), None, "{text}");
        }
    }
}
