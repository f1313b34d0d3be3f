//! Settings: schema, load, validate, reload.

pub mod settings;

pub use settings::Config;
