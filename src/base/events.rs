//! What happened to the program itself: a guard that opened, a limit that was hit for long, a file
//! that could not be watched. Each event is one log line, one count, and one entry of a short
//! history that the ops plane shows. Requests are no events; they have their access lines.

use std::sync::Arc;
use std::time::SystemTime;

use log::Level;

use super::bounded;
use super::clock;
use super::lock::{Locked, Rank};
use super::logsite::LogSite;
use super::metrics::{Counter, Limit, Registry};

/// Most events kept. Past it: the oldest is dropped.
pub const HISTORY_MAX: usize = 256;
/// Most bytes kept of a subject; the rest is cut.
pub const SUBJECT_BYTES_MAX: usize = 128;
/// Most bytes kept of a detail; the rest is cut. With [`HISTORY_MAX`] the history holds 160 KiB.
pub const DETAIL_BYTES_MAX: usize = 512;
/// Most kinds. They are written in the code, so that this is never met; past it: an event counts
/// under `other`.
pub const KINDS_MAX: usize = 128;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number since the start of the process, from 1 on without gaps.
    pub number: u64,
    /// When.
    pub at: SystemTime,
    /// How grave, as in the log.
    pub level: Level,
    /// What kind of thing happened, a stable word (`breaker_opened`).
    pub kind: &'static str,
    /// To what: an upstream, a limit, an address; or empty.
    pub subject: String,
    /// What a person wants to know about it, in a sentence or as `key=value`.
    pub detail: String,
}

/// The history of events. One for the whole process, handed to whoever has something to tell.
#[derive(Debug)]
pub struct Events {
    registry: Arc<Registry>,
    history: Locked<History>,
    kinds: Locked<Vec<Arc<Seen>>>,
    kinds_limit: Arc<Limit>,
}

#[derive(Debug)]
struct History {
    events: bounded::History<Event>,
    last: u64,
}

/// What is kept for each kind: one that comes in a flood must not mute the others.
#[derive(Debug)]
struct Seen {
    kind: &'static str,
    count: Arc<Counter>,
    site: LogSite,
}

impl Events {
    /// An empty history.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        let limit = registry.limit("events.history_max", "", HISTORY_MAX as u64, "oldest dropped");
        let kinds = registry.limit("events.kinds_max", "", KINDS_MAX as u64, "counted as `other`");
        Arc::new(Events {
            kinds_limit: kinds,
            registry,
            history: Locked::new(
                Rank::Leaf,
                History { events: bounded::History::new(limit), last: 0 },
            ),
            kinds: Locked::new(Rank::Leaf, Vec::new()),
        })
    }

    /// Tells an event: a log line with `kind` as its name (limited per kind), a count in
    /// `tidegate_events_total`, and an entry of the history. Takes locks and logs: not to be called
    /// under a lock.
    pub fn record(&self, level: Level, kind: &'static str, subject: &str, mut detail: String) {
        let seen = self.seen(kind);
        seen.count.inc();
        let subject = &subject[..boundary(subject, SUBJECT_BYTES_MAX)];
        detail.truncate(boundary(&detail, DETAIL_BYTES_MAX));
        if level <= log::max_level() {
            match seen.site.pass() {
                None => {}
                Some(0) => log::log!(level, subject, detail:% = detail; "{kind}"),
                Some(suppressed) => {
                    log::log!(level, subject, detail:% = detail, suppressed; "{kind}");
                }
            }
        }
        let at = clock::wall();
        let subject = subject.to_owned();
        let oldest = self.history.with(|history| {
            history.last += 1;
            let number = history.last;
            history.events.push(Event { number, at, level, kind, subject, detail })
        });
        // Its texts are freed outside the lock.
        drop(oldest);
    }

    /// The history, oldest first.
    pub fn recent(&self) -> Vec<Event> {
        self.history.with(|history| history.events.iter().cloned().collect())
    }

    /// Those after the one of this number, oldest first; 0: the whole history. When the first of them
    /// is not the next number, the ones between came too fast for whoever asks.
    pub fn after(&self, number: u64) -> Vec<Event> {
        self.history.with(|history| {
            if history.last <= number {
                return Vec::new();
            }
            history.events.iter().filter(|event| event.number > number).cloned().collect()
        })
    }

    fn seen(&self, kind: &'static str) -> Arc<Seen> {
        let find = |kinds: &[Arc<Seen>], kind| kinds.iter().find(|s| s.kind == kind).cloned();
        if let Some(seen) = self.kinds.with(|kinds| find(kinds, kind)) {
            return seen;
        }
        let room = self.kinds.with(|kinds| kinds.len() < KINDS_MAX);
        if !room {
            self.kinds_limit.refuse();
        }
        let kind = if room { kind } else { "other" };
        let help = "Events of the program itself, by kind.";
        let count = self.registry.counter("tidegate_events_total", help, &[("kind", kind)]);
        let fresh = Arc::new(Seen { kind, count, site: LogSite::new() });
        self.kinds.with(|kinds| {
            find(kinds, kind).unwrap_or_else(|| {
                kinds.push(Arc::clone(&fresh));
                // `other` is not one of them.
                self.kinds_limit.set_now(kinds.len().min(KINDS_MAX) as u64);
                fresh
            })
        })
    }
}

