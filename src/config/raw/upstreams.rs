//! `[[upstream]]`, `[[model]]`, `[[price]]`: who answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FALLBACKS_MAX;
use crate::config::secret::Named;
use crate::config::unit::{Price, Size, Span};

/// What an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawKind {
    /// Ollama's own API (`/api/chat` and its neighbours).
    Ollama,
    /// The OpenAI API (`/v1/chat/completions` and its neighbours), as most providers have it.
    OpenAi,
    /// Built in: streams the prompt back word by word.
    Echo,
}

/// `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "kind"]))]
pub struct RawUpstream {
    /// Its name in `primary`, in `fallbacks`, in `upstream/model` and in metrics: letters, digits,
    /// `-`, `_` and `.`.
    #[schemars(length(min = 1, max = 64), extend("x-example" = "local"))]
    pub name: String,

    /// What it speaks.
    #[schemars(extend("x-example" = "ollama"))]
    pub kind: Option<RawKind>,

    /// Where it is, as the client libraries take it: with `/v1` for the OpenAI API, without for
    /// Ollama. Not for `echo`.
    #[schemars(length(min = 1, max = 2048), extend(
        "x-default" = "none; needed for ollama and openai",
        "x-example" = "http://127.0.0.1:11434",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// The environment variable that holds the key for this upstream.
    #[schemars(length(min = 1, max = 256), extend(
        "x-default" = "none",
        "x-example" = "OPENAI_API_KEY",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,

    /// The file that holds the key for this upstream. Blanks around the key are cut. A relative path
    /// starts from the folder of this file.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "none",
        "x-example" = "/etc/tidegate/cloud.key",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<String>,

    /// A PEM file with the only certificates to trust for this upstream.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "the platform's",
        "x-example" = "/etc/tidegate/ca.pem",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,

    /// An HTTP proxy on the way to this upstream. The proxies that the environment names are never
    /// used.
    #[schemars(length(min = 1, max = 2048), extend(
        "x-default" = "none",
        "x-example" = "http://192.0.2.1:3128",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,

    /// Finding the address, connecting, and the TLS handshake.
    #[schemars(extend("x-min" = "1ms", "x-max" = "1h", "x-at-limit" = "next in the chain"))]
    pub connect_timeout: Span,

    /// Streams: from the request to the first piece of content. A cold model loads in this time.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h", "x-at-limit" = "next in the chain"))]
    pub first_token_timeout: Span,

    /// Whole answers: from the request to the answer, which comes only at the end of generation.
    #[schemars(extend(
        "x-default" = "the attempt's share of the request's time",
        "x-example" = "5m",
        "x-min" = "1ms",
        "x-max" = "24h",
        "x-at-limit" = "next in the chain",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_timeout: Option<Span>,

    /// Between two complete events of a stream that has begun.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h", "x-at-limit" = "an error inside the stream"))]
    pub idle_timeout: Span,

