//! The state machine behind all rules. Readings and time in; changes and notices out.
//!
//! - **States**: a bad reading makes an alert pending; when it has been so for as long as its rule says it
//!   fires; a good reading ends it. A reading between the two thresholds, or none that says anything,
//!   leaves it as it is. A thing that is no more is good.
//! - **Notices**: what is new of one rule is told together: the first notice waits `group_wait` for more,
//!   later ones come at least `group_interval` apart. An alert that goes on is told again after
//!   `repeat`. Within that time it is told once; told again only when it was told to be over in between.
//! - **Nothing is lost**: an alert that fired and was over before it could be told is told as such. What is
//!   muted or silenced is told when that ends, if it still fires.

mod group;

use std::sync::Arc;
use std::time::Duration;

use super::alert::{Alert, Judged, Labels, Notice, Reading, State, Told, cut, fingerprint, labels};
use super::at::At;
use super::silence::{REASON_BYTES_MAX, Silence, conditions};
use crate::base::bounded::{History, Map};
use crate::base::metrics::Registry;
use crate::config::settings::Alerts;
use crate::config::settings::alerts::Rule;
use group::Group;

/// Most alerts at once, pending ones too. Past it: a further one is not seen until there is room, and
/// the check `alerts` says so.
pub const ACTIVE_MAX: usize = 256;
/// Most alerts that one notice tells; more make more notices.
pub const ITEMS_MAX: usize = 32;
/// Most silences at once. Past it: 503.
pub const SILENCES_MAX: usize = 64;
/// Longest silence.
pub const SILENCE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Alerts that are over and still shown.
pub const PAST_MAX: usize = 64;
/// What an earlier process left firing is kept for so long after the start without a reading: the
/// things that rules look at come up one after the other.
const GRACE: Duration = Duration::from_secs(60);

/// How notices are timed: a part of `[alerts]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// See [`Alerts`].
    pub group_wait: Duration,
    /// See [`Alerts`].
    pub group_interval: Duration,
    /// See [`Alerts`].
    pub repeat: Duration,
    /// Whether it is told that something is over.
    pub resolved: bool,
}

impl From<&Alerts> for Timing {
    fn from(settings: &Alerts) -> Self {
        Timing {
            group_wait: settings.group_wait,
            group_interval: settings.group_interval,
            repeat: settings.repeat,
            resolved: settings.resolved,
        }
    }
}

/// A change of an alert's state that is worth a line in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Firing or resolved.
    pub state: State,
    /// The alert as it is now.
    pub alert: Alert,
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Alerts that began or ended.
    pub changes: Vec<Change>,
    /// What is to be told.
    pub notices: Vec<Notice>,
}

/// The alerts of a process.
#[derive(Debug)]
pub struct Engine {
    timing: Timing,
    started: At,
    alerts: Map<String, Alert>,
    groups: Map<String, Group>,
    silences: Map<String, Silence>,
    past: History<Alert>,
    /// Fingerprints and silences that are not what is kept on disk.
    dirty: Dirty,
    numbers: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Part of the ids of notices, so that they differ within a millisecond.
    notice: u64,
    silence: u64,
}

/// What changed since it was last asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dirty {
    /// Alerts by fingerprint; `None`: gone.
    pub alerts: Vec<(String, Option<Alert>)>,
    /// Silences by id; `None`: gone.
    pub silences: Vec<(String, Option<Silence>)>,
}

impl Dirty {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.silences.is_empty()
    }

    fn alert(&mut self, fingerprint: &str, alert: Option<&Alert>) {
        self.alerts.retain(|(have, _)| have != fingerprint);
        self.alerts.push((fingerprint.to_owned(), alert.cloned()));
    }

    fn silence(&mut self, id: &str, silence: Option<&Silence>) {
        self.silences.retain(|(have, _)| have != id);
        self.silences.push((id.to_owned(), silence.cloned()));
    }
}

