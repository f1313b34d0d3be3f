//! The connections to one upstream that nobody uses now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Origin;
use super::connect::{Dialer, authority, bracketed};
use super::control::Control;
use super::exchange::{Begin, Exchange, Outgoing};
use super::resolve::Resolver;
use super::stream::Stream;
use super::wait::Watch;
use crate::base::clock;
use crate::base::error::Result;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Limit, Registry};

/// Longest that a connection stays idle. Below the 75 s of nginx and most load balancers; servers
/// that close sooner (uvicorn and Node: 5 s) are noticed before use.
pub const IDLE_AGE_MAX: Duration = Duration::from_secs(60);

/// Size of a read buffer, in bytes.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;

/// Read buffers kept for the next calls, 128 KiB together. Idle connections hold none, so that
/// `idle_max` of them cost descriptors and not memory.
const BUFFERS_MAX: usize = 8;

/// The way to one upstream: connects, and keeps connections for the next call.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// What calls share. Each holds it until its end, also when the config has dropped the upstream.
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    pub(super) resolver: Arc<Resolver>,
    /// The `Host` of requests.
    pub(super) host: String,
    /// What a plain proxy wants before the path, with the value of `Proxy-Authorization`.
    pub(super) through: Option<(String, Option<String>)>,
    idle_max: usize,
    state: Locked<State>,
    limit: Arc<Limit>,
    kept: Arc<Limit>,
    pub(super) opened: Arc<Counter>,
    pub(super) reused: Arc<Counter>,
    pub(super) stale: Arc<Counter>,
}

#[derive(Default)]
struct State {
    /// The most recently used last; that one is taken first, so that the others can age.
    idle: Vec<(Stream, Instant)>,
    buffers: Vec<Vec<u8>>,
}

