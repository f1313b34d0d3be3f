//! The allocator, told what a program that runs for months wants of it: memory that is not needed
//! any more goes back to the system.
//!
//! With glibc two habits stand against that. Its threshold for blocks of their own (`mmap`) rises
//! to 32 MiB with the first large block that is freed, and from then on large bodies lie in the
//! arenas of the threads, of which only the top goes back; and what was freed in the middle of an
//! arena stays, until `malloc_trim` is called. Measured: 50 bodies of 30 MiB left 984 MiB behind
//! for good, with both mended less than 20 MiB. Other allocators are left alone.

use std::time::{Duration, Instant};

/// Blocks from this size on get pages of their own, which go back when they are freed. Below it a
/// block is cheaper from an arena: bodies of ordinary chats stay there. In bytes.
const OWN_PAGES_MIN: i32 = 512 * 1024;

/// Memory above the least there ever was that makes a trim worthwhile, in bytes.
const GROWTH_MIN: u64 = 4 * 1024 * 1024;

/// A trim that gave back less was of no use, in bytes.
const USEFUL_MIN: u64 = 1024 * 1024;

/// Shortest time between two trims: each walks through all arenas, under their locks.
const PAUSE_MIN: Duration = Duration::from_secs(5);

/// Longest time between two trims while there is more memory than there was at least: what is in
/// use at one trim may be free at the next.
const PAUSE_MAX: Duration = Duration::from_secs(40);

/// Fixes the threshold for blocks of their own. To be called once, before there are threads.
pub fn settle() {
    sys::own_pages_from(OWN_PAGES_MIN);
}

/// Gives free memory back to the system. Takes about a millisecond for each 10 MiB that are free.
/// False when there was none, or when the allocator knows no such thing.
pub fn trim() -> bool {
    sys::trim()
}

/// When to trim: a moment after memory has grown, and again after longer and longer pauses for as
/// long as it is above the least there was. Pure: it is told the time and the memory.
#[derive(Debug)]
pub struct Trimmer {
    /// The least resident memory that was ever seen, in bytes.
    least: Option<u64>,
    /// What was resident after the last trim, in bytes.
    left: u64,
    trimmed: Instant,
    pause: Duration,
}

impl Trimmer {
    /// One that has not trimmed yet.
    pub fn new(now: Instant) -> Self {
        Trimmer { least: None, left: 0, trimmed: now, pause: PAUSE_MIN }
    }

    /// Whether to trim now, with this many bytes resident. [`Trimmer::trimmed`] follows.
    pub fn due(&mut self, now: Instant, resident: u64) -> bool {
        let least = self.least.map_or(resident, |least| least.min(resident));
        self.least = Some(least);
        if resident >= self.left.saturating_add(GROWTH_MIN) {
            self.pause = PAUSE_MIN;
        }
        resident - least >= GROWTH_MIN.max(least / 8) && now >= self.trimmed + self.pause
    }

    /// It was trimmed: so many bytes were resident, and so many are now.
    pub fn trimmed(&mut self, now: Instant, before: u64, after: u64) {
        let useful = before.saturating_sub(after) >= USEFUL_MIN;
        self.pause = if useful { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        self.left = after;
        self.trimmed = now;
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator has no safe interface")]
mod sys {
    pub fn own_pages_from(bytes: i32) {
        // SAFETY: mallopt(3) takes two numbers, and with these it only sets a field of the
        // allocator's own. It is no race: it is called before there are other threads, and locks.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
    }

    pub fn trim() -> bool {
        // SAFETY: malloc_trim(3) may be called by any thread at any time; it takes the locks of the
        // arenas, and gives back pages that hold nothing but free blocks.
        unsafe { libc::malloc_trim(0) == 1 }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod sys {
    pub fn own_pages_from(_bytes: i32) {}

    pub fn trim() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn memory_that_grew_is_trimmed_until_it_is_back_but_not_all_the_time() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut trimmer = Trimmer::new(start);
        assert!(!trimmer.due(at(10), 10 * MIB), "the first look is where it stands");
        assert!(!trimmer.due(at(11), 13 * MIB), "too little");
        assert!(trimmer.due(at(12), 14 * MIB));
        trimmer.trimmed(at(12), 14 * MIB, 11 * MIB);
        assert!(!trimmer.due(at(13), 60 * MIB), "too soon");
        assert!(trimmer.due(at(17), 60 * MIB));
        // All of it was in use. It is looked at again, later and later, since what is free at last
        // does not show.
        trimmer.trimmed(at(17), 60 * MIB, 60 * MIB);
        assert!(!trimmer.due(at(26), 60 * MIB));
        assert!(trimmer.due(at(27), 60 * MIB));
        trimmer.trimmed(at(27), 60 * MIB, 60 * MIB);
        assert!(!trimmer.due(at(46), 60 * MIB));
        assert!(trimmer.due(at(47), 60 * MIB));
        trimmer.trimmed(at(47), 60 * MIB, 60 * MIB);
        // More of it: soon again.
        assert!(trimmer.due(at(52), 70 * MIB));
        trimmer.trimmed(at(52), 70 * MIB, 11 * MIB);
        assert!(!trimmer.due(at(600), 11 * MIB), "it is back");
    }

    #[test]
    fn memory_that_stays_in_use_is_looked_at_every_forty_seconds_at_most() {
        let start = clock::now();
        let mut trimmer = Trimmer::new(start);
        trimmer.due(start, 10 * MIB);
        let mut trims = 0;
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            if trimmer.due(now, 100 * MIB) {
                trims += 1;
                trimmer.trimmed(now, 100 * MIB, 100 * MIB);
            }
        }
        assert!((85..=95).contains(&trims), "{trims}");
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_trim_gives_back_what_is_free_between_blocks_in_use() {
        // Blocks of an arena, every second one freed: the top stays in use.
        let mut blocks: Vec<Vec<u8>> = (0..2048).map(|_| vec![1; 64 * 1024]).collect();
        let kept: Vec<_> = blocks.drain(..).enumerate().filter(|(i, _)| i % 2 == 1).collect();
        assert!(trim(), "64 MiB are free");
        assert!(kept.iter().all(|(_, block)| block.iter().all(|byte| *byte == 1)));
    }
}
