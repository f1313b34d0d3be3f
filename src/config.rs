//! Settings: schema, load, validate, reload.
//!
//! `raw` is what people write and the one source of the schema; `walk` finds every fault of a file
//! at once; `build` makes the [`Config`] that the rest of the program holds; `intent` judges rules
//! between settings. Nothing else makes a `Config`.

mod alerts;
pub mod boot;
mod build;
mod checks;
pub mod diff;
pub mod edit;
mod fault;
pub mod import;
pub mod files;
mod intent;
pub mod ledger;
pub mod listing;
mod load;
pub mod merge;
pub mod names;
mod nearest;
mod nodes;
pub mod offline;
pub mod overview;
mod price;
mod print;
pub mod probation;
mod raw;
pub mod redact;
pub mod reload;
pub mod render;
mod report;
pub mod schema;
mod secret;
pub mod settings;
mod unit;
mod url;
pub mod versions;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

pub use fault::{FAULTS_MAX, Fault, Faults, Warning};
pub use load::{
    CONFIG_BYTES_MAX, PATH_DEFAULT, find_file, load, ops_listen, read, read_if_there, state_dirs,
};
pub use names::{ECHO, Resolved};
pub(crate) use nearest::nearest;
pub use settings::Config;

use build::Site;
use raw::Raw;
use report::Report;

/// A duration as people write it in the file.
pub fn duration_text(duration: std::time::Duration) -> String {
    unit::Span(duration).to_string()
}

/// Reads a duration as people write it in the file.
///
/// # Errors
/// What is wrong with it.
pub fn duration_parse(text: &str) -> Result<std::time::Duration, &'static str> {
    text.parse::<unit::Span>().map(|span| span.0)
}

/// A configuration that may be used, and what is doubtful about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What runs, but may not mean what it says.
    pub warnings: Vec<Warning>,
    /// The settings as they were written.
    raw: Raw,
    /// The line of each setting that was written.
    lines: BTreeMap<String, usize>,
}

/// Reads a configuration from text. `path` is where it came from: for messages, and for relative
/// paths inside it. `env` looks up environment variables. Files that the text names are read.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn parse(
    text: &str,
    path: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Faults> {
    let mut report = Report::default();
    let owned = || path.map(Path::to_owned);
    let Ok(tree) = walk::walk(text, &schema::tree(), &mut report) else {
        return Err(report.into_faults(owned()));
    };
    let raw = match Raw::deserialize(tree) {
        Ok(raw) => raw,
        // The walk has seen every value, so this is a fault of ours; it is told, not hidden.
        Err(e) => {
            report.fault("", format!("cannot be read: {e}"), "report this as a fault of tidegate");
            return Err(report.into_faults(owned()));
        }
    };
    let config = build::build(&raw, &Site { path, env }, &mut report);
    intent::judge(&raw, &config, &mut report);
    if report.failed() {
        return Err(report.into_faults(owned()));
    }
    let (warnings, lines) = report.into_parts();
    Ok(Loaded { config, warnings, raw, lines })
}

/// Reads a configuration from text, with the environment of this process. `path` is the file that it
/// is, or will be, in.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn parse_in(text: &str, path: Option<&Path>) -> Result<Loaded, Faults> {
    parse(text, path, &|name| std::env::var(name).ok())
}

#[cfg(test)]
mod tests;
