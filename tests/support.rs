//! What every test uses: a folder of its own, the daemon, a client that sees bytes, and upstreams
//! that misbehave as told.

use std::cell::Cell;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

pub mod ask;
pub mod conf;
pub mod daemon;
pub mod fleet;
pub mod load;
pub mod metrics;
pub mod peers;
pub mod process;
pub mod random;
pub mod sandbox;
pub mod stream;
pub mod wire;
pub mod ws;

/// A wait, made longer on slow machines by `TIDEGATE_TEST_PATIENCE`.
pub fn patience(base: Duration) -> Duration {
    base.mul_f64(patience_factor())
}

/// The factor of `TIDEGATE_TEST_PATIENCE`; 1 when it is not set.
pub fn patience_factor() -> f64 {
    let factor = std::env::var("TIDEGATE_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    factor.unwrap_or(1.0)
}

/// How long [`assert_eventually!`] waits.
pub const EVENTUALLY: Duration = Duration::from_secs(5);

/// Looks at a condition every few milliseconds until it holds; fails when patience runs out.
#[macro_export]
macro_rules! assert_eventually {
    ($condition:expr) => {
        $crate::assert_eventually!($condition, "never held: {}", stringify!($condition))
    };
    ($condition:expr, $($message:tt)+) => {{
        let deadline = std::time::Instant::now()
            + $crate::support::patience($crate::support::EVENTUALLY);
        loop {
            if $condition {
                break;
            }
            assert!(std::time::Instant::now() < deadline, $($message)+);
            std::thread::sleep(std::time::Duration::from_millis(4));
        }
    }};
}

/// Tests that measure time run alone; all others side by side.
static MACHINE: RwLock<()> = RwLock::new(());

/// A test's share of the machine; held by its [`sandbox::Sandbox`].
pub struct Share {
    /// None for a second sandbox of the same test: to wait for its own share again would be to wait for
    /// ever, once somebody waits to be alone.
    _held: Option<Held>,
}

#[expect(dead_code, reason = "held for their drop")]
enum Held {
    /// With others.
    Shared(RwLockReadGuard<'static, ()>),
    /// Alone.
    Alone(RwLockWriteGuard<'static, ()>),
}

thread_local! {
    /// Shares of the machine that this thread's test has.
    static SHARES: Cell<usize> = const { Cell::new(0) };
}

impl Share {
    fn shared() -> Self {
        Share::first(|| {
            Held::Shared(MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
        })
    }

    fn alone() -> Self {
        Share::first(|| {
            Held::Alone(MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner()))
        })
    }

    fn first(take: impl FnOnce() -> Held) -> Self {
        let before = SHARES.get();
        let share = Share { _held: (before == 0).then(take) };
        SHARES.set(before + 1);
        share
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        SHARES.set(SHARES.get() - 1);
    }
}
