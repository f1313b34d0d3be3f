//! The built-in rules. `tidegate alerts --rules` lists them with what is in force.

use std::time::Duration;

use super::figure::selector;
use super::{EVENT_WINDOW, Figure, Measure, Pattern, Rule, Severity, Source, Unit, WINDOW, When};

/// Requests that a share or a percentile of them must have behind it.
const REQUESTS_MIN: u64 = 20;

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

fn above(unit: Unit, threshold: f64, clear: f64) -> When {
    When { above: true, threshold, clear, unit }
}

fn rule(name: &str, severity: Severity, hold: Duration, source: Source, summary: &str) -> Rule {
    Rule {
        name: name.to_owned(),
        source,
        hold,
        severity,
        summary: summary.to_owned(),
        labels: Vec::new(),
        muted_by: Vec::new(),
        built_in: true,
    }
}

fn muted_by(rules: &[&str], rule: Rule) -> Rule {
    Rule { muted_by: rules.iter().map(|name| (*name).to_owned()).collect(), ..rule }
}

fn metric(of: &str, measure: Measure, when: When) -> Figure {
    let of = selector(of).unwrap_or_else(|| crate::config::settings::alerts::Selector {
        name: of.to_owned(),
        labels: Vec::new(),
    });
    let (per, by, window, count_min) = (None, Vec::new(), WINDOW, 0);
    Figure { of, per, by, measure, window, count_min, when }
}

fn limit(name: &str, time_left: bool, when: When) -> Source {
    Source::Limit { name: Pattern::new(name), time_left, when }
}

fn check(name: &str, degraded: bool) -> Source {
    Source::Check { name: Pattern::new(name), degraded }
}

fn events(kinds: &[&str]) -> Source {
    let kinds = kinds.iter().map(|kind| Pattern::new(kind)).collect();
    Source::Event { kinds, window: EVENT_WINDOW }
}

/// All of them, in the order in which lists show them.
pub(in crate::config) fn built_in() -> Vec<Rule> {
    let mut rules = Vec::from(process());
    rules.extend(traffic());
    rules.extend(parts());
    rules
}

/// The process as a whole.
fn process() -> [Rule; 6] {
    use Severity::{Critical, Warning};
    let memory = |threshold, clear| {
        limit("overload.memory_max", false, above(Unit::Share, threshold, clear))
    };
    let hour = When { above: false, threshold: 3600.0, clear: 7200.0, unit: Unit::Seconds };
    [
        rule(
            "unresponsive",
            Critical,
            // Late at several looks: a machine that slept has threads that are all late at once.
            Duration::from_secs(5),
            Source::Threads,
            "a thread hangs; tidegate status and /livez?verbose say on what; restart if it stays so",
        ),
        rule(
            "memory_critical",
            Critical,
            Duration::from_secs(60),
            memory(0.90, 0.85),
            "memory is nearly used up; new requests are refused soon; see tidegate limits",
        ),
        muted_by(
            &["memory_critical"],
            rule(
                "memory_high",
                Warning,
                minutes(10),
                memory(0.70, 0.65),
                "memory has been high for long; see tidegate limits for what holds it",
            ),
        ),
        rule(
            "descriptors_high",
            Warning,
            Duration::from_secs(60),
            limit("descriptors_max", false, above(Unit::Share, 0.85, 0.75)),
            "open files and connections come near the limit; raise LimitNOFILE or lower \
             server.connections_max",
        ),
        rule(
            "panic",
            Warning,
            Duration::ZERO,
            Source::Metric(metric(
                "tidegate_panics_total",
                Measure::Increase,
                above(Unit::Number, 0.0, 0.0),
            )),
            "a request ended by a fault of tidegate's own; the log has it; please report it",
        ),
        muted_by(
            &["unresponsive"],
            rule(
                "limit_trend",
                Warning,
                minutes(5),
                limit("*", true, hour),
                "at its present growth this limit is reached soon",
            ),
        ),
    ]
}

