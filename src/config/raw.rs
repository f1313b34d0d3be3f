//! The settings as people write them. This is their one source: doc comments, defaults and bounds
//! become the JSON Schema (`config/schema.rs`), and from it come the checks (`config/walk.rs`), the
//! full example file and the settings list of tidegate.toml(5) (`config/render.rs`).
//!
//! What the attributes beyond schemars' own say:
//! - `x-min`, `x-max`: bounds of a duration, a size or a rate;
//! - `x-default`: what stands in for a default that is computed;
//! - `x-example`: a value for the full example file where there is no default;
//! - `x-at-limit`: what happens at the limit;
//! - `x-reload`: `live`, or `restart` when a reload that changes it is refused.

mod access;
mod health;
mod history;
mod alerts;
mod nodes;
mod running;
mod server;
mod store;
mod upstreams;
mod versions;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use access::{RawAuth, RawKey, RawLimit, RawPer, RawRoutes};
pub use alerts::{RawAlert, RawAlerts, RawMeasure, RawNotify, RawNotifyKind, RawOp, RawSeverity};
pub use health::{RawAffects, RawCheck, RawCheckKind, RawProbe, RawRecovery};
pub use history::RawHistory;
pub use nodes::{RawHooks, RawNodes};
pub use running::{RawCache, RawNamespace, RawOverload, RawResources, RawUsage, RawWatch};
pub use server::{RawFormat, RawLevel, RawLog, RawOps, RawServer, RawState};
pub use store::RawStore;
pub use upstreams::{CONCURRENCY_DEFAULT, RawKind, RawLink, RawModel, RawPrice, RawUpstream};
pub use versions::{RawConfig, RawFeatures, VERSIONS_DEFAULT};

/// Most `[[key]]` entries. A lookup compares with each, so that its time tells nothing.
pub const KEYS_MAX: usize = 1024;

/// Most `[[upstream]]` entries: each has threads' worth of state and a dozen metric series.
pub const UPSTREAMS_MAX: usize = 64;

/// Most `[[model]]` entries.
pub const MODELS_MAX: usize = 1024;

/// Most `[[price]]` entries: one for each model, and as many patterns.
pub const PRICES_MAX: usize = 2048;

/// Most fallbacks of one model.
pub const FALLBACKS_MAX: usize = 15;

/// Most `[[cache.watch]]` entries: each has a watch of the system, and those are few.
pub const WATCHES_MAX: usize = 16;

/// Most entries of each list of hosts, origins, addresses and models.
pub const LIST_MAX: usize = 256;

/// Most `[[limit]]` entries. Each costs every request that it covers some hundred nanoseconds.
pub const LIMITS_MAX: usize = 16;

/// Most `[[check]]` entries. Four threads run them.
pub const CHECKS_MAX: usize = 64;

/// Most requests or tokens a minute that can be written: far above what one machine passes on.
pub const PER_MINUTE_MAX: u64 = 1_000_000_000;

/// Most `[[alert]]` entries: each of the built-in rules can be changed, and as many may be added.
pub const ALERTS_MAX: usize = 64;

/// Most `[[notify]]` entries: one thread serves them all.
pub const CHANNELS_MAX: usize = 8;

/// Most labels that a rule names.
pub const ALERT_LABELS_MAX: usize = 8;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// The data plane: the port that clients talk to, its threads and its limits.
    pub server: RawServer,
    /// The ops plane: health and metrics, on a port of its own.
    pub ops: RawOps,
    /// What the gateway does when waits, memory, descriptors or exchanges run short: the levels
    /// `busy`, `degraded` and `critical`, each with its actions.
    pub overload: RawOverload,
    /// The resource log: memory, descriptors and threads, and a warning when one of them grows
    /// steadily.
    pub resources: RawResources,
    /// What is remembered of all metrics, for `tidegate history`, alerts and the dashboard.
    pub history: RawHistory,
    /// Something that is looked at now and then: a service beside the gateway, a disk, the gateway itself.
    #[schemars(length(max = CHECKS_MAX))]
    pub check: Vec<RawCheck>,
    /// What is tried when memory runs short, threads hang or checks stay bad: first what costs nobody
    /// anything, then more, and at last a call for the operator. Each step is told, and whether it helped.
    pub recovery: RawRecovery,
    /// What becomes of those who show wrong keys.
    pub auth: RawAuth,
    /// A key that a client may present as `Authorization: Bearer …`, or as `x-api-key` or `api-key`.
    /// Without any key the gateway is open to whoever reaches it, and is therefore refused on an
    /// address other than loopback. `tidegate key` makes one.
    #[schemars(length(max = KEYS_MAX))]
    pub key: Vec<RawKey>,
    /// A limit on requests and tokens, beside those of a `[[key]]`. A request must be within each
    /// limit that covers it, and counts in all of them or in none. Past it: 429 with Retry-After.
    #[schemars(length(max = LIMITS_MAX))]
    pub limit: Vec<RawLimit>,
    /// A server that answers for models. The upstream `echo` is built in and needs no entry.
    #[schemars(length(max = UPSTREAMS_MAX))]
    pub upstream: Vec<RawUpstream>,
    /// A model that clients ask for by name. Whatever an upstream has can also be asked for as
    /// `upstream/model` without an entry here.
    #[schemars(length(max = MODELS_MAX))]
    pub model: Vec<RawModel>,
    /// What tokens cost. Where none fits, the usage of that model is told without a cost, and
    /// counted as such; it is never taken for free.
    #[schemars(length(max = PRICES_MAX))]
    pub price: Vec<RawPrice>,
    /// What is remembered of tokens and cost. With a state directory it is there again after a
    /// restart, but for the last seconds when the process is killed.
    pub usage: RawUsage,
    /// Companion devices and operators on WebSocket, at `/` and `/ws` of the data plane. Operators show a
    /// `[[key]]`, or the shared token or password; devices are paired (`tidegate devices`).
    pub nodes: RawNodes,
    /// Hooks for agents: `POST /hooks/wake` and `POST /hooks/agent`.
    pub hooks: RawHooks,
    /// Answers that are kept and given again: to embedding requests, which have one right answer, and
    /// of models that say so. An answer says in `x-tidegate-cache` where it came from (`hit`, `miss`,
    /// `stale`, `coalesced`); a request may say there what it wants (`use`, `bypass`, `refresh`).
    pub cache: RawCache,
    /// The versions of this file, kept in the state directory, and how a change of it is taken.
    pub config: RawConfig,
    /// What the gateway can do beside passing requests on, each to be switched off by itself in an
    /// incident. Whatever its own section says, what is off here is off.
    pub features: RawFeatures,
    /// Alerts: rules are judged all the time, and what they find is told to the channels of
    /// `[[notify]]`. `tidegate alerts` shows what there is, silences it, and tries the channels.
    pub alerts: RawAlerts,
    /// A rule. One with the name of a built-in rule changes that one, in what is written only.
    #[schemars(length(max = ALERTS_MAX))]
    pub alert: Vec<RawAlert>,
    /// A channel on which people are told of alerts. With two of different kinds, each tells when the
    /// other fails.
    #[schemars(length(max = CHANNELS_MAX))]
    pub notify: Vec<RawNotify>,
    /// The log.
    pub log: RawLog,
    /// Where the daemon keeps what is to be there after a restart: versions of the configuration, and
    /// the files of `[store]`.
    pub state: RawState,
    /// What it keeps there, and how much: the files `durable.db` and `metrics.db`.
    pub store: RawStore,
}