    /// One attempt as a whole.
    #[schemars(extend(
        "x-min" = "1ms",
        "x-max" = "24h",
        "x-at-limit" = "next in the chain, or an error inside the stream",
    ))]
    pub total_timeout: Span,

    /// One event of a stream.
    #[schemars(extend(
        "x-min" = "1KiB",
        "x-max" = "256MiB",
        "x-at-limit" = "the answer counts as malformed",
    ))]
    pub stream_line_max: Size,

    /// One whole answer.
    #[schemars(extend(
        "x-min" = "1KiB",
        "x-max" = "1GiB",
        "x-at-limit" = "the answer counts as malformed",
    ))]
    pub answer_max: Size,

    /// Exchanges with this upstream that run at the same time.
    #[schemars(range(min = 1, max = 65536), extend(
        "x-default" = "64; for echo server.exchanges_max, since nothing stands behind it",
        "x-example" = 64,
        "x-at-limit" = "requests wait",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency_max: Option<usize>,

    /// Requests that wait for this upstream.
    #[schemars(range(min = 0, max = 65536), extend(
        "x-at-limit" = "next in the chain, or 503 with Retry-After",
    ))]
    pub waiting_max: usize,

    /// Whether an upstream that fails is left alone for a while. Each model of it has a breaker of its
    /// own, and so has its address, for failures to connect. With `false` every request asks it.
    pub breaker: bool,

    /// Failures of a hundred calls, within ten seconds, at which a breaker opens.
    #[schemars(range(min = 1, max = 100))]
    pub breaker_failure_percent: u32,

    /// Calls within ten seconds that are enough for that share to say something.
    #[schemars(range(min = 1, max = 100_000))]
    pub breaker_calls_min: u32,

    /// Failures in a row at which a breaker opens when there are fewer calls than that.
    #[schemars(range(min = 1, max = 100_000))]
    pub breaker_failures_max: u32,

    /// A call that takes this long to its first content (a whole answer: to its end) counts as slow.
    /// The calls that wait while a model is loaded after a minute of rest do not.
    #[schemars(extend(
        "x-default" = "none is slow",
        "x-example" = "20s",
        "x-min" = "1ms",
        "x-max" = "24h",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker_slow_call: Option<Span>,

    /// Slow calls of a hundred, within ten seconds, at which a breaker opens.
    #[schemars(range(min = 1, max = 100))]
    pub breaker_slow_percent: u32,

    /// How long a breaker stays open the first time, give or take a fifth; then twice as long after
    /// each probe that fails.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h", "x-at-limit" = "probes pass"))]
    pub breaker_open_time: Span,

    /// How long a breaker stays open at most.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h", "x-at-limit" = "probes pass"))]
    pub breaker_open_time_max: Span,

    /// Requests at a time that may try a breaker that was open, and one more for each
    /// `breaker_open_time` in which they had no answer.
    #[schemars(range(min = 1, max = 1000), extend("x-at-limit" = "next in the chain, or 503"))]
    pub breaker_probes: u32,

    /// The longest `Retry-After` of a 429 or 503 that is kept to; a longer one counts as this. With
    /// `"0s"` none is.
    #[schemars(extend(
        "x-min" = "0s",
        "x-max" = "24h",
        "x-at-limit" = "next in the chain, or 503 with Retry-After",
    ))]
    pub cooldown_max: Span,

    /// Requests that this upstream takes in a minute; a tenth of them at once. Those that come too early
    /// wait as long as `server.waiting_timeout` allows. 0: no limit.
    #[schemars(range(min = 0, max = 100_000_000), extend(
        "x-at-limit" = "wait, then next in the chain, or 503 with Retry-After",
    ))]
    pub requests_per_minute: u64,

    /// Tokens that this upstream takes in a minute, of prompts and answers, in the same way. They are
    /// charged by the size of the prompt first, and by what the answer used at its end. 0: no limit.
    #[schemars(range(min = 0, max = 1_000_000_000_000_u64), extend(
        "x-at-limit" = "wait, then next in the chain, or 503 with Retry-After",
    ))]
    pub tokens_per_minute: u64,

    /// Whether the number of exchanges at the same time is found out by how long the upstream takes
    /// (gradient2): between `concurrency_min` and `concurrency_max`.
    pub concurrency_adaptive: bool,

    /// Exchanges at the same time that `concurrency_adaptive` always leaves.
    #[schemars(range(min = 1, max = 65536))]
    pub concurrency_min: usize,

    /// Ollama only: the context length to ask for when a request names none.
    #[schemars(range(min = 1, max = 16_777_216), extend(
        "x-default" = "what the model has",
        "x-example" = 8192,
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u64>,

    /// Echo only: the pause before each word.
    #[schemars(extend("x-default" = "0s", "x-example" = "20ms", "x-min" = "0s", "x-max" = "1h"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub word_delay: Option<Span>,
}

/// Exchanges at the same time with an upstream that sets no `concurrency_max`.
pub const CONCURRENCY_DEFAULT: usize = 64;

impl RawUpstream {
    /// Where its key is.
    pub(in crate::config) fn api_key(&self) -> Named<'_> {
        Named {
            keys: ("api_key_env", "api_key_file"),
            env: self.api_key_env.as_deref(),
            file: self.api_key_file.as_deref(),
        }
    }
}

