//! `tidegate reload`, `tidegate reopen`, `tidegate stop`: what signals do, with an outcome.

use clap::Args;
use serde_json::json;

use super::client::Ask;
use crate::base::exit::Exit;

/// Have a running daemon read its configuration again, and hear whether it took it
#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    ask: Ask,
}

impl Reload {
    pub(super) fn execute(self) -> Exit {
        self.ask.order("/reload", &json!({}), |_| "reloaded\n".to_owned())
    }
}

/// Have a running daemon open its log files again
#[derive(Debug, Args)]
pub(super) struct Reopen {
    #[command(flatten)]
    ask: Ask,
}

impl Reopen {
    pub(super) fn execute(self) -> Exit {
        self.ask.order("/reopen", &json!({}), |_| "log files opened again\n".to_owned())
    }
}

/// Have a running daemon drain and stop
///
/// It refuses new requests, lets those that run end within `server.drain_timeout`, and ends; this
/// waits until it has. The same as `tidegate drain`.
#[derive(Debug, Args)]
pub(super) struct Stop {
    #[command(flatten)]
    ask: Ask,
}

impl Stop {
    pub(super) fn execute(self) -> Exit {
        super::drain::stop(&self.ask)
    }
}
