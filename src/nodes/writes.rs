//! How often the gateway may be changed: each method by each device from each address so many times
//! a minute. A client in a loop must not wear out the disk, or keep the main loop busy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::peer::Peer;
use super::refusal::Refusal;
use crate::base::bounded::Map;
use crate::base::gcra::{Gcra, Quota, Verdict};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Registry;

/// Writers that are counted at a time. Past it: refused, until others were silent for a minute.
pub const WRITERS_MAX: usize = 1024;

/// Who writes what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Writer {
    method: &'static str,
    device: Option<Arc<str>>,
    address: IpAddr,
}

/// The writers of the last minute.
#[derive(Debug)]
pub struct Writes {
    inner: Locked<Inner>,
}

#[derive(Debug)]
struct Inner {
    quota: Option<Quota>,
    writers: Map<Writer, Gcra>,
}

impl Writes {
    /// Nobody has written; `per_minute` of 0 is no limit.
    pub fn new(registry: &Registry, per_minute: u64) -> Self {
        let max = WRITERS_MAX as u64;
        let writers = registry.limit("nodes.writers_max", "", max, "refused as UNAVAILABLE");
        let quota = Quota::per_minute(per_minute, None);
        Writes { inner: Locked::new(Rank::Leaf, Inner { quota, writers: Map::new(writers) }) }
    }

    /// Another rate.
    pub fn set(&self, per_minute: u64) {
        self.inner.with(|inner| inner.quota = Quota::per_minute(per_minute, None));
    }

    /// Counts a write of this client.
    ///
    /// # Errors
    /// `UNAVAILABLE`, with when to try again.
    pub fn charge(&self, method: &'static str, peer: &Peer, now: Instant) -> Result<(), Refusal> {
        let device = peer.identity().and_then(|who| who.device.clone());
        self.charge_as(Writer { method, device, address: peer.address }, now)
    }

    fn charge_as(&self, writer: Writer, now: Instant) -> Result<(), Refusal> {
        let method = writer.method;
        let charged = self.inner.with(|inner| {
            let quota = inner.quota?;
            inner.writers.retain(|_, gcra| !gcra.idle(now));
            let verdict = match inner.writers.get_or_insert_with(writer, Gcra::default) {
                Some(gcra) => gcra.charge(&quota, now, 1),
                None => Verdict::Limited { wait: quota.period() },
            };
            Some((quota, verdict))
        });
        match charged {
            None | Some((_, Verdict::Allowed)) => Ok(()),
            Some((quota, Verdict::Limited { wait })) => Err(refused(method, &quota, wait)),
            Some((quota, Verdict::Never)) => Err(refused(method, &quota, quota.period())),
        }
    }
}

fn refused(method: &str, quota: &Quota, wait: Duration) -> Refusal {
    let seconds = wait.as_millis().div_ceil(1000);
    let limit = format!("{} per {}s", quota.count(), quota.period().as_secs());
    Refusal::unavailable(format!("rate limit exceeded for {method}; retry after {seconds}s"))
        .with(json!({"method": method, "limit": limit}))
        .retry(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::nodes::refusal::Code;

    fn writer(method: &'static str, device: &str, last: u8) -> Writer {
        let address = IpAddr::from([10, 0, 0, last]);
        Writer { method, device: Some(device.into()), address }
    }

    #[test]
    fn each_method_device_and_address_has_its_own_rate_and_hears_when_to_try_again() {
        let registry = Registry::default();
        let writes = Writes::new(&registry, 30);
        let now = clock::now();
        let one = || writer("config.set", "a", 1);
        for _ in 0..30 {
            writes.charge_as(one(), now).unwrap();
        }
        let refused = writes.charge_as(one(), now).unwrap_err();
        assert_eq!(refused.code, Code::Unavailable);
        assert_eq!(refused.retry_after, Some(Duration::from_secs(2)));
        assert_eq!(refused.message, "rate limit exceeded for config.set; retry after 2s");
        for other in [
            writer("config.patch", "a", 1),
            writer("config.set", "b", 1),
            writer("config.set", "a", 2),
        ] {
            writes.charge_as(other, now).unwrap();
        }
        writes.charge_as(one(), now + Duration::from_secs(2)).unwrap();
        assert!(writes.charge_as(one(), now + Duration::from_secs(2)).is_err());
        writes.set(0);
        writes.charge_as(one(), now).unwrap();
    }

    #[test]
    fn there_are_only_so_many_writers_and_silent_ones_make_room() {
        let registry = Registry::default();
        let writes = Writes::new(&registry, 30);
        let now = clock::now();
        for n in 0..WRITERS_MAX {
            writes.charge_as(writer("config.set", &n.to_string(), 1), now).unwrap();
        }
        assert!(writes.charge_as(writer("config.set", "more", 1), now).is_err());
        let limit = &registry.limits()[0].limit;
        assert_eq!((limit.now(), limit.refused()), (WRITERS_MAX as u64, 1));
        writes.charge_as(writer("config.set", "more", 1), now + Duration::from_secs(3)).unwrap();
        assert_eq!(limit.now(), 1);
    }
}
