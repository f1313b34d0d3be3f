//! Silences: alerts that a person does not want to be told of for a time.

use serde::{Deserialize, Serialize};

use super::alert::Labels;
use super::at::At;
use crate::config::settings::alerts::Pattern;

/// Most conditions of one silence.
const CONDITIONS_MAX: usize = 8;
/// Most bytes of a silence's conditions.
const MATCH_BYTES_MAX: usize = 512;
/// Most bytes kept of a reason; the rest is cut.
pub const REASON_BYTES_MAX: usize = 256;

/// One silence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    /// Its id.
    pub id: String,
    /// What it covers, as it was written: `rule`, or `label=value`, several with commas; a `*` at the end
    /// of a value stands for anything.
    pub matching: String,
    /// When it was made.
    pub at: At,
    /// When it ends.
    pub until: At,
    /// Why.
    pub reason: String,
}

impl Silence {
    /// Whether it covers an alert with these labels.
    pub fn covers(&self, labels: &Labels) -> bool {
        let Ok(conditions) = conditions(&self.matching) else { return false };
        conditions.iter().all(|(name, pattern)| {
            let found = labels.iter().find(|(have, _)| have == name);
            found.is_some_and(|(_, value)| pattern.fits(value))
        })
    }
}

/// Reads what a silence covers.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn conditions(text: &str) -> Result<Vec<(String, Pattern)>, &'static str> {
    if text.len() > MATCH_BYTES_MAX {
        return Err("the match is longer than 512 bytes");
    }
    let mut conditions = Vec::new();
    for part in text.split(',').map(str::trim) {
        if part.is_empty() {
            return Err("the match is empty; write the name of a rule, label=value, or * for all");
        }
        if conditions.len() == CONDITIONS_MAX {
            return Err("the match has more than 8 conditions");
        }
        let (name, value) = part.split_once('=').unwrap_or(("alertname", part));
        if name.trim().is_empty() {
            return Err("a condition has no label; write label=value");
        }
        conditions.push((name.trim().to_owned(), Pattern::new(value.trim())));
    }
    Ok(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_covers_what_meets_all_its_conditions() {
        let labels: Labels = [("alertname", "limit_exhausted"), ("limit", "server.queue_max")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .to_vec();
        let check = |matching: &str, covered: bool| {
            let silence = Silence {
                id: "1".into(),
                matching: matching.into(),
                at: At(0),
                until: At(1),
                reason: String::new(),
            };
            assert_eq!(silence.covers(&labels), covered, "{matching}");
        };
        check("*", true);
        check("limit_exhausted", true);
        check("limit_*, limit=server.*", true);
        check("limit=server.queue_max", true);
        check("limit=server", false);
        check("limit_exhausted,owner=data", false);
        check("memory_high", false);
        for text in ["", " ,", "a,,b", "=x", &"a,".repeat(9), &"a".repeat(600)] {
            assert!(conditions(text).is_err(), "{text}");
        }
    }
}
