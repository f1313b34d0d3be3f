//! Versions of the configuration: files that are never changed, and small ones beside them that say
//! which of them is in force, which was good last, and which is on probation. No database is needed
//! to find the last one that was good.
//!
//! In `<state.dir>/config`: `versions/000042.toml`, `CURRENT`, `LAST_GOOD`, `PROBATION`, `REJECTED`,
//! and `lock`, which a running daemon holds. A version has two lines of comment before its text: the
//! digest of all that follows, and where it came from.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::geteuid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::base::folder;

use super::files::{self, Disk, Lock, Look, Unwritten, Written};
use super::load::CONFIG_BYTES_MAX;

/// Most damaged versions kept for whoever wants to look at them. Past it: the oldest is deleted.
pub const DAMAGED_MAX: usize = 8;
/// Most contents that are remembered as rejected. Past it: the oldest is forgotten.
pub const REJECTED_MAX: usize = 64;
/// Most bytes of the small files beside the versions.
const NOTE_BYTES_MAX: u64 = 256 * 1024;
/// Most bytes of the two lines before a version's text.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Longest author and reason, in characters; the rest is cut.
const WORDS_CHARS_MAX: usize = 500;

const FIRST_LINE: &str = "# tidegate configuration; sha256 of what follows: ";

/// SHA-256 of a text, as hexadecimal digits.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a version came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its number, from 1 on.
    pub version: u64,
    /// The one that was in force before.
    pub parent: Option<u64>,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Who: a user, `file` for an edit by hand, or `tidegate`.
    pub author: String,
    /// Why.
    pub reason: String,
    /// When, as RFC 3339 in UTC.
    pub time: String,
    /// The configuration file that it is for.
    pub file: PathBuf,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Where it came from.
    pub header: Header,
    /// The configuration, byte for byte.
    pub text: String,
}

impl Version {
    /// The file.
    fn write(&self) -> io::Result<String> {
        let head = serde_json::to_string(&self.header)?;
        let body = format!("# {head}\n{}", self.text);
        Ok(format!("{FIRST_LINE}{}\n{body}", digest(&body)))
    }

    /// Reads a file, if nothing of it is missing or changed.
    fn read(file: &str) -> Option<Version> {
        let (sum, body) = file.strip_prefix(FIRST_LINE)?.split_once('\n')?;
        let (head, text) = body.strip_prefix("# ")?.split_once('\n')?;
        let header: Header = serde_json::from_str(head).ok()?;
        let whole = digest(body) == sum && digest(text) == header.sha256;
        whole.then(|| Version { header, text: text.to_owned() })
    }
}

/// Which version, with the digest of its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its number.
    pub version: u64,
    /// SHA-256 of its text.
    pub sha256: String,
}

/// `PROBATION`: a version that has to show that it is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Which.
    #[serde(flatten)]
    pub mark: Mark,
    /// How often the daemon was started with it.
    pub boots: u32,
}

/// A content that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Which.
    #[serde(flatten)]
    pub mark: Mark,
    /// Why, for people.
    pub reason: String,
    /// When, as RFC 3339 in UTC.
    pub time: String,
}

/// The small files that name a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// In force.
    Current,
    /// What is gone back to.
    LastGood,
    /// On probation.
    Probation,
    /// What was rolled back.
    Rejected,
}

impl Note {
    /// All of them.
    pub const ALL: [Note; 4] = [Note::Current, Note::LastGood, Note::Probation, Note::Rejected];

    fn name(self) -> &'static str {
        match self {
            Note::Current => "CURRENT",
            Note::LastGood => "LAST_GOOD",
            Note::Probation => "PROBATION",
            Note::Rejected => "REJECTED",
        }
    }
}

/// Why a version cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// There is none of this number.
    #[error("there is no version {0}; see tidegate config history")]
    Missing(u64),
    /// Its file is not what was written.
    #[error("version {0} is damaged: its checksum is wrong; take another one")]
    Damaged(u64),
    /// The disk says no.
    #[error("version {0} cannot be read: {1}")]
    Disk(u64, String),
}

/// Refuses versions that somebody else could have put there: they are what a daemon starts with when its
/// file is broken. Root believes whoever has the state directory.
///
/// # Errors
/// What is wrong with which folder, and the remedy.
pub fn trusted(state: &Path) -> Result<(), String> {
    let config = state.join("config");
    let Ok(found) = fs::metadata(state) else { return Ok(()) };
    if !config.exists() {
        return Ok(());
    }
    let (holder, ours) = (found.uid(), geteuid().as_raw());
    for folder in [state, &config, &config.join("versions")] {
        let Ok(found) = fs::metadata(folder) else { continue };
        let owner = found.uid();
        let known = owner == ours || ours == 0 && owner == holder;
        let why = match found.mode() & 0o022 {
            _ if !known => format!("it belongs to the user {owner}"),
            0 => continue,
            _ => format!("others may write there (mode {:o})", found.mode() & 0o7777),
        };
        let folder = folder.display();
        return Err(format!(
            "{folder}: {why}; look at what is in it, then give it to the daemon's user with mode 700"
        ));
    }
    Ok(())
}

