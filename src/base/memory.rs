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

/// Memory above the least since the last trim that makes a trim worthwhile, in bytes.
const GROWTH_MIN: u64 = 4 * 1024 * 1024;

/// Shortest time between two trims: each walks through all arenas, under their locks.
const PAUSE_MIN: Duration = Duration::from_secs(5);

/// Fixes the threshold for blocks of their own. To be called once, before there are threads.
pub fn settle() {
    sys::own_pages_from(OWN_PAGES_MIN);
}

/// Gives free memory back to the system. Takes about a millisecond for each 10 MiB that are free.
/// False when there was none, or when the allocator knows no such thing.
pub fn trim() -> bool {
    sys::trim()
}

/// When to trim: while memory in use grows it is of no use, and one that was of no use is not
/// repeated until memory has grown again. Pure: it is told the time and the memory.
#[derive(Debug)]
pub struct Trimmer {
    /// The least resident memory since the last trim, in bytes.
    floor: Option<u64>,
    trimmed: Instant,
}

impl Trimmer {
    /// One that has not trimmed yet.
    pub fn new(now: Instant) -> Self {
        Trimmer { floor: None, trimmed: now }
    }

    /// Whether to trim now, with this many bytes resident. [`Trimmer::trimmed`] follows.
    pub fn due(&mut self, now: Instant, resident: u64) -> bool {
        let floor = self.floor.map_or(resident, |floor| floor.min(resident));
        self.floor = Some(floor);
        let grown = resident - floor;
        grown >= GROWTH_MIN.max(floor / 8) && now >= self.trimmed + PAUSE_MIN
    }

    /// It was trimmed, and this many bytes are resident now.
    pub fn trimmed(&mut self, now: Instant, resident: u64) {
        self.floor = Some(resident);
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
    fn memory_that_grew_is_trimmed_but_not_all_the_time() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut trimmer = Trimmer::new(start);
        assert!(!trimmer.due(at(10), 10 * MIB), "the first look is where it stands");
        assert!(!trimmer.due(at(11), 13 * MIB), "too little");
        assert!(trimmer.due(at(12), 14 * MIB));
        trimmer.trimmed(at(12), 13 * MIB);
        assert!(!trimmer.due(at(13), 60 * MIB), "too soon");
        assert!(trimmer.due(at(17), 60 * MIB));
        // All of it was in use: nothing more until it grows by an eighth.
        trimmer.trimmed(at(17), 60 * MIB);
        assert!(!trimmer.due(at(60), 67 * MIB));
        assert!(trimmer.due(at(61), 68 * MIB));
        // What went back by itself makes a new floor.
        trimmer.trimmed(at(61), 68 * MIB);
        assert!(!trimmer.due(at(70), 20 * MIB));
        assert!(trimmer.due(at(71), 25 * MIB));
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
