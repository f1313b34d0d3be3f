//! `[config]`, `[features]`: how changes of this file are taken, and what is there at all.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::unit::Span;

/// Versions kept where the file says nothing else.
pub const VERSIONS_DEFAULT: usize = 100;

/// `[config]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// How long a new version is watched. When requests begin to fail meanwhile, or the gateway is
    /// not ready any more, or crashes twice, the last good one takes its place; after it this one
    /// is the last good one. 0 turns this off: every version is good at once.
    #[schemars(extend("x-min" = "0s", "x-max" = "1h"))]
    pub probation: Span,

    /// Versions kept in the state directory.
    #[schemars(range(min = 5, max = 10_000), extend(
        "x-at-limit" = "the oldest is deleted, but for those in force, good or on probation",
    ))]
    pub versions_max: usize,
}

impl Default for RawConfig {
    fn default() -> Self {
        RawConfig { probation: Span::seconds(60), versions_max: VERSIONS_DEFAULT }
    }
}

/// `[features]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawFeatures {
    /// Answers that are kept: off does what `cache.enabled = false` does.
    pub cache: bool,

    /// Overload levels: off does what `overload.enabled = false` does.
    pub overload: bool,

    /// The checks of `[[check]]`: off does what none of them does.
    pub checks: bool,

    /// The recovery ladder: off does what `recovery.enabled = false` does.
    pub recovery: bool,

    /// The history of metrics: off, nothing is sampled, and `/history` has what was before.
    pub history: bool,

    /// Alerts: off does what `alerts.enabled = false` does.
    pub alerts: bool,

    /// The dashboard: off, its page and `/live` are 404, and pages that are open go on until they
    /// connect again. `/live.json` and `tidegate top` stay.
    pub dashboard: bool,

    /// WebSocket connections: off does what `nodes.enabled = false` does.
    pub nodes: bool,
}

impl Default for RawFeatures {
    fn default() -> Self {
        RawFeatures {
            cache: true,
            overload: true,
            checks: true,
            recovery: true,
            history: true,
            alerts: true,
            dashboard: true,
            nodes: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    #[test]
    fn a_feature_that_is_off_is_off_whatever_its_section_says() {
        let check = "[[check]]\nname = \"c\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n";
        let with = |on: bool| {
            let features = [
                "cache",
                "overload",
                "checks",
                "recovery",
                "history",
                "alerts",
                "dashboard",
                "nodes",
            ];
            let features: String = features.map(|f| format!("features.{f} = {on}\n")).concat();
            let config = parse(&format!("{features}{check}"), None, &|_| None).unwrap().config;
            [
                config.cache.enabled,
                config.overload.enabled,
                !config.checks.is_empty(),
                config.recovery.enabled,
                config.history.enabled,
                config.alerts.enabled,
                config.ops.dashboard,
                config.nodes.enabled,
            ]
        };
        assert_eq!((with(true), with(false)), ([true; 8], [false; 8]));
    }
}