/// Where to cut a text so that at most `max` bytes of it are left.
fn boundary(text: &str, max: usize) -> usize {
    let end = text.len().min(max);
    (0..=end).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> (Arc<Registry>, Arc<Events>) {
        let registry = Arc::new(Registry::default());
        let events = Events::new(Arc::clone(&registry));
        (registry, events)
    }

    #[test]
    fn the_oldest_event_makes_room_for_the_newest() {
        let (registry, events) = events();
        for n in 0..HISTORY_MAX + 3 {
            events.record(Level::Debug, "tried", "x", n.to_string());
        }
        let recent = events.recent();
        assert_eq!(recent.len(), HISTORY_MAX);
        assert_eq!((recent[0].number, &*recent[0].detail), (4, "3"));
        assert!(recent.windows(2).all(|two| two[0].number + 1 == two[1].number));
        let after = |number| events.after(number).iter().map(|e| e.number).collect::<Vec<_>>();
        assert_eq!(after(HISTORY_MAX as u64 + 1), [258, 259]);
        assert_eq!(after(HISTORY_MAX as u64 + 3), [0_u64; 0]);
        assert_eq!(after(0).len(), HISTORY_MAX);
        let (families, limits) = registry.gather();
        let limit = &limits.iter().find(|l| l.name == "events.history_max").unwrap().limit;
        assert_eq!((limit.now(), limit.max(), limit.refused()), (256, 256, 3));
        let counted = |metric: &super::super::metrics::Metric| match metric {
            super::super::metrics::Metric::Counter(counter) => counter.value(),
            _ => 0,
        };
        assert_eq!(counted(&families[0].series[0].1), HISTORY_MAX as u64 + 3);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let (_, events) = events();
        events.record(Level::Debug, "tried", &"é".repeat(100), "€".repeat(1000));
        let event = events.recent().remove(0);
        assert_eq!((event.subject.len(), event.detail.len()), (128, 510));
    }

    #[test]
    fn kinds_are_bounded() {
        let (registry, events) = events();
        for n in 0..KINDS_MAX + 5 {
            let kind: &'static str = Box::leak(n.to_string().into_boxed_str());
            events.record(Level::Debug, kind, "", String::new());
            events.record(Level::Debug, kind, "", String::new());
        }
        let (families, _) = registry.gather();
        assert_eq!(families[0].series.len(), KINDS_MAX + 1, "and `other`");
        assert_eq!(events.kinds.with(|kinds| kinds.len()), KINDS_MAX + 1);
    }
}
