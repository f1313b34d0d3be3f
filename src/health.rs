//! Whether the process is well, and what it does when it is not: checks, stalls, the status, overload
//! levels and what they cost.

pub mod checks;
pub mod ladder;
pub mod alerts;
pub mod memory;
pub mod notify;
pub mod overload;
pub mod sample;
pub mod stalls;
pub mod status;
pub mod task;
pub mod trim;
