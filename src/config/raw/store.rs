//! `[store]`: what is kept on disk.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::unit::{Size, Span};

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawStore {
    /// Jobs that wait for the disk, for each of the two files.
    #[schemars(range(min = 16, max = 65_536), extend(
        "x-at-limit" = "the job is refused; a sample of history is dropped",
        "x-reload" = "restart",
    ))]
    pub pending_max: usize,

    /// Largest `durable.db`: events, usage, alerts on their way. When it is nearly full the oldest
    /// events are deleted first.
    #[schemars(extend(
        "x-min" = "1MiB",
        "x-max" = "64GiB",
        "x-at-limit" = "new jobs are refused",
    ))]
    pub durable_max: Size,

    /// Largest `metrics.db`: the history of metrics. When it is nearly full the oldest is deleted.
    #[schemars(extend("x-min" = "1MiB", "x-max" = "64GiB", "x-at-limit" = "samples are dropped"))]
    pub metrics_max: Size,

    /// How long events are kept.
    #[schemars(extend("x-min" = "1m", "x-max" = "87600h", "x-at-limit" = "they are deleted"))]
    pub events_keep: Span,

    /// Bytes of the texts of all events that are kept.
    #[schemars(extend("x-min" = "64KiB", "x-max" = "16GiB", "x-at-limit" = "the oldest are deleted"))]
    pub events_max: Size,

    /// Size of a file in the state directory that is deleted when the disk is full, so that there is
    /// room to delete other things; 0 turns it off.
    #[schemars(extend("x-min" = "0B", "x-max" = "1GiB"))]
    pub ballast: Size,

    /// Free space of the state directory's disk, in percent, below which the store is `degraded`.
    #[schemars(range(min = 0, max = 100), extend("x-at-limit" = "degraded, and the event disk_low"))]
    pub free_warn: u64,

    /// Free space, in percent, below which no more history is written.
    #[schemars(range(min = 0, max = 100), extend("x-at-limit" = "samples are dropped"))]
    pub free_shed: u64,

    /// Free space, in percent, below which nothing more is written.
    #[schemars(range(min = 0, max = 100), extend(
        "x-at-limit" = "new jobs are refused, and the ballast is deleted",
    ))]
    pub free_refuse: u64,

    /// A larger disk counts as one of this size when percents of it are reckoned: a tenth of a large
    /// disk is not little.
    #[schemars(extend("x-min" = "1MiB", "x-max" = "1024GiB"))]
    pub disk_counted: Size,
}

impl Default for RawStore {
    fn default() -> Self {
        RawStore {
            pending_max: 1024,
            durable_max: Size::mib(256),
            metrics_max: Size::mib(512),
            events_keep: Span::seconds(30 * 24 * 3600),
            events_max: Size::mib(64),
            ballast: Size::mib(16),
            free_warn: 10,
            free_shed: 5,
            free_refuse: 2,
            disk_counted: Size::mib(64 * 1024),
        }
    }
}
