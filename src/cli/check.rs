//! `tidegate check`.

use std::path::PathBuf;

use clap::Args;

use super::output::{answer, remark};
use crate::base::exit::Exit;
use crate::config::{self, Fault};

/// Check a configuration and say everything that is wrong with it
///
/// Faults and warnings go to standard error, one a line as `file:line: setting: what; what to do`.
/// The exit code is 0 when it may be used, with or without warnings, and 78 when not.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The configuration file [default: as `tidegate run` finds it]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as `tidegate run` takes it
    #[arg(long, short, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
}

impl Check {
    pub(super) fn execute(self) -> Exit {
        match config::load(self.file.or(self.config)) {
            Ok(loaded) => {
                let config = &loaded.config;
                warn(&loaded.warnings, config.path.as_deref());
                answer(&format!(
                    "{}: good ({}, {}, {}, {})\n",
                    file_name(config.path.as_deref()),
                    count(config.upstreams.len(), "upstream"),
                    count(config.models.len(), "model"),
                    count(config.keys.len(), "key"),
                    count(loaded.warnings.len(), "warning"),
                ))
            }
            Err(faults) => {
                remark(&faults.to_string());
                let all = faults.faults.len() + faults.omitted;
                let file = file_name(faults.path.as_deref());
                remark(&format!("{file}: refused ({})", count(all, "fault")));
                Exit::Config
            }
        }
    }
}

/// Shows warnings.
pub(super) fn warn(warnings: &[Fault], path: Option<&std::path::Path>) {
    for warning in warnings {
        remark(&format!("warning: {}", warning.at(path)));
    }
}

fn file_name(path: Option<&std::path::Path>) -> String {
    path.map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string())
}

/// A count with its noun.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
