//! Which configuration a daemon starts with: that of the file, unless it cannot be used or has
//! brought the daemon down before; then the last one that was good.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::Level;

use super::fault::Faults;
use super::files::{self, Disk, Lock};
use super::ledger::{Base, Ledger, Signature, Standing};
use super::load::{self, PATH_DEFAULT};
use super::probation::Cause;
use super::versions::{Note, Unread, Version, Versions, digest};
use super::{Loaded, parse};

/// Starts with a version on probation from which on it is given up.
const BOOTS_MAX: u32 = 2;

/// Something to tell when there is a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// How grave.
    pub level: Level,
    /// What kind of event.
    pub kind: &'static str,
    /// Which version.
    pub subject: String,
    /// What happened.
    pub detail: String,
}

/// What to start with.
#[derive(Debug)]
pub struct Booted {
    /// The settings.
    pub loaded: Loaded,
    /// The file and its versions.
    pub ledger: Ledger,
    /// The configuration of the settings.
    pub standing: Standing,
    /// The last one that was good.
    pub good: Option<Standing>,
    /// Whether it has to show first that it is good.
    pub probation: bool,
    /// Why the file is not what runs, if so.
    pub trouble: Option<String>,
    /// Why another version was rolled back just now, if so.
    pub rolled_back: Option<Cause>,
    /// What to tell.
    pub news: Vec<News>,
}

/// Finds the configuration to start with. `path` is that of `--config`.
///
/// # Errors
/// What is wrong with the file, when there is no last good one.
pub fn boot(path: Option<PathBuf>) -> Result<Booted, Faults> {
    let disk = files::disk();
    boot_with(load::find_file(path).as_deref(), disk, &|name| std::env::var(name).ok())
}

/// What is said for a version whose start was refused in order.
#[derive(Debug)]
pub struct Excuse {
    versions: Option<Versions>,
    /// The last good one would have met the same refusal.
    same_addresses: bool,
}

impl Excuse {
    /// An address could not be taken: that is held against the version only when it is its own.
    pub fn no_address(&self) {
        if let Some(versions) = self.versions.as_ref().filter(|_| self.same_addresses) {
            versions.excuse();
        }
    }
}

impl Booted {
    /// What can be said for it when the start is refused.
    pub fn excuse(&self) -> Excuse {
        let config = &self.loaded.config;
        let good = self.good.as_ref().filter(|_| self.probation);
        let good = good.and_then(|good| super::parse_in(&good.text, config.path.as_deref()).ok());
        let same = good.is_some_and(|good| {
            let good = &good.config;
            (good.server.listen, good.ops.listen) == (config.server.listen, config.ops.listen)
        });
        let versions = self.ledger.versions().filter(|_| !self.ledger.taken()).cloned();
        Excuse { versions, same_addresses: same }
    }
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The same, for a given file; none means the built-in defaults.
pub(super) fn boot_with(
    path: Option<&Path>,
    disk: Arc<dyn Disk>,
    env: Env<'_>,
) -> Result<Booted, Faults> {
    let read = || path.map_or_else(|| Ok(String::new()), load::read);
    let text = read();
    let parsed = text.clone().and_then(|text| parse(&text, path, env));
    let state = match &parsed {
        Ok(loaded) => loaded.config.state_dir.clone(),
        Err(_) => load::state_dir(text.as_deref().unwrap_or_default(), path, env),
    };
    let file = path.unwrap_or(Path::new(PATH_DEFAULT));
    // What a crash left in the making beside the file.
    if let Ok(real) = files::target(file)
        && let Ok(_lock) = Lock::folder(files::folder_of(&real), 1)
    {
        files::sweep(&*disk, files::folder_of(&real));
    }
    let ledger = Ledger::open(file, state.as_deref(), disk);
    // A command may have changed the file until the lock was ours. It cannot any more.
    let now = read();
    let (text, parsed) = match now == text {
        true => (text, parsed),
        false => (now.clone(), now.and_then(|text| parse(&text, path, env))),
    };
    let start = Start { ledger, env, path, news: Vec::new() };
    match (text, parsed) {
        (Ok(text), Ok(loaded)) => Ok(start.whole(&text, loaded)),
        (_, Err(faults)) | (Err(faults), _) => start.broken(faults),
    }
}

struct Start<'a> {
    ledger: Ledger,
    env: Env<'a>,
    path: Option<&'a Path>,
    news: Vec<News>,
}

