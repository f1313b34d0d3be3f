//! Alerts: rules, and what has become of what they found.
//!
//! `judge` turns what is seen (`input`) into readings, one for each thing that a rule looks at. `engine`
//! is the state machine behind them: an alert is pending, firing, resolved; it is told once, again
//! after a while, and when it is over; rules mute each other, and a person can silence some for a
//! time. None of these does I/O or reads a clock. What is to be told leaves as a [`Notice`], which
//! `health/notify` delivers.
//!
//! `service` holds it all together for the daemon, with its two threads: `look` runs on `alerts`, and
//! delivery on `notify`. `keep` is the copy on disk.

pub mod alert;
pub mod at;
pub mod engine;
pub mod input;
pub mod judge;
pub(in crate::health) mod keep;
mod look;
pub mod sampler;
pub mod service;
pub mod silence;
pub mod trend;
mod view;

pub use alert::{Alert, Item, Judged, Notice, Reading, State};
pub use at::At;
pub use engine::Engine;
pub use service::{Handle, Hands, Threads};
pub use silence::Silence;
