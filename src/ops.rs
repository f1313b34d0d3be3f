//! The ops plane: health, readiness, metrics.
