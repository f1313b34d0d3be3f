//! What is known of one question, and when it may be asked again.

use std::time::{Duration, Instant};

use super::question::{Fault, Known, LIST_FRESH_FOR, Outcome};
use crate::base::error::Kind;

/// The pause after a first failure; each further one doubles it.
pub const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// The longest pause after failures.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// What is known of one question.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) known: Option<(Known, Instant)>,
    pub(super) fault: Option<Fault>,
    pub(super) failures: u32,
    pub(super) pause_until: Option<Instant>,
}

impl Slot {
    /// Gives back the failures in a row.
    pub(super) fn take(&mut self, outcome: Outcome, now: Instant) -> u32 {
        match outcome {
            Ok(known) => {
                *self = Slot { known: Some((known, now)), ..Slot::default() };
            }
            Err(fault) => {
                if fault.kind() == Kind::UpstreamModelNotFound {
                    // It was removed: the old description is no longer true.
                    self.known = None;
                }
                self.failures = self.failures.saturating_add(1);
                self.pause_until = Some(now + pause(self.failures));
                self.fault = Some(fault);
            }
        }
        self.failures
    }

    /// Makes what is known old.
    pub(super) fn age(&mut self) {
        if let Some((_, at)) = &mut self.known {
            *at = at.checked_sub(LIST_FRESH_FOR).unwrap_or(*at);
        }
        self.pause_until = None;
        self.failures = 0;
        self.fault = None;
    }

    /// What it takes of the bytes for descriptions.
    pub(super) fn bytes(&self) -> usize {
        match &self.known {
            Some((Known::Show(show), _)) => show.body.len(),
            _ => 0,
        }
    }
}

/// The pause after this many failures in a row.
pub(super) fn pause(failures: u32) -> Duration {
    let doubled = BACK_OFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(BACK_OFF_MAX)
}
