//! What the room needs of those above it: the gateway's keys, models and accounts.

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::error::Error;

use super::who::Scopes;

/// Whom a shown secret belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The gateway has no `[[key]]`: nobody is asked for one.
    Open,
    /// The holder of a key.
    Key {
        /// Its name.
        name: Arc<str>,
        /// What it may do here (`key.scopes`).
        scopes: Scopes,
    },
}

/// The gateway, as this room sees it.
pub trait Host: Send + Sync + 'static {
    /// Whose key this is; failures are counted, and lock out as those of HTTP do.
    ///
    /// # Errors
    /// [`crate::base::error::Kind::Unauthorized`], `KeyExpired`, `LockedOut`.
    fn open(&self, shown: Option<&str>, address: IpAddr) -> Result<Opened, Error>;

    /// Counts a secret of this room (shared token, password, device token) that was wrong, like a
    /// wrong key.
    fn failed(&self, shown: &str, address: IpAddr);

    /// Whether secrets from this address are listened to now.
    ///
    /// # Errors
    /// [`crate::base::error::Kind::LockedOut`].
    fn listens(&self, shown: &str, address: IpAddr) -> Result<(), Error>;
}
