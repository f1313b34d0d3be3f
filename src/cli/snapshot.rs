//! `tidegate snapshot`.

use clap::Args;

use super::client::Ask;
use super::output::answer;
use crate::base::exit::Exit;

/// Print everything that an incident needs as one JSON document, without secrets
///
/// Version, configuration, health, alerts, limits, breakers, usage, metrics, events, the last lines of
/// the log, threads and what they wait for, memory, descriptors, and the machine. What could not be had
/// says why in its place.
#[derive(Debug, Args)]
pub(super) struct Snapshot {
    #[command(flatten)]
    ask: Ask,
}

impl Snapshot {
    pub(super) fn execute(self) -> Exit {
        match self.ask.get("/snapshot") {
            Ok(value) => answer(&format!("{value:#}\n")),
            Err(exit) => exit,
        }
    }
}
