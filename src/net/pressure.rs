//! What the rooms above ask of an engine when the process has little room left, and what they may
//! know of it to judge that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::engine::Shared;
use crate::base::metrics::{Counter, Histogram, Limit, Registry};

/// What an engine does to use less. The default asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// A header field of every answer.
    pub notice: Option<(&'static str, &'static str)>,
    /// While more than this share (in percent) of `server.connections_max` is open, answers close
    /// their connection.
    pub keep_alive_percent: Option<u64>,
    /// Connections that are idle for longer are closed.
    pub idle_max: Option<Duration>,
}

/// The pressure on one engine, as its threads look at it.
#[derive(Debug)]
pub(super) struct Gauge {
    /// Whether there is any: the one look that each request costs.
    any: AtomicBool,
    /// Whether idle connections are to be closed once.
    pub(super) idle_now: AtomicBool,
    now: ArcSwap<Pressure>,
    closed_busy: Arc<Counter>,
    closed_idle: Arc<Counter>,
}

impl Gauge {
    pub(super) fn new(registry: &Registry, engine: &str) -> Self {
        let closed = |why| {
            let help = "Connections closed because the process had little room left: after an \
                        answer, or while they were idle.";
            let labels = [("engine", engine), ("when", why)];
            registry.counter("tidegate_connections_shed_total", help, &labels)
        };
        Gauge {
            any: AtomicBool::new(false),
            idle_now: AtomicBool::new(false),
            now: ArcSwap::from_pointee(Pressure::default()),
            closed_busy: closed("answered"),
            closed_idle: closed("idle"),
        }
    }

    pub(super) fn notice(&self) -> Option<(&'static str, &'static str)> {
        self.now().and_then(|pressure| pressure.notice)
    }

    pub(super) fn idle_max(&self) -> Option<Duration> {
        self.now().and_then(|pressure| pressure.idle_max)
    }

    /// Whether a connection may go on after its answer.
    pub(super) fn keeps(&self, connections: &Limit) -> bool {
        let Some(percent) = self.now().and_then(|pressure| pressure.keep_alive_percent) else {
            return true;
        };
        let many =
            connections.now().saturating_mul(100) > connections.max().saturating_mul(percent);
        if many {
            self.closed_busy.inc();
        }
        !many
    }

    pub(super) fn closed_idle(&self) {
        self.closed_idle.inc();
    }

    fn now(&self) -> Option<Pressure> {
        self.any.load(Relaxed).then(|| **self.now.load())
    }

    fn set(&self, pressure: Pressure) {
        self.now.store(Arc::new(pressure));
        self.any.store(pressure != Pressure::default(), Relaxed);
    }
}

/// How much of an engine is taken, each with its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Complete requests that wait for a worker (`server.queue_max`).
    pub queued: (u64, u64),
    /// Exchanges that run (`server.exchanges_max`).
    pub running: (u64, u64),
    /// Requests that wait for a free exchange (`server.waiting_max`).
    pub waiting: (u64, u64),
    /// Open connections (`server.connections_max`).
    pub connections: (u64, u64),
}

/// A hand on an engine for whoever watches over the process. It does not keep the engine running.
#[derive(Clone)]
pub struct Throttle {
    shared: Arc<Shared>,
}

impl Throttle {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Throttle { shared: Arc::clone(shared) }
    }

    /// How much is taken now.
    pub fn load(&self) -> Load {
        let of = |limit: &Limit| (limit.now(), limit.max());
        let Shared { queued, exchanges, connections, .. } = &*self.shared;
        Load {
            queued: of(queued),
            running: of(exchanges.held_limit()),
            waiting: of(exchanges.waiting()),
            connections: of(connections),
        }
    }

    /// How long requests waited for a worker.
    pub fn queue_waits(&self) -> &Arc<Histogram> {
        self.shared.line.waits()
    }

    /// Closes the connections that are idle now.
    pub fn close_idle(&self) {
        self.shared.pressure.idle_now.store(true, Relaxed);
        self.shared.inbox.wake();
    }

    /// So many workers hang and are none of the ready ones any more: others are started in their places,
    /// within the limit on threads.
    pub fn replace_workers(&self, hung: usize) {
        self.shared.workers.lose(hung);
        self.shared.inbox.wake();
    }

    /// Asks the engine to use less, or no longer.
    pub fn press(&self, pressure: Pressure) {
        self.shared.pressure.set(pressure);
        self.shared.inbox.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_until_their_share_is_passed() {
        let gauge = Gauge::new(&Registry::default(), "data");
        let connections = Limit::detached(100);
        let _held = connections.try_take(76);
        assert!(gauge.keeps(&connections), "no pressure, no closing");
        gauge.set(Pressure { keep_alive_percent: Some(75), ..Pressure::default() });
        assert!(!gauge.keeps(&connections));
        assert_eq!(gauge.closed_busy.value(), 1);
        gauge.set(Pressure { keep_alive_percent: Some(76), ..Pressure::default() });
        assert!(gauge.keeps(&connections));
        assert_eq!((gauge.notice(), gauge.idle_max()), (None, None));
        gauge.set(Pressure::default());
        assert!(gauge.keeps(&connections));
    }
}
