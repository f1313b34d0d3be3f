//! The tables of both files, and the steps from each version to the next.

use super::db::Which;

/// The version of both files.
pub(super) const VERSION: i64 = 2;

/// What brings a file from a version to the next, for the versions from `from` on. A step that was
/// released is never changed.
pub(super) fn steps(which: Which, from: i64) -> Vec<String> {
    let first = || match which {
        // Each file of this room that keeps tables adds its own, in a new step.
        Which::Durable => {
            [super::events::SCHEMA, super::usage::SCHEMA, super::spool::SCHEMA].concat()
        }
        Which::Metrics => super::samples::SCHEMA.to_owned(),
    };
    let second = || match which {
        Which::Durable => super::devices::SCHEMA.to_owned(),
        Which::Metrics => String::new(),
    };
    let all: [(i64, &dyn Fn() -> String); 2] = [(0, &first), (1, &second)];
    all.iter().filter(|(version, _)| *version >= from).map(|(_, step)| step()).collect()
}
