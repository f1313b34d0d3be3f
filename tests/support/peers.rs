//! Upstreams that behave, or misbehave, as told.

pub mod answers;
pub mod faults;
pub mod mute;
pub mod secure;
pub mod upstream;

pub use upstream::{Call, FakeUpstream, Gate, Seen, Step};
