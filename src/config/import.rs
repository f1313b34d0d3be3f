//! `tidegate import`: the models, fallbacks and keys of another gateway's file, as a configuration of ours.
//!
//! Reading is bounded ([`tree`]), and what a file holds is never trusted: names are checked, addresses
//! are taken apart, and a key that stands in the file literally is not repeated anywhere. The result is
//! read by our own parser before anybody sees it. What has no counterpart is told, by its path, with
//! what to do about it.

mod draft;
mod litellm;
mod notes;
mod openclaw;
mod providers;
mod read;
mod tree;

use super::{Faults, Warning, parse};
use draft::{Draft, Keys};
use notes::Notes;

pub use notes::NOTES_MAX;
pub use tree::{DEPTH_MAX, INPUT_BYTES_MAX, WEIGHT_MAX};

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// LiteLLM's `config.yaml`.
    Litellm,
    /// OpenClaw's `openclaw.json`.
    Openclaw,
}

impl Source {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Litellm => "LiteLLM",
            Source::Openclaw => "OpenClaw",
        }
    }
}

/// What became of a file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The configuration.
    pub text: String,
    /// What is not in it, or not as it was: a line for each, at most [`NOTES_MAX`] and one more.
    pub notes: Vec<String>,
    /// What our own check says about the configuration.
    pub warnings: Vec<Warning>,
    /// How many upstreams, models and keys it has.
    pub counts: [usize; 3],
}

/// Why a file was not imported.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be read as what it should be.
    #[error("{0}")]
    Format(String),
    /// There is no model in it that could be carried over.
    #[error("holds no model that could be carried over")]
    Empty(Vec<String>),
    /// What it came to would be refused.
    #[error("{0}")]
    Faults(Faults),
}

/// Turns a file into a configuration. `name` is the file's name, for the comment at the top; `env` looks
/// up variables of the environment, for addresses and for keys of clients that the file takes from there.
///
/// # Errors
/// What is wrong with it; a partial result is none.
pub fn import(
    source: Source,
    text: &str,
    name: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Imported, Refusal> {
    let mut draft = Draft::default();
    let mut notes = Notes::default();
    match source {
        Source::Litellm => {
            let tree = tree::yaml(text).map_err(Refusal::Format)?;
            litellm::import(&tree, env, &mut draft, &mut notes).map_err(Refusal::Format)?;
        }
        Source::Openclaw => {
            let tree = tree::json5(text).map_err(Refusal::Format)?;
            openclaw::import(&tree, env, &mut draft, &mut notes).map_err(Refusal::Format)?;
        }
    }
    draft.finish(&mut notes);
    if draft.models.is_empty() && draft.upstreams.is_empty() {
        return Err(Refusal::Empty(notes.lines()));
    }
    // Variables may be set later, and key files written later: the daemon's own start says when they
    // are not. Everything else must be right now.
    let checked = parse(&draft.render(source, name, Keys::LeftOut), None, &|_| None);
    let warnings = checked.map_err(Refusal::Faults)?.warnings;
    Ok(Imported {
        text: draft.render(source, name, Keys::Written),
        notes: notes.lines(),
        warnings: warnings.into_iter().map(|w| Warning { line: None, ..w }).collect(),
        counts: [draft.upstreams.len(), draft.models.len(), draft.keys.len()],
    })
}

#[cfg(test)]
mod tests;
