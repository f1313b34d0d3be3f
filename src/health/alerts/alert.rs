//! What the engine holds and gives out: readings, alerts, notices.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::at::At;
use crate::config::settings::alerts::{Rule, Severity};

/// Most bytes kept of what is said of an alert; the rest is cut.
pub const TEXT_BYTES_MAX: usize = 512;

/// Labels by name, sorted.
pub type Labels = Vec<(String, String)>;

/// What a look found about one thing that a rule looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Which thing: labels beside those of the rule.
    pub subject: Labels,
    /// How it is.
    pub judged: Judged,
    /// The figure, where there is one.
    pub value: Option<f64>,
    /// In words.
    pub text: String,
    /// It stays as it is until then, also when nothing is heard of it.
    pub until: Option<At>,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Beyond the threshold.
    Bad,
    /// Neither beyond the threshold nor clear of it: what was stays.
    Between,
    /// Clear.
    Good,
    /// Nothing can be said yet: what was stays.
    Unknown,
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is so, but not for long enough.
    Pending,
    /// It is an alert.
    Firing,
    /// It was one.
    Resolved,
}

impl State {
    /// The word in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Firing => "firing",
            State::Resolved => "resolved",
        }
    }
}

/// What people were told of an alert last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// That it fires, or that it is over.
    pub firing: bool,
    /// When.
    pub at: At,
}

/// One alert, from the first bad reading on until all of it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Its rule.
    pub rule: String,
    /// How grave, as its rule says.
    #[serde(with = "severity")]
    pub severity: Severity,
    /// All labels: `alertname`, `severity`, those of the rule and of the thing.
    pub labels: Labels,
    /// What makes it the same alert: a digest of the labels.
    pub fingerprint: String,
    /// Where it stands.
    pub state: State,
    /// Since when it is so: the first bad reading.
    pub since: At,
    /// When it began to fire.
    pub fired: Option<At>,
    /// When it was over.
    pub ended: Option<At>,
    /// The figure, where there is one.
    pub value: Option<f64>,
    /// In words.
    pub text: String,
    /// What it means and what to do.
    pub summary: String,
    /// It stays as it is until then.
    pub until: Option<At>,
    /// What people were told last.
    pub told: Option<Told>,
    /// The rule that mutes it now.
    #[serde(skip)]
    pub muted: Option<String>,
    /// The silence that covers it now.
    #[serde(skip)]
    pub silenced: Option<String>,
    /// Whether a reading of this process has been seen.
    #[serde(skip)]
    pub seen: bool,
}

impl Alert {
    /// What is told of it now.
    pub fn item(&self) -> Item {
        Item {
            fingerprint: self.fingerprint.clone(),
            firing: self.state == State::Firing,
            labels: self.labels.clone(),
            text: self.text.clone(),
            summary: self.summary.clone(),
            value: self.value,
            started: self.fired.unwrap_or(self.since),
            ended: self.ended.filter(|_| self.state != State::Firing),
        }
    }
}

/// All labels of an alert of this rule about this thing, sorted.
pub fn labels(rule: &Rule, subject: &Labels) -> Labels {
    let own = [("alertname", rule.name.as_str()), ("severity", rule.severity.as_str())];
    let mut labels: Labels =
        own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for (name, value) in rule.labels.iter().chain(subject) {
        if !labels.iter().any(|(have, _)| have == name) {
            labels.push((name.clone(), value.clone()));
        }
    }
    labels.sort();
    labels
}

/// A digest of labels: 16 hexadecimal digits. The severity is no part of it, so that an alert stays the
/// same one when its rule is made graver.
pub fn fingerprint(labels: &Labels) -> String {
    let mut digest = Sha256::new();
    for (name, value) in labels.iter().filter(|(name, _)| name != "severity") {
        // Lengths first: nothing that is written in a value can look like another label.
        digest.update((name.len() as u64).to_be_bytes());
        digest.update(name.as_bytes());
        digest.update((value.len() as u64).to_be_bytes());
        digest.update(value.as_bytes());
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A text of at most [`TEXT_BYTES_MAX`].
pub fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// One alert as a notice tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// What makes it the same alert.
    pub fingerprint: String,
    /// Whether it fires, else it is over.
    pub firing: bool,
    /// All its labels.
    pub labels: Labels,
    /// What was found.
    pub text: String,
    /// What it means and what to do.
    pub summary: String,
    /// The figure, where there is one.
    pub value: Option<f64>,
    /// When it began to fire.
    pub started: At,
    /// When it was over.
    pub ended: Option<At>,
}

impl Item {
    /// The value of a label, or nothing.
    pub fn label(&self, name: &str) -> &str {
        let found = self.labels.iter().find(|(have, _)| have == name);
        found.map_or("", |(_, value)| value)
    }
}

/// What is told at once: alerts of one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Its id, unique; the same for each try and channel.
    pub id: String,
    /// When it was made.
    pub at: At,
    /// The rule.
    pub rule: String,
    /// How grave.
    #[serde(with = "severity")]
    pub severity: Severity,
    /// Whether it only says again what was said.
    pub repeated: bool,
    /// What it tells, at most [`super::engine::ITEMS_MAX`].
    pub items: Vec<Item>,
}

impl Notice {
    /// Whether any of them fires.
    pub fn firing(&self) -> bool {
        self.items.iter().any(|item| item.firing)
    }

    /// The channel that it is about, when it is about one.
    pub fn about_channel(&self) -> Option<&str> {
        let channel = self.items.first()?.label("channel");
        (!channel.is_empty()).then_some(channel)
    }
}

/// Severities as words.
mod severity {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::config::settings::alerts::Severity;

    pub(super) fn serialize<S: Serializer>(severity: &Severity, s: S) -> Result<S::Ok, S::Error> {
        severity.as_str().serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Severity, D::Error> {
        let word = String::deserialize(d)?;
        Severity::from_word(&word).ok_or_else(|| D::Error::custom("no severity"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_labels_are_the_same_alert_and_others_are_not() {
        let print = |labels: &[(&str, &str)]| {
            fingerprint(&labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect())
        };
        let one = print(&[("alertname", "a"), ("limit", "x")]);
        assert_eq!(one.len(), 16);
        assert_eq!(one, print(&[("alertname", "a"), ("limit", "x"), ("severity", "info")]));
        assert_ne!(one, print(&[("alertname", "a"), ("limit", "y")]));
        assert_ne!(print(&[("a", "bc")]), print(&[("ab", "c")]));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("é".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX);
        assert_eq!(cut("€".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX - 2);
    }
}
