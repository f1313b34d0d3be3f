//! What is asked about usage: the query of `GET /usage`.

use crate::base::error::{Error, Kind, Result};
use crate::base::query::{pairs, shown};
use crate::base::time_parse;
use crate::llm::usage::{SECONDS_PER_DAY, Who};

/// What each row of the answer is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// A day, in UTC.
    #[default]
    Day,
    /// A model that was asked for, and who answered.
    Model,
    /// A key.
    Key,
    /// A session of a key.
    Session,
}

impl By {
    /// All of them, by name.
    pub const NAMES: [(&'static str, By); 4] =
        [("day", By::Day), ("model", By::Model), ("key", By::Key), ("session", By::Session)];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        By::NAMES.iter().find(|(_, by)| *by == self).map_or("", |(name, _)| name)
    }
}

/// A question about usage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// What the rows are about.
    pub by: By,
    /// The first day that counts, in days since 1970.
    pub since: Option<u64>,
    /// Only what this key asked for; an empty name for those without a key.
    pub key: Option<Box<str>>,
}

fn refused<T>(text: String) -> Result<T> {
    Err(Error::new(Kind::InvalidField, text))
}

impl Question {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Kind::InvalidField`] for what is not known or no value for it. It is not left out in
    /// silence: the answer would be one to another question.
    pub fn parse(query: &str) -> Result<Question> {
        let mut question = Question::default();
        for (name, value) in pairs(query) {
            let Some(value) = value else {
                return refused(format!("{}: is no proper value", shown(name)));
            };
            match name {
                "by" => match By::NAMES.iter().find(|(known, _)| *known == value) {
                    Some((_, by)) => question.by = *by,
                    None => return refused("by: write day, model, key or session".to_owned()),
                },
                "since" => match day(&value) {
                    Some(day) => question.since = Some(day),
                    None => return refused("since: write a day as 2026-11-22".to_owned()),
                },
                "key" => question.key = Some(value.into()),
                _ => {
                    let name = shown(name);
                    return refused(format!("{name}: is not known; there are by, since and key"));
                }
            }
        }
        if question.by == By::Session && question.since.is_some() {
            let text = "since: sessions are not summed by day; leave it out, or ask by=day";
            return refused(text.to_owned());
        }
        Ok(question)
    }

    /// The same question of somebody who may only know what is their own: the name of their key.
    /// `None` where there are no keys, and everything is everybody's.
    ///
    /// # Errors
    /// [`Kind::NotYours`] when it is about another key, whether there is one of that name or not.
    pub fn of_own(mut self, key: Option<Option<&str>>) -> Result<Question> {
        let Some(own) = key else { return Ok(self) };
        let Some(own) = own else {
            // Requests without a key do not come this far.
            return Err(Error::new(Kind::NotYours, "usage is told to keys only"));
        };
        if self.key.as_deref().is_some_and(|key| key != own) {
            let text = "key: a key sees only its own usage; leave it out";
            return Err(Error::new(Kind::NotYours, text));
        }
        self.key = Some(own.into());
        Ok(self)
    }

    /// Whether what this one asked for counts.
    pub(super) fn is_about(&self, who: &Who) -> bool {
        match (self.key.as_deref(), who) {
            (None, _) => true,
            (Some(key), Who::Key(name)) => **name == *key,
            (Some(key), Who::Nobody) => key.is_empty(),
            (Some(_), Who::Others) => false,
        }
    }
}

/// Days since 1970 of `2026-11-22`; `None` for what is no such day.
fn day(text: &str) -> Option<u64> {
    let day = time_parse::unix_seconds(&format!("{text}T00:00:00Z"))? / SECONDS_PER_DAY;
    // A 31st of February is a day in March.
    (super::report::day_text(day) == text).then_some(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(query: &str, text: &str) {
        let error = Question::parse(query).expect_err(query);
        assert_eq!((error.row().status, error.context()), (400, text), "{query}");
    }

    #[test]
    fn a_question_is_read_or_refused_with_what_to_write() {
        let check = |query: &str, by, since, key: Option<&str>| {
            let expected = Question { by, since, key: key.map(Into::into) };
            assert_eq!(Question::parse(query).expect(query), expected);
        };
        check("", By::Day, None, None);
        check("by=model&since=1970-01-03&key=my%20own+box", By::Model, Some(2), Some("my own box"));
        check("key=&&by=session", By::Session, None, Some(""));
        check("since=2024-02-29", By::Day, Some(19_782), None);
        refused("by=models", "by: write day, model, key or session");
        for bad in
            ["2026-2-1", "2026-02-29", "2026-02-31", "yesterday", "", "1969-12-31", "2026-11-22T"]
        {
            refused(&format!("since={bad}"), "since: write a day as 2026-11-22");
        }
        refused("sicne=2026-11-22", "sicne: is not known; there are by, since and key");
        refused("key=%4", "key: is no proper value");
        refused("key=%ff", "key: is no proper value");
        refused(&format!("key={}", "k".repeat(257)), "key: is no proper value");
        let text = "since: sessions are not summed by day; leave it out, or ask by=day";
        refused("by=session&since=2026-11-22", text);
    }

    #[test]
    fn a_key_sees_its_own_and_does_not_learn_which_others_there_are() {
        let ask = |query: &str, own| Question::parse(query).unwrap().of_own(own);
        let own = Some(Some("laptop"));
        for query in ["", "key=laptop"] {
            assert_eq!(ask(query, own).unwrap().key.as_deref(), Some("laptop"));
        }
        for query in ["key=phone", "key=nobody", "key="] {
            let error = ask(query, own).unwrap_err();
            assert_eq!((error.kind(), error.row().status), (Kind::NotYours, 403));
        }
        assert_eq!(ask("", Some(None)).unwrap_err().kind(), Kind::NotYours);
        assert_eq!(ask("key=phone", None).unwrap().key.as_deref(), Some("phone"));
    }

    #[test]
    fn what_a_question_is_about() {
        let all = [Who::Key("a".into()), Who::Key("b".into()), Who::Nobody, Who::Others];
        let check = |query: &str, expected: [bool; 4]| {
            let question = Question::parse(query).unwrap();
            assert_eq!(all.each_ref().map(|who| question.is_about(who)), expected, "{query}");
        };
        check("", [true; 4]);
        check("key=a", [true, false, false, false]);
        check("key=", [false, false, true, false]);
    }
}
