//! `tidegate config apply | set | unset | rollback | knob`.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::refused;
use crate::base::error::{Error, Kind};
use crate::base::exit::Exit;
use crate::cli::client::Ask;
use crate::cli::output::{answer, remark};
use crate::config::CONFIG_BYTES_MAX;
use crate::config::edit::Edit;
use crate::config::ledger::Signature;
use crate::config::offline::Offline;

/// What every change takes.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Go on where it would be refused: over an edit of the file that is not in force, which is kept
    /// aside, and with a content that was taken back before
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: Ask,
}

/// Put a file in force as the configuration
#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The new configuration; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only if this is the SHA-256 of the configuration in force
    #[arg(long, value_name = "SHA256")]
    base: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Change settings in the configuration file; its comments stay
///
/// A setting is called as messages call it: server.body_max, upstream[local].url. A value that is not
/// TOML is taken as a text. An entry that is not there is made: name all that it must have at once.
#[derive(Debug, Args)]
pub(super) struct Set {
    /// Settings, each as KEY VALUE or KEY=VALUE
    #[arg(value_name = "KEY VALUE", required = true)]
    settings: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Take settings, or whole entries such as model[old], out of the configuration file
#[derive(Debug, Args)]
pub(super) struct Unset {
    /// What to take out
    #[arg(value_name = "KEY", required = true)]
    settings: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Go back to an older version [default: the one before the one in force]
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// Its number
    #[arg(value_name = "VERSION")]
    version: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Override a setting of the running daemon for a time; the file stays as it is
#[derive(Debug, Args)]
pub(super) struct Knob {
    /// The setting, as KEY VALUE or KEY=VALUE; with --end only its name
    #[arg(value_name = "KEY=VALUE", required = true, num_args = 1..=2)]
    setting: Vec<String>,
    /// For how long, at most 24h
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    span: Duration,
    /// End it now
    #[arg(long)]
    end: bool,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    ask: Ask,
}

impl Apply {
    pub(super) fn execute(self) -> Exit {
        let (name, text) = match read(&self.file) {
            Ok(read) => read,
            Err(why) => {
                remark(&format!("tidegate: {}: {why}", self.file.display()));
                return Exit::Failure;
            }
        };
        let body = json!({"text": text, "name": name, "base": self.base});
        self.common.change("/config/apply", body, |offline, force, by| {
            offline.apply(&text, Some(&name), force, by)
        })
    }
}

/// What a file holds, and what messages call it.
fn read(file: &std::path::Path) -> Result<(String, String), String> {
    let mut text = String::new();
    let (name, read) = if file.as_os_str() == "-" {
        let input = std::io::stdin().lock().take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text);
        ("standard input".to_owned(), input)
    } else {
        let opened = std::fs::File::open(file);
        let read = opened.and_then(|f| f.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text));
        (file.display().to_string(), read)
    };
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err("it is larger than a configuration may be (2 MiB)".to_owned());
    }
    Ok((name, text))
}

impl Set {
    pub(super) fn execute(self) -> Exit {
        match pairs(&self.settings) {
            Ok(edits) => self.common.edit(&edits),
            Err(key) => {
                remark(&format!("tidegate: {key} has no value; write KEY VALUE or KEY=VALUE"));
                Exit::Usage
            }
        }
    }
}

impl Unset {
    pub(super) fn execute(self) -> Exit {
        let edits: Vec<Edit> = self.settings.into_iter().map(|key| (key, None)).collect();
        self.common.edit(&edits)
    }
}

impl Rollback {
    pub(super) fn execute(self) -> Exit {
        let version = self.version;
        self.common.change("/config/rollback", json!({"version": version}), |offline, force, by| {
            offline.roll_back(version, force, by)
        })
    }
}

impl Knob {
    pub(super) fn execute(self) -> Exit {
        let pairs = match self.end {
            true => Ok(vec![(self.setting[0].clone(), None)]),
            false => pairs(&self.setting),
        };
        let [(key, value)] = pairs.as_deref().unwrap_or_default() else {
            remark("tidegate: write KEY=VALUE, or KEY --end");
            return Exit::Usage;
        };
        let body = json!({
            "key": key, "value": value, "seconds": self.span.as_secs(),
            "author": author(), "reason": self.reason,
        });
        self.ask.order("/config/knob", &body, |document| match value {
            Some(value) => format!("{key} = {value} for {} s\n", self.span.as_secs()),
            None => format!("{key} is as the file says ({})\n", what(document)),
        })
    }
}

impl Common {
    /// The configuration file that was named.
    pub(super) fn config_path(&self) -> Option<PathBuf> {
        self.ask.config_path()
    }

