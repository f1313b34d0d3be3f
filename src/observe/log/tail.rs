//! The last lines of the log, and who follows them. The writer's thread gives each line here; it never
//! waits for whoever reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use log::Level;

use crate::base::bounded::{Full, History, Subscribers, Subscription};
use crate::base::lock::{self, Locked, Rank};
use crate::base::metrics::{Limit, Registry, Unit};

/// Most lines that are kept. Past it: the oldest is forgotten.
pub const RECENT_MAX: usize = 1000;
/// Most bytes of them. Past it: the oldest are forgotten.
pub const RECENT_BYTES_MAX: u64 = 256 * 1024;
/// Most followers at a time. Past it: refused.
pub const FOLLOWERS_MAX: usize = 8;
/// Lines that wait for one follower. Past it: dropped, counted and told.
pub const FOLLOWER_LINES_MAX: usize = 1024;

/// A line with its end, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailLine {
    /// How grave.
    pub level: Level,
    /// The line.
    pub bytes: Arc<[u8]>,
}

/// The last lines, and the followers.
#[derive(Debug)]
pub struct Tail {
    recent: Locked<Recent>,
    bytes: Arc<Limit>,
    followers: Arc<Subscribers<Wire>>,
    waiting: Arc<Limit>,
}

#[derive(Debug)]
struct Recent {
    lines: History<TailLine>,
    bytes: u64,
    /// Bytes that were ever given here.
    total: u64,
}

/// The writer's end of one follower.
#[derive(Clone, Debug)]
struct Wire {
    lines: Sender<TailLine>,
    dropped: Arc<AtomicU64>,
}

/// Somebody who follows. Dropped, nothing more is sent.
#[derive(Debug)]
pub struct Follower {
    lines: Receiver<TailLine>,
    dropped: Arc<AtomicU64>,
    _place: Subscription<Wire>,
}

impl Tail {
    pub(super) fn new(registry: &Registry) -> Arc<Self> {
        let lines =
            registry.limit("log.recent_max", "", RECENT_MAX as u64, "the oldest is dropped");
        let oldest = "the oldest are dropped";
        let bytes =
            registry.limit_of(Unit::Bytes, "log.recent_bytes", "", RECENT_BYTES_MAX, oldest);
        let followers = registry.limit("log.followers_max", "", FOLLOWERS_MAX as u64, "503");
        let max = FOLLOWER_LINES_MAX as u64;
        let waiting = registry.limit_each(
            Unit::Entries,
            "log.follower_lines",
            "",
            max,
            "dropped for that follower, and told",
        );
        let recent = Recent { lines: History::new(lines), bytes: 0, total: 0 };
        Arc::new(Tail {
            recent: Locked::new(Rank::Leaf, recent),
            bytes,
            followers: Subscribers::new(followers),
            waiting,
        })
    }

    /// A line was taken out of the queue. Called by the writer only.
    pub(super) fn push(&self, level: Level, bytes: &[u8]) {
        let line = TailLine { level, bytes: bytes.into() };
        let copy = line.clone();
        let (gone, more, held) = self.recent.with(|recent| {
            recent.bytes += size(&line);
            recent.total += size(&line);
            let gone = recent.lines.push(line);
            recent.bytes -= gone.as_ref().map_or(0, size);
            // Most often none, which takes no memory.
            let mut more = Vec::new();
            while recent.bytes > RECENT_BYTES_MAX {
                let Some(oldest) = recent.lines.pop() else { break };
                recent.bytes -= size(&oldest);
                more.push(oldest);
            }
            (gone, more, recent.bytes)
        });
        // Freed outside the lock.
        drop((gone, more));
        self.bytes.set_now(held);
        if self.followers.is_empty() {
            return;
        }
        for wire in self.followers.all() {
            if wire.lines.try_send(copy.clone()).is_err() {
                wire.dropped.fetch_add(1, Relaxed);
                self.waiting.refuse();
            }
            self.waiting.saw(wire.lines.len() as u64);
        }
    }

    /// The last lines, oldest first.
    pub fn recent(&self) -> Vec<TailLine> {
        self.recent.with(|recent| recent.lines.iter().cloned().collect())
    }

    /// The last lines, oldest first, and how many bytes were ever given here, these with them.
    pub fn recent_of(&self) -> (Vec<TailLine>, u64) {
        self.recent.with(|recent| (recent.lines.iter().cloned().collect(), recent.total))
    }

    /// The last lines, and those that follow. A line may be in both, or in neither, when it is written
    /// at this very moment.
    ///
    /// # Errors
    /// When too many follow already.
    pub fn follow(self: &Arc<Self>, who: &str) -> Result<(Vec<TailLine>, Follower), Full> {
        let (lines, received) = bounded(FOLLOWER_LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let wire = Wire { lines, dropped: Arc::clone(&dropped) };
        let place = self.followers.subscribe(who, wire)?;
        Ok((self.recent(), Follower { lines: received, dropped, _place: place }))
    }
}

fn size(line: &TailLine) -> u64 {
    line.bytes.len() as u64
}

impl Follower {
    /// The next line, when one comes within `wait`.
    pub fn next(&self, wait: Duration) -> Option<TailLine> {
        lock::assert_none_held();
        self.lines.recv_timeout(wait).ok()
    }

    /// Lines that had no room, so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(tail: &Tail, text: &str) {
        tail.push(Level::Info, format!("{text}\n").as_bytes());
    }

    fn now_of(registry: &Registry, name: &str) -> (u64, u64) {
        let limits = registry.limits();
        let limit = &limits.iter().find(|limit| limit.name == name).unwrap().limit;
        (limit.now(), limit.refused())
    }

    #[test]
    fn the_last_lines_are_kept_within_their_count_and_their_bytes() {
        let registry = Registry::default();
        let tail = Tail::new(&registry);
        for n in 0..RECENT_MAX + 10 {
            push(&tail, &n.to_string());
        }
        let recent = tail.recent();
        assert_eq!((recent.len(), &*recent[0].bytes), (RECENT_MAX, b"10\n".as_slice()));
        let large = "x".repeat(64 * 1024 - 1);
        for _ in 0..6 {
            push(&tail, &large);
        }
        assert_eq!(tail.recent().len(), 4);
        assert_eq!(now_of(&registry, "log.recent_bytes").0, RECENT_BYTES_MAX);
        assert_eq!(now_of(&registry, "log.recent_max").0, 4);
    }

    #[test]
    fn a_follower_who_does_not_read_loses_lines_and_hears_how_many() {
        let registry = Registry::default();
        let tail = Tail::new(&registry);
        push(&tail, "before");
        let (last, slow) = tail.follow("slow").unwrap();
        assert_eq!(last.len(), 1);
        for n in 0..FOLLOWER_LINES_MAX + 7 {
            push(&tail, &n.to_string());
        }
        assert_eq!(slow.dropped(), 7);
        assert_eq!(&*slow.next(Duration::ZERO).unwrap().bytes, b"0\n");
        assert_eq!(now_of(&registry, "log.follower_lines").1, 7);
    }

    #[test]
    fn there_are_only_so_many_followers_and_each_leaves() {
        let registry = Registry::default();
        let tail = Tail::new(&registry);
        let all: Vec<_> = (0..FOLLOWERS_MAX).map(|_| tail.follow("x").unwrap()).collect();
        assert!(tail.follow("one more").is_err());
        drop(all);
        assert_eq!(now_of(&registry, "log.followers_max").0, 0);
        assert!(tail.follow("again").is_ok());
    }
}
