//! Notices: what is told together, and when.

use super::{At, Engine, ITEMS_MAX, Notice, State, Timing, Told};
use crate::config::settings::alerts::Severity;
use crate::health::alerts::alert::Alert;

/// What is known of the notices of one rule.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Group {
    /// Since when there is something new that is not told.
    new_since: Option<At>,
    /// When it was told last.
    flushed: Option<At>,
}

impl Group {
    /// Nothing waits, and the next notice would not have to wait either.
    pub(super) fn quiet(&self, now: At, interval: std::time::Duration) -> bool {
        self.new_since.is_none() && self.flushed.is_none_or(|at| now.since(at) >= interval)
    }

    /// An earlier process told something then.
    pub(super) fn see_flush(&mut self, at: At) {
        self.flushed = self.flushed.max(Some(at));
    }
}

/// Why an alert would be told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    None,
    /// It was told long ago, and goes on.
    Again,
    New,
}

fn news(alert: &Alert, timing: Timing, now: At) -> News {
    let covered = alert.muted.is_some() || alert.silenced.is_some();
    match (alert.state, alert.told) {
        (State::Firing, _) if covered => News::None,
        (State::Firing, None) => News::New,
        (State::Firing, Some(Told { firing, at })) => {
            match (firing, now.since(at) >= timing.repeat) {
                (true, true) => News::Again,
                (false, due) if due || timing.resolved => News::New,
                _ => News::None,
            }
        }
        // Whoever was told that it fires is told that it is over, also when it is covered by now, and
        // also when it is on its way to fire again: that is told when it does.
        (_, Some(Told { firing: true, .. })) if timing.resolved => News::New,
        // It was over before it could be told.
        (_, None) if !covered && alert.fired.is_some() => News::New,
        (State::Pending | State::Resolved, _) => News::None,
    }
}

impl Engine {
    /// What is due, as notices.
    pub(super) fn flush(&mut self, now: At) -> Vec<Notice> {
        let timing = self.timing;
        let mut rules: Vec<(String, News)> = Vec::new();
        for (_, alert) in self.alerts.iter() {
            let news = news(alert, timing, now);
            match rules.iter_mut().find(|(rule, _)| *rule == alert.rule) {
                Some((_, all)) if news == News::New || *all == News::None => *all = news,
                Some(_) => {}
                None => rules.push((alert.rule.clone(), news)),
            }
        }
        rules.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut notices = Vec::new();
        for (rule, news) in rules {
            let mut group = self.groups.get(&rule).copied().unwrap_or_default();
            group.new_since = (news == News::New).then(|| group.new_since.unwrap_or(now));
            let apart = group.flushed.is_none_or(|at| now.since(at) >= timing.group_interval);
            let waited = group.new_since.is_none_or(|at| now.since(at) >= timing.group_wait);
            let due = news != News::None && apart && waited;
            if due {
                group = Group { new_since: None, flushed: Some(now) };
                self.tell(&rule, now, &mut notices);
            }
            // There are as many groups as alerts at most, and each alert has one rule. Where it is full
            // all the same, a rule is told without waiting for more.
            let _ = self.groups.insert(rule, group);
        }
        notices
    }

    /// Makes the notices of one rule, and notes that they are told.
    fn tell(&mut self, rule: &str, now: At, notices: &mut Vec<Notice>) {
        let timing = self.timing;
        let mut due: Vec<(String, News)> = self
            .alerts
            .iter()
            .filter(|(_, alert)| alert.rule == rule)
            .map(|(fingerprint, alert)| (fingerprint.clone(), news(alert, timing, now)))
            .filter(|(_, news)| *news != News::None)
            .collect();
        due.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for some in due.chunks(ITEMS_MAX) {
            self.numbers.notice += 1;
            let mut notice = Notice {
                id: format!("n{:x}-{}", now.0, self.numbers.notice),
                at: now,
                rule: rule.to_owned(),
                severity: Severity::Info,
                repeated: some.iter().all(|(_, news)| *news == News::Again),
                items: Vec::with_capacity(some.len()),
            };
            for (fingerprint, _) in some {
                let Some(alert) = self.alerts.get_mut(fingerprint) else { continue };
                notice.severity = notice.severity.max(alert.severity);
                notice.items.push(alert.item());
                alert.told = Some(Told { firing: alert.state == State::Firing, at: now });
                if alert.state == State::Pending {
                    // The life that was told is over; the one to come begins when it fires.
                    alert.fired = None;
                }
                self.dirty.alert(fingerprint, Some(alert));
            }
            notices.push(notice);
        }
    }
}
