//! When a namespace is cleared for a change: once things have been quiet for a moment, so that
//! saving a hundred files clears once; but not later than a while after the first change. Pure.

use std::time::{Duration, Instant};

use crate::cache::NAMESPACES;
use crate::config::settings::Namespace;

/// How long nothing must have changed.
const QUIET: Duration = Duration::from_millis(200);

/// How long after the first change a namespace is cleared at the latest.
const LATEST: Duration = Duration::from_secs(2);

/// The namespaces that are to be cleared, and when.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pending: [Option<Pending>; NAMESPACES],
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    first: Instant,
    due: Instant,
}

impl Plan {
    /// Something changed.
    pub fn changed(&mut self, namespace: Namespace, now: Instant) {
        let pending = &mut self.pending[namespace.index()];
        let first = pending.map_or(now, |pending| pending.first);
        let due = (now + QUIET).min(first + LATEST);
        // What is due at once stays so.
        let due = pending.map_or(due, |pending| if pending.due <= now { pending.due } else { due });
        *pending = Some(Pending { first, due });
    }

    /// Nobody knows what changed: it is cleared at once.
    pub fn lost(&mut self, namespace: Namespace, now: Instant) {
        self.pending[namespace.index()] = Some(Pending { first: now, due: now });
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.pending.iter().flatten().map(|pending| pending.due).min()
    }

    /// Those that are due now.
    pub fn due(&mut self, now: Instant) -> Vec<Namespace> {
        let mut due = Vec::new();
        for namespace in Namespace::ALL {
            let pending = &mut self.pending[namespace.index()];
            if pending.is_some_and(|pending| pending.due <= now) {
                *pending = None;
                due.push(namespace);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const A: Namespace = Namespace::Embeddings;
    const B: Namespace = Namespace::Chat;

    #[test]
    fn many_changes_clear_once_when_they_are_over_or_have_gone_on_for_long() {
        let begun = clock::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut plan = Plan::default();
        assert_eq!(plan.next(), None);
        plan.changed(A, at(0));
        plan.changed(A, at(150));
        assert_eq!(plan.due(at(349)), []);
        assert_eq!(plan.next(), Some(at(350)));
        assert_eq!(plan.due(at(350)), [A]);
        assert_eq!(plan.due(at(9999)), []);
        for n in 0..=20 {
            plan.changed(B, at(10_000 + n * 100));
        }
        assert_eq!(plan.due(at(12_000)), [B], "the latest");
    }

    #[test]
    fn what_was_lost_clears_at_once() {
        let now = clock::now();
        let mut plan = Plan::default();
        plan.changed(A, now);
        plan.lost(A, now);
        plan.changed(A, now);
        assert_eq!(plan.due(now), [A]);
    }
}