impl Engine {
    /// An engine that knows of nothing, started at `now`.
    pub fn new(timing: Timing, registry: &Registry, now: At) -> Self {
        let limit =
            |name, max: usize, consequence| registry.limit(name, "", max as u64, consequence);
        // There is a group for each rule with an alert, never more than alerts.
        let groups = limit("alerts.groups_max", ACTIVE_MAX, "the rule is told without waiting");
        Engine {
            timing,
            started: now,
            alerts: Map::new(limit(
                "alerts.active_max",
                ACTIVE_MAX,
                "not seen until there is room",
            )),
            groups: Map::new(groups),
            silences: Map::new(limit("alerts.silences_max", SILENCES_MAX, "503")),
            past: History::new(limit("alerts.past_max", PAST_MAX, "the oldest is forgotten")),
            dirty: Dirty::default(),
            numbers: Numbers::default(),
        }
    }

    /// Takes over what an earlier process kept, beside what is known already. Times that lie ahead count
    /// as now.
    pub fn restore(&mut self, alerts: Vec<Alert>, silences: Vec<Silence>, now: At) {
        for mut alert in alerts {
            if self.alerts.get(&alert.fingerprint).is_some() {
                continue;
            }
            alert.seen = false;
            alert.since = alert.since.min(now);
            alert.fired = alert.fired.map(|at| at.min(now));
            alert.ended = alert.ended.map(|at| at.min(now));
            alert.until = alert.until.map(|at| at.min(now.after(SILENCE_MAX)));
            if let Some(told) = &mut alert.told {
                told.at = told.at.min(now);
                let mut group = self.groups.get(&alert.rule).copied().unwrap_or_default();
                group.see_flush(told.at);
                let _ = self.groups.insert(alert.rule.clone(), group);
            }
            let _ = self.alerts.insert(alert.fingerprint.clone(), alert);
        }
        for mut silence in silences {
            silence.until = silence.until.min(now.after(SILENCE_MAX));
            let _ = self.silences.insert(silence.id.clone(), silence);
        }
    }

    /// Takes over new settings.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// One look: all readings of all rules that are judged, at `now`. Alerts of other rules end.
    pub fn step(&mut self, now: At, readings: &[(Arc<Rule>, Vec<Reading>)]) -> Step {
        let mut changes = Vec::new();
        let mut heard: Vec<String> = Vec::new();
        for (rule, found) in readings {
            for reading in found {
                let labels = labels(rule, &reading.subject);
                let fingerprint = fingerprint(&labels);
                self.read(now, rule, reading, labels, &fingerprint, &mut changes);
                heard.push(fingerprint);
            }
        }
        heard.sort_unstable();
        let grace = now.since(self.started) < GRACE;
        let silent: Vec<String> = self
            .alerts
            .iter()
            .filter(|(fingerprint, alert)| {
                let kept = alert.until.is_some_and(|until| now < until)
                    || grace && !alert.seen && readings.iter().any(|(r, _)| r.name == alert.rule);
                alert.state != State::Resolved && !kept && heard.binary_search(fingerprint).is_err()
            })
            .map(|(fingerprint, _)| fingerprint.clone())
            .collect();
        for fingerprint in silent {
            self.end(now, &fingerprint, &mut changes);
        }
        self.expire_silences(now);
        self.cover(readings);
        let notices = self.flush(now);
        self.forget(now);
        Step { changes, notices }
    }

