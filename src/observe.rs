//! What the program says about itself: logs and the metrics page.

pub mod log;