impl Pool {
    /// A pool without connections yet.
    ///
    /// # Errors
    /// [`Kind::Internal`](crate::base::error::Kind::Internal) when `ca_file` or the host cannot be used; the text is for the operator.
    pub fn new(origin: &Origin, resolver: Arc<Resolver>, registry: &Registry) -> Result<Self> {
        let label: &[(&'static str, &str)] = &[("upstream", &origin.name)];
        let counter = |name, help| registry.counter(name, help, label);
        let default_port = if origin.tls { 443 } else { 80 };
        let host = if origin.port == default_port {
            bracketed(&origin.host)
        } else {
            authority(&origin.host, origin.port)
        };
        let through = match &origin.proxy {
            Some(proxy) if !origin.tls => {
                Some((format!("http://{host}"), proxy.authorization.clone()))
            }
            _ => None,
        };
        let shared = Shared {
            dialer: Dialer::new(origin)?,
            resolver,
            host,
            through,
            idle_max: origin.idle_max,
            state: Locked::new(Rank::Pool, State::default()),
            limit: registry.limit(
                "upstream.idle_max",
                &origin.name,
                origin.idle_max as u64,
                "the oldest idle connection is closed",
            ),
            kept: registry.limit(
                "upstream.buffers_max",
                &origin.name,
                BUFFERS_MAX as u64,
                "the buffer is freed",
            ),
            opened: counter(
                "tidegate_upstream_connections_opened_total",
                "Connections made to the upstream.",
            ),
            reused: counter(
                "tidegate_upstream_connections_reused_total",
                "Requests sent on a connection that was idle.",
            ),
            stale: counter(
                "tidegate_upstream_connections_stale_total",
                "Idle connections that turned out to be closed, before use or while sending.",
            ),
        };
        Ok(Pool { shared: Arc::new(shared) })
    }

    /// Sends a request: on an idle connection when there is one, else on a fresh one.
    ///
    /// An error with [`Retry::FreshConnection`](crate::base::error::Retry) here or from the
    /// exchange's [`head`](Exchange::head) means that an idle connection was closed by its server
    /// and not a byte came back: the caller may send the request again with
    /// [`Pool::begin_fresh`].
    ///
    /// # Errors
    /// `UpstreamConnect`, `UpstreamTimeout` (resolve, connect, send), `UpstreamCut`, `ClientGone`,
    /// `Draining`; `Internal` for a header field that cannot be sent.
    pub fn begin(
        &self,
        request: &Outgoing<'_>,
        until: &Begin<'_>,
        control: &Arc<Control>,
    ) -> Result<Exchange> {
        while let Some(mut stream) = self.shared.take() {
            if !stream.usable() {
                self.shared.stale.inc();
                continue;
            }
            self.shared.reused.inc();
            let held = control.hold(stream.socket());
            held.map_err(|stop| stop.error(&self.shared.dialer.upstream))?;
            return Exchange::send(&self.shared, stream, true, request, until, control);
        }
        self.begin_fresh(request, until, control)
    }

    /// Sends a request on a fresh connection.
    ///
    /// # Errors
    /// As [`Pool::begin`].
    pub fn begin_fresh(
        &self,
        request: &Outgoing<'_>,
        until: &Begin<'_>,
        control: &Arc<Control>,
    ) -> Result<Exchange> {
        let shared = &self.shared;
        let watch = Watch {
            client: until.client,
            deadline: until.connect,
            phase: crate::base::error::Phase::Connect,
        };
        let stream = shared.dialer.dial(&shared.resolver, &watch, control)?;
        shared.opened.inc();
        Exchange::send(shared, stream, false, request, until, control)
    }

    /// Closes connections that were idle for longer than [`IDLE_AGE_MAX`]. To be called now and
    /// then, so that a quiet upstream's connections go too.
    pub fn sweep(&self, now: Instant) {
        self.close(|since| now.saturating_duration_since(*since) >= IDLE_AGE_MAX);
    }

    /// Closes every idle connection.
    pub fn close_idle(&self) {
        self.close(|_| true);
    }

    fn close(&self, old: impl Fn(&Instant) -> bool) {
        let old = self.shared.state.with(|state| {
            let count = state.idle.partition_point(|(_, since)| old(since));
            if state.idle.len() == count {
                state.buffers.clear();
                self.shared.kept.set_now(0);
            }
            let old: Vec<_> = state.idle.drain(..count).collect();
            self.shared.limit.set_now(state.idle.len() as u64);
            old
        });
        drop(old);
    }

    /// Makes its bound the one that is shown: a pool that was made for a configuration which was
    /// then refused has left its own there.
    pub fn show_max(&self) {
        self.shared.limit.set_max(self.shared.idle_max as u64);
    }

    /// How many idle connections there are.
    pub fn idle(&self) -> usize {
        self.shared.state.with(|state| state.idle.len())
    }
}

impl Shared {
    /// An idle connection that is not too old.
    fn take(&self) -> Option<Stream> {
        let now = clock::now();
        let (stream, old) = self.state.with(|state| {
            let taken = state.idle.pop();
            // Were it too old, so would be all below it.
            let fresh = taken.filter(|(_, since)| now.duration_since(*since) < IDLE_AGE_MAX);
            let old = if fresh.is_none() { std::mem::take(&mut state.idle) } else { Vec::new() };
            self.limit.set_now(state.idle.len() as u64);
            (fresh.map(|(stream, _)| stream), old)
        });
        // Closed outside the lock.
        drop(old);
        stream
    }

    /// Keeps a connection for the next call.
    pub(super) fn keep(&self, stream: Stream) {
        let now = clock::now();
        let surplus = self.state.with(|state| {
            state.idle.push((stream, now));
            let surplus = (state.idle.len() > self.idle_max).then(|| state.idle.remove(0));
            self.limit.set_now(state.idle.len() as u64);
            surplus
        });
        drop(surplus);
    }

    /// A read buffer of [`BUFFER_BYTES`].
    pub(super) fn buffer(&self) -> Vec<u8> {
        let kept = self.state.with(|state| {
            let kept = state.buffers.pop();
            self.kept.set_now(state.buffers.len() as u64);
            kept
        });
        kept.unwrap_or_else(|| vec![0; BUFFER_BYTES])
    }

    /// Keeps a read buffer for the next call, if it is of the usual size.
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        if buffer.len() == BUFFER_BYTES {
            let surplus = self.state.with(|state| {
                if state.buffers.len() < BUFFERS_MAX {
                    state.buffers.push(buffer);
                    self.kept.set_now(state.buffers.len() as u64);
                    None
                } else {
                    self.kept.refuse();
                    Some(buffer)
                }
            });
            drop(surplus);
        }
    }
}
