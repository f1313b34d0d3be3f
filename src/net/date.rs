//! The `Date` field, formatted once a second and thread.

use std::cell::Cell;
use std::time::UNIX_EPOCH;

use crate::base::clock;
use crate::base::time_format::{HTTP_DATE_BYTES, http_date_bytes};

thread_local! {
    static NOW: Cell<(u64, [u8; HTTP_DATE_BYTES])> = const { Cell::new((u64::MAX, [b' '; HTTP_DATE_BYTES])) };
}

/// The current date as IMF-fixdate (RFC 9110 section 5.6.7).
pub fn now() -> [u8; HTTP_DATE_BYTES] {
    let wall = clock::wall();
    let second = wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (of, text) = NOW.get();
    if of == second {
        return text;
    }
    let text = http_date_bytes(wall);
    NOW.set((second, text));
    text
}
