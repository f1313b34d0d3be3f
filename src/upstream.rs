//! Calls to upstreams: the chain, deadlines, what moves on, the retry budget, permits.

pub mod adaptive;
pub mod breaker;
pub mod breakers;
pub mod budget;
pub mod calls;
pub mod deadlines;
pub mod link;
pub mod outcome;
pub mod rate;
pub mod verdict;
