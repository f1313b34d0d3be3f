//! What happened to the program, kept over restarts: every event of `base::events`.

/// The table. `total` is the sum of the bytes of all events up to this one, so that the bytes of those
/// that are kept are known from the first and the last of them.
pub(super) const SCHEMA: &str = "
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    level INTEGER NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    left_out INTEGER NOT NULL,
    total INTEGER NOT NULL
) STRICT;
CREATE INDEX events_by_time ON events (at_ms);
CREATE INDEX events_by_kind ON events (kind, id);
";
