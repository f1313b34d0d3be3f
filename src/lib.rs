//! Tidegate: a gateway that stays up, between the programs that talk to language models and the
//! services that answer them.
//!
//! The map, top to bottom; a module uses only modules below it (`tests/tidy.rs` holds this).
//! `ARCHITECTURE.md` says why each room is where it is.

pub mod cli;
pub mod daemon;
pub mod ops;
pub mod gateway;
pub mod nodes;
pub mod llm;
pub mod upstream;
pub mod cache;
pub mod health;
pub mod observe;
pub mod store;
pub mod config;
pub mod net;
pub mod base;
