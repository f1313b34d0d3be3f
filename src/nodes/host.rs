//! What the room needs of those above it: the gateway's keys, models and accounts.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::base::error::Error;
use crate::llm::usage::{SessionRow, Sums};

use super::who::{Identity, Scopes};

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

/// A model that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// As clients ask for it.
    pub name: String,
    /// The upstream that is asked first.
    pub upstream: String,
    /// How many tokens it may be given, where somebody says so.
    pub context: Option<u64>,
}

/// What a day's requests came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageDay {
    /// Days since 1970, UTC; `None` for all days that have no sums of their own any more.
    pub day: Option<u64>,
    /// What is summed.
    pub sums: Sums,
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

    /// The model that a chat asks for when none is named: `default`, if it is declared, else the
    /// first that the holder of this key may ask for. Without a key everything may be.
    fn default_model(&self, key: Option<&str>) -> Option<String> {
        let _ = key;
        None
    }

    /// Whether somebody behind this model can be shown images.
    fn takes_images(&self, model: &str) -> bool {
        let _ = model;
        true
    }

    /// A secret of this room was right from this address: here it goes on being right, whatever others
    /// show.
    fn right(&self, shown: &str, address: IpAddr) {
        let _ = (shown, address);
    }

    /// Whether secrets from this address are listened to now.
    ///
    /// # Errors
    /// [`crate::base::error::Kind::LockedOut`].
    fn listens(&self, shown: &str, address: IpAddr) -> Result<(), Error>;
}

/// Its models and its accounts, as this room sees them.
pub trait Tables: Send + Sync + 'static {
    /// The models that a client may ask for: those of its key, every one for whoever has none.
    ///
    /// # Errors
    /// [`crate::base::error::Kind::Unauthorized`] when a reload took its key away.
    fn models(&self, who: &Identity) -> Result<Vec<Model>, Error>;

    /// The names of the upstreams.
    fn upstreams(&self) -> Vec<String>;

    /// What was used, by day, oldest first: of an account, or of everybody; from a day on.
    fn usage(&self, account: Option<&str>, since: Option<u64>) -> Vec<UsageDay>;

    /// The same by session, those that are still known, and what has no session of its own.
    fn usage_of_sessions(&self, account: Option<&str>) -> Vec<SessionRow>;

    /// Where log files are; `None`: the log goes to standard error.
    fn log_folder(&self) -> Option<PathBuf>;
}
