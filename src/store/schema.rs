//! The tables of both files, and the steps from each version to the next.

use super::db::Which;

/// The version of both files.
pub(super) const VERSION: i64 = 1;

/// What brings a file from a version to the next, for the versions from `from` on. A step that was
/// released is never changed.
pub(super) fn steps(which: Which, from: i64) -> Vec<String> {
    let first = || match which {
        // Each file of this room that keeps tables adds its own here.
        Which::Durable => {
            [super::events::SCHEMA, super::usage::SCHEMA, super::spool::SCHEMA].concat()
        }
        Which::Metrics => super::samples::SCHEMA.to_owned(),
    };
    let all: [(i64, &dyn Fn() -> String); 1] = [(0, &first)];
    all.iter().filter(|(version, _)| *version >= from).map(|(_, step)| step()).collect()
}
