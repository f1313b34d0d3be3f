//! What the process depends on, as far as it is known without asking anybody: upstreams by what came of
//! calls, the log by what it had to drop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::health::{Board, Check};
use crate::base::metrics::{Counter, Registry};
use crate::upstream::breaker::Stand;
use crate::upstream::breakers::View;
use crate::upstream::link::Links;

use super::health::dependency;

/// How long dropped lines are told of.
const LOG_TOLD: Duration = Duration::from_secs(60);

/// The checks of dependencies.
pub(super) struct Dependencies {
    /// The upstreams that have a check.
    upstreams: Vec<String>,
    /// Lines of the log that were dropped, by reason.
    dropped: [Arc<Counter>; 2],
    seen: u64,
    dropped_at: Option<Instant>,
}

impl Dependencies {
    /// None yet.
    pub(super) fn new(registry: &Registry) -> Self {
        let dropped = |reason| {
            let help = "Log lines dropped: the queue was full, or writing failed.";
            registry.counter("tidegate_log_lines_dropped_total", help, &[("reason", reason)])
        };
        Dependencies {
            upstreams: Vec::new(),
            dropped: [dropped("queue_full"), dropped("write_error")],
            seen: 0,
            dropped_at: None,
        }
    }

    /// Brings the checks up to date.
    pub(super) fn look(&mut self, board: &Board, links: &Links) {
        self.upstreams(board, &links.breakers());
        self.log(&dependency(board, "log"));
    }

    fn upstreams(&mut self, board: &Board, views: &[View]) {
        let gone = |name: &&String| !views.iter().any(|view| view.upstream == **name);
        for name in self.upstreams.iter().filter(gone) {
            board.remove(&check_name(name));
        }
        self.upstreams.clear();
        // By upstream: the list is sorted.
        for views in views.chunk_by(|a, b| a.upstream == b.upstream) {
            let Some(first) = views.first() else { continue };
            let check = dependency(board, &check_name(&first.upstream));
            match judge(views) {
                Found::Well => check.ok(),
                Found::Partly(why) => check.degraded(why),
                Found::Away(why) => check.failed(why),
            }
            self.upstreams.push(first.upstream.clone());
        }
    }

    fn log(&mut self, check: &Check) {
        let now = clock::now();
        let dropped: u64 = self.dropped.iter().map(|counter| counter.value()).sum();
        if dropped > self.seen {
            let lines = dropped - self.seen;
            (self.seen, self.dropped_at) = (dropped, Some(now));
            check.degraded(format!(
                "{lines} lines were dropped; look at log.dir and its disk, or lower log.level"
            ));
        } else if self.dropped_at.is_none_or(|at| now >= at + LOG_TOLD) {
            check.ok();
        }
    }
}

fn check_name(upstream: &str) -> String {
    format!("upstream:{upstream}")
}

/// What the breakers of an upstream say of it.
#[derive(Debug, PartialEq)]
enum Found {
    Well,
    Partly(String),
    Away(String),
}

fn judge(views: &[View]) -> Found {
    let why = |view: &View| {
        let cause = view.cause.as_ref().map(|(cause, _)| cause.told.to_string());
        cause.unwrap_or_else(|| format!("its breaker is {}", view.stand.as_str()))
    };
    let stands = |view: &&View| view.stand != Stand::Closed;
    if let Some(address) = views.iter().filter(|view| view.model.is_none()).find(stands) {
        return match address.stand {
            Stand::Open => Found::Away(why(address)),
            _ => Found::Partly(format!("being tried again: {}", why(address))),
        };
    }
    let models: Vec<_> = views.iter().filter(stands).collect();
    let Some(first) = models.first() else { return Found::Well };
    let model = first.model.as_deref().unwrap_or_default();
    let more = match models.len() {
        1 => String::new(),
        n => format!(" (and {} more models)", n - 1),
    };
    Found::Partly(format!("model {model}: {}{more}", why(first)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::health::State;
    use crate::upstream::breaker::Force;

    fn view(model: Option<&str>, stand: Stand) -> View {
        View {
            upstream: "local".to_owned(),
            model: model.map(str::to_owned),
            stand,
            force: Force::Auto,
            forced_for: None,
            drained: false,
            since: Duration::ZERO,
            next_try: None,
            cooling_down: None,
            calls: 0,
            failed: 0,
            cause: None,
        }
    }

    #[test]
    fn an_upstream_is_away_with_its_address_and_partly_there_with_a_model() {
        let all = [view(None, Stand::Closed), view(Some("a"), Stand::Closed)];
        assert_eq!(judge(&all), Found::Well);
        let address = [view(None, Stand::Open), view(Some("a"), Stand::Closed)];
        assert_eq!(judge(&address), Found::Away("its breaker is open".into()));
        let half = [view(None, Stand::HalfOpen)];
        assert!(matches!(judge(&half), Found::Partly(why) if why.starts_with("being tried")));
        let models =
            [view(None, Stand::Closed), view(Some("a"), Stand::Open), view(Some("b"), Stand::Open)];
        let why = "model a: its breaker is open (and 1 more models)";
        assert_eq!(judge(&models), Found::Partly(why.into()));
    }

    #[test]
    fn upstreams_that_are_gone_leave_the_board() {
        let (board, registry) = (Board::default(), Registry::default());
        let mut dependencies = Dependencies::new(&registry);
        dependencies.upstreams(&board, &[view(None, Stand::Open)]);
        let check = board.check("upstream:local");
        assert!(matches!(check.state(clock::now()), State::Failed(_)));
        assert!(matches!(check.counts(clock::now()), State::Degraded(_)), "others may answer");
        dependencies.upstreams(&board, &[]);
        assert!(board.checks().is_empty());
    }

    #[test]
    fn a_log_that_drops_lines_is_told_of_for_a_while() {
        let (board, registry) = (Board::default(), Registry::default());
        let mut dependencies = Dependencies::new(&registry);
        let check = dependency(&board, "log");
        dependencies.log(&check);
        assert_eq!(check.state(clock::now()), State::Ok);
        dependencies.dropped[1].add(7);
        dependencies.log(&check);
        dependencies.log(&check);
        let State::Degraded(why) = check.state(clock::now()) else { panic!("not told") };
        assert!(why.starts_with("7 lines were dropped"), "{why}");
        dependencies.dropped_at = clock::now().checked_sub(LOG_TOLD);
        dependencies.log(&check);
        assert_eq!(check.state(clock::now()), State::Ok);
    }
}
