//! The control socket in the state directory. Without one, or with one that cannot be used, the gateway
//! runs on and says so.

use std::sync::Arc;

use crate::base::heartbeat::Heartbeats;
use crate::config::Config;
use crate::net::control::{Control, Place};
use crate::ops::Parts;
use crate::ops::control::ControlHandler;

/// The check on the board.
const CHECK: &str = "control";

/// Opens the socket, when there is somewhere to put it.
pub(super) fn start(
    config: &Config,
    parts: &Parts,
    heartbeats: &Arc<Heartbeats>,
) -> Option<Control> {
    let check = parts.board.check(CHECK);
    let Some(dir) = &config.state_dir else {
        check.degraded("no control socket: set state.dir, or $STATE_DIRECTORY");
        return None;
    };
    let service = Arc::new(ControlHandler::new(parts.clone()));
    let started = Place::take(dir).map_err(|refused| refused.to_string()).and_then(|place| {
        Control::start(place, service, &parts.registry, heartbeats).map_err(|e| e.to_string())
    });
    match started {
        Ok(control) => {
            check.ok();
            Some(control)
        }
        Err(why) => {
            log::warn!(why = why; "no_control_socket");
            check.degraded(format!("no control socket: {why}"));
            None
        }
    }
}
