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

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::unit::{Price, Rate, Size, Span};

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
/// Most requests or tokens a minute that can be written: far above what one machine passes on.
pub const PER_MINUTE_MAX: u64 = 1_000_000_000;

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
    /// What is remembered of tokens and cost, in memory: a reload keeps it, a restart loses it.
    pub usage: RawUsage,
    /// Answers that are kept and given again: to embedding requests, which have one right answer, and
    /// of models that say so. An answer says in `x-tidegate-cache` where it came from (`hit`, `miss`,
    /// `stale`, `coalesced`); a request may say there what it wants (`use`, `bypass`, `refresh`).
    pub cache: RawCache,
    /// The log.
    pub log: RawLog,
    /// What the daemon keeps on disk. This version keeps nothing there yet.
    pub state: RawState,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawServer {
    /// Address and port of the data plane. An address other than loopback needs at least one
    /// `[[key]]`.
    #[schemars(extend("x-reload" = "restart"))]
    pub listen: String,

    /// Threads always ready to take a request. Local answers (lists, refusals) are given by them
    /// even while every exchange is busy.
    #[schemars(range(min = 1, max = 1024), extend(
        "x-default" = "2 x cores, at least 8",
        "x-example" = 8,
        "x-at-limit" = "requests queue",
        "x-reload" = "restart",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,

    /// Exchanges with upstreams that run at the same time. Each has a thread.
    #[schemars(range(min = 1, max = 65536), extend("x-at-limit" = "requests wait, as data"))]
    pub exchanges_max: usize,

    /// Requests that wait for a free exchange.
    #[schemars(range(min = 0, max = 65536), extend("x-at-limit" = "503 with Retry-After"))]
    pub waiting_max: usize,

    /// How long a request may wait for a free exchange or for an upstream's permit.
    #[schemars(extend("x-min" = "1ms", "x-max" = "1h", "x-at-limit" = "503 with Retry-After"))]
    pub waiting_timeout: Span,

    /// Complete requests that no worker has taken yet.
    #[schemars(range(min = 1, max = 65536), extend(
        "x-at-limit" = "503 with Retry-After",
        "x-reload" = "restart",
    ))]
    pub queue_max: usize,

    /// How long a complete request may wait for a worker. When for this long no request was taken
    /// within a tenth of it, those above the tenth are refused too: what is answered then is answered
    /// soon, and its client has not given up.
    #[schemars(extend("x-min" = "10ms", "x-max" = "1h", "x-at-limit" = "503 with Retry-After"))]
    pub queue_timeout: Span,

    /// Open connections of clients. At most half of the descriptors that the system allows are
    /// used; a higher value is cut to that at start, with a warning.
    #[schemars(range(min = 1, max = 1_000_000), extend(
        "x-at-limit" = "the longest idle connection is closed for the newcomer, else 503",
    ))]
    pub connections_max: usize,

    /// Open connections of one client address; 0 turns this off. Loopback and `trusted_proxies` are
    /// exempt.
    #[schemars(range(min = 0, max = 1_000_000), extend("x-at-limit" = "503"))]
    pub connections_per_address_max: usize,

    /// Request line and header lines together.
    #[schemars(extend("x-min" = "1KiB", "x-max" = "1MiB", "x-at-limit" = "431"))]
    pub head_max: Size,

    /// Header lines of a request.
    #[schemars(range(min = 8, max = 1024), extend("x-at-limit" = "431"))]
    pub headers_max: usize,

    /// The target of a request: its path and query. Where it is not written it gives way to a
    /// smaller `head_max`.
    #[schemars(extend("x-min" = "64B", "x-max" = "64KiB", "x-at-limit" = "414"))]
    pub target_max: Size,

    /// The query of a target, behind its `?`. What stands in it is ignored where it means nothing.
    #[schemars(extend("x-min" = "0B", "x-max" = "64KiB", "x-at-limit" = "414"))]
    pub query_max: Size,

    /// From the first byte of a request to the end of its head, however the bytes trickle.
    #[schemars(extend("x-min" = "1ms", "x-max" = "1h", "x-at-limit" = "408"))]
    pub head_timeout: Span,

    /// The body of one request. Where it is not written it gives way to a smaller
    /// `bodies_total_max`.
    #[schemars(extend("x-min" = "1KiB", "x-max" = "1GiB", "x-at-limit" = "413"))]
    pub body_max: Size,

    /// The bodies of all requests that are held at the same time. A body counts as it comes, not by
    /// what it announces; at the limit the slowest one makes room, when it comes slower than 64 KiB
    /// a second.
    #[schemars(extend("x-min" = "1KiB", "x-max" = "64GiB", "x-at-limit" = "503 with Retry-After"))]
    pub bodies_total_max: Size,

    /// What slow clients have not taken yet of their whole answers, together. Of an answer that is
    /// ready a client has everything within `request_timeout`, or is closed.
    #[schemars(extend("x-min" = "1KiB", "x-max" = "64GiB", "x-at-limit" = "whoever took nothing for longest is closed"))]
    pub answers_total_max: Size,

    /// The least rate at which a body must come, judged after its first five seconds; 0 turns this
    /// off.
    #[schemars(extend("x-min" = "0B/s", "x-max" = "1GiB/s", "x-at-limit" = "408"))]
    pub body_rate_min: Rate,

    /// From the end of a request's head to the end of its body.
    #[schemars(extend("x-min" = "1ms", "x-max" = "1h", "x-at-limit" = "408"))]
    pub body_timeout: Span,

    /// How long a connection may be idle between two requests.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h", "x-at-limit" = "closed, silently"))]
    pub keepalive_timeout: Span,

    /// How long a client may take nothing of an answer.
    #[schemars(extend(
        "x-min" = "1ms",
        "x-max" = "24h",
        "x-at-limit" = "the connection is closed and the upstream call cancelled",
    ))]
    pub write_timeout: Span,

    /// When a stream has nothing to send for this long, status 200 and a keep-alive event are sent,
    /// and repeated, so that impatient clients and proxies stay.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h", "x-at-limit" = "200 and keep-alive events"))]
    pub early_head: Span,

    /// A request as a whole: waiting, every attempt, the last byte of the answer.
    #[schemars(extend(
        "x-min" = "1ms",
        "x-max" = "24h",
        "x-at-limit" = "an error inside the stream, or 504",
    ))]
    pub request_timeout: Span,

    /// How long requests in flight may go on after the daemon is told to stop.
    #[schemars(extend(
        "x-min" = "0s",
        "x-max" = "1h",
        "x-at-limit" = "an error inside the stream, then the connection is closed",
    ))]
    pub drain_timeout: Span,

    /// Names, beside loopback and the listen address, under which clients may ask (the `Host` of a
    /// request): `host`, or `host:port` for one port only. Others get 403. This keeps web pages from
    /// reaching the gateway by a name of their own.
    #[schemars(length(max = LIST_MAX), extend("x-example" = ["gateway.example.org"]))]
    pub allowed_hosts: Vec<String>,

    /// Origins whose web pages may use the gateway, as the browser writes them. Others get 403.
    #[schemars(length(max = LIST_MAX), extend("x-example" = ["https://chat.example.org"]))]
    pub allowed_origins: Vec<String>,

    /// Addresses of proxies in front of the gateway. They are exempt from
    /// `connections_per_address_max`, and what they say in `X-Forwarded-For` is believed: limits per
    /// address and lockouts then mean the client behind them. Nobody else is believed.
    #[schemars(length(max = LIST_MAX), extend("x-example" = ["192.0.2.10"]))]
    pub trusted_proxies: Vec<String>,

    /// Client addresses that are remembered: once for limits per address, once for wrong keys. An
    /// address that is not remembered begins anew, so whoever commands more addresses than this gets
    /// past the limits per address; those of keys and of all hold.
    #[schemars(range(min = 64, max = 1_048_576), extend(
        "x-at-limit" = "the address that asked longest ago is forgotten",
    ))]
    pub addresses_max: usize,
}

