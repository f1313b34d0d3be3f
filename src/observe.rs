//! What the program says about itself: logs and the metrics page.

pub mod access;
pub mod history;
pub mod levels;
pub mod log;
pub mod process;
pub mod prometheus;
pub mod reading;
pub mod resources;
pub mod slope;
