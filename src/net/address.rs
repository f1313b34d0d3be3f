//! How many connections each client address holds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::base::lock::{Locked, Rank};

/// The connections of each address. Bounded by the connections there are: an address is in the map
/// only while it holds one.
#[derive(Debug)]
pub struct Addresses {
    held: Locked<HashMap<IpAddr, usize>>,
}

/// One connection of an address, given back on drop.
#[derive(Debug)]
pub struct AddressLease {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// No connections yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Addresses { held: Locked::new(Rank::Leaf, HashMap::new()) })
    }

    /// One more connection for `address`, when it holds fewer than `max`.
    pub fn try_take(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<AddressLease> {
        let taken = self.held.with(|held| {
            let count = held.entry(address).or_default();
            let free = *count < max;
            if free {
                *count += 1;
            } else if *count == 0 {
                held.remove(&address);
            }
            free
        });
        taken.then(|| AddressLease { addresses: Arc::clone(self), address })
    }
}

impl Drop for AddressLease {
    fn drop(&mut self) {
        self.addresses.held.with(|held| {
            if let Some(count) = held.get_mut(&self.address) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&self.address);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_at_most_its_share_and_leaves_nothing_behind() {
        let addresses = Addresses::new();
        let here = IpAddr::from([127, 0, 0, 1]);
        let first = addresses.try_take(here, 1).unwrap();
        assert!(addresses.try_take(here, 1).is_none());
        assert!(addresses.try_take(IpAddr::from([127, 0, 0, 2]), 1).is_some());
        drop(first);
        assert!(addresses.try_take(here, 0).is_none());
        assert!(addresses.held.with(|held| held.is_empty()));
    }
}
