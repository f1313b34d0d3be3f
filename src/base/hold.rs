//! Whether an operator holds new requests off while the process runs on (`tidegate drain --stay`).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// New requests are held off, or not. One for the whole process; asking costs one load.
#[derive(Debug, Default)]
pub struct Hold(AtomicBool);

impl Hold {
    /// Whether they are.
    pub fn on(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Holds them off, or lets them in again. Whether that was a change.
    pub fn set(&self, on: bool) -> bool {
        self.0.swap(on, Relaxed) != on
    }
}
