//! `[overload]`, `[resources]`, `[usage]`, `[cache]`: how the gateway looks after itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WATCHES_MAX;
use crate::config::unit::{Size, Span};

/// `[overload]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawOverload {
    /// Whether there are levels at all. Without them only the limits of `[server]` and of each
    /// upstream hold.
    pub enabled: bool,

    /// Resident memory that the process may have. From 80 % of it on the gateway is `busy`, from
    /// 88 % `degraded`, from 95 % `critical`.
    #[schemars(extend(
        "x-default" = "the control group's limit or 80 % of the machine's memory, the smaller one",
        "x-example" = "512MiB",
        "x-min" = "1MiB",
        "x-max" = "1024GiB",
        "x-at-limit" = "new model calls get 503 with Retry-After",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<Size>,

    /// How long it must have been calm before a level is left.
    #[schemars(extend("x-min" = "1s", "x-max" = "10m"))]
    pub calm: Span,
}

/// `[resources]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawResources {
    /// Between two lines `resources` in the log: memory, descriptors, threads, and what each
    /// container holds.
    #[schemars(extend("x-min" = "1s", "x-max" = "1h"))]
    pub log_interval: Span,

    /// Resident memory that grows by more than this in an hour, by the samples of the last one, is
    /// warned of. Bursts and steps are no growth.
    #[schemars(extend("x-min" = "1MiB", "x-max" = "1024GiB", "x-at-limit" = "a warning, and the event resource_growth"))]
    pub growth_per_hour: Size,

    /// Memory, descriptors or threads that grow by more than so many percent within a day are warned
    /// of.
    #[schemars(range(min = 1, max = 10_000))]
    #[schemars(extend("x-at-limit" = "a warning, and the event resource_growth"))]
    pub growth_per_day: u64,
}

impl Default for RawResources {
    fn default() -> Self {
        RawResources {
            log_interval: Span::seconds(60),
            growth_per_hour: Size::mib(10),
            growth_per_day: 50,
        }
    }
}

impl Default for RawOverload {
    fn default() -> Self {
        RawOverload { enabled: true, memory_max: None, calm: Span::seconds(10) }
    }
}

/// `[usage]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawUsage {
    /// The currency of all prices: a label, nothing is converted.
    #[schemars(length(min = 1, max = 8))]
    pub currency: String,

    /// Sessions that have a row of their own. A session is what a client names in one of the fields
    /// `x-tidegate-session`, `x-openclaw-session-key`, `x-session-id`, `x-litellm-session-id` and
    /// `x-openwebui-chat-id`.
    #[schemars(range(min = 1, max = 4096), extend(
        "x-at-limit" = "the one that was silent for longest becomes part of its key's others",
    ))]
    pub sessions_max: usize,

    /// Days, in UTC, that have rows of their own.
    #[schemars(range(min = 1, max = 366), extend(
        "x-at-limit" = "the oldest becomes part of what was before",
    ))]
    pub days_max: usize,

    /// Rows: one for each model of a key on a day.
    #[schemars(range(min = 1024, max = 65536), extend(
        "x-at-limit" = "further models become part of their key's and day's others",
    ))]
    pub rows_max: usize,

    /// How long an answer about usage may be given again without being made anew; 0 turns this off.
    #[schemars(extend("x-min" = "0s", "x-max" = "1h"))]
    pub cache_ttl: Span,
}

impl Default for RawUsage {
    fn default() -> Self {
        RawUsage {
            currency: "USD".to_owned(),
            sessions_max: 100,
            days_max: 31,
            rows_max: 4096,
            cache_ttl: Span::seconds(2),
        }
    }
}

/// `[cache]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawCache {
    /// Whether anything is kept at all, whatever models and requests say.
    pub enabled: bool,

    /// Whether the answers to embedding requests are kept. They are shared by all keys that may use
    /// the model.
    pub embeddings: bool,

    /// How long an answer is given again without asking, where no model says otherwise.
    #[schemars(extend("x-min" = "1ms", "x-max" = "720h", "x-at-limit" = "it is asked for again"))]
    pub ttl: Span,

    /// How long beyond that an answer may still be given: to others while one request asks for it
    /// again, and to that one when asking fails.
    #[schemars(extend("x-min" = "0s", "x-max" = "720h", "x-at-limit" = "it is dropped"))]
    pub stale_for: Span,

    /// Answers that are kept.
    #[schemars(range(min = 1, max = 1_000_000), extend(
        "x-at-limit" = "the one that was not used for longest is dropped",
    ))]
    pub entries_max: usize,

    /// Bytes of all answers that are kept, with what keeping them takes.
    #[schemars(extend(
        "x-min" = "1KiB",
        "x-max" = "64GiB",
        "x-at-limit" = "the one that was not used for longest is dropped",
    ))]
    pub bytes_max: Size,

    /// One answer. Where it is not written it gives way to a smaller `bytes_max`.
    #[schemars(extend("x-min" = "1KiB", "x-max" = "1GiB", "x-at-limit" = "it is not kept"))]
    pub entry_max: Size,

    /// Requests that wait for the answer to the same request of another client.
    #[schemars(range(min = 0, max = 65536), extend(
        "x-at-limit" = "the request is asked for by itself",
    ))]
    pub waiting_max: usize,

    /// Folders whose changes make answers out of date, such as that of the documents that were
    /// embedded, each as `[[cache.watch]]` with its `path` and the `namespace` that is cleared. A
    /// folder that is not there yet, or not any more, is waited for.
    #[schemars(length(max = WATCHES_MAX), extend(
        "x-example" = [{ "path": "/srv/documents", "namespace": "embeddings" }],
    ))]
    pub watch: Vec<RawWatch>,
}

/// A part of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawNamespace {
    /// Answers to embedding requests.
    #[default]
    Embeddings,
    /// Answers of language models.
    Chat,
}

/// `[[cache.watch]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["path", "namespace"]))]
pub struct RawWatch {
    /// The folder, with all that is below it. A relative path starts from the folder of this file.
    #[schemars(length(min = 1, max = 4096), extend("x-example" = "/srv/documents"))]
    pub path: String,
    /// What a change in it clears.
    #[schemars(extend("x-example" = "embeddings"))]
    pub namespace: RawNamespace,
}

impl Default for RawCache {
    fn default() -> Self {
        RawCache {
            enabled: true,
            embeddings: true,
            ttl: Span::seconds(3600),
            stale_for: Span::seconds(3600),
            entries_max: 10_000,
            bytes_max: Size::mib(64),
            entry_max: Size::mib(1),
            waiting_max: 4096,
            watch: Vec::new(),
        }
    }
}
