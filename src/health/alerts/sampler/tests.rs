//! Figures over windows, under virtual time.

use super::*;
use crate::config::settings::alerts::{Pattern, Severity, Unit, When};

const BOUNDS: &[f64] = &[1.0, 2.0, 4.0];

fn figure(measure: Measure) -> Figure {
    Figure {
        of: Selector { name: "a".into(), labels: Vec::new() },
        per: None,
        by: Vec::new(),
        measure,
        window: Duration::from_secs(60),
        count_min: 0,
        when: When { above: true, threshold: 1.0, clear: 1.0, unit: Unit::Number },
    }
}

fn rule(figure: &Figure) -> Arc<Rule> {
    Arc::new(Rule {
        name: "r".into(),
        source: Source::Metric(figure.clone()),
        hold: Duration::ZERO,
        severity: Severity::Info,
        summary: String::new(),
        labels: Vec::new(),
        muted_by: Vec::new(),
        built_in: false,
    })
}

fn number(name: &str, labels: &[(&str, &str)], value: f64) -> Series {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Series { name: name.into(), labels, value: Value::Number(value) }
}

fn buckets(counts: &[u64], sum: f64) -> Series {
    let buckets = Buckets { bounds: BOUNDS, counts: counts.to_vec(), sum };
    Series { name: "a".into(), labels: Vec::new(), value: Value::Buckets(buckets) }
}

/// Looks once a second, and tells what the figure is after the last one.
fn after(figure: &Figure, looks: &[Vec<Series>]) -> Vec<(Labels, Found)> {
    let (rule, mut sampler) = (rule(figure), Sampler::new(&Registry::default()));
    for (at, series) in looks.iter().enumerate() {
        let now = At(1_000_000 + at as u64 * 1000);
        sampler.look(now, std::slice::from_ref(&rule), series);
    }
    let mut found = sampler.figures("r", figure);
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn one(figure: &Figure, looks: &[Vec<Series>]) -> Found {
    let found = after(figure, looks);
    assert_eq!(found.len(), 1);
    found[0].1
}

#[test]
fn growth_is_that_of_the_window_and_begins_where_the_rule_did() {
    let grows: Vec<_> = (0..200).map(|n| vec![number("a", &[], 500.0 + f64::from(n))]).collect();
    let Found::Value(grown) = one(&figure(Measure::Increase), &grows) else { panic!() };
    assert!((59.0..=62.0).contains(&grown), "{grown}");
    let Found::Value(rate) = one(&figure(Measure::Rate), &grows) else { panic!() };
    assert!((rate - 1.0).abs() < 0.01, "{rate}");
    assert_eq!(one(&figure(Measure::Increase), &grows[..3]), Found::Value(2.0));
    let Found::Value(mean) = one(&figure(Measure::Average), &grows) else { panic!() };
    assert!((mean - 669.0).abs() < 2.0, "{mean}");
    assert_eq!(one(&figure(Measure::Value), &grows), Found::Value(699.0));
    // One that is not there yet has counted nothing; its first count is an increase.
    let late = [vec![], vec![], vec![number("a", &[], 1.0)]];
    assert_eq!(one(&figure(Measure::Increase), &late), Found::Value(1.0));
    // One that went down was begun anew.
    let down = [vec![number("a", &[], 9.0)], vec![number("a", &[], 2.0)]];
    assert_eq!(one(&figure(Measure::Increase), &down), Found::Value(0.0));
}

#[test]
fn series_are_added_up_unless_their_labels_are_told_apart() {
    let looks = [vec![
        number("a", &[("u", "x"), ("m", "1")], 1.0),
        number("a", &[("u", "x"), ("m", "2")], 2.0),
        number("a", &[("u", "y"), ("m", "1")], 4.0),
        number("b", &[], 8.0),
    ]];
    assert_eq!(one(&figure(Measure::Value), &looks), Found::Value(7.0));
    let apart = Figure { by: vec!["u".into()], ..figure(Measure::Value) };
    let found = after(&apart, &looks);
    let expected =
        [("x", 3.0), ("y", 4.0)].map(|(u, n)| (vec![("u".into(), u.into())], Found::Value(n)));
    assert_eq!(found, expected);
    let only = Selector { name: "a".into(), labels: vec![("m".into(), Pattern::new("1"))] };
    let of = Figure { of: only, ..figure(Measure::Value) };
    assert_eq!(one(&of, &looks), Found::Value(5.0));
    // One that is gone is not followed any more.
    let gone = [looks[0].clone(), vec![number("a", &[("u", "y"), ("m", "1")], 4.0)]];
    assert_eq!(after(&apart, &gone).len(), 1);
}

#[test]
fn a_share_needs_something_to_be_a_share_of() {
    let all = Selector { name: "all".into(), labels: Vec::new() };
    let share = Figure { per: Some(all), count_min: 20, ..figure(Measure::Increase) };
    let looks = |bad: f64, all: f64| {
        [
            vec![number("a", &[], 3.0), number("all", &[], 7.0)],
            vec![number("a", &[], 3.0 + bad), number("all", &[], 7.0 + all)],
        ]
    };
    assert_eq!(one(&share, &looks(5.0, 100.0)), Found::Value(0.05));
    assert_eq!(one(&share, &looks(5.0, 19.0)), Found::TooLittle);
    assert_eq!(one(&share, &looks(0.0, 0.0)), Found::Nothing);
}

#[test]
fn percentiles_are_of_what_came_within_the_window() {
    let p95 = Figure { count_min: 10, ..figure(Measure::Quantile(0.95)) };
    let before = buckets(&[1000, 0, 0, 0], 500.0);
    // 100 more, all between 2 and 4.
    let after_that = buckets(&[1000, 0, 100, 0], 800.0);
    let looks = [vec![before.clone()], vec![after_that]];
    let Found::Value(found) = one(&p95, &looks) else { panic!() };
    assert!((found - 3.9).abs() < 1e-9, "{found}");
    let mean = Figure { ..figure(Measure::Average) };
    assert_eq!(one(&mean, &looks), Found::Value(3.0));
    let above = [vec![before.clone()], vec![buckets(&[1000, 0, 0, 100], 9000.0)]];
    assert_eq!(one(&p95, &above), Found::Value(4.0), "the last bound");
    let few = [vec![before.clone()], vec![buckets(&[1000, 0, 9, 0], 9000.0)]];
    assert_eq!(one(&p95, &few), Found::TooLittle);
    assert_eq!(one(&p95, &[vec![before.clone()], vec![before]]), Found::Nothing);
}

#[test]
fn what_is_kept_is_bounded() {
    let limit = Limit::detached(3);
    let mut sampler = Sampler::bounded(Arc::clone(&limit));
    let by = Figure { by: vec!["u".into()], ..figure(Measure::Increase) };
    let rule = rule(&by);
    for look in 0..5000u64 {
        let series: Vec<Series> =
            (0..5).map(|n| number("a", &[("u", &n.to_string())], look as f64)).collect();
        sampler.look(At(1_000_000 + look * 100), std::slice::from_ref(&rule), &series);
    }
    assert_eq!((sampler.figures("r", &by).len(), limit.now()), (3, 3));
    assert!(limit.refused() > 0);
    assert!(sampler.tracks.iter().all(|(_, track)| track.samples.len() <= 102));
}
