//! `[[key]]`, `[[limit]]`, `[auth]`: who may ask, and how much.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LIST_MAX, PER_MINUTE_MAX};
use crate::config::settings::nodes::SCOPES_DEFAULT;
use crate::config::unit::Span;

/// `[auth]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAuth {
    /// So many different wrong keys from one address lock this address out, and so many requests with
    /// the same wrong key lock that key out; 0 turns both off. A key that was right from this address
    /// before goes on being right, so that one client's mistake does not stop its neighbours.
    #[schemars(range(min = 0, max = 1_000_000), extend(
        "x-at-limit" = "429 with Retry-After, before the key is looked at",
    ))]
    pub failures_max: usize,

    /// The time in which they are counted.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h"))]
    pub window: Span,

    /// How long a lockout lasts.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h"))]
    pub lockout: Span,
}

impl Default for RawAuth {
    fn default() -> Self {
        RawAuth { failures_max: 20, window: Span::seconds(60), lockout: Span::seconds(60) }
    }
}

/// `[[key]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "sha256"]))]
pub struct RawKey {
    /// Who uses it: the name in logs and metrics.
    #[schemars(length(min = 1, max = 64), extend("x-example" = "laptop"))]
    pub name: String,
    /// SHA-256 of the key, as 64 hexadecimal digits. The key itself stands nowhere.
    #[schemars(length(min = 64, max = 64), extend("x-secret" = true, "x-example" =
        "0000000000000000000000000000000000000000000000000000000000000000",
    ))]
    pub sha256: String,
    /// The models that it may ask for, by the names that clients use; `*` at the end of one stands
    /// for anything. Others are not in its lists and get 403. Empty: every model.
    #[schemars(length(max = LIST_MAX), extend("x-example" = ["default", "local/*"]))]
    pub models: Vec<String>,
    /// When it ends, as an RFC 3339 time. From then on it gets 401.
    #[schemars(length(min = 1, max = 64), extend(
        "x-default" = "never",
        "x-example" = "2030-01-01T00:00:00Z",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Requests a minute; 0 turns this off.
    #[schemars(range(min = 0, max = PER_MINUTE_MAX), extend("x-at-limit" = "429 with Retry-After"))]
    pub requests_per_minute: u64,
    /// Requests at once.
    #[schemars(range(min = 1, max = PER_MINUTE_MAX), extend(
        "x-default" = "a minute's requests",
        "x-example" = 10,
        "x-at-limit" = "429 with Retry-After",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Tokens a minute, of prompts and answers together, a minute's tokens at once; 0 turns this off.
    /// A request is charged with an estimate (its prompt, and the most that it lets the model say)
    /// and settled when the answer has come.
    #[schemars(range(min = 0, max = PER_MINUTE_MAX), extend(
        "x-at-limit" = "429 with Retry-After; 413 when one request alone is estimated above it",
    ))]
    pub tokens_per_minute: u64,
    /// What it may do on WebSocket, as an operator: `operator.read` to look, `operator.write` to chat and
    /// to invoke commands of nodes, `operator.admin` for everything, the configuration too;
    /// `operator.approvals`, `operator.pairing`, `operator.talk`, `operator.talk.secrets`,
    /// `operator.questions`. None: it cannot connect there.
    #[schemars(length(max = LIST_MAX))]
    pub scopes: Vec<String>,
}

impl Default for RawKey {
    fn default() -> Self {
        RawKey {
            name: String::new(),
            sha256: String::new(),
            models: Vec::new(),
            expires: None,
            requests_per_minute: 0,
            burst: None,
            tokens_per_minute: 0,
            scopes: SCOPES_DEFAULT.map(str::to_owned).to_vec(),
        }
    }
}

/// Who shares a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawPer {
    /// All clients together.
    #[default]
    All,
    /// Each client address (an IPv6 address by its first 64 bits) has its own.
    Address,
    /// Each `[[key]]` has its own.
    Key,
}

/// Which requests a limit covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRoutes {
    /// Every request.
    #[default]
    All,
    /// Chat, completions and generate.
    Chat,
    /// Embeddings.
    Embeddings,
    /// Everything that asks no model: lists, descriptions, version.
    Lists,
}

/// `[[limit]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub struct RawLimit {
    /// Its name in answers, metrics and messages: letters, digits, `-`, `_` and `.`.
    #[schemars(length(min = 1, max = 64), extend("x-example" = "chat"))]
    pub name: String,
    /// Who shares it.
    pub per: RawPer,
    /// Which requests it covers.
    pub routes: RawRoutes,
    /// Requests a minute; 0 turns this off.
    #[schemars(range(min = 0, max = PER_MINUTE_MAX), extend("x-at-limit" = "429 with Retry-After"))]
    pub requests_per_minute: u64,
    /// Requests at once.
    #[schemars(range(min = 1, max = PER_MINUTE_MAX), extend(
        "x-default" = "a minute's requests",
        "x-example" = 10,
        "x-at-limit" = "429 with Retry-After",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Tokens a minute, as in `[[key]]`; 0 turns this off.
    #[schemars(range(min = 0, max = PER_MINUTE_MAX), extend(
        "x-at-limit" = "429 with Retry-After; 413 when one request alone is estimated above it",
    ))]
    pub tokens_per_minute: u64,
}
