//! Notices on their way to channels: what is sent next, to whom, and when.
//!
//! Each channel has a lane of its own: one that fails is left alone for longer and longer and does not
//! hold up the others. A notice that a channel chokes on goes behind its others. What is too old,
//! or finds no room, is given up, and that is counted and told.

use std::sync::Arc;
use std::time::Duration;

use super::Outcome;
use crate::base::bounded::Map;
use crate::base::metrics::{Limit, Registry, Unit};
use crate::config::settings::Alerts;
use crate::config::settings::alerts::Channel;
use crate::health::alerts::input::ChannelSeen;
use crate::health::alerts::{At, Notice};

/// Most lanes: one for each channel, and those of a configuration before it for a moment.
const LANES_MAX: usize = 16;
/// What an entry costs beside its texts, in bytes.
const ENTRY_BYTES: u64 = 256;
/// A channel that fails at its deliveries for so long is told of on the board.
pub const FAILING_AFTER: Duration = Duration::from_secs(60);

/// One notice on its way to one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The notice.
    pub notice: Arc<Notice>,
    /// The channel.
    pub channel: String,
    /// How often it was tried.
    pub tries: u32,
    /// Whether another channel has it already.
    pub told: bool,
    /// What it counts for.
    bytes: u64,
}

/// A channel's lane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    /// It is left alone until then.
    pub not_before: At,
    /// Failures in a row.
    pub failures: u32,
    /// When the first of them was.
    pub failing_since: Option<At>,
    /// What the last one was.
    pub why: String,
    /// When it took something last.
    pub delivered_at: Option<At>,
    /// Notices that it took.
    pub delivered: u64,
    /// Notices that it will never have.
    pub given_up: u64,
    /// The rate: when its allowance is whole again.
    whole_at: At,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Send this.
    Send(Entry),
    /// Nothing before then.
    Wait(At),
    /// Nothing at all.
    Idle,
}

/// Bounds and times: a part of `[alerts]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rules {
    age: Duration,
    retry_min: Duration,
    retry_max: Duration,
}

/// All notices on their way.
#[derive(Debug)]
pub struct Queue {
    rules: Rules,
    /// Oldest first. At most `count`.
    entries: Vec<Entry>,
    lanes: Map<String, Lane>,
    channels: Vec<Arc<Channel>>,
    count: Arc<Limit>,
    bytes: Arc<Limit>,
    /// When a notice was last lost: given up without any channel having had it.
    lost_at: Option<At>,
    lost: u64,
}

impl Queue {
    /// An empty one.
    pub fn new(settings: &Alerts, registry: &Registry) -> Self {
        let consequence = "the oldest notice is given up, told as alert_given_up";
        let lanes = registry.limit("alerts.lanes_max", "", LANES_MAX as u64, "it is not told");
        let mut queue = Queue {
            rules: Rules {
                age: Duration::ZERO,
                retry_min: Duration::ZERO,
                retry_max: Duration::ZERO,
            },
            entries: Vec::new(),
            lanes: Map::new(lanes),
            channels: Vec::new(),
            count: registry.limit("alerts.spool_max", "", 0, consequence),
            bytes: registry.limit_of(Unit::Bytes, "alerts.spool_bytes_max", "", 0, consequence),
            lost_at: None,
            lost: 0,
        };
        queue.reconfigure(settings);
        queue
    }

    /// Takes over new settings. Gives back what was on its way to channels that are no more, and has
    /// nowhere else to go.
    pub fn reconfigure(&mut self, settings: &Alerts) -> Vec<Entry> {
        let Alerts { spool_age: age, retry_min, retry_max, .. } = *settings;
        self.rules = Rules { age, retry_min, retry_max };
        self.count.set_max(settings.spool_max as u64);
        self.bytes.set_max(settings.spool_bytes_max);
        self.channels.clone_from(&settings.channels);
        let known = |name: &str| settings.channels.iter().any(|channel| channel.name == name);
        self.lanes.retain(|name, _| known(name));
        for channel in &settings.channels {
            let _ = self.lanes.get_or_insert_with(channel.name.clone(), Lane::default);
        }
        let (kept, gone) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition::<Vec<Entry>, _>(|entry| known(&entry.channel));
        self.entries = kept;
        self.measure();
        gone
    }