impl Start<'_> {
    /// The file cannot be used.
    fn broken(mut self, faults: Faults) -> Result<Booted, Faults> {
        let Some((standing, loaded)) = self.last_good(true) else { return Err(faults) };
        let first = faults.to_string();
        let first = first.lines().next().unwrap_or_default().to_owned();
        let more = match faults.faults.len() + faults.omitted {
            0 | 1 => String::new(),
            all => format!(" (and {} more)", all - 1),
        };
        let name = standing.name();
        let trouble = format!("{name} runs: {first}{more}");
        self.tell(Level::Error, "config_file_refused", &name, &trouble);
        Ok(self.booted(loaded, standing.clone(), Some(standing), Some(trouble)))
    }

    /// The file can be used.
    fn whole(mut self, text: &str, loaded: Loaded) -> Booted {
        let sha256 = digest(text);
        self.ledger.keep(loaded.config.versions.versions_max);
        if self.ledger.taken() {
            return self.beside(text, &sha256, loaded);
        }
        let good = self.last_good(false);
        if let Some((standing, _)) = good.as_ref().filter(|(good, _)| good.sha256 == sha256) {
            let notes = self.ledger.in_force(standing, None);
            self.tell_notes(notes);
            return self.booted(loaded, standing.clone(), Some(standing.clone()), None);
        }
        let trial = self.ledger.versions().and_then(|versions| versions.trial());
        let trial = trial.filter(|trial| trial.mark.sha256 == sha256);
        let boots = trial.as_ref().map_or(0, |trial| trial.boots).saturating_add(1);
        if let Some(good) = good {
            if boots >= BOOTS_MAX {
                let version = trial.map(|trial| trial.mark.version);
                let bad = Standing { version, ..Standing::of(text) };
                return self.give_up(&bad, good, Cause::Crashed { boots: boots - 1 });
            }
            if let Some(rejected) = self.ledger.rejected(&sha256) {
                let (standing, loaded) = good;
                let name = standing.name();
                let trouble = format!(
                    "{name} runs: the file holds version {}, which was rolled back: {}; edit it, or \
                     insist with tidegate config apply --force",
                    rejected.mark.version, rejected.reason
                );
                self.tell(Level::Error, "config_file_refused", &name, &trouble);
                return self.booted(loaded, standing.clone(), Some(standing), Some(trouble));
            }
            let standing = self.adopt(text, &sha256, boots);
            return Booted { probation: true, ..self.booted(loaded, standing, Some(good.0), None) };
        }
        let standing = self.adopt(text, &sha256, boots);
        Booted { probation: true, ..self.booted(loaded, standing, None, None) }
    }

    /// Another daemon runs with these versions: this start counts for nothing, and nothing is written.
    fn beside(mut self, text: &str, sha256: &str, loaded: Loaded) -> Booted {
        let version = self.known(sha256);
        let why = self.ledger.trouble().unwrap_or_default().to_owned();
        let detail = format!("another tidegate keeps the versions: {why}");
        self.tell(Level::Warn, "config_versions_taken", "", &detail);
        let standing = Standing { version, ..Standing::of(text) };
        self.booted(loaded, standing.clone(), Some(standing), None)
    }

    /// The file's content comes into force.
    fn adopt(&mut self, text: &str, sha256: &str, boots: u32) -> Standing {
        let current = self.ledger.versions().and_then(|versions| versions.mark(Note::Current));
        let known = self.known(sha256);
        let version = known.or_else(|| {
            let by = Signature::new("file", "found at a start");
            let added = self.ledger.add(text, current.map(|mark| mark.version), &by);
            added.unwrap_or_else(|error| {
                self.tell(Level::Warn, "config_version_lost", "", &error.to_string());
                None
            })
        });
        let standing = Standing { version, ..Standing::of(text) };
        let notes = self.ledger.in_force(&standing, Some(boots));
        self.tell_notes(notes);
        standing
    }

    /// The version that this content has, when it is the current or the newest one.
    fn known(&self, sha256: &str) -> Option<u64> {
        let versions = self.ledger.versions()?;
        if let Some(mark) = versions.mark(Note::Current).filter(|mark| mark.sha256 == sha256)
            && versions.read(mark.version).is_ok()
        {
            return Some(mark.version);
        }
        let newest = versions.read(*versions.numbers().last()?).ok()?;
        let same = newest.header.sha256 == sha256 && newest.header.file == self.ledger.file();
        same.then_some(newest.header.version)
    }

    /// It brought the daemon down: the last good one takes its place, in the file too.
    fn give_up(mut self, bad: &Standing, good: (Standing, Loaded), cause: Cause) -> Booted {
        let (to, loaded) = good;
        let reason = cause.to_string();
        let mut notes = self.ledger.reject(bad, &reason);
        let by = Signature::new("tidegate", format!("rollback to {}: {reason}", to.name()));
        let base = Base::OrAside(bad.sha256.clone());
        let (standing, trouble) = match self.ledger.change(&to.text, &base, bad.version, &by) {
            Ok(changed) => {
                notes.extend(changed.notes);
                (Standing { version: changed.version.or(to.version), ..to.clone() }, None)
            }
            Err(error) => {
                let why =
                    format!("{} runs, but the file could not be put back: {error}", to.name());
                (to, Some(why))
            }
        };
        notes.extend(self.ledger.in_force(&standing, None));
        notes.extend(self.ledger.good(&standing));
        let detail = format!("{} is in force: {reason}", standing.name());
        self.tell(Level::Error, "config_rolled_back", &bad.name(), &detail);
        self.tell_notes(notes);
        let good = Some(standing.clone());
        Booted { rolled_back: Some(cause), ..self.booted(loaded, standing, good, trouble) }
    }

    /// The last good version of this file, with its settings. Damaged ones are put aside; `or_newest`
    /// takes the newest whole one that was not rejected instead.
    fn last_good(&mut self, or_newest: bool) -> Option<(Standing, Loaded)> {
        let versions = self.ledger.versions()?.clone();
        let marked = versions.mark(Note::LastGood).map(|mark| mark.version);
        let mut tried: Vec<u64> = marked.into_iter().collect();
        if or_newest {
            let numbers = versions.numbers().into_iter().rev();
            tried.extend(numbers.filter(|number| Some(*number) != marked));
        }
        tried.into_iter().find_map(|number| self.usable(number))
    }

    /// A version that can be started with.
    fn usable(&mut self, number: u64) -> Option<(Standing, Loaded)> {
        let versions = self.ledger.versions()?.clone();
        let Version { header, text } = match versions.read(number) {
            Ok(version) => version,
            Err(Unread::Damaged(_)) if self.ledger.taken() => return None,
            Err(Unread::Damaged(_)) => {
                versions.quarantine(number);
                let name = format!("version {number}");
                let detail = "its checksum is wrong; it was put aside";
                self.tell(Level::Error, "config_version_damaged", &name, detail);
                return None;
            }
            Err(_) => return None,
        };
        if header.file != self.ledger.file() || self.ledger.rejected(&header.sha256).is_some() {
            return None;
        }
        let loaded = parse(&text, self.path, self.env).ok()?;
        Some((Standing::from_version(&Version { header, text }), loaded))
    }

    fn tell(&mut self, level: Level, kind: &'static str, subject: &str, detail: &str) {
        let (subject, detail) = (subject.to_owned(), detail.to_owned());
        self.news.push(News { level, kind, subject, detail });
    }

    fn tell_notes(&mut self, notes: Vec<String>) {
        for note in notes {
            self.tell(Level::Warn, "config_note_lost", "", &note);
        }
    }

    fn booted(
        self,
        loaded: Loaded,
        standing: Standing,
        good: Option<Standing>,
        trouble: Option<String>,
    ) -> Booted {
        let (ledger, news) = (self.ledger, self.news);
        Booted {
            loaded,
            ledger,
            standing,
            good,
            probation: false,
            trouble,
            rolled_back: None,
            news,
        }
    }
}

#[cfg(test)]
mod tests;
