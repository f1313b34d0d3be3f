//! The book of usage, kept over restarts.

/// The tables: rows by day, key and model, and rows by session. Absent parts of a place are empty
/// texts and -1, so that they can be part of a key.
pub(super) const SCHEMA: &str = "
";