    /// The channels that a notice goes to: those that take its severity, and not one that it is about
    /// as long as there is another.
    pub fn targets(&self, notice: &Notice) -> Vec<String> {
        let takes = |channel: &&Arc<Channel>| channel.takes(notice.severity);
        let about = notice.about_channel();
        let others = |channel: &&Arc<Channel>| Some(channel.name.as_str()) != about;
        let mut found: Vec<&Arc<Channel>> =
            self.channels.iter().filter(takes).filter(others).collect();
        if found.is_empty() && about.is_some() {
            // Better one that does not take the severity than none; and the channel itself may be back.
            found = self.channels.iter().filter(others).collect();
        }
        if found.is_empty() {
            found = self.channels.iter().filter(takes).collect();
        }
        found.into_iter().map(|channel| channel.name.clone()).collect()
    }

    /// Puts a notice on its way to a channel. Gives back what found no room for it.
    pub fn push(&mut self, notice: &Arc<Notice>, channel: &str, tries: u32) -> Vec<Entry> {
        let known = |entry: &Entry| entry.notice.id == notice.id && entry.channel == channel;
        if self.entries.iter().any(known) {
            return Vec::new();
        }
        let bytes = size(notice);
        self.entries.push(Entry {
            notice: Arc::clone(notice),
            channel: channel.to_owned(),
            tries,
            told: false,
            bytes,
        });
        let mut gone = Vec::new();
        let mut held: u64 = self.entries.iter().map(|entry| entry.bytes).sum();
        while self.entries.len() as u64 > self.count.max()
            || held > self.bytes.max() && self.entries.len() > 1
        {
            // What another channel has goes first.
            let at = self.entries.iter().position(|entry| entry.told).unwrap_or(0);
            let entry = self.entries.remove(at);
            held -= entry.bytes;
            self.count.refuse();
            gone.push(entry);
        }
        self.measure();
        gone
    }

    /// What to send now: of the channels that may be called the soundest first, of its notices the one
    /// that was tried least.
    pub fn next(&self, now: At) -> Next {
        let mut best: Option<((u32, u32), &Entry)> = None;
        let mut wake: Option<At> = None;
        for entry in &self.entries {
            let Some((ready, failures)) = self.ready(&entry.channel) else { continue };
            if ready > now {
                wake = Some(wake.map_or(ready, |wake| wake.min(ready)));
            } else if best.is_none_or(|(least, _)| (failures, entry.tries) < least) {
                best = Some(((failures, entry.tries), entry));
            }
        }
        match (best, wake) {
            (Some((_, entry)), _) => Next::Send(entry.clone()),
            (None, Some(wake)) => Next::Wait(wake),
            (None, None) => Next::Idle,
        }
    }

    /// When a channel may be called, and its failures.
    fn ready(&self, channel: &str) -> Option<(At, u32)> {
        let lane = self.lanes.get(channel)?;
        let whole = Duration::from_secs(60);
        let cost = self.cost(channel)?;
        // Within its rate when the allowance is whole again less than a minute from then.
        let within = At(lane.whole_at.after(cost).0.saturating_sub(millis(whole)));
        Some((lane.not_before.max(within), lane.failures))
    }

    /// The time that one notice takes of a channel's minute.
    fn cost(&self, channel: &str) -> Option<Duration> {
        let settings = self.channels.iter().find(|have| have.name == channel)?;
        u32::try_from(settings.per_minute.max(1)).ok().map(|n| Duration::from_secs(60) / n)
    }

    /// What became of an entry. `jitter` is any number from 0 to 1. Gives the entry back when it is
    /// done with, one way or the other.
    pub fn done(
        &mut self,
        entry: &Entry,
        outcome: &Outcome,
        now: At,
        jitter: f64,
    ) -> Option<Entry> {
        if let Some(cost) = self.cost(&entry.channel)
            && let Some(lane) = self.lanes.get_mut(&entry.channel)
        {
            lane.whole_at = lane.whole_at.max(now).after(cost);
        }
        self.answered(&entry.channel, outcome, now, jitter);
        let same = |have: &Entry| have.notice.id == entry.notice.id;
        let at = self.entries.iter().position(|have| same(have) && have.channel == entry.channel);
        let at = at?;
        match outcome {
            Outcome::Later { .. } => {
                if let Some(entry) = self.entries.get_mut(at) {
                    entry.tries = entry.tries.saturating_add(1);
                }
                return None;
            }
            Outcome::Delivered { .. } => {
                for sibling in self.entries.iter_mut().filter(|have| same(have)) {
                    sibling.told = true;
                }
            }
            Outcome::Refused { .. } => {}
        }
        let entry = self.entries.remove(at);
        self.measure();
        Some(entry)
    }

