//! What the program says about itself: logs and the metrics page.

pub mod access;
pub mod log;
pub mod process;
pub mod prometheus;
pub mod resources;
pub mod slope;