fn owner(folder: &Path) -> Option<u32> {
    fs::metadata(folder).ok().map(|found| found.uid())
}

/// The folder of versions.
#[derive(Clone, Debug)]
pub struct Versions {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Versions {
    /// Those of a state directory, which need not be there.
    pub fn new(state: &Path, disk: Arc<dyn Disk>) -> Self {
        Versions { folder: state.join("config"), disk }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folders, when they are not there.
    ///
    /// # Errors
    /// What could not be made.
    pub fn prepare(&self) -> Result<(), Unwritten> {
        use std::os::unix::fs::DirBuilderExt;
        let inner = self.folder.join("versions");
        if inner.is_dir() {
            return Ok(());
        }
        // The state directory is made and closed here, as whoever comes next expects it to be.
        let state = files::folder_of(&self.folder);
        if !state.exists() || owner(state).is_some_and(|owner| owner == geteuid().as_raw()) {
            folder::private(state).map_err(|e| Unwritten::new("have it to ourselves", state, e))?;
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&inner);
        made.map_err(|error| Unwritten::new("make the folder", &inner, error))?;
        // Made by root, they are still for whoever has the state directory.
        for folder in [&self.folder, &inner] {
            files::give_to_owner_of(files::folder_of(folder), folder);
        }
        Ok(())
    }

    /// Takes the lock that says who writes here: a running daemon, or a command.
    ///
    /// # Errors
    /// When somebody else has it.
    pub fn lock(&self, tries: u32) -> Result<Lock, Unwritten> {
        self.prepare()?;
        let path = self.folder.join("lock");
        let lock =
            Lock::file(&path, tries).map_err(|error| Unwritten::new("lock it", &path, error))?;
        for folder in [&self.folder, &self.folder.join("versions")] {
            files::sweep(&*self.disk, folder);
        }
        Ok(lock)
    }

    /// The numbers of those that are there, lowest first.
    pub fn numbers(&self) -> Vec<u64> {
        let mut numbers = self.numbers_with(".toml");
        numbers.sort_unstable();
        numbers
    }

    fn numbers_with(&self, ending: &str) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.folder.join("versions")) else { return Vec::new() };
        let number = |entry: fs::DirEntry| {
            entry.file_name().to_str()?.strip_suffix(ending)?.parse::<u64>().ok()
        };
        entries.flatten().filter_map(number).filter(|number| *number > 0).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// When it is not there, or not whole.
    pub fn read(&self, number: u64) -> Result<Version, Unread> {
        let file = match self.slurp(&self.path(number), CONFIG_BYTES_MAX + HEAD_BYTES_MAX) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(Unread::Missing(number)),
            Err(e) if e.kind() == ErrorKind::InvalidData => return Err(Unread::Damaged(number)),
            Err(e) => return Err(Unread::Disk(number, e.to_string())),
        };
        let version = Version::read(&file).ok_or(Unread::Damaged(number))?;
        if version.header.version == number { Ok(version) } else { Err(Unread::Damaged(number)) }
    }

    /// Puts a damaged one aside. Its number is not given again.
    pub fn quarantine(&self, number: u64) {
        let from = self.path(number);
        let _ = self.disk.rename(&from, &from.with_extension("damaged"));
        let mut damaged = self.numbers_with(".damaged");
        damaged.sort_unstable();
        let excess = damaged.len().saturating_sub(DAMAGED_MAX);
        for number in damaged.into_iter().take(excess) {
            let _ = self.disk.unlink(&self.path(number).with_extension("damaged"));
        }
    }

    /// Keeps a new one, under the next number, which is put into its header.
    ///
    /// # Errors
    /// What could not be written; then there is none.
    pub fn add(&self, mut version: Version) -> Result<Header, Unwritten> {
        self.prepare()?;
        let known =
            self.numbers().last().copied().max(self.numbers_with(".damaged").into_iter().max());
        let marked = [Note::Current, Note::LastGood].into_iter().filter_map(|note| self.mark(note));
        let last = marked.map(|mark| mark.version).chain(known).max().unwrap_or(0);
        let header = &mut version.header;
        header.version = last + 1;
        header.sha256 = digest(&version.text);
        for words in [&mut header.author, &mut header.reason] {
            let plain = |c: char| if c.is_control() { ' ' } else { c };
            *words = words.chars().take(WORDS_CHARS_MAX).map(plain).collect();
        }
        self.put(&version)?;
        Ok(version.header)
    }

