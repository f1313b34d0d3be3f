//! Orders that change the configuration: a text, single settings, an older version, and settings
//! that are overridden for a time.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::orders::ConfigChange;
use crate::config::edit::{Edit, edit};
use crate::config::ledger::{Base, Signature, Standing};
use crate::config::versions::{Version, digest};
use crate::config::{self, Loaded};

use super::reload::Refused;
use super::running::Running;
use super::versions::{KNOBS_MAX, Knob, taken_back_by_operator};

/// Longest time for which a setting is overridden.
const KNOB_SPAN_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// When the end of one is tried again.
const KNOB_AGAIN: Duration = Duration::from_secs(10);

/// A text that is to be in force.
struct Wanted<'a> {
    text: &'a str,
    /// What messages call it.
    name: Option<&'a str>,
    base: Option<&'a str>,
    force: bool,
    /// An edit of the file is kept aside, also when nobody insists.
    aside: bool,
}

impl Running {
    /// Carries one out.
    pub(super) fn change_config(
        &mut self,
        change: &ConfigChange,
        by: &Signature,
    ) -> Result<Value, Error> {
        match change {
            ConfigChange::Apply { text, name, base, force } => self.apply(
                &Wanted {
                    text,
                    name: Some(name),
                    base: base.as_deref(),
                    force: *force,
                    aside: *force,
                },
                by,
            ),
            ConfigChange::Edit { edits, base, force } => {
                let text = edit(&self.keeping.running.text, edits)?;
                let base = base.as_deref();
                self.apply(
                    &Wanted { text: &text, name: None, base, force: *force, aside: *force },
                    by,
                )
            }
            ConfigChange::Rollback { version, force } => {
                let Version { header, text } = self.rollback_target(*version)?;
                let reason = match by.reason.as_str() {
                    "" => format!("rollback to version {}", header.version),
                    reason => format!("rollback to version {}: {reason}", header.version),
                };
                let by = Signature::new(by.author.as_str(), reason);
                let wanted =
                    Wanted { text: &text, name: None, base: None, force: *force, aside: true };
                let outcome = self.apply(&wanted, &by)?;
                taken_back_by_operator(&self.registry);
                Ok(outcome)
            }
            ConfigChange::Knob { key, value, span } => self.turn(key, value.as_deref(), *span, by),
        }
    }

