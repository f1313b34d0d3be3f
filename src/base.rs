//! Primitives that every room may use: time, locks, threads, limits, counters, ids, errors.

pub mod bounded;
pub mod clock;
pub mod error;
pub mod events;
pub mod exit;
pub mod folder;
pub mod gcra;
pub mod health;
pub mod heartbeat;
pub mod hold;
pub mod id;
pub mod lock;
pub mod logsite;
pub mod memory;
pub mod metrics;
pub mod orders;
pub mod permits;
pub mod query;
pub mod thread;
pub mod time_format;
pub mod time_parse;
