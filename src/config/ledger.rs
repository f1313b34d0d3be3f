//! The configuration file and its versions, changed together: by a running daemon, or by a command
//! when none runs.
//!
//! The order of a change is: the version, the file, `PROBATION`, `CURRENT`. Until the file is
//! replaced nothing has happened but a version that nobody names; from there on it has, whatever the
//! notes say: a start goes by the content of the file, and mends the notes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::time_format::rfc3339;

use super::files::{self, Disk, Lock, Look, Unwritten, Written};
use super::load::CONFIG_BYTES_MAX;
use super::secret::read_small;
use super::versions::{self, Header, Mark, Note, Rejected, Trial, Version, Versions, digest};

/// Most edits kept beside the file because something else took their place. Past it: the oldest is
/// deleted.
pub const ASIDE_MAX: usize = 8;

/// How often a start tries to get the versions' lock: the one who has it may be on its way out.
const OPEN_TRIES: u32 = 10;

/// A configuration that is or was in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its number, when it could be kept.
    pub version: Option<u64>,
    /// SHA-256 of its text.
    pub sha256: String,
    /// Its text.
    pub text: Arc<str>,
}

impl Standing {
    /// Of a text without a number.
    pub fn of(text: &str) -> Self {
        Standing { version: None, sha256: digest(text), text: text.into() }
    }

    /// Of a version.
    pub fn from_version(version: &Version) -> Self {
        let number = Some(version.header.version);
        let sha256 = version.header.sha256.clone();
        Standing { version: number, sha256, text: version.text.as_str().into() }
    }

    fn mark(&self) -> Option<Mark> {
        Some(Mark { version: self.version?, sha256: self.sha256.clone() })
    }

    /// `version 42`, or the beginning of its digest.
    pub fn name(&self) -> String {
        match self.version {
            Some(number) => format!("version {number}"),
            None => format!("sha256 {}", self.sha256.get(..12).unwrap_or_default()),
        }
    }
}

/// Who changes the configuration, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// A user, `file` for an edit by hand, or `tidegate`.
    pub author: String,
    /// In a few words.
    pub reason: String,
}

impl Signature {
    /// Of these.
    pub fn new(author: impl Into<String>, reason: impl Into<String>) -> Self {
        Signature { author: author.into(), reason: reason.into() }
    }
}

/// What the file has to hold for a change to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// A text of this digest; else the change is refused, because somebody else made one meanwhile.
    Is(String),
    /// Such a text, or else whatever is there is kept beside the file.
    OrAside(String),
}

/// What became of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Its version, when it could be kept.
    pub version: Option<u64>,
    /// Where an edit that nobody had applied was put.
    pub aside: Option<PathBuf>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// The file and its versions.
#[derive(Debug)]
pub struct Ledger {
    file: PathBuf,
    disk: Arc<dyn Disk>,
    versions: Option<Versions>,
    /// Held while versions are written to.
    lock: Option<Lock>,
    trouble: Option<String>,
    /// Somebody else writes the versions: another daemon, or a command.
    taken: bool,
    versions_max: usize,
}

impl Ledger {
    /// Those of this file and this state directory. Never fails: without versions the file can still
    /// be changed.
    pub fn open(file: &Path, state: Option<&Path>, disk: Arc<dyn Disk>) -> Self {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let (versions, trouble) = match state.map(|state| (state, versions::trusted(state))) {
            None => (None, Some("there is no state directory".to_owned())),
            Some((state, Ok(()))) => (Some(Versions::new(state, Arc::clone(&disk))), None),
            Some((_, Err(why))) => (None, Some(why)),
        };
        let (lock, taken, versions_max) = (None, false, super::raw::VERSIONS_DEFAULT);
        let mut ledger = Ledger { file, disk, versions, lock, trouble, taken, versions_max };
        ledger.ready(OPEN_TRIES);
        ledger
    }

    /// The configuration file, or where it would be.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The versions, to look at; none without a state directory.
    pub fn versions(&self) -> Option<&Versions> {
        self.versions.as_ref()
    }

    /// Why versions cannot be kept, if so.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Keeps so many versions. Who was killed before the oldest were deleted left more.
    pub fn keep(&mut self, versions_max: usize) {
        self.versions_max = versions_max;
        if let (Some(versions), Some(_)) = (&self.versions, &self.lock) {
            self.prune(versions, versions.numbers().last().copied());
        }
    }

