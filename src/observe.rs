//! Logs and metrics exposition.
