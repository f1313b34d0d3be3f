//! `tidegate config backup | restore`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::change::Common;
use super::refused;
use crate::base::error::{Error, Kind};
use crate::base::exit::Exit;
use crate::cli::client::Ask;
use crate::cli::output::{answer, remark};
use crate::config::files::{self, Look, Plain};
use crate::config::offline;
use crate::config::versions::{Header, Note, Version, digest};

/// Largest backup that is read, in bytes.
const BACKUP_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// What says that a file is one.
const FORMAT: u64 = 1;

/// Write every version, and which is in force, into one file
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The file; one that is there is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    ask: Ask,
}

/// Put the configuration of a backup in force, and its versions back into the history
///
/// Versions of numbers that are taken stay as they are. What was in force comes into force as a new
/// version, after every check.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Backup {
    pub(super) fn execute(self) -> Exit {
        match self.write() {
            Ok(count) => answer(&format!("{}: {count} versions\n", self.file.display())),
            Err(error) => refused(&error),
        }
    }

    fn write(&self) -> Result<usize, Error> {
        let versions = offline::versions(self.ask.config_path())?;
        let current = versions.mark(Note::Current).map(|mark| mark.version);
        let none = || Error::new(Kind::NotFound, "there is no version in force to keep");
        let current = current.ok_or_else(none)?;
        let mut rows = Vec::new();
        for number in versions.numbers() {
            match versions.read(number) {
                Ok(Version { header, text }) => rows.push(json!({"header": header, "text": text})),
                Err(error) => remark(&format!("warning: left out: {error}")),
            }
        }
        let count = rows.len();
        let document = json!({
            "tidegate_config_backup": FORMAT,
            "current": current,
            "last_good": versions.mark(Note::LastGood).map(|mark| mark.version),
            "rejected": versions.rejected(),
            "sha256": digest(&Value::from(rows.clone()).to_string()),
            "versions": rows,
        });
        let unwritten =
            |error: files::Unwritten| Error::new(Kind::ConfigUnwritten, error.to_string());
        let file = files::target(&self.file).map_err(unwritten)?;
        let look = std::fs::metadata(files::folder_of(&file));
        let look = look.ok().map(|found| Look::private_in(&found));
        let text = format!("{document:#}\n");
        match files::replace(&Plain, &file, text.as_bytes(), look).map_err(unwritten)? {
            files::Written::Durable => Ok(count),
            files::Written::InPlace(why) => Err(Error::new(Kind::ConfigUnwritten, why)),
        }
    }
}

impl Restore {
    pub(super) fn execute(self) -> Exit {
        let (number, text, all) = match read(&self.file) {
            Ok(read) => read,
            Err(why) => {
                remark(&format!("tidegate: {}: {why}", self.file.display()));
                return Exit::Refused;
            }
        };
        match self.put_back(&all) {
            Ok(0) => {}
            Ok(count) => remark(&format!("{count} versions are back in the history")),
            Err(error) => return refused(&error),
        }
        self.common.restore(&text, &format!("version {number} of {}", self.file.display()))
    }

    /// Versions never change, so that putting some where there are none needs no daemon.
    fn put_back(&self, all: &[Version]) -> Result<usize, Error> {
        let versions = offline::versions(self.common.config_path())?;
        let mut count = 0;
        for version in all {
            let put = versions.put(version);
            let put = put.map_err(|error| Error::new(Kind::ConfigUnwritten, error.to_string()))?;
            count += usize::from(put);
        }
        Ok(count)
    }
}

/// The number and text that were in force, and every version.
fn read(file: &Path) -> Result<(u64, String, Vec<Version>), String> {
    use std::io::Read as _;
    let mut text = String::new();
    let opened = std::fs::File::open(file);
    opened
        .and_then(|file| file.take(BACKUP_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    let none = || "this is no backup of a configuration".to_owned();
    let document: Value = serde_json::from_str(&text).map_err(|_| none())?;
    if document["tidegate_config_backup"] != FORMAT {
        return Err(none());
    }
    let rows = document["versions"].as_array().ok_or_else(none)?;
    if document["sha256"] != digest(&Value::from(rows.clone()).to_string()) {
        return Err("it is damaged: its checksum is wrong; take another backup".to_owned());
    }
    let version = |row: &Value| -> Option<Version> {
        let header: Header = serde_json::from_value(row["header"].clone()).ok()?;
        let text = row["text"].as_str()?.to_owned();
        (digest(&text) == header.sha256).then_some(Version { header, text })
    };
    let all: Option<Vec<Version>> = rows.iter().map(version).collect();
    let all = all.ok_or_else(none)?;
    let current = document["current"].as_u64();
    let current = all.iter().find(|version| Some(version.header.version) == current);
    let current = current.ok_or_else(none)?;
    Ok((current.header.version, current.text.clone(), all))
}