    /// Deletes the oldest versions that are too many, but none that a note names, nor this one.
    fn prune(&self, versions: &Versions, spared: Option<u64>) {
        let marks = [versions.mark(Note::Current), versions.mark(Note::LastGood)];
        let trial = versions.trial().map(|trial| trial.mark);
        let named = marks.into_iter().chain([trial]).flatten().map(|mark| mark.version);
        let kept: Vec<u64> = named.chain(spared).collect();
        versions.prune(self.versions_max, &kept);
    }

    /// Whether versions can be written; tries to get there when not.
    pub fn ready(&mut self, tries: u32) -> bool {
        let Some(versions) = &self.versions else { return false };
        if self.lock.is_some() && versions.prepare().is_ok() {
            self.trouble = None;
            return true;
        }
        self.lock = None;
        self.taken = false;
        match versions.lock(tries) {
            Ok(lock) => (self.lock, self.trouble) = (Some(lock), None),
            Err(error) => {
                self.taken = error.busy();
                self.trouble = Some(error.to_string());
            }
        }
        self.lock.is_some()
    }

    /// Whether somebody else writes the versions of this state directory. Then neither they nor the
    /// file are ours to change: another daemon runs with them.
    pub fn taken(&self) -> bool {
        self.taken
    }

    /// The versions, to write notes to: only while nobody else does.
    fn ours(&self) -> Option<&Versions> {
        self.versions.as_ref().filter(|_| self.lock.is_some())
    }