    /// One reading of one thing.
    fn read(
        &mut self,
        now: At,
        rule: &Rule,
        reading: &Reading,
        labels: Labels,
        fingerprint: &str,
        changes: &mut Vec<Change>,
    ) {
        let known = self.alerts.get_mut(fingerprint);
        match (reading.judged, known) {
            (Judged::Good, Some(_)) => self.end(now, fingerprint, changes),
            (Judged::Good | Judged::Between | Judged::Unknown, None) => {}
            (Judged::Unknown, Some(_)) => {}
            (Judged::Between, Some(alert)) => {
                alert.seen = true;
                // What was only on its way to be an alert is none between the two.
                match alert.state {
                    State::Pending => self.end(now, fingerprint, changes),
                    State::Firing => self.hold(now, rule, fingerprint, changes),
                    State::Resolved => {}
                }
            }
            (Judged::Bad, known) => {
                let fresh = known.is_none_or(|alert| alert.state == State::Resolved);
                if fresh && !self.begin(now, rule, labels, fingerprint) {
                    return;
                }
                if let Some(alert) = self.alerts.get_mut(fingerprint) {
                    alert.seen = true;
                    alert.value = reading.value;
                    alert.text = cut(reading.text.clone());
                    alert.severity = rule.severity;
                    alert.labels = super::alert::labels(rule, &reading.subject);
                    alert.summary.clone_from(&rule.summary);
                    if reading.until != alert.until {
                        alert.until = reading.until;
                        self.dirty.alert(fingerprint, Some(alert));
                    }
                }
                self.hold(now, rule, fingerprint, changes);
            }
        }
    }

    /// A new alert, or one that is back before all was told of it. False when there is no room.
    fn begin(&mut self, now: At, rule: &Rule, labels: Labels, fingerprint: &str) -> bool {
        let told = self.alerts.get(fingerprint).and_then(|alert| alert.told);
        // Of one that has fired and whose end is not told yet both are kept until they are.
        let before = self.alerts.get(fingerprint).filter(|a| a.told.is_none_or(|told| told.firing));
        let (fired, ended) = before.map_or((None, None), |alert| (alert.fired, alert.ended));
        let alert = Alert {
            rule: rule.name.clone(),
            severity: rule.severity,
            labels,
            fingerprint: fingerprint.to_owned(),
            state: State::Pending,
            since: now,
            fired,
            ended,
            value: None,
            text: String::new(),
            summary: rule.summary.clone(),
            until: None,
            told,
            muted: None,
            silenced: None,
            seen: true,
        };
        self.alerts.insert(fingerprint.to_owned(), alert).is_ok()
    }

    /// It is so still: perhaps for long enough now.
    fn hold(&mut self, now: At, rule: &Rule, fingerprint: &str, changes: &mut Vec<Change>) {
        let Some(alert) = self.alerts.get_mut(fingerprint) else { return };
        if alert.state == State::Pending && now.since(alert.since) >= rule.hold {
            alert.state = State::Firing;
            alert.fired.get_or_insert(now);
            alert.ended = None;
            self.dirty.alert(fingerprint, Some(alert));
            changes.push(Change { state: State::Firing, alert: alert.clone() });
        }
    }

    /// It is over.
    fn end(&mut self, now: At, fingerprint: &str, changes: &mut Vec<Change>) {
        let Some(alert) = self.alerts.get_mut(fingerprint) else { return };
        match alert.state {
            // It never fired in this turn: what was told before stays told.
            State::Pending if alert.fired.is_none() && alert.told.is_none() => {
                self.alerts.remove(fingerprint);
            }
            State::Pending => {
                alert.state = State::Resolved;
                alert.ended.get_or_insert(now);
            }
            State::Firing => {
                alert.state = State::Resolved;
                alert.ended = Some(now);
                alert.until = None;
                self.dirty.alert(fingerprint, Some(alert));
                changes.push(Change { state: State::Resolved, alert: alert.clone() });
                let past = alert.clone();
                self.past.push(past);
            }
            State::Resolved => {}
        }
    }

    /// Says of each alert what mutes or silences it now.
    fn cover(&mut self, readings: &[(Arc<Rule>, Vec<Reading>)]) {
        let mut firing: Vec<String> = self
            .alerts
            .iter()
            .filter(|(_, alert)| alert.state == State::Firing)
            .map(|(_, alert)| alert.rule.clone())
            .collect();
        firing.sort_unstable();
        firing.dedup();
        let silences = &self.silences;
        self.alerts.retain(|_, alert| {
            let rule = readings.iter().find(|(rule, _)| rule.name == alert.rule);
            let muting = |name: &&String| firing.binary_search(name).is_ok();
            alert.muted = rule.and_then(|(rule, _)| rule.muted_by.iter().find(muting).cloned());
            let covering = silences.iter().find(|(_, silence)| silence.covers(&alert.labels));
            alert.silenced = covering.map(|(id, _)| id.clone());
            true
        });
    }

