//! `[history]`: what is remembered of all metrics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::unit::{Size, Span};

/// `[history]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawHistory {
    /// Between two looks at all metrics. The last 90 looks are in memory: 15 minutes of them.
    #[schemars(extend("x-min" = "1s", "x-max" = "60s"))]
    pub interval: Span,

    /// Series that are remembered. Those that are there first come first: the process, the machine,
    /// what is counted of requests and upstreams, then the limits.
    #[schemars(range(min = 16, max = 2048), extend(
        "x-at-limit" = "further series are on the metrics page only",
    ))]
    pub series_max: usize,

    /// What the looks in memory may take. A series that rests takes next to nothing.
    #[schemars(extend(
        "x-min" = "256KiB",
        "x-max" = "64MiB",
        "x-at-limit" = "the oldest looks are forgotten early",
    ))]
    pub memory_max: Size,

    /// How long each look is kept in the state directory.
    #[schemars(extend("x-min" = "2h", "x-max" = "168h"))]
    pub looks_for: Span,

    /// How long each minute is.
    #[schemars(extend("x-min" = "24h", "x-max" = "2160h"))]
    pub minutes_for: Span,

    /// How long each hour is.
    #[schemars(extend("x-min" = "168h", "x-max" = "35040h"))]
    pub hours_for: Span,

    /// What all of that may take on disk.
    #[schemars(extend(
        "x-min" = "8MiB",
        "x-max" = "16GiB",
        "x-at-limit" = "the oldest is forgotten early",
    ))]
    pub disk_max: Size,
}

impl Default for RawHistory {
    fn default() -> Self {
        RawHistory {
            interval: Span::seconds(10),
            series_max: 1536,
            memory_max: Size::mib(4),
            looks_for: Span::seconds(6 * 3600),
            minutes_for: Span::seconds(7 * 86_400),
            hours_for: Span::seconds(400 * 86_400),
            disk_max: Size::mib(256),
        }
    }
}
