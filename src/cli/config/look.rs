//! `tidegate config history | show | diff`.

use clap::Args;
use serde_json::Value;

use super::refused;
use crate::base::error::{Error, Kind};
use crate::base::exit::Exit;
use crate::cli::client::{Ask, table};
use crate::cli::output::answer;
use crate::config::{diff, listing, offline};

/// List the versions, the newest first
#[derive(Debug, Args)]
pub(super) struct History {
    #[command(flatten)]
    ask: Ask,
}

/// Print a version of the configuration as it was written [default: the one in force]
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Its number
    #[arg(value_name = "VERSION")]
    version: Option<u64>,
    #[command(flatten)]
    ask: Ask,
}

/// Show what differs between two versions, line by line
///
/// Without a number between the one in force and the one that it came from; with one between that
/// and the one in force.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The older one
    #[arg(value_name = "FROM")]
    from: Option<u64>,
    /// The newer one
    #[arg(value_name = "TO")]
    to: Option<u64>,
    #[command(flatten)]
    ask: Ask,
}

impl History {
    pub(super) fn execute(self) -> Exit {
        match history(&self.ask) {
            Ok(document) if self.ask.json => answer(&format!("{document:#}\n")),
            Ok(document) => answer(&text(&document)),
            Err(exit) => exit,
        }
    }
}

impl Show {
    pub(super) fn execute(self) -> Exit {
        match version(&self.ask, self.version) {
            Ok(document) if self.ask.json => answer(&format!("{document:#}\n")),
            Ok(document) => answer(document["text"].as_str().unwrap_or_default()),
            Err(exit) => exit,
        }
    }
}

impl Diff {
    pub(super) fn execute(self) -> Exit {
        let two = version(&self.ask, self.to).and_then(|to| {
            let from = self.from.or(to["parent"].as_u64());
            let Some(from) = from else {
                let text = "it has none before it; name two versions";
                return Err(refused(&Error::new(Kind::NotFound, text)));
            };
            Ok((version(&self.ask, Some(from))?, to))
        });
        let (from, to) = match two {
            Ok(two) => two,
            Err(exit) => return exit,
        };
        let name = |document: &Value| format!("version {}", document["version"]);
        let text = |document: &Value| document["text"].as_str().unwrap_or_default().to_owned();
        answer(&diff::unified(&name(&from), &text(&from), &name(&to), &text(&to)))
    }
}

/// From the daemon, or from the files when none answers.
pub(super) fn history(ask: &Ask) -> Result<Value, Exit> {
    match ask.try_get("/config/history")? {
        Some(document) => Ok(document),
        None => {
            let versions = offline::versions(ask.config_path()).map_err(|e| refused(&e))?;
            Ok(listing::history(&versions))
        }
    }
}

/// The same for one version with its text; the one in force, or the newest, when there is no number.
fn version(ask: &Ask, number: Option<u64>) -> Result<Value, Exit> {
    let path = match number {
        Some(number) => format!("/config/version?number={number}"),
        None => "/config/version".to_owned(),
    };
    if let Some(document) = ask.try_get(&path)? {
        return Ok(document);
    }
    let versions = offline::versions(ask.config_path()).map_err(|e| refused(&e))?;
    let newest = || versions.numbers().last().copied();
    let current = versions.mark(crate::config::versions::Note::Current).map(|mark| mark.version);
    let none = || Error::new(Kind::NotFound, "there are no versions yet");
    let number = number.or(current).or_else(newest).ok_or_else(|| refused(&none()))?;
    listing::show(&versions, number)
        .map_err(|error| refused(&Error::new(Kind::NotFound, error.to_string())))
}

fn text(document: &Value) -> String {
    let rows = document["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |version: &Value| {
        let word = |key: &str| plain(version[key].as_str().unwrap_or_default());
        let is: Vec<&str> =
            version["is"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut is = is.join(", ").replace('_', " ");
        let mut reason = word("reason");
        if let Some(why) = version["rejected"].as_str() {
            is = if is.is_empty() { "taken back".to_owned() } else { format!("{is}, taken back") };
            reason = format!("{reason} (taken back: {})", plain(why));
        }
        if let Some(fault) = version["fault"].as_str() {
            reason = plain(fault);
        }
        let number = version["version"].as_u64().unwrap_or(0).to_string();
        vec![number, word("time"), word("author"), is, reason]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    table(&[">VERSION", "TIME", "AUTHOR", "IS", "REASON"], &rows)
}

/// What others wrote, on one line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_row_with_what_it_is_and_why() {
        let document = serde_json::json!({"versions": [
            {"version": 3, "time": "t", "author": "ana\u{1b}", "reason": "x", "is": ["current", "last_good"]},
            {"version": 2, "time": "t", "author": "file", "reason": "y", "is": [], "rejected": "bad"},
            {"version": 1, "is": [], "fault": "damaged"},
        ]});
        assert_eq!(
            text(&document),
            "VERSION  TIME  AUTHOR  IS                  REASON\n\
             \x20     3  t     ana     current, last good  x\n\
             \x20     2  t     file    taken back          y (taken back: bad)\n\
             \x20     1                                    damaged\n"
        );
    }
}