    /// Puts a text in force, and in the file; or nothing of it.
    fn apply(&mut self, wanted: &Wanted<'_>, by: &Signature) -> Result<Value, Error> {
        let running = self.keeping.running.clone();
        let in_file = self.keeping.ledger.read()?;
        // Whoever knows an edit of the file that is not in force may take its place.
        let file_sha256 = digest(in_file.as_deref().unwrap_or_default());
        let of_file = wanted.base == Some(file_sha256.as_str());
        if wanted.base.is_some_and(|base| base != running.sha256) && !of_file {
            let text = format!(
                "{} came into force meanwhile; look at it with tidegate config show, and try again",
                running.name()
            );
            return Err(Error::new(Kind::ConfigMoved, text));
        }
        let path = self.keeping.ledger.file().to_owned();
        let mut standing = Standing::of(wanted.text);
        let loaded =
            self.with_knobs(wanted.text, Some(&path)).map_err(|refused| match refused {
                Refused::Faults(mut faults) => {
                    faults.path = wanted.name.map(Into::into).or(faults.path);
                    Error::new(Kind::InvalidConfig, faults.to_string())
                }
                refused => refused.error(),
            })?;
        let warnings = loaded.warnings.clone();
        if let Some(rejected) = self.keeping.ledger.rejected(&standing.sha256) {
            if !wanted.force {
                return Err(Refused::Rejected(rejected).error());
            }
            if let Some(versions) = self.keeping.ledger.versions() {
                let pardoned = versions.pardon(&standing.sha256);
                pardoned.map_err(|error| Error::new(Kind::ConfigUnwritten, error.to_string()))?;
            }
        }
        let unchanged = standing.sha256 == running.sha256
            && in_file.as_deref().unwrap_or_default() == wanted.text;
        if unchanged {
            return Ok(self.outcome(false, &[], Vec::new()));
        }
        let prepared = self.prepare(loaded).map_err(|refused| refused.error())?;
        let base = match wanted.aside {
            true => Base::OrAside(running.sha256),
            false if of_file => Base::Is(file_sha256),
            false => Base::Is(running.sha256),
        };
        let changed = self.keeping.ledger.change(wanted.text, &base, running.version, by);
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => {
                self.drop_taken(prepared);
                return Err(error);
            }
        };
        standing.version = changed.version;
        let ready = self.board.ready(clock::now());
        self.swap(prepared);
        let config = std::sync::Arc::clone(&self.config);
        self.keeping.entered(standing, &config, ready);
        let mut notes = changed.notes;
        if let Some(aside) = changed.aside {
            notes.push(format!(
                "an edit of the file that was not in force is in {}",
                aside.display()
            ));
        }
        let detail = format!("by {}: {}", by.author, by.reason);
        self.events.record(log::Level::Info, "config_applied", &self.keeping.name(), detail);
        for note in &notes {
            let name = self.keeping.name();
            self.events.record(log::Level::Warn, "config_note", &name, note.clone());
        }
        let warnings: Vec<String> = warnings.iter().map(|w| w.at(Some(&path))).collect();
        Ok(self.outcome(true, &notes, warnings))
    }

    fn outcome(&self, changed: bool, notes: &[String], warnings: Vec<String>) -> Value {
        let mut document = self.keeping.shown.document();
        if let Value::Object(fields) = &mut document {
            fields.insert("changed".to_owned(), changed.into());
            fields.insert("notes".to_owned(), json!(notes));
            fields.insert("warnings".to_owned(), json!(warnings));
        }
        document
    }

    /// The version that is gone back to.
    fn rollback_target(&self, number: Option<u64>) -> Result<Version, Error> {
        let none = |text: String| Error::new(Kind::NotFound, text);
        let Some(versions) = self.keeping.ledger.versions() else {
            return Err(none("there are no versions: there is no state directory".to_owned()));
        };
        if let Some(number) = number {
            return versions.read(number).map_err(|error| none(error.to_string()));
        }
        let running = &self.keeping.running;
        let before = versions.numbers().into_iter().rev();
        let mut before = before.filter(|n| running.version.is_none_or(|version| *n < version));
        let differs = |version: &Version| version.header.sha256 != running.sha256;
        let found = before.find_map(|number| {
            let version = versions.read(number).ok().filter(differs)?;
            self.keeping.ledger.rejected(&version.header.sha256).is_none().then_some(version)
        });
        found.ok_or_else(|| none("there is no version before this one".to_owned()))
    }

    /// The settings of a text, with those on top that are overridden. When these no longer fit, they
    /// end.
    pub(super) fn with_knobs(
        &mut self,
        text: &str,
        path: Option<&Path>,
    ) -> Result<Loaded, Refused> {
        let plain = config::parse_in(text, path).map_err(Refused::Faults);
        if self.keeping.knobs.is_empty() || plain.is_err() {
            return plain;
        }
        match overridden(text, &self.keeping.knobs, path) {
            Ok(loaded) => Ok(loaded),
            Err(error) => {
                self.drop_knobs(&format!("they do not fit any more: {error}"));
                plain
            }
        }
    }

    /// No setting is overridden any more.
    pub(super) fn drop_knobs(&mut self, why: &str) {
        if !self.keeping.knobs.is_empty() {
            self.keeping.knobs.clear();
            let detail = why.to_owned();
            self.events.record(log::Level::Warn, "config_knobs_dropped", "", detail);
        }
    }

    /// Overrides a setting for a time, or ends that.
    fn turn(
        &mut self,
        key: &str,
        value: Option<&str>,
        span: Duration,
        by: &Signature,
    ) -> Result<Value, Error> {
        let invalid = |text: &str| Error::new(Kind::InvalidField, text.to_owned());
        if value.is_some() && !(Duration::from_secs(1)..=KNOB_SPAN_MAX).contains(&span) {
            return Err(invalid("the time of a knob is from 1s to 24h"));
        }
        let mut knobs = self.keeping.knobs.clone();
        let before = knobs.len();
        knobs.retain(|knob| knob.edit.0 != key);
        match value {
            Some(value) => knobs.push(Knob {
                edit: (key.to_owned(), Some(value.to_owned())),
                until: clock::now() + span,
                by: by.clone(),
            }),
            None if knobs.len() == before => {
                return Err(Error::new(Kind::NotFound, format!("{key} is not overridden")));
            }
            None => {}
        }
        if knobs.len() > KNOBS_MAX {
            let (max, consequence) = (KNOBS_MAX as u64, "refused");
            self.registry.limit("config.knobs_max", "", max, consequence).refuse();
            return Err(invalid("16 settings are overridden; end one with --end"));
        }
        self.turn_to(knobs)?;
        let detail = match value {
            Some(value) => format!("{key}={value} for {} s, by {}", span.as_secs(), by.author),
            None => format!("{key} is as the file says again, by {}", by.author),
        };
        self.events.record(log::Level::Info, "config_knob", key, detail);
        Ok(self.outcome(true, &[], Vec::new()))
    }

    /// Puts the running configuration in force with these on top.
    fn turn_to(&mut self, knobs: Vec<Knob>) -> Result<(), Error> {
        let path = self.config.path.clone();
        let text = std::sync::Arc::clone(&self.keeping.running.text);
        let loaded = overridden(&text, &knobs, path.as_deref())?;
        let prepared = self.prepare(loaded).map_err(|refused| refused.error())?;
        self.swap(prepared);
        self.keeping.knobs = knobs;
        self.keeping.show();
        Ok(())
    }

    /// Ends those whose time is over.
    pub(super) fn end_knobs(&mut self, now: Instant) {
        let over = |knob: &Knob| knob.until <= now;
        if !self.keeping.knobs.iter().any(over) {
            return;
        }
        let left: Vec<Knob> = self.keeping.knobs.iter().filter(|k| !over(k)).cloned().collect();
        let ended: Vec<String> =
            self.keeping.knobs.iter().filter(|k| over(k)).map(|k| k.edit.0.clone()).collect();
        match self.turn_to(left) {
            Ok(()) => {
                for key in ended {
                    let detail = "it is as the file says again: its time is over".to_owned();
                    self.events.record(log::Level::Info, "config_knob", &key, detail);
                }
            }
            Err(error) => {
                for knob in self.keeping.knobs.iter_mut().filter(|knob| over(knob)) {
                    knob.until = now + KNOB_AGAIN;
                }
                let detail = format!("the file's own setting cannot be had now: {error}");
                self.events.record(log::Level::Warn, "config_knob", &ended.join(","), detail);
            }
        }
    }
}

/// The settings of a text with these on top.
fn overridden(text: &str, knobs: &[Knob], path: Option<&Path>) -> Result<Loaded, Error> {
    let edits: Vec<Edit> = knobs.iter().map(|knob| knob.edit.clone()).collect();
    let text = edit(text, &edits)?;
    let loaded = config::parse_in(&text, path);
    loaded.map_err(|faults| Error::new(Kind::InvalidConfig, faults.to_string()))
}
