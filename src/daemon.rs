//! `tidegate run`: start order, phases, signals, drain, stop.

use std::path::PathBuf;

use crate::base::exit::Exit;

/// Runs the gateway until it is told to stop. `config_path` is that of `--config`.
pub fn run(config_path: Option<PathBuf>) -> Exit {
    match crate::config::load(config_path) {
        Ok(_) => Exit::Failure,
        Err(_) => Exit::Config,
    }
}
