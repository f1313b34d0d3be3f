//! Tidegate: a gateway that stays up, between the programs that talk to language models and the
//! services that answer them.
//!
//! The map, top to bottom; a module uses only modules below it (`tests/tidy.rs` holds this).
//! `ARCHITECTURE.md` says why each room is where it is.

pub mod base;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod gateway;
pub mod llm;
pub mod net;
pub mod observe;
pub mod ops;
pub mod upstream;
