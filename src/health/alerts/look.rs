//! The thread `alerts`: every few seconds it looks at everything, judges it, and puts what is to be told on
//! its way.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::alert::Notice;
use super::engine::{ACTIVE_MAX, Change};
use super::input::{Buckets, LimitSeen, Seen, Series, Value};
use super::judge::Judge;
use super::sampler::Sampler;
use super::service::Handle;
use super::{State, keep};
use crate::base::clock;
use crate::base::events::Event;
use crate::base::health::Phase;
use crate::base::heartbeat::{Beat, Doing};
use crate::config::settings::alerts::{Rule, Severity};
use crate::observe::reading::{self, Head, Reader, Reading};

/// How long the first look waits for the store to be open.
const OPENING_MAX: Duration = Duration::from_secs(5);
/// Between two looks at whether it is.
const OPENING_LOOK: Duration = Duration::from_millis(20);

/// Runs until the channel closes.
pub(super) fn run(handle: &Arc<Handle>, stopped: &Receiver<()>, beat: &Beat) {
    let mut work = Work {
        handle: Arc::clone(handle),
        judge: Judge::new(&handle.hands.registry),
        last_event: 0,
    };
    let opening = clock::now() + OPENING_MAX;
    // What an earlier process told must be known before anything is told.
    while keep::opening(handle) && clock::now() < opening {
        beat.waits(Doing::Disk, clock::now() + OPENING_LOOK);
        if stopped.recv_timeout(OPENING_LOOK) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
    let mut next = clock::now();
    loop {
        beat.waits(Doing::Pause, next);
        if stopped.recv_deadline(next) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        beat.tick();
        let begun = clock::now();
        work.look(begun);
        // After a pause of the whole machine the looks that it missed are not made up for.
        next = begun + handle.settings.load().interval;
    }
}

struct Work {
    handle: Arc<Handle>,
    judge: Judge,
    /// The number of the last event that was seen.
    last_event: u64,
}

impl Work {
    fn look(&mut self, now: Instant) {
        let handle = Arc::clone(&self.handle);
        keep::load(&handle);
        let settings = handle.settings.load_full();
        let rules: &[Arc<Rule>] = if settings.enabled { &settings.rules } else { &[] };
        let seen = self.seen(now, rules);
        let readings = self.judge.judge(rules, &seen);
        let step = handle.engine.with(|engine| engine.step(seen.at, &readings));
        for change in &step.changes {
            self.tell(change);
        }
        self.send(step.notices);
        self.show(seen.at);
        handle.looks.fetch_add(1, Relaxed);
    }

    /// Everything that rules are judged by.
    fn seen(&mut self, now: Instant, rules: &[Arc<Rule>]) -> Seen {
        let hands = &self.handle.hands;
        let mut series = Collector { rules, wanted: None, series: Vec::new() };
        Reading::take(&hands.registry, &hands.levels).walk(&mut series);
        let limits = hands.registry.limits().iter().filter_map(LimitSeen::of).collect();
        let looks = hands.board.looks(now);
        Seen {
            at: self.handle.now(),
            series: series.series,
            limits,
            ready: hands.board.phase() == Phase::Ready,
            checks: looks.into_iter().map(|look| (look.name.clone(), look.counts())).collect(),
            threads: hands.heartbeats.late(now),
            events: self.events(),
            channels: self.handle.queue.with(|queue| queue.seen()),
        }
    }

    /// The events since the last look.
    fn events(&mut self) -> Vec<Event> {
        let mut events = self.handle.hands.events.recent();
        let last = self.last_event;
        events.retain(|event| event.number > last);
        if let (Some(first), Some(latest)) = (events.first(), events.last()) {
            // Numbers have no gaps: what is missing was dropped before it was seen.
            self.handle.counts.missed.add(first.number - last - 1);
            self.last_event = latest.number;
        }
        events
    }

    fn tell(&self, change: &Change) {
        let alert = &change.alert;
        let (level, kind) = match (change.state, alert.severity) {
            (State::Firing, Severity::Info) => (log::Level::Info, "alert_firing"),
            (State::Firing, Severity::Warning) => (log::Level::Warn, "alert_firing"),
            (State::Firing, Severity::Critical) => (log::Level::Error, "alert_firing"),
            _ => (log::Level::Info, "alert_resolved"),
        };
        self.handle.hands.events.record(level, kind, &alert.rule, alert.text.clone());
    }

    /// Puts notices on their way: first on the disk, with what was told, then in memory.
    fn send(&self, notices: Vec<Notice>) {
        let handle = &self.handle;
        let mut entries = Vec::new();
        for notice in notices {
            let notice = Arc::new(notice);
            let targets = handle.queue.with(|queue| queue.targets(&notice));
            entries.extend(targets.into_iter().map(|channel| (Arc::clone(&notice), channel)));
        }
        keep::save_dirty(handle, entries.iter().map(keep::spooled).collect());
        let mut gone = Vec::new();
        for (notice, channel) in &entries {
            gone.extend(handle.queue.with(|queue| queue.push(notice, channel, 0)));
        }
        let now = handle.now();
        gone.extend(handle.queue.with(|queue| queue.expire(now)));
        if !gone.is_empty() {
            keep::done(handle, &gone);
            handle.give_up(gone, "too old, or no room", now);
        }
        if !entries.is_empty() {
            handle.wake();
        }
        keep::resync(handle);
    }

    /// What the board and the metrics show of alerts.
    fn show(&self, now: super::At) {
        let handle = &self.handle;
        let (firing, all) = handle.engine.with(|engine| engine.size());
        let (undelivered, trouble) =
            handle.queue.with(|queue| (queue.undelivered(), queue.trouble(now)));
        handle.counts.firing.set(firing as u64);
        handle.counts.undelivered.set(undelivered as u64);
        let full =
            || (all >= ACTIVE_MAX).then(|| "too many alerts: further ones are not seen".to_owned());
        match trouble.or_else(full) {
            Some(why) => handle.check.degraded(why),
            None => handle.check.ok(),
        }
    }
}

/// Takes the series that rules look at out of a reading.
struct Collector<'a> {
    rules: &'a [Arc<Rule>],
    /// The name of the family, when it is one of those.
    wanted: Option<String>,
    series: Vec<Series>,
}

impl Reader for Collector<'_> {
    fn family(&mut self, head: Head<'_>) {
        self.wanted = Sampler::wants(self.rules, head.name).then(|| head.name.to_owned());
    }

    fn series(&mut self, labels: &[(&str, &str)], value: reading::Value<'_>) {
        let Some(name) = &self.wanted else { return };
        let value = match value {
            reading::Value::Histogram(histogram) => Value::Buckets(Buckets::of(histogram)),
            other => match other.number() {
                Some(number) => Value::Number(number),
                None => return,
            },
        };
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.series.push(Series { name: name.clone(), labels, value });
    }
}