    /// Keeps one as it is, with its own number, unless there is one of that number.
    ///
    /// # Errors
    /// What could not be written.
    pub fn put(&self, version: &Version) -> Result<bool, Unwritten> {
        self.prepare()?;
        let path = self.path(version.header.version);
        if path.exists() {
            return Ok(false);
        }
        let unwritten = |error| Unwritten::new("write", &path, error);
        let file = version.write().map_err(unwritten)?;
        match self.replace(&path, &file)? {
            Written::Durable => Ok(true),
            Written::InPlace(why) => {
                // Nothing points at it yet: better none than one that may vanish.
                let _ = self.disk.unlink(&path);
                Err(unwritten(io::Error::other(why)))
            }
        }
    }

    /// Deletes the oldest ones until so many are left, but none of `kept`.
    pub fn prune(&self, max: usize, kept: &[u64]) {
        let numbers = self.numbers();
        let excess = numbers.len().saturating_sub(max);
        let free = numbers.into_iter().filter(|number| !kept.contains(number));
        for number in free.take(excess) {
            let _ = self.disk.unlink(&self.path(number));
        }
    }

    /// The version that a note names; none when it is not there or cannot be read.
    pub fn mark(&self, note: Note) -> Option<Mark> {
        self.note(note)
    }

    /// The version on probation.
    pub fn trial(&self) -> Option<Trial> {
        self.note(Note::Probation)
    }

    /// The starts so far say nothing against the version on probation.
    pub fn excuse(&self) {
        if let Some(trial) = self.trial().filter(|trial| trial.boots > 0) {
            let _ = self.set(Note::Probation, &Trial { boots: 0, ..trial });
        }
    }

    /// What was rejected, oldest first.
    pub fn rejected(&self) -> Vec<Rejected> {
        self.note(Note::Rejected).unwrap_or_default()
    }

    /// Remembers a content as rejected.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn reject(&self, rejected: Rejected) -> Result<(), Unwritten> {
        let mut all = self.rejected();
        all.retain(|known| known.mark.sha256 != rejected.mark.sha256);
        all.push(rejected);
        let excess = all.len().saturating_sub(REJECTED_MAX);
        all.drain(..excess);
        self.set(Note::Rejected, &all)
    }

    /// Forgets that a content was rejected: somebody insists on it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn pardon(&self, sha256: &str) -> Result<(), Unwritten> {
        let mut all = self.rejected();
        let before = all.len();
        all.retain(|known| known.mark.sha256 != sha256);
        if all.len() == before { Ok(()) } else { self.set(Note::Rejected, &all) }
    }

    /// Writes a note.
    ///
    /// # Errors
    /// When it cannot be written; the old one stays.
    pub fn set(&self, note: Note, content: &impl Serialize) -> Result<(), Unwritten> {
        self.prepare()?;
        let path = self.folder.join(note.name());
        let text = serde_json::to_string(content)
            .map_err(|error| Unwritten::new("write", &path, error.into()))?;
        // One that the machine forgets is the old one: each of them may be old after a crash.
        self.replace(&path, &format!("{text}\n")).map(drop)
    }

    /// Takes a note away.
    ///
    /// # Errors
    /// When it stays.
    pub fn clear(&self, note: Note) -> Result<(), Unwritten> {
        let path = self.folder.join(note.name());
        match self.disk.unlink(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Unwritten::new("take it away", &path, error))
            }
            _ => {
                let _ = self.disk.sync_folder(&self.folder);
                Ok(())
            }
        }
    }

    fn note<T: DeserializeOwned>(&self, note: Note) -> Option<T> {
        let text = self.slurp(&self.folder.join(note.name()), NOTE_BYTES_MAX).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn replace(&self, path: &Path, text: &str) -> Result<Written, Unwritten> {
        let look = fs::metadata(&self.folder).ok().map(|found| Look::private_in(&found));
        files::replace(&*self.disk, path, text.as_bytes(), look)
    }

    fn slurp(&self, path: &Path, max: u64) -> io::Result<String> {
        use io::Read as _;
        let mut text = String::new();
        fs::File::open(path)?.take(max + 1).read_to_string(&mut text)?;
        if text.len() as u64 > max { Err(ErrorKind::InvalidData.into()) } else { Ok(text) }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join("versions").join(format!("{number:06}.toml"))
    }
}

#[cfg(test)]
mod tests;