    /// What the file holds; none when there is no file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Option<String>, Error> {
        if fs::symlink_metadata(&self.file).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        {
            return Ok(None);
        }
        read_small(&self.file, CONFIG_BYTES_MAX).map(|(text, _)| Some(text)).map_err(|why| {
            let text = format!("{}: cannot be read: {why}; mend the file", self.file.display());
            Error::new(Kind::ConfigUnwritten, text)
        })
    }

    /// Why this content was rejected, if it was.
    pub fn rejected(&self, sha256: &str) -> Option<Rejected> {
        let rejected = self.versions.as_ref()?.rejected();
        rejected.into_iter().find(|known| known.mark.sha256 == sha256)
    }

    /// Makes a text the content of the file, and a version. It was checked before.
    ///
    /// # Errors
    /// When the file is another than `base` says, or something could not be written; then nothing
    /// has changed.
    pub fn change(
        &mut self,
        text: &str,
        base: &Base,
        parent: Option<u64>,
        by: &Signature,
    ) -> Result<Changed, Error> {
        let real = files::target(&self.file).map_err(unwritten)?;
        let folder = files::folder_of(&real);
        let _lock =
            Lock::folder(folder, files::LOCK_TRIES).map_err(|error| match folder.exists() {
                true => Error::new(Kind::ConfigBusy, error.to_string()),
                false => unwritten(error),
            })?;
        let mut changed = Changed::default();
        let found = self.read()?;
        let (Base::Is(expected) | Base::OrAside(expected)) = base;
        let there = found.as_deref().unwrap_or_default();
        // Whoever applies the file itself overwrites nobody.
        let moved = there != text && digest(there) != *expected;
        if moved && matches!(base, Base::Is(_)) {
            return Err(self.moved());
        }
        let version = match self.add(text, parent, by) {
            Ok(version) => version,
            Err(error) if self.taken => {
                return Err(Error::new(Kind::ConfigBusy, error.to_string()));
            }
            // To go back must be possible whatever the disk says; to go on must be attributable.
            Err(error) if matches!(base, Base::OrAside(_)) => {
                changed.notes.push(error.to_string());
                None
            }
            Err(error) => return Err(unwritten(error)),
        };
        changed.version = version;
        let replaced = (|| {
            if let Some(found) = found.filter(|_| moved) {
                changed.aside = Some(self.aside(&real, &found)?);
            }
            let look = fs::metadata(folder).ok().map(|found| Look::private_in(&found));
            files::replace(&*self.disk, &real, text.as_bytes(), look)
        })();
        match replaced {
            Ok(Written::Durable) => {}
            Ok(Written::InPlace(note)) => changed.notes.push(note),
            Err(error) => return Err(unwritten(error)),
        }
        if real != self.file {
            let (link, real) = (self.file.display(), real.display());
            changed.notes.push(format!("{link} is a link; {real} was changed"));
        }
        Ok(changed)
    }

    fn moved(&self) -> Error {
        let file = self.file.display();
        let text = format!(
            "{file} holds an edit that is not in force; take it over with tidegate reload, or keep \
             it aside with --force"
        );
        Error::new(Kind::ConfigMoved, text)
    }

    /// Makes a version of a text that is in the file already, or will be.
    ///
    /// # Errors
    /// When it cannot be written. Without a state directory there is none, and no error.
    pub fn add(
        &mut self,
        text: &str,
        parent: Option<u64>,
        by: &Signature,
    ) -> Result<Option<u64>, Unwritten> {
        if self.versions.is_none() {
            return Ok(None);
        }
        let ready = self.ready(1);
        let (Some(versions), true) = (&self.versions, ready) else {
            let why = self.trouble.clone().unwrap_or_default();
            let at = self.versions.as_ref().map_or(&*self.file, Versions::folder);
            return Err(Unwritten::new("keep a version", at, std::io::Error::other(why)));
        };
        let header = Header {
            version: 0,
            parent,
            sha256: String::new(),
            author: by.author.clone(),
            reason: by.reason.clone(),
            time: rfc3339(clock::wall(), 0),
            file: self.file.clone(),
        };
        let header = versions.add(Version { header, text: text.to_owned() })?;
        self.prune(versions, Some(header.version));
        Ok(Some(header.version))
    }

    /// Notes that it is in force, and on probation if so. What could not be noted is told: it is
    /// mended at the next start.
    pub fn in_force(&self, standing: &Standing, boots: Option<u32>) -> Vec<String> {
        let (Some(versions), Some(mark)) = (self.ours(), standing.mark()) else {
            return Vec::new();
        };
        let probation = match boots {
            Some(boots) => versions.set(Note::Probation, &Trial { mark: mark.clone(), boots }),
            None => versions.clear(Note::Probation),
        };
        told([probation, versions.set(Note::Current, &mark)])
    }

    /// Notes that it is good.
    pub fn good(&self, standing: &Standing) -> Vec<String> {
        let (Some(versions), Some(mark)) = (self.ours(), standing.mark()) else {
            return Vec::new();
        };
        told([versions.set(Note::LastGood, &mark), self.end_trial(&standing.sha256)])
    }

    /// Nothing of this content is on probation any more.
    fn end_trial(&self, sha256: &str) -> Result<(), Unwritten> {
        match &self.versions {
            Some(versions) if versions.trial().is_some_and(|t| t.mark.sha256 == sha256) => {
                versions.clear(Note::Probation)
            }
            _ => Ok(()),
        }
    }

    /// Notes that it was rolled back.
    pub fn reject(&self, standing: &Standing, reason: &str) -> Vec<String> {
        let Some(versions) = self.ours() else { return Vec::new() };
        let mark = Mark { version: standing.version.unwrap_or(0), sha256: standing.sha256.clone() };
        let time = rfc3339(clock::wall(), 0);
        told([versions.reject(Rejected { mark, reason: reason.to_owned(), time })])
    }

    /// The stop is in order: it says nothing against what is on probation.
    pub fn stopped(&self) {
        if let Some(versions) = self.ours() {
            versions.excuse();
        }
    }

    /// Keeps a text beside the file.
    fn aside(&self, real: &Path, text: &str) -> Result<PathBuf, Unwritten> {
        let folder = files::folder_of(real);
        let name = real.file_name().unwrap_or_default().to_string_lossy();
        let begin = format!("{name}.rejected-");
        let entries =
            fs::read_dir(folder).map_err(|e| Unwritten::new("look into it", folder, e))?;
        let number = |entry: fs::DirEntry| {
            entry.file_name().to_str()?.strip_prefix(&begin)?.parse::<u64>().ok()
        };
        let mut numbers: Vec<u64> = entries.flatten().filter_map(number).collect();
        numbers.sort_unstable();
        let path = |number: u64| folder.join(format!("{begin}{number}"));
        let kept = path(numbers.last().map_or(1, |last| last.saturating_add(1)));
        let look = fs::metadata(real).ok().map(|found| Look::of(&found));
        files::replace(&*self.disk, &kept, text.as_bytes(), look)?;
        let excess = (numbers.len() + 1).saturating_sub(ASIDE_MAX);
        for number in numbers.into_iter().take(excess) {
            let _ = self.disk.unlink(&path(number));
        }
        Ok(kept)
    }
}

fn unwritten(error: Unwritten) -> Error {
    Error::new(Kind::ConfigUnwritten, error.to_string())
}

fn told<const N: usize>(results: [Result<(), Unwritten>; N]) -> Vec<String> {
    results.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
}

#[cfg(test)]
mod tests;
