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
use crate::base::metrics::{Limit, Registry};

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
    writers: Locked<Map<Writer, Gcra>>,
    /// How many a minute.
    rate: Arc<Limit>,
}

impl Writes {
    /// Nobody has written; `rate` is how often each may in a minute (`nodes.writes_per_minute`).
    pub fn new(registry: &Registry, rate: Arc<Limit>) -> Self {
        let max = WRITERS_MAX as u64;
        let writers = registry.limit("nodes.writers_max", "", max, "refused as UNAVAILABLE");
        Writes { writers: Locked::new(Rank::Leaf, Map::new(writers)), rate }
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
        let Some(quota) = Quota::per_minute(self.rate.max(), None) else { return Ok(()) };
        let (verdict, used) = self.writers.with(|writers| {
            writers.retain(|_, gcra| !gcra.idle(now));
            match writers.get_or_insert_with(writer, Gcra::default) {
                Some(gcra) => {
                    let verdict = gcra.charge(&quota, now, 1);
                    (verdict, quota.burst().saturating_sub(gcra.level(&quota, now).remaining))
                }
                None => (Verdict::Never, 0),
            }
        });
        self.rate.saw(used);
        let wait = match verdict {
            Verdict::Allowed => return Ok(()),
            Verdict::Limited { wait } => wait,
            Verdict::Never => quota.period(),
        };
        self.rate.refuse();
        Err(refused(method, &quota, wait))
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
        let rate = Limit::detached(30);
        let writes = Writes::new(&registry, Arc::clone(&rate));
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
        assert_eq!((rate.high_water(), rate.refused()), (30, 2));
        rate.set_max(1000);
        for _ in 0..10 {
            writes.charge_as(one(), now + Duration::from_secs(4)).unwrap();
        }
    }

    #[test]
    fn there_are_only_so_many_writers_and_silent_ones_make_room() {
        let registry = Registry::default();
        let rate = Limit::detached(30);
        let writes = Writes::new(&registry, Arc::clone(&rate));
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