    /// Adds a silence.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence; `None` when there are too many.
    pub fn silence(
        &mut self,
        matching: &str,
        lasting: Duration,
        reason: &str,
        now: At,
    ) -> Result<Silence, Option<&'static str>> {
        conditions(matching).map_err(Some)?;
        if lasting.is_zero() || lasting > SILENCE_MAX {
            return Err(Some("a silence lasts from 1 s to 30 days"));
        }
        self.numbers.silence += 1;
        let id = format!("s{:x}-{}", now.0, self.numbers.silence);
        let end = (0..=REASON_BYTES_MAX.min(reason.len()))
            .rev()
            .find(|at| reason.is_char_boundary(*at))
            .unwrap_or(0);
        let silence = Silence {
            id: id.clone(),
            matching: matching.to_owned(),
            at: now,
            until: now.after(lasting),
            reason: reason[..end].to_owned(),
        };
        self.silences.insert(id.clone(), silence.clone()).map_err(|_| None)?;
        self.dirty.silence(&id, Some(&silence));
        Ok(silence)
    }

    /// Ends the silence of this id, or those that are written like this; how many there were.
    pub fn unsilence(&mut self, what: &str) -> usize {
        let fits = |silence: &Silence| silence.id == what || silence.matching == what;
        let found: Vec<String> = self
            .silences
            .iter()
            .filter(|(_, silence)| fits(silence))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &found {
            self.silences.remove(id);
            self.dirty.silence(id, None);
        }
        found.len()
    }

    fn expire_silences(&mut self, now: At) {
        let dirty = &mut self.dirty;
        self.silences.retain(|id, silence| {
            let lasts = now < silence.until;
            if !lasts {
                dirty.silence(id, None);
            }
            lasts
        });
    }

    /// Lets go of alerts of which all is told.
    fn forget(&mut self, now: At) {
        let (timing, dirty) = (self.timing, &mut self.dirty);
        self.alerts.retain(|fingerprint, alert| {
            let keep = alert.state != State::Resolved
                || match alert.told {
                    // Blips that nobody is to hear of.
                    None => alert.muted.is_none() && alert.silenced.is_none(),
                    // Kept for as long as it must not be told again.
                    Some(Told { at, .. }) if !timing.resolved => now.since(at) < timing.repeat,
                    Some(Told { firing, .. }) => firing,
                };
            if !keep {
                dirty.alert(fingerprint, None);
            }
            keep
        });
        let rules: Vec<&str> = self.alerts.iter().map(|(_, alert)| alert.rule.as_str()).collect();
        let interval = timing.group_interval;
        self.groups
            .retain(|rule, group| rules.contains(&rule.as_str()) || !group.quiet(now, interval));
    }

    /// What changed and is to be kept on disk. Asking empties it.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// All alerts, the gravest first.
    pub fn alerts(&self) -> Vec<Alert> {
        let mut alerts: Vec<Alert> = self.alerts.iter().map(|(_, alert)| alert.clone()).collect();
        alerts.sort_by(|a, b| {
            (b.state == State::Firing, b.severity, &a.rule, &a.fingerprint).cmp(&(
                a.state == State::Firing,
                a.severity,
                &b.rule,
                &b.fingerprint,
            ))
        });
        alerts
    }

    /// How many alerts fire, and how many there are.
    pub fn size(&self) -> (usize, usize) {
        let firing = self.alerts.iter().filter(|(_, alert)| alert.state == State::Firing).count();
        (firing, self.alerts.len())
    }

    /// All silences, those that end first before the others.
    pub fn silences(&self) -> Vec<Silence> {
        let mut silences: Vec<Silence> = self.silences.iter().map(|(_, s)| s.clone()).collect();
        silences.sort_by(|a, b| (a.until, &a.id).cmp(&(b.until, &b.id)));
        silences
    }

    /// Alerts that are over, the latest last.
    pub fn past(&self) -> Vec<Alert> {
        self.past.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
