//! What the rooms below are told of the gateway: the models of a client, its usage.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Gateway;
use super::lists;
use super::usage::Accounts;
use crate::base::error::Error;
use crate::llm::usage::{SessionRow, Sums, Who};
use crate::nodes::host::{Model, Tables, UsageDay};
use crate::nodes::who::{How, Identity};

impl Tables for Gateway {
    fn models(&self, who: &Identity) -> Result<Vec<Model>, Error> {
        let state = self.state();
        let key = if who.how == How::Key { who.account.as_deref() } else { None };
        let allowed = state.models(key).ok_or_else(lists::key_is_gone)?;
        Ok(lists::listed(&state.config, &self.catalog, allowed))
    }

    fn upstreams(&self) -> Vec<String> {
        let state = self.state();
        state.config.upstreams.iter().map(|upstream| upstream.name.clone()).collect()
    }

    fn usage(&self, account: Option<&str>, since: Option<u64>) -> Vec<UsageDay> {
        days(&self.accounts, account, since)
    }

    fn usage_of_sessions(&self, account: Option<&str>) -> Vec<SessionRow> {
        let mut rows = self.accounts.sessions();
        rows.retain(|row| is_of(&row.who, account));
        rows
    }

    fn log_folder(&self) -> Option<PathBuf> {
        self.state().config.log.dir.clone()
    }
}

fn days(accounts: &Accounts, account: Option<&str>, since: Option<u64>) -> Vec<UsageDay> {
    let mut days: BTreeMap<Option<u64>, Sums> = BTreeMap::new();
    for (place, sums) in accounts.rows() {
        let counts = since.is_none_or(|since| place.day.is_some_and(|day| day >= since));
        if counts && is_of(&place.who, account) {
            days.entry(place.day).or_default().add(&sums);
        }
    }
    days.into_iter().map(|(day, sums)| UsageDay { day, sums }).collect()
}

/// Whether a row is an account's; no account is everybody.
fn is_of(who: &Who, account: Option<&str>) -> bool {
    match (account, who) {
        (None, _) => true,
        (Some(account), Who::Key(name)) => **name == *account,
        (Some(_), _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Registry;
    use crate::llm::Usage;
    use crate::llm::usage::{Charge, Entry, SECONDS_PER_DAY};

    #[test]
    fn days_are_summed_of_one_account_or_of_everybody() {
        let settings = crate::config::parse("", None, &|_| None).unwrap().config.usage;
        let accounts = Accounts::new(&settings, &Registry::default());
        let enter = |day: u64, key: Option<&str>, model: &str| {
            let usage = Usage { input: 3, output: 2, ..Usage::default() };
            accounts.enter(Entry {
                at: day * SECONDS_PER_DAY,
                key: key.map(Into::into),
                asked: model.into(),
                answered: Some(("local".into(), "llama".into())),
                charge: Some(Charge { usage, cost: None }),
                ..Entry::default()
            });
        };
        enter(100, Some("a"), "x");
        enter(100, Some("a"), "y");
        enter(101, Some("a"), "x");
        enter(101, Some("b"), "x");
        enter(101, None, "x");
        let told = |account, since| -> Vec<_> {
            let days = days(&accounts, account, since);
            days.iter().map(|day| (day.day, day.sums.requests, day.sums.unpriced)).collect()
        };
        assert_eq!(told(Some("a"), None), [(Some(100), 2, 2), (Some(101), 1, 1)]);
        assert_eq!(told(Some("a"), Some(101)), [(Some(101), 1, 1)]);
        assert_eq!(told(None, Some(101)), [(Some(101), 3, 3)]);
        assert_eq!(told(Some("c"), None), []);
    }
}
