//! Data-plane routes.
