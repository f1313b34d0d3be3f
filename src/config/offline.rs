//! Changes of the configuration when no daemon runs: the same checks, the file and its versions. The
//! next start has them on probation.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::base::error::{Error, Kind};

use super::edit::{Edit, edit};
use super::ledger::{Base, Ledger, Signature, Standing};
use super::load::{self, PATH_DEFAULT};
use super::versions::{Note, Version, Versions, digest};
use super::{files, parse_in};

/// The file and its versions, with nobody else at work on them.
#[derive(Debug)]
pub struct Offline {
    ledger: Ledger,
    /// What the file holds.
    text: String,
}

/// The versions of the daemon with this configuration file, to look at. Nothing is locked.
///
/// # Errors
/// When it has no state directory.
pub fn versions(path: Option<PathBuf>) -> Result<Versions, Error> {
    let (file, text) = found(path)?;
    let state = state_of(&file, &text);
    let none = || Error::new(Kind::NotFound, "there are no versions: no state directory is known");
    state.map(|state| Versions::new(&state, files::disk())).ok_or_else(none)
}

/// The file and its text. A file that is not there is empty: it can be made.
fn found(path: Option<PathBuf>) -> Result<(PathBuf, String), Error> {
    let file = load::find_file(path).unwrap_or_else(|| PathBuf::from(PATH_DEFAULT));
    let text = match file.exists() {
        true => load::read(&file).map_err(|f| Error::new(Kind::InvalidConfig, f.to_string()))?,
        false => String::new(),
    };
    Ok((file, text))
}

/// The state directory that has versions, else the likeliest.
fn state_of(file: &Path, text: &str) -> Option<PathBuf> {
    let env = |name: &str| std::env::var(name).ok();
    let all = load::dirs_in(text, Some(file), &env).unwrap_or_default();
    let there = all.iter().find(|dir| dir.join("config/versions").is_dir());
    there.or(all.first()).cloned()
}

impl Offline {
    /// Those of the daemon that would read this file.
    ///
    /// # Errors
    /// When the file cannot be read, or a daemon is at work on the versions.
    pub fn open(path: Option<PathBuf>) -> Result<Self, Error> {
        let (file, text) = found(path)?;
        let state = state_of(&file, &text);
        let ledger = Ledger::open(&file, state.as_deref(), files::disk());
        match ledger.trouble() {
            Some(trouble) if state.is_some() => {
                let text = format!("{trouble}; is it a daemon that cannot be reached?");
                Err(Error::new(Kind::ConfigBusy, text))
            }
            _ => Ok(Offline { ledger, text }),
        }
    }

    /// Puts a text into the file.
    ///
    /// # Errors
    /// Everything that is wrong with it, or what could not be written; then nothing has changed.
    pub fn apply(
        &mut self,
        text: &str,
        name: Option<&str>,
        force: bool,
        by: &Signature,
    ) -> Result<Value, Error> {
        let file = self.ledger.file().to_owned();
        let loaded = parse_in(text, Some(&file)).map_err(|mut faults| {
            faults.path = name.map(Into::into).or(faults.path);
            Error::new(Kind::InvalidConfig, faults.to_string())
        })?;
        let sha256 = digest(text);
        if let Some(rejected) = self.ledger.rejected(&sha256) {
            if !force {
                let text = format!(
                    "version {} has this content, and was rolled back: {}; change it, or insist with \
                     --force",
                    rejected.mark.version, rejected.reason
                );
                return Err(Error::new(Kind::ConfigRejected, text));
            }
            if let Some(versions) = self.ledger.versions() {
                let pardoned = versions.pardon(&sha256);
                pardoned.map_err(|error| Error::new(Kind::ConfigUnwritten, error.to_string()))?;
            }
        }
        self.ledger.keep(loaded.config.versions.versions_max);
        let current = self.mark(Note::Current);
        let good = self.mark(Note::LastGood);
        let known = current.as_ref().is_some_and(|mark| mark.sha256 == digest(&self.text));
        let mut parent = current.map(|mark| mark.version);
        if text == self.text && known {
            return Ok(self.outcome(parent, false, &[], &[]));
        }
        if !known && !self.text.is_empty() && text != self.text {
            // An edit by hand that no daemon has seen: it is kept, so that it can be gone back to.
            let by = Signature::new("file", "found by a command");
            let added = self.ledger.add(&self.text.clone(), parent, &by);
            parent = added.map_err(|e| Error::new(Kind::ConfigUnwritten, e.to_string()))?;
        }
        let base = Base::Is(digest(&self.text));
        let changed = self.ledger.change(text, &base, parent, by)?;
        let standing = Standing { version: changed.version, ..Standing::of(text) };
        let proven = good.is_some_and(|good| good.sha256 == sha256);
        let mut notes = changed.notes;
        notes.extend(self.ledger.in_force(&standing, (!proven).then_some(0)));
        text.clone_into(&mut self.text);
        let warnings: Vec<String> = loaded.warnings.iter().map(|w| w.at(Some(&file))).collect();
        Ok(self.outcome(changed.version, true, &notes, &warnings))
    }

    /// Changes single settings.
    ///
    /// # Errors
    /// As [`Offline::apply`].
    pub fn edit(&mut self, edits: &[Edit], force: bool, by: &Signature) -> Result<Value, Error> {
        let text = edit(&self.text, edits)?;
        self.apply(&text, None, force, by)
    }

    /// Goes back to a version; to the newest other one that was not taken back when there is no
    /// number.
    ///
    /// # Errors
    /// When there is none; and as [`Offline::apply`].
    pub fn roll_back(
        &mut self,
        number: Option<u64>,
        force: bool,
        by: &Signature,
    ) -> Result<Value, Error> {
        let none = |text: String| Error::new(Kind::NotFound, text);
        let Some(versions) = self.ledger.versions() else {
            return Err(none("there are no versions: no state directory is known".to_owned()));
        };
        let usable = |version: &Version| {
            version.text != self.text
                && version.header.file == self.ledger.file()
                && self.ledger.rejected(&version.header.sha256).is_none()
        };
        let found = match number {
            Some(number) => versions.read(number).map_err(|error| none(error.to_string()))?,
            None => {
                let good = versions.mark(Note::LastGood).map(|mark| mark.version);
                let all = good.into_iter().chain(versions.numbers().into_iter().rev());
                let mut found = all.filter_map(|number| versions.read(number).ok());
                let found = found.find(|version| usable(version));
                found.ok_or_else(|| none("there is no other version to go back to".to_owned()))?
            }
        };
        let back = format!("rollback to version {}", found.header.version);
        let reason = if by.reason.is_empty() { back } else { format!("{back}: {}", by.reason) };
        self.apply(&found.text, None, force, &Signature::new(by.author.as_str(), reason))
    }

    fn mark(&self, note: Note) -> Option<super::versions::Mark> {
        self.ledger.versions().and_then(|versions| versions.mark(note))
    }

    fn outcome(
        &self,
        version: Option<u64>,
        changed: bool,
        notes: &[String],
        warnings: &[String],
    ) -> Value {
        json!({
            "version": version,
            "sha256": digest(&self.text),
            "file": self.ledger.file().display().to_string(),
            "running": false,
            "changed": changed,
            "notes": notes,
            "warnings": warnings,
        })
    }
}
