//! The outbound side against real sockets on loopback.

mod answers;
mod leaving;
mod names;
mod peer;
mod proxied;
mod reuse;
pub(in crate::net) mod secure;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::base::clock;
use crate::base::error::{Error, Kind, Phase, Retry};
use crate::base::metrics::{Metric, Registry};
use crate::net::http::Method;

/// Long enough never to end a wait in a test that passes.
const LONG: Duration = Duration::from_secs(20);

/// A pool and what belongs to it.
struct Fixture {
    pool: Pool,
    registry: Registry,
    control: Arc<Control>,
}

impl Fixture {
    fn new(origin: &Origin) -> Self {
        let registry = Registry::default();
        let resolver = Arc::new(Resolver::system(&registry));
        Fixture::with(origin, resolver, registry)
    }

    fn with(origin: &Origin, resolver: Arc<Resolver>, registry: Registry) -> Self {
        let pool = Pool::new(origin, resolver, &registry).unwrap();
        Fixture { pool, registry, control: Arc::default() }
    }

    fn to(address: SocketAddr) -> Self {
        Fixture::new(&origin(address))
    }

    fn begin(&self, body: &[u8]) -> Result<Exchange, Error> {
        self.pool.begin(&post(body), &begin(LONG), &self.control)
    }

    /// A call from its beginning to the end of its answer.
    fn call(&self, body: &[u8]) -> Result<(u16, Vec<u8>), Error> {
        let mut exchange = self.begin(body)?;
        let status = exchange.head(&within(LONG))?.status;
        let answer = exchange.body(usize::MAX, &within(LONG))?;
        Ok((status, answer))
    }

    /// The value of a counter of this pool.
    fn count(&self, name: &str) -> u64 {
        let (families, _) = self.registry.gather();
        let family = families.iter().find(|family| family.name == name).expect(name);
        match &family.series[0].1 {
            Metric::Counter(counter) => counter.value(),
            other => panic!("{other:?}"),
        }
    }

    fn opened(&self) -> u64 {
        self.count("tidegate_upstream_connections_opened_total")
    }

    fn stale(&self) -> u64 {
        self.count("tidegate_upstream_connections_stale_total")
    }
}

fn origin(address: SocketAddr) -> Origin {
    Origin {
        name: "peer".to_owned(),
        tls: false,
        host: address.ip().to_string(),
        port: address.port(),
        ca_file: None,
        ca_digest: None,
        proxy: None,
        idle_max: 4,
    }
}

fn post(body: &[u8]) -> Outgoing<'_> {
    Outgoing {
        method: Method::Post,
        target: "/v1/chat",
        fields: &[("content-type", b"application/json")],
        body,
    }
}

fn begin(limit: Duration) -> Begin<'static> {
    let at = clock::now() + limit;
    Begin { client: None, connect: at, send: at }
}

fn within(limit: Duration) -> Watch<'static> {
    Watch { client: None, deadline: clock::now() + limit, phase: Phase::Answer }
}

/// Waits until `condition` holds.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = clock::now() + LONG;
    while !condition() {
        assert!(clock::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `call` and `meanwhile`, which starts a little later, side by side; says how long the call
/// went on after `meanwhile` was done.
fn while_running<T: Send>(
    call: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce(),
) -> (T, Duration) {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let result = call();
            (result, clock::now())
        });
        // Not for luck: the call's end is what is measured, whether it waits already or not.
        std::thread::sleep(Duration::from_millis(20));
        meanwhile();
        let done: Instant = clock::now();
        let (result, end) = running.join().unwrap();
        (result, end.saturating_duration_since(done))
    })
}