impl Default for RawServer {
    fn default() -> Self {
        RawServer {
            listen: "127.0.0.1:18789".to_owned(),
            workers: None,
            exchanges_max: 1024,
            waiting_max: 1024,
            waiting_timeout: Span::seconds(10),
            queue_max: 512,
            queue_timeout: Span::seconds(1),
            connections_max: 4096,
            connections_per_address_max: 0,
            head_max: Size::kib(16),
            headers_max: 100,
            target_max: Size::kib(8),
            query_max: Size::kib(2),
            head_timeout: Span::seconds(10),
            body_max: Size::mib(32),
            bodies_total_max: Size::mib(256),
            answers_total_max: Size::mib(256),
            body_rate_min: Rate(1024),
            body_timeout: Span::seconds(60),
            keepalive_timeout: Span::seconds(75),
            write_timeout: Span::seconds(30),
            early_head: Span::seconds(10),
            request_timeout: Span::seconds(600),
            drain_timeout: Span::seconds(30),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            addresses_max: 16_384,
        }
    }
}

/// `[ops]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawOps {
    /// Address and port of the ops plane.
    #[schemars(extend("x-reload" = "restart"))]
    pub listen: String,
}

impl Default for RawOps {
    fn default() -> Self {
        RawOps { listen: "127.0.0.1:18790".to_owned() }
    }
}

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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLevel {
    /// Nothing.
    Off,
    /// Someone should act now.
    Error,
    /// Unexpected but survived.
    Warn,
    /// A state has changed; one line per request.
    #[default]
    Info,
    /// Off in production.
    Debug,
    /// Everything.
    Trace,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawFormat {
    /// `time level event key=value …`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLog {
    /// How much is logged.
    pub level: RawLevel,
    /// The folder of the log files. A relative path starts from the folder of this file.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "$LOGS_DIRECTORY, else standard error",
        "x-example" = "/var/log/tidegate",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// How a line looks.
    pub format: RawFormat,
    /// The size at which a new file is begun.
    #[schemars(extend("x-min" = "1KiB", "x-max" = "4GiB", "x-at-limit" = "a new file"))]
    pub rotate_size: Size,
    /// Files kept beside the one that is written.
    #[schemars(range(min = 1, max = 1000), extend("x-at-limit" = "the oldest is deleted"))]
    pub keep_files: usize,
    /// Lines that wait for the writer.
    #[schemars(range(min = 16, max = 1_048_576), extend(
        "x-at-limit" = "further lines are dropped and counted",
        "x-reload" = "restart",
    ))]
    pub pending_max: usize,
}

impl Default for RawLog {
    fn default() -> Self {
        RawLog {
            level: RawLevel::default(),
            dir: None,
            format: RawFormat::default(),
            rotate_size: Size::mib(50),
            keep_files: 10,
            pending_max: 8192,
        }
    }
}

/// `[state]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawState {
    /// The state directory. A relative path starts from the folder of this file.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "$STATE_DIRECTORY, else $XDG_STATE_HOME/tidegate",
        "x-example" = "/var/lib/tidegate",
        "x-at-limit" = "what needs it is switched off, and told",
        "x-reload" = "restart",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
}