impl Default for RawUpstream {
    fn default() -> Self {
        RawUpstream {
            name: String::new(),
            kind: None,
            url: None,
            api_key_env: None,
            api_key_file: None,
            ca_file: None,
            proxy: None,
            connect_timeout: Span::seconds(2),
            first_token_timeout: Span::seconds(120),
            answer_timeout: None,
            idle_timeout: Span::seconds(30),
            total_timeout: Span::seconds(600),
            stream_line_max: Size::mib(8),
            answer_max: Size::mib(32),
            concurrency_max: None,
            waiting_max: 256,
            breaker: true,
            breaker_failure_percent: 50,
            breaker_calls_min: 10,
            breaker_failures_max: 5,
            breaker_slow_call: None,
            breaker_slow_percent: 80,
            breaker_open_time: Span::seconds(30),
            breaker_open_time_max: Span::seconds(300),
            breaker_probes: 1,
            cooldown_max: Span::seconds(60),
            requests_per_minute: 0,
            tokens_per_minute: 0,
            concurrency_adaptive: false,
            concurrency_min: 4,
            num_ctx: None,
            word_delay: None,
        }
    }
}

/// `[[model]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "primary"]))]
pub struct RawModel {
    /// What clients ask for. A request for `name:latest` finds it too.
    #[schemars(length(min = 1, max = 256), extend("x-example" = "default"))]
    pub name: String,

    /// Who answers: `upstream/model`, the model as the upstream knows it. Or a table
    /// `{ model = "upstream/model", tools = false, images = false }` for one that cannot carry tools
    /// or images: requests with these skip it.
    #[schemars(extend("x-example" = "local/llama3.2"))]
    pub primary: RawLink,

    /// Who answers when those before could not, in this order; each as in `primary`.
    #[schemars(length(max = FALLBACKS_MAX), extend("x-example" = ["cloud/gpt-oss:120b"]))]
    pub fallbacks: Vec<RawLink>,

    /// A request for this model as a whole.
    #[schemars(extend(
        "x-default" = "server.request_timeout",
        "x-example" = "10m",
        "x-min" = "1ms",
        "x-max" = "24h",
        "x-at-limit" = "an error inside the stream, or 504",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_timeout: Option<Span>,

    /// How long an answer of this model is given again to the same request of the same key. Only
    /// answers of the primary are kept, only complete ones, and none to requests with tools.
    #[schemars(extend(
        "x-default" = "not at all, unless a request says x-tidegate-cache: use",
        "x-example" = "10m",
        "x-min" = "1ms",
        "x-max" = "720h",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Span>,
}

/// One link of a model's chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawLink {
    /// `upstream/model`.
    Name(#[schemars(length(min = 1, max = 512))] String),
    /// `upstream/model` with what it cannot do.
    Table(RawLinkTable),
}

impl Default for RawLink {
    fn default() -> Self {
        RawLink::Name(String::new())
    }
}

/// A link with what it cannot do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["model"]))]
pub struct RawLinkTable {
    /// `upstream/model`, the model as the upstream knows it.
    #[schemars(length(min = 1, max = 512), extend("x-example" = "local/llama3.2"))]
    pub model: String,
    /// Whether it can carry tools.
    pub tools: bool,
    /// Whether it can carry images.
    pub images: bool,
}

impl Default for RawLinkTable {
    fn default() -> Self {
        RawLinkTable { model: String::new(), tools: true, images: true }
    }
}

/// `[[price]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["model", "input", "output"]))]
pub struct RawPrice {
    /// Whose tokens: `upstream/model`, the model as the upstream knows it. A `*` at the end stands
    /// for any rest (`local/*`, or `*` for everything). Where several fit, the longest counts.
    #[schemars(length(min = 1, max = 512), extend("x-example" = "cloud/gpt-oss:120b"))]
    pub model: String,

    /// A million tokens of prompts, in `usage.currency`; 0 where they cost nothing.
    #[schemars(extend("x-max" = "1000000", "x-example" = 0.15))]
    pub input: Price,

    /// A million tokens of answers.
    #[schemars(extend("x-max" = "1000000", "x-example" = 0.6))]
    pub output: Price,

    /// A million tokens of prompts that the upstream found in its own cache, as it told them.
    #[schemars(extend("x-max" = "1000000", "x-default" = "as input", "x-example" = 0.075))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<Price>,
}
