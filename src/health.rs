//! Whether the process is well, and what it does when it is not: overload levels and what they cost.

pub mod memory;
pub mod overload;
pub mod sample;
pub mod trim;
