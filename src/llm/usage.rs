//! The book of tokens and cost: who asked which model, who answered, on which day, in which
//! session.
//!
//! A [`Book`] is bounded, and its sums are exact all the same: what has no row of its own becomes
//! part of a row of others, so that the rows always add up to everything that was ever entered.
//! Time comes in as days and seconds; there is no lock here and no clock.

mod book;
mod sums;

use std::sync::Arc;

pub use book::{Book, Bounds, KEYS_MAX, Page, Place, SessionRow, Sizes, What, Who};
pub use sums::Sums;

use super::Usage;

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Answered to its end.
    #[default]
    Answered,
    /// Cut after its first content: the client was told so.
    Cut,
    /// The client left.
    Cancelled,
    /// Not answered.
    Failed,
}

/// An upstream, and the model as it knows it.
pub type Maker = (Box<str>, Box<str>);

/// Tokens that one upstream made, and what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// The tokens.
    pub usage: Usage,
    /// In millionths of a millionth of the currency; `None` when nobody said what they cost.
    pub cost: Option<u128>,
}

/// One request that is over, as it is entered.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Seconds since 1970, UTC.
    pub at: u64,
    /// The name of its key.
    pub key: Option<Arc<str>>,
    /// Its session.
    pub session: Option<Arc<str>>,
    /// The model that was asked for.
    pub asked: Box<str>,
    /// Who answered.
    pub answered: Option<Maker>,
    /// What the answer came to.
    pub charge: Option<Charge>,
    /// What upstreams made that did not answer in the end; hardly ever anything.
    pub spent: Vec<(Maker, Charge)>,
    /// How it ended.
    pub outcome: Outcome,
    /// It was answered from the gateway's own cache: nothing was made for it, nothing is owed.
    pub replayed: bool,
}

/// Seconds of a day in UTC, which has no leap seconds here.
pub const SECONDS_PER_DAY: u64 = 86_400;

#[cfg(test)]
mod tests;
