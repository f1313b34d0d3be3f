//! `tidegate config`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::check::warn;
use super::output::{answer, remark};
use crate::base::exit::Exit;
use crate::config::{self, schema};

/// Show the configuration, or what can stand in it
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the JSON Schema of the configuration file, for editors and checkers
    Schema,
    /// Print every setting as it is in force, and where each comes from; never a secret
    Print {
        /// The configuration file [default: as `tidegate run` finds it]
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

impl Config {
    pub(super) fn execute(self) -> Exit {
        match self.command {
            Command::Schema => answer(&format!("{:#}\n", schema::json())),
            Command::Print { config } => match config::load(config) {
                Ok(loaded) => {
                    warn(&loaded.warnings, loaded.config.path.as_deref());
                    answer(&loaded.print())
                }
                Err(faults) => {
                    remark(&faults.to_string());
                    Exit::Config
                }
            },
        }
    }
}
