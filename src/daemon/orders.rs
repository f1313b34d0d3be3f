//! Orders from the desk, carried out by the main loop.

use serde_json::json;

use crate::base::exit::Exit;
use crate::base::orders::{Asked, Order};
use crate::config::ledger::Signature;

use super::running::Running;

/// Carries one out and tells its outcome; whether the daemon is to drain and stop.
pub(super) fn carry_out(running: &mut Running, asked: Asked) -> bool {
    let (outcome, stop) = match &asked.order {
        Order::Reload => (running.reload().map(|()| json!({"reloaded": true})), false),
        Order::Reopen => {
            running.reopen();
            (Ok(json!({"reopened": true})), false)
        }
        Order::Config { change, author, reason } => {
            let by = Signature::new(author.as_str(), reason.as_str());
            (running.change_config(change, &by), false)
        }
        Order::Restart => {
            running.exit = Exit::Restart;
            (Ok(json!({"stopping": true})), true)
        }
        Order::Stop => {
            let timeout = running.config.server.drain_timeout.as_millis();
            let timeout = u64::try_from(timeout).unwrap_or(u64::MAX);
            (Ok(json!({"stopping": true, "drain_timeout_ms": timeout})), true)
        }
    };
    asked.answer(outcome);
    stop
}
