//! What methods of several subjects share: keys of requests that were carried out, reports that are
//! given again, the rate of changes, and the look at the configuration.

use std::sync::Arc;
use std::time::Instant;

use super::Nodes;
use super::Parts;
use super::idempotency::Idempotency;
use super::methods::config::Watch;
use super::outbox::Event;
use super::peer::Peer;
use super::refusal::Refusal;
use super::writes::Writes;
use crate::base::clock;
use crate::base::metrics::Counter;

/// See above.
#[derive(Debug)]
pub struct Shared {
    idempotency: Arc<Idempotency>,
    reports: Arc<Idempotency>,
    reports_made: Arc<Counter>,
    writes: Writes,
    watch: Watch,
}

impl Shared {
    /// Nothing was asked for yet.
    pub fn new(parts: &Parts) -> Self {
        let registry = &parts.registry;
        Shared {
            idempotency: Idempotency::of_requests(registry, Arc::clone(&parts.limits.idempotency)),
            reports: Idempotency::of_reports(registry),
            reports_made: registry.counter(
                "tidegate_nodes_reports_total",
                "Reports about usage that were made; those that were given again are not counted.",
                &[],
            ),
            writes: Writes::new(registry, Arc::clone(&parts.limits.writes)),
            watch: Watch::default(),
        }
    }
}

impl Nodes {
    /// Requests with an idempotency key.
    pub fn idempotency(&self) -> &Arc<Idempotency> {
        &self.shared.idempotency
    }

    /// Reports that are made once for all who ask.
    pub(super) fn reports(&self) -> &Arc<Idempotency> {
        &self.shared.reports
    }

    /// A report was made.
    pub(super) fn count_report(&self) {
        self.shared.reports_made.inc();
    }

    /// Counts a change of the gateway by this client.
    ///
    /// # Errors
    /// `UNAVAILABLE`, with when to try again.
    pub fn charge_write(&self, method: &'static str, peer: &Peer) -> Result<(), Refusal> {
        self.shared.writes.charge(method, peer, clock::now())
    }

    /// To be called now and then by the room's thread: forgets what is over, and gives the event for
    /// administrators when another configuration has come into force.
    pub fn tick_shared(&self, now: Instant) -> Option<Event> {
        self.shared.idempotency.forget(now);
        self.shared.reports.forget(now);
        self.parts.config.as_ref().and_then(|overview| self.shared.watch.look(overview))
    }
}
