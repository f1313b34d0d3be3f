//! `tidegate config`.

mod backup;
mod change;
mod look;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::check::warn;
use super::client::Ask;
use super::output::{answer, remark};
use crate::base::error::Error;
use crate::base::exit::Exit;
use crate::config::{self, schema};

/// Show and change the configuration, its versions, and what can stand in it
///
/// A change goes to the running daemon, which checks it, writes the file and a version, and watches
/// how it does; without a daemon it is checked and written here, and watched from the next start on.
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
    History(look::History),
    Show(look::Show),
    Diff(look::Diff),
    Apply(change::Apply),
    Set(change::Set),
    Unset(change::Unset),
    Rollback(change::Rollback),
    Knob(change::Knob),
    Backup(backup::Backup),
    Restore(backup::Restore),
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
            Command::History(command) => command.execute(),
            Command::Show(command) => command.execute(),
            Command::Diff(command) => command.execute(),
            Command::Apply(command) => command.execute(),
            Command::Set(command) => command.execute(),
            Command::Unset(command) => command.execute(),
            Command::Rollback(command) => command.execute(),
            Command::Knob(command) => command.execute(),
            Command::Backup(command) => command.execute(),
            Command::Restore(command) => command.execute(),
        }
    }
}

/// Says why not, and what it means to a script.
fn refused(error: &Error) -> Exit {
    remark(&format!("tidegate: refused: {}", error.context()));
    Ask::exit_of(error.row().status)
}