/// What clients notice.
fn traffic() -> [Rule; 4] {
    use Severity::{Critical, Warning};
    let slow = |of, seconds: f64| {
        let when = above(Unit::Seconds, seconds, seconds * 0.8);
        let figure = metric(of, Measure::Quantile(0.95), when);
        Source::Metric(Figure { count_min: REQUESTS_MIN, ..figure })
    };
    let requests = "tidegate_http_requests_total";
    let failed = metric(
        "tidegate_http_requests_total{status=\"5*\"}",
        Measure::Increase,
        above(Unit::Share, 0.05, 0.03),
    );
    let breaker = metric(
        "tidegate_upstream_breaker_state",
        Measure::Value,
        // Open is 2; half-open, 1, is neither.
        above(Unit::Number, 1.0, 0.0),
    );
    [
        muted_by(
            &["unresponsive"],
            rule(
                "latency_high",
                Warning,
                minutes(5),
                slow("tidegate_http_request_seconds", 60.0),
                "one request in twenty takes long; see tidegate breaker and the log's access lines",
            ),
        ),
        muted_by(
            &["unresponsive"],
            rule(
                "first_token_slow",
                Warning,
                minutes(5),
                slow("tidegate_first_token_seconds", 30.0),
                "one stream in twenty begins late; its upstream is slow, or models are loaded often",
            ),
        ),
        muted_by(
            &["unresponsive"],
            rule(
                "error_rate",
                Critical,
                Duration::from_secs(60),
                Source::Metric(Figure {
                    per: selector(requests),
                    count_min: REQUESTS_MIN,
                    ..failed
                }),
                "requests fail; see tidegate breaker for the upstreams and the log for the codes",
            ),
        ),
        muted_by(
            &["unresponsive"],
            rule(
                "breaker_open",
                Warning,
                Duration::ZERO,
                Source::Metric(Figure {
                    by: vec!["upstream".to_owned(), "model".to_owned()],
                    ..breaker
                }),
                "an upstream is left alone because it failed; see tidegate breaker",
            ),
        ),
    ]
}

/// Parts of it.
fn parts() -> [Rule; 9] {
    use Severity::{Critical, Warning};
    [
        muted_by(
            &["unresponsive"],
            rule(
                "limit_exhausted",
                Warning,
                Duration::from_secs(60),
                limit("*", false, above(Unit::Share, 0.90, 0.80)),
                "a limit is used up or refuses; tidegate limits says what happens there",
            ),
        ),
        muted_by(
            &["unresponsive"],
            rule(
                "check_failed",
                Critical,
                Duration::from_secs(30),
                check("*", false),
                "a check has failed: the daemon is not ready; see /readyz?verbose",
            ),
        ),
        rule(
            "check_degraded",
            Warning,
            minutes(5),
            check("*", true),
            "a part has been degraded for long; see /readyz?verbose",
        ),
        rule(
            "store_degraded",
            Warning,
            Duration::from_secs(30),
            check("store", true),
            "what the daemon keeps on disk is not kept; look at the state directory and its disk",
        ),
        rule(
            "config_fault",
            Warning,
            Duration::ZERO,
            events(&["config_refused", "config_file_refused", "config_version_damaged"]),
            "a configuration was refused, and the one before it runs on; tidegate check says why",
        ),
        rule(
            "config_rolled_back",
            Critical,
            Duration::ZERO,
            events(&["config_rolled_back"]),
            "a configuration did harm and was rolled back; tidegate config history says why",
        ),
        rule(
            "log_lines_dropped",
            Warning,
            Duration::ZERO,
            Source::Metric(metric(
                "tidegate_log_lines_dropped_total",
                Measure::Increase,
                above(Unit::Number, 0.0, 0.0),
            )),
            "log lines were dropped: the disk is slow or full, or log.level is too talkative",
        ),
        rule(
            "error_event",
            Warning,
            Duration::ZERO,
            events(&["*"]),
            "something happened that somebody should look at",
        ),
        rule(
            "notify_failing",
            Critical,
            Duration::ZERO,
            Source::Channels { when: above(Unit::Seconds, 60.0, 0.0) },
            "alerts do not get through on this channel; tidegate alerts says why",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rules_are_whole_and_their_names_differ() {
        let rules = built_in();
        for (at, rule) in rules.iter().enumerate() {
            assert!(rule.built_in && !rule.summary.is_empty(), "{}", rule.name);
            assert!(
                rules.iter().skip(at + 1).all(|other| other.name != rule.name),
                "{}",
                rule.name
            );
            for name in &rule.muted_by {
                assert!(rules.iter().any(|other| other.name == *name), "{} {name}", rule.name);
            }
            if let Source::Metric(Figure { when, .. }) | Source::Limit { when, .. } = &rule.source {
                assert!(
                    if when.above {
                        when.clear <= when.threshold
                    } else {
                        when.clear >= when.threshold
                    },
                    "{}",
                    rule.name
                );
            }
        }
    }
}
