//! `tidegate run`.

use std::path::PathBuf;

use clap::Args;

use crate::base::exit::Exit;
use crate::daemon;

/// Run the gateway in the foreground until it is told to stop (SIGTERM, SIGINT)
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The configuration file [default: $TIDEGATE_CONFIG, else /etc/tidegate/tidegate.toml, else
    /// built-in defaults]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Run {
    pub(super) fn execute(self) -> Exit {
        daemon::run(self.config)
    }
}