    /// What a channel answered to anything.
    pub fn answered(&mut self, channel: &str, outcome: &Outcome, now: At, jitter: f64) {
        let rules = self.rules;
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        let (wait, why) = match outcome {
            Outcome::Delivered { wait } => {
                lane.failures = 0;
                lane.failing_since = None;
                lane.why.clear();
                lane.delivered_at = Some(now);
                lane.delivered += 1;
                lane.not_before = wait.map_or(lane.not_before, |wait| now.after(wait));
                return;
            }
            Outcome::Refused { channel: false, why } => {
                lane.why.clone_from(why);
                return;
            }
            Outcome::Refused { channel: true, why } => (None, why),
            Outcome::Later { wait, why } => (*wait, why),
        };
        lane.failures = lane.failures.saturating_add(1);
        lane.failing_since.get_or_insert(now);
        lane.why.clone_from(why);
        let doubled = rules.retry_min.saturating_mul(1 << lane.failures.saturating_sub(1).min(20));
        let backoff = doubled.min(rules.retry_max).mul_f64(0.5 + jitter.clamp(0.0, 1.0));
        lane.not_before = now.after(wait.map_or(backoff, |wait| wait.max(backoff)));
    }

    /// Takes out what was tried for too long.
    pub fn expire(&mut self, now: At) -> Vec<Entry> {
        let age = self.rules.age;
        let (kept, gone) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition::<Vec<Entry>, _>(|entry| now.since(entry.notice.at) < age);
        self.entries = kept;
        self.measure();
        gone
    }

    /// Notes that an entry was given up; whether its notice is lost: nobody has it, and no other channel
    /// will.
    pub fn give_up(&mut self, entry: &Entry, now: At) -> bool {
        if let Some(lane) = self.lanes.get_mut(&entry.channel) {
            lane.given_up += 1;
        }
        let waits = self.entries.iter().any(|have| have.notice.id == entry.notice.id);
        let lost = !entry.told && !waits;
        if lost {
            self.lost += 1;
            self.lost_at = Some(now);
        }
        lost
    }

    /// The lanes, in the order of the configuration.
    pub fn lanes(&self) -> Vec<(Arc<Channel>, Lane, usize)> {
        let lane = |channel: &Arc<Channel>| {
            let lane = self.lanes.get(&channel.name).cloned().unwrap_or_default();
            let waiting = self.entries.iter().filter(|entry| entry.channel == channel.name).count();
            (Arc::clone(channel), lane, waiting)
        };
        self.channels.iter().map(lane).collect()
    }

    /// The channels as rules see them.
    pub fn seen(&self) -> Vec<ChannelSeen> {
        let seen = |(channel, lane, _): (Arc<Channel>, Lane, usize)| ChannelSeen {
            name: channel.name.clone(),
            failing_since: lane.failing_since,
            why: lane.why,
        };
        self.lanes().into_iter().map(seen).collect()
    }

    /// Everything that is on its way.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Notices that no channel has yet.
    pub fn undelivered(&self) -> usize {
        let mut ids: Vec<&str> =
            self.entries.iter().filter(|e| !e.told).map(|e| e.notice.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// Notices that were lost since the start.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What is wrong with delivery, in a sentence; `None` when all is well.
    pub fn trouble(&self, now: At) -> Option<String> {
        const LOST_FOR: Duration = Duration::from_secs(3600);
        const WAITS_FOR: Duration = Duration::from_secs(300);
        if self.lost_at.is_some_and(|at| now.since(at) < LOST_FOR) {
            return Some(format!("{} notices were lost: no channel took them", self.lost));
        }
        let failing = self.lanes().into_iter().find(|(_, lane, _)| {
            lane.failing_since.is_some_and(|since| now.since(since) >= FAILING_AFTER)
                || lane.failures >= 3
        });
        if let Some((channel, lane, waiting)) = failing {
            let (name, why) = (&channel.name, &lane.why);
            return Some(format!("nothing gets through on {name}: {why}; {waiting} notices wait"));
        }
        let old = |entry: &&Entry| !entry.told && now.since(entry.notice.at) >= WAITS_FOR;
        let old = self.entries.iter().filter(old).count();
        (old > 0).then(|| format!("{old} notices have waited for more than 5 minutes"))
    }

    fn measure(&self) {
        self.count.set_now(self.entries.len() as u64);
        self.bytes.set_now(self.entries.iter().map(|entry| entry.bytes).sum());
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a notice counts for, in bytes.
fn size(notice: &Notice) -> u64 {
    let texts = |labels: &[(String, String)]| -> usize {
        labels.iter().map(|(name, value)| name.len() + value.len()).sum()
    };
    let item = |item: &crate::health::alerts::Item| {
        item.text.len() + item.summary.len() + texts(&item.labels) + 64
    };
    ENTRY_BYTES + notice.items.iter().map(item).sum::<usize>() as u64
}

#[cfg(test)]
mod tests;
