//! The calls that run, so that all of them can be ended.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::lock::{Locked, Rank};
use crate::net::outbound::Control;

/// The calls that run. Bounded by `server.exchanges_max` and `server.waiting_max`.
pub struct Calls {
    inner: Locked<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    running: HashMap<u64, Arc<Control>>,
    ended: bool,
}

/// A call that runs; dropping it takes it off the list.
pub struct Call {
    calls: Arc<Calls>,
    id: u64,
    control: Arc<Control>,
}

impl Calls {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Calls { inner: Locked::new(Rank::Exchanges, Inner::default()) })
    }

    /// A new call. One that begins after [`Calls::cancel_all`] is cancelled already.
    pub fn begin(self: &Arc<Self>) -> Call {
        let control = Arc::<Control>::default();
        let (id, ended) = self.inner.with(|inner| {
            inner.next += 1;
            inner.running.insert(inner.next, Arc::clone(&control));
            (inner.next, inner.ended)
        });
        if ended {
            control.cancel();
        }
        Call { calls: Arc::clone(self), id, control }
    }

    /// Ends all calls, for good. Returns how many ran.
    pub fn cancel_all(&self) -> usize {
        let running: Vec<_> = self.inner.with(|inner| {
            inner.ended = true;
            inner.running.values().cloned().collect()
        });
        running.iter().for_each(|control| control.cancel());
        running.len()
    }
}

impl Call {
    /// What ends it.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.inner.with(|inner| inner.running.remove(&self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_ended_and_none_stays_on_the_list() {
        let calls = Calls::new();
        let first = calls.begin();
        drop(calls.begin());
        assert_eq!(calls.cancel_all(), 1);
        assert!(first.control().cancelled());
        assert!(calls.begin().control().cancelled(), "too late");
        drop(first);
        assert_eq!(calls.cancel_all(), 0);
    }
}
