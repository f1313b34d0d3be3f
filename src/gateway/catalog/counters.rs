//! What is counted, and the limits with their sizes.

use std::sync::Arc;

use super::question::{Outcome, What};
use super::state::{FLIGHTS_MAX, Found, SHOW_BYTES_MAX, SHOWS_MAX};
use crate::base::metrics::{Counter, Limit, Registry};

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
            show_bytes: limit("catalog.show_bytes_max", SHOW_BYTES_MAX, again),
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
