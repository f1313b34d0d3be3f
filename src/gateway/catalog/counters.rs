//! What is counted, and the limits with their sizes.

use std::sync::Arc;

use super::parse::MODELS_MAX;
use super::question::{Known, Outcome, What};
use super::state::{FLIGHTS_MAX, Found, SHOW_BYTES_MAX, SHOWS_MAX, THREADS_MAX};
use crate::base::metrics::{Counter, Limit, Registry, Unit};

/// A counter for list, ps and show, in this order.
type Each = [Arc<Counter>; 3];

/// Counters and limits of a catalog.
pub(super) struct Counters {
    /// Callers that wait.
    pub(super) waiting: Arc<Limit>,
    /// Questions asked or waiting to be asked.
    pub(super) queue: Arc<Limit>,
    shows: Arc<Limit>,
    show_bytes: Arc<Limit>,
    /// Models of one list.
    models: Arc<Limit>,
    /// Threads that ask, and the tokens that wake them.
    pub(super) threads: Arc<Limit>,
    hits: Each,
    stale: Each,
    misses: Each,
    answers: Each,
    failures: Each,
}

impl Counters {
    pub(super) fn new(registry: &Registry) -> Self {
        let limit =
            |name, max: usize, consequence| registry.limit(name, "", max as u64, consequence);
        let each = |name, help, outcome| {
            ["list", "ps", "show"]
                .map(|what| registry.counter(name, help, &[("what", what), ("outcome", outcome)]))
        };
        let lookups = |outcome| {
            let help = "Looks into what is known of the models of upstreams.";
            each("tidegate_catalog_lookups_total", help, outcome)
        };
        let fetches = |outcome| {
            let help = "Questions to upstreams about their models.";
            each("tidegate_catalog_fetches_total", help, outcome)
        };
        let again = "the least recently used descriptions are asked for again";
        Counters {
            waiting: limit("catalog.waiting_max", 1, "what is known is shown without waiting"),
            queue: limit("catalog.queue_max", FLIGHTS_MAX, "what is known is shown"),
            shows: limit("catalog.shows_max", SHOWS_MAX, again),
            show_bytes: registry.limit_of(
                Unit::Bytes,
                "catalog.show_bytes_max",
                "",
                SHOW_BYTES_MAX as u64,
                again,
            ),
            models: registry.limit_each(
                Unit::Entries,
                "catalog.models_max",
                "",
                MODELS_MAX as u64,
                "the rest of the list is left out",
            ),
            threads: limit("catalog.threads_max", THREADS_MAX, "the question waits"),
            hits: lookups("hit"),
            stale: lookups("stale"),
            misses: lookups("miss"),
            answers: fetches("ok"),
            failures: fetches("failed"),
        }
    }

    /// Counts a look.
    pub(super) fn looked(&self, what: &What, found: &Found) {
        let counter = match (&found.known, found.fresh) {
            (Some(_), true) => &self.hits,
            (Some(_), false) => &self.stale,
            (None, _) => &self.misses,
        };
        counter[index(what)].inc();
        if found.refused {
            self.queue.refuse();
        }
    }

    /// Counts the end of a question.
    pub(super) fn asked(&self, what: &What, outcome: &Outcome) {
        let counter = if outcome.is_ok() { &self.answers } else { &self.failures };
        counter[index(what)].inc();
        if let Ok(Known::List(list)) = outcome {
            self.models.saw(list.models.len() as u64);
            if list.left_out > 0 {
                self.models.refuse();
            }
        }
    }

    /// Says what there is now: questions, descriptions, and their bytes.
    pub(super) fn measure(&self, (questions, shows, bytes): (usize, usize, usize)) {
        self.queue.set_now(questions as u64);
        self.shows.set_now(shows as u64);
        self.show_bytes.set_now(bytes as u64);
    }
}

fn index(what: &What) -> usize {
    match what {
        What::List => 0,
        What::Ps => 1,
        What::Show { .. } => 2,
    }
}
