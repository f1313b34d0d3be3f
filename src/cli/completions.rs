//! `tidegate completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output::answer;
use crate::base::exit::Exit;

/// Print the completions of this command line for a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn execute(self) -> Exit {
        // Into memory first: the generator panics when a write fails.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "tidegate", &mut script);
        answer(&String::from_utf8_lossy(&script))
    }
}