    /// Puts a text of a backup in force.
    pub(super) fn restore(&self, text: &str, name: &str) -> Exit {
        let mut common = self.clone();
        if common.reason.is_empty() {
            common.reason = format!("restore of {name}");
        }
        let body = json!({"text": text, "name": name});
        common.change("/config/apply", body, |offline, force, by| {
            offline.apply(text, Some(name), force, by)
        })
    }

    fn edit(&self, edits: &[Edit]) -> Exit {
        self.change("/config/edit", json!({"edits": edits}), |offline, force, by| {
            offline.edit(edits, force, by)
        })
    }

    /// Has the daemon do it, or does it when none runs.
    fn change(
        &self,
        path: &str,
        mut body: Value,
        alone: impl FnOnce(&mut Offline, bool, &Signature) -> Result<Value, Error>,
    ) -> Exit {
        let author = author();
        body["author"] = author.clone().into();
        body["reason"] = self.reason.clone().into();
        body["force"] = self.force.into();
        let done = match self.ask.try_post(path, &body) {
            Err(exit) => return exit,
            Ok(Some(document)) => Ok(document),
            Ok(None) => Offline::open(self.ask.config_path()).and_then(|mut offline| {
                alone(&mut offline, self.force, &Signature::new(author, self.reason.as_str()))
            }),
        };
        match done {
            Ok(document) if self.ask.json => answer(&format!("{document:#}\n")),
            Ok(document) => {
                for key in ["warnings", "notes"] {
                    for line in document[key].as_array().into_iter().flatten() {
                        remark(&format!("warning: {}", line.as_str().unwrap_or_default()));
                    }
                }
                answer(&told(&document))
            }
            Err(error) if error.kind() == Kind::InvalidConfig => {
                remark(error.context());
                Exit::Refused
            }
            Err(error) => refused(&error),
        }
    }
}

fn what(document: &Value) -> String {
    match document["version"].as_u64() {
        Some(version) => format!("version {version}"),
        None => "the configuration".to_owned(),
    }
}

fn told(document: &Value) -> String {
    let what = what(document);
    let running = document["running"].as_bool().unwrap_or(true);
    match (document["changed"].as_bool(), document["probation_seconds"].as_u64()) {
        (Some(false), _) => format!("nothing to change: {what} has this content\n"),
        _ if !running => format!("{what} is written; no daemon runs, the next start takes it\n"),
        (_, Some(seconds)) => format!("{what} is in force, and on probation for {seconds} s\n"),
        (_, None) => format!("{what} is in force\n"),
    }
}

/// Who runs this.
fn author() -> String {
    let name = |key: &str| std::env::var(key).ok().filter(|name| !name.is_empty());
    let uid = || format!("uid {}", rustix::process::getuid().as_raw());
    name("SUDO_USER").or_else(|| name("USER")).or_else(|| name("LOGNAME")).unwrap_or_else(uid)
}

/// Settings and values, each written as one argument or as two.
fn pairs(arguments: &[String]) -> Result<Vec<Edit>, String> {
    let mut edits = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let (key, value) = match equals(argument) {
            Some(at) => (&argument[..at], argument[at + 1..].to_owned()),
            None => (argument.as_str(), arguments.next().ok_or_else(|| argument.clone())?.clone()),
        };
        edits.push((key.trim().to_owned(), Some(value.trim().to_owned())));
    }
    Ok(edits)
}

/// Where the name of a setting ends and its value begins. The name of an entry, in its brackets, may
/// hold an equals sign too.
fn equals(argument: &str) -> Option<usize> {
    let mut inside = false;
    argument.char_indices().find_map(|(at, c)| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        (c == '=' && !inside).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_one_argument_or_two() {
        let check = |arguments: &[&str], expected: &[(&str, &str)]| {
            let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
            let expected: Vec<Edit> =
                expected.iter().map(|(k, v)| ((*k).to_owned(), Some((*v).to_owned()))).collect();
            assert_eq!(pairs(&arguments), Ok(expected));
        };
        check(&["log.level", "debug"], &[("log.level", "debug")]);
        check(&["log.level=debug", "a.b", "c=d"], &[("log.level", "debug"), ("a.b", "c=d")]);
        check(&["upstream[a=b].url", "x"], &[("upstream[a=b].url", "x")]);
        check(&["upstream[a].url=http://x/?b=[1]"], &[("upstream[a].url", "http://x/?b=[1]")]);
        check(&["server.allowed_hosts=[\"a\"]"], &[("server.allowed_hosts", "[\"a\"]")]);
        assert_eq!(pairs(&["log.level".to_owned()]), Err("log.level".to_owned()));
    }
}
