//! Looking into a file's tree, with the path of what is looked at.

use serde_json::Value;

use super::notes::Notes;
use crate::config::unit::Span;
use std::time::Duration;

/// Looks up a variable of the environment.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Longest duration that a setting takes.
const SECONDS_MAX: f64 = 24.0 * 3600.0;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub value: &'a Value,
    pub path: String,
}

impl<'a> At<'a> {
    /// The whole tree.
    pub(super) fn root(value: &'a Value) -> Self {
        At { value, path: String::new() }
    }

    /// What stands under a key; nothing and `null` are the same.
    pub(super) fn get(&self, key: &str) -> Option<At<'a>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(At { value, path: self.inner(key) })
    }

    fn inner(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The text under a key.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.value.get(key).and_then(Value::as_str)
    }

    /// The entries of a list.
    pub(super) fn list(&self) -> Vec<At<'a>> {
        let entries = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        let entry = |(n, value)| At { value, path: format!("{}[{n}]", self.path) };
        entries.iter().enumerate().map(entry).collect()
    }

    /// The keys of a table and what stands there, without `null`.
    pub(super) fn entries(&self) -> Vec<(&'a str, At<'a>)> {
        let Some(table) = self.value.as_object() else { return Vec::new() };
        let entries = table.iter().filter(|(_, value)| !value.is_null());
        entries.map(|(key, value)| (key.as_str(), At { value, path: self.inner(key) })).collect()
    }

    /// A number, also when it is written as text.
    pub(super) fn number(&self) -> Option<f64> {
        let number = self.value.as_f64().or_else(|| self.value.as_str()?.trim().parse().ok());
        number.filter(|number| number.is_finite())
    }

    /// A count from 1 to `max`.
    pub(super) fn count(&self, max: u64) -> Option<u64> {
        let number = self.number().filter(|n| *n >= 1.0 && n.fract() == 0.0)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number from 1 on; a cast of a large one saturates"
        )]
        Some((number as u64).min(max))
    }

    /// Seconds as a duration that a setting takes; a note, and nothing, when it is none.
    pub(super) fn seconds(&self, notes: &mut Notes) -> Option<String> {
        match self.number() {
            Some(seconds) if (0.001..=SECONDS_MAX).contains(&seconds) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "at most a day of milliseconds"
                )]
                let span = Span(Duration::from_millis((seconds * 1000.0).round() as u64));
                Some(quoted(&span.to_string()))
            }
            Some(seconds) if seconds > SECONDS_MAX => {
                notes.add(&self.path, "is more than a day; taken as 24h");
                Some(quoted("24h"))
            }
            _ => {
                notes.add(&self.path, "is no number of seconds above 0; left out");
                None
            }
        }
    }

    /// Tells of every key that is not among these.
    pub(super) fn others(&self, known: &[&str], notes: &mut Notes, text: &str) {
        for (key, at) in self.entries() {
            if !known.contains(&key) {
                notes.add(&at.path, text);
            }
        }
    }
}

/// A text as TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Whether a text can be a name of ours.
pub(super) fn fits(text: &str, chars_max: usize) -> bool {
    let length = text.chars().count();
    (1..=chars_max).contains(&length) && text.trim() == text && !text.chars().any(char::is_control)
}
