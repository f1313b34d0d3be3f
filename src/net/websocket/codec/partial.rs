//! A message on its way: it has the memory of what came of it.

use std::time::Instant;

use super::header::unmask;
use super::{Fault, NOT_TEXT, Step};
use crate::base::metrics::Lease;

/// The first step of a message's memory, in bytes; further ones double what it has.
const STEP_MIN: u64 = 512;

/// Most bytes that are read in one go: so much of a message may be there and not filled.
const SPACE_MAX: u64 = 64 * 1024;

/// A message on its way.
#[derive(Debug)]
pub(super) struct Partial {
    text: bool,
    pub(super) bytes: Vec<u8>,
    /// How far the text is known to be UTF-8.
    checked: usize,
    /// Bytes at the end that are room to read into, and came from nobody.
    offered: usize,
    budget: Lease,
    since: Instant,
}

impl Partial {
    /// One of which nothing has come but its header.
    pub(super) fn new(text: bool, budget: Lease, since: Instant) -> Self {
        Partial { text, bytes: Vec::new(), checked: 0, offered: 0, budget, since }
    }

    /// Bytes that came.
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Since when it is on its way.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// How many of `most` bytes there is room for, of a frame that has `left` bytes to come. `None`:
    /// for none of them, and the sum over all connections gives no more.
    pub(super) fn room(&mut self, left: u64, most: usize) -> Option<usize> {
        if most == 0 {
            return Some(0);
        }
        let have = self.len();
        if self.budget.amount() <= have {
            let step = have.max(STEP_MIN).min(left);
            if !self.budget.grow(step) {
                return None;
            }
            self.bytes.reserve_exact(usize::try_from(step).unwrap_or(0));
        }
        let room = usize::try_from(self.budget.amount() - have).unwrap_or(usize::MAX);
        Some(room.min(most))
    }

    /// Appends a part of a frame's payload, which begins at its byte number `at`.
    pub(super) fn append(&mut self, part: &[u8], mask: [u8; 4], at: u64) -> Result<(), Fault> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(part);
        self.arrived(start, mask, at)
    }

    /// Room to read the next bytes of the payload into; filled with zeros beforehand, so it is small
    /// beside what has come.
    pub(super) fn space(&mut self, left: u64) -> Option<&mut [u8]> {
        let most = left.min(self.len().clamp(STEP_MIN, SPACE_MAX));
        let room = self.room(left, usize::try_from(most).unwrap_or(0)).filter(|room| *room > 0)?;
        let start = self.bytes.len();
        self.offered = room;
        self.bytes.resize(start + room, 0);
        Some(&mut self.bytes[start..])
    }

    /// Of the space only the first `bytes` were filled.
    pub(super) fn filled(&mut self, bytes: usize, mask: [u8; 4], at: u64) -> Result<(), Fault> {
        let start = self.bytes.len() - std::mem::take(&mut self.offered);
        self.bytes.truncate(start + bytes);
        self.arrived(start, mask, at)
    }

    fn arrived(&mut self, start: usize, mask: [u8; 4], at: u64) -> Result<(), Fault> {
        unmask(&mut self.bytes[start..], mask, at);
        if !self.text {
            return Ok(());
        }
        match std::str::from_utf8(&self.bytes[self.checked..]) {
            Ok(_) => self.checked = self.bytes.len(),
            // What is there may be the beginning of a character.
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(NOT_TEXT),
        }
        Ok(())
    }

    /// The whole message; `None` when its text ends within a character.
    pub(super) fn whole(self) -> Option<Step> {
        if self.text {
            let text = String::from_utf8(self.bytes).ok()?;
            Some(Step::Text(text, self.budget))
        } else {
            Some(Step::Binary(self.bytes, self.budget))
        }
    }
}
