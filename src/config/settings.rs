//! The settings as the rest of the program holds them: typed, resolved and valid. Only
//! [`crate::config`] makes a [`Config`]; the raw form that people write stands in `config/raw.rs`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{RawHistory, RawStore};
use crate::base::gcra::Quota;

pub use super::checks::{CheckSpec, Probe, Recovery, What};
pub mod alerts;
pub mod nodes;

pub use alerts::Alerts;
pub use nodes::{Hooks, Nodes};

/// A valid configuration. Immutable: a reload makes another one.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it came from; `None` for the built-in defaults.
    pub path: Option<PathBuf>,
    /// The data plane.
    pub server: Server,
    /// The ops plane.
    pub ops: Ops,
    /// Overload levels.
    pub overload: Overload,
    /// The resource log.
    pub resources: Resources,
    /// What is remembered of all metrics.
    pub history: History,
    /// What is looked at now and then.
    pub checks: Vec<CheckSpec>,
    /// What is tried when something is wrong.
    pub recovery: Recovery,
    /// What becomes of those who show wrong keys.
    pub auth: Auth,
    /// Who may ask; empty: anybody, and only on loopback.
    pub keys: Vec<Key>,
    /// Limits on requests and tokens, beside those of keys.
    pub limits: Vec<Limit>,
    /// The declared upstreams, and `echo`, which is always there.
    pub upstreams: Vec<Arc<Upstream>>,
    /// The models that clients ask for.
    pub models: Vec<Arc<Model>>,
    /// What tokens cost.
    pub prices: Prices,
    /// What is remembered of tokens and cost.
    pub usage: Usage,
    /// Devices and operators on WebSocket.
    pub nodes: Nodes,
    /// Hooks for agents.
    pub hooks: Hooks,
    /// Answers that are kept.
    pub cache: Cache,
    /// How changes are taken.
    pub versions: Versions,
    /// Rules, channels, and how they are told.
    pub alerts: Alerts,
    /// Logs.
    pub log: Log,
    /// The state directory.
    pub state_dir: Option<PathBuf>,
    /// What is kept in it.
    pub store: Store,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Server {
    pub listen: SocketAddr,
    pub workers: usize,
    pub exchanges_max: usize,
    pub waiting_max: usize,
    pub waiting_timeout: Duration,
    pub queue_max: usize,
    pub queue_timeout: Duration,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub head_max: usize,
    pub headers_max: usize,
    pub target_max: usize,
    pub query_max: usize,
    pub head_timeout: Duration,
    pub body_max: usize,
    pub bodies_total_max: usize,
    pub answers_total_max: usize,
    pub body_rate_min: usize,
    pub body_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub write_timeout: Duration,
    pub early_head: Duration,
    pub request_timeout: Duration,
    pub drain_timeout: Duration,
    /// In lower case: `host`, any port, or `host:port`; IPv6 addresses in brackets.
    pub allowed_hosts: Vec<String>,
    /// In lower case, as a browser writes them: `scheme://host[:port]`.
    pub allowed_origins: Vec<String>,
    /// Addresses of proxies in front, exempt from the cap per address like loopback.
    pub trusted_proxies: Vec<std::net::IpAddr>,
    pub addresses_max: usize,
}

/// `[ops]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Ops {
    pub listen: SocketAddr,
    pub live_max: usize,
    /// Whether there is a page at all.
    pub dashboard: bool,
}

/// `[overload]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Overload {
    pub enabled: bool,
    /// In bytes; `None`: what the system allows.
    pub memory_max: Option<u64>,
    pub calm: Duration,
}

/// `[resources]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Resources {
    pub log_interval: Duration,
    /// In bytes.
    pub growth_per_hour: u64,
    /// In percent.
    pub growth_per_day: u64,
}

/// `[history]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw/history.rs")]
pub struct History {
    /// Whether anything is sampled.
    pub enabled: bool,
    pub interval: Duration,
    pub series_max: usize,
    /// In bytes.
    pub memory_max: u64,
    pub looks_for: Duration,
    pub minutes_for: Duration,
    pub hours_for: Duration,
    /// In bytes.
    pub disk_max: u64,
}

impl From<&RawHistory> for History {
    fn from(raw: &RawHistory) -> History {
        History {
            enabled: true,
            interval: raw.interval.0,
            series_max: raw.series_max,
            memory_max: raw.memory_max.0,
            looks_for: raw.looks_for.0,
            minutes_for: raw.minutes_for.0,
            hours_for: raw.hours_for.0,
            disk_max: raw.disk_max.0,
        }
    }
}

impl Default for History {
    fn default() -> History {
        History::from(&RawHistory::default())
    }
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw/store.rs")]
pub struct Store {
    pub pending_max: usize,
    /// In bytes, as are all sizes here.
    pub durable_max: u64,
    pub metrics_max: u64,
    pub events_keep: Duration,
    pub events_max: u64,
    pub ballast: u64,
    /// In percent, as are the next two.
    pub free_warn: u64,
    pub free_shed: u64,
    pub free_refuse: u64,
    pub disk_counted: u64,
}

impl From<&RawStore> for Store {
    fn from(raw: &RawStore) -> Store {
        Store {
            pending_max: raw.pending_max,
            durable_max: raw.durable_max.0,
            metrics_max: raw.metrics_max.0,
            events_keep: raw.events_keep.0,
            events_max: raw.events_max.0,
            ballast: raw.ballast.0,
            free_warn: raw.free_warn,
            free_shed: raw.free_shed,
            free_refuse: raw.free_refuse,
            disk_counted: raw.disk_counted.0,
        }
    }
}

impl Default for Store {
    fn default() -> Store {
        Store::from(&RawStore::default())
    }
}

/// `[auth]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Wrong keys in the window that lock out; 0: nobody is ever locked out.
    pub failures_max: usize,
    /// The time in which they are counted.
    pub window: Duration,
    /// How long a lockout lasts.
    pub lockout: Duration,
}

/// `[[key]]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Key {
    /// The name in logs and metrics.
    pub name: String,
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// The models that it may ask for, with `*` at the end of a pattern; empty: every model.
    pub models: Vec<String>,
    /// When it ends, in seconds since 1970; `None`: never.
    pub expires: Option<u64>,
    /// Requests in time; `None`: no limit.
    pub requests: Option<Quota>,
    /// Tokens in time; `None`: no limit.
    pub tokens: Option<Quota>,
    /// What it may do on WebSocket, in the protocol's words.
    pub scopes: Vec<&'static str>,
}

/// What the limits of a `[[key]]` itself are called where limits have names.
pub const OWN_LIMIT: &str = "key";

/// Who shares a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// All clients together.
    All,
    /// Each client address has its own.
    Address,
    /// Each key has its own.
    Key,
}

/// A kind of routes, as limits tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Routes {
    /// Chat, completions and generate.
    Chat,
    /// Embeddings.
    Embeddings,
    /// Everything that asks no model.
    Lists,
}

/// `[[limit]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The name in answers, metrics and messages.
    pub name: String,
    /// Who shares it.
    pub per: Per,
    /// Which requests it covers; `None`: every one.
    pub routes: Option<Routes>,
    /// Requests in time; `None`: no limit.
    pub requests: Option<Quota>,
    /// Tokens in time; `None`: no limit.
    pub tokens: Option<Quota>,
}

/// What an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamKind {
    /// Ollama's own API.
    Ollama,
    /// The OpenAI API.
    OpenAi,
    /// Built in: streams the prompt back word by word.
    Echo,
}

/// `[[upstream]]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Upstream {
    pub name: String,
    pub kind: UpstreamKind,
    /// `None` for `echo`.
    pub url: Option<BaseUrl>,
    pub key: Option<Secret>,
    /// A PEM file of the only roots to trust for this upstream; else the platform's.
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of what the file held when it was checked, so that a reload sees another content.
    pub ca_digest: Option<[u8; 32]>,
    /// `http://host:port` of a proxy (CONNECT for https, absolute form for http).
    pub proxy: Option<BaseUrl>,
    pub connect_timeout: Duration,
    pub first_token_timeout: Duration,
    /// `None`: the attempt's share of the request total.
    pub answer_timeout: Option<Duration>,
    pub idle_timeout: Duration,
    pub total_timeout: Duration,
    pub stream_line_max: usize,
    /// Largest whole answer taken from this upstream, in bytes.
    pub answer_max: usize,
    pub concurrency_max: usize,
    pub waiting_max: usize,
    /// `None`: it has no breakers.
    pub breaker: Option<Breaker>,
    /// Longest `Retry-After` that is kept to.
    pub cooldown_max: Duration,
    /// Zero: no limit.
    pub requests_per_minute: u64,
    /// Zero: no limit.
    pub tokens_per_minute: u64,
    /// `concurrency_max` is the most that it may find right by itself.
    pub concurrency_adaptive: bool,
    pub concurrency_min: usize,
    /// `num_ctx` sent to an Ollama upstream when the request names none.
    pub num_ctx: Option<u64>,
    /// `echo` only: pause before each word.
    pub word_delay: Duration,
}

/// `breaker_*` of `[[upstream]]`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Breaker {
    pub failure_percent: u32,
    pub calls_min: u32,
    pub failures_max: u32,
    pub slow_call: Option<Duration>,
    pub slow_percent: u32,
    pub open_time: Duration,
    pub open_time_max: Duration,
    pub probes: u32,
}

/// The address of an upstream, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BaseUrl {
    /// True for `https`.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port, the scheme's own when none was written.
    pub port: u16,
    /// Path without its trailing slash: `""` or `"/v1"`.
    pub path: String,
}

impl BaseUrl {
    /// `Host` as it goes on the wire: the port only when it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// The whole URL, without a trailing slash.
    pub fn to_url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }
}

/// A secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: String) -> Self {
        Secret(value)
    }

    /// The secret itself, for the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// `[[model]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What clients ask for.
    pub name: String,
    /// Primary first, then the fallbacks in order; never empty.
    pub chain: Vec<Target>,
    /// Deadline of a request for this model; `None`: `server.request_timeout`.
    pub total_timeout: Option<Duration>,
    /// How long its answers are kept, beside those of embedding requests; `None`: not at all, unless
    /// a request asks for it.
    pub cache: Option<Duration>,
}

/// One link of a chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The model as the upstream knows it.
    pub model: String,
    /// `tools = false` in the config: cannot carry tools.
    pub tools: bool,
    /// `images = false` in the config: cannot carry images.
    pub images: bool,
    /// What its tokens cost; `None` when nobody said.
    pub rates: Option<Rates>,
}

/// What a million tokens cost, in millionths of `usage.currency`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of prompts.
    pub input: u64,
    /// Of answers.
    pub output: u64,
    /// Of the part of prompts that the upstream had in its cache.
    pub cached: u64,
}

impl Rates {
    /// What tokens cost, exactly, in millionths of a millionth of the currency. `cached` tokens are
    /// part of `input`.
    pub fn cost(&self, input: u64, output: u64, cached: u64) -> u128 {
        let of = |tokens: u64, rate: u64| u128::from(tokens) * u128::from(rate);
        let fresh = input.saturating_sub(cached);
        of(fresh, self.input)
            .saturating_add(of(input - fresh, self.cached))
            .saturating_add(of(output, self.output))
    }
}

/// `[[price]]`, the longest pattern first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prices(Vec<(String, Rates)>);

impl Prices {
    /// Of these patterns: `upstream/model`, or the beginning of it and a `*`.
    pub fn new(mut prices: Vec<(String, Rates)>) -> Self {
        // A whole name is more exact than a pattern of the same length.
        prices.sort_by_key(|(pattern, _)| {
            (std::cmp::Reverse(pattern.trim_end_matches('*').len()), pattern.ends_with('*'))
        });
        Prices(prices)
    }

    /// The rates of this model; `None` when nobody said.
    pub fn of(&self, upstream: &str, model: &str) -> Option<Rates> {
        let fits = |pattern: &str| match pattern.strip_suffix('*') {
            None => whole(pattern, upstream, model),
            Some(begin) => match begin.split_once('/') {
                Some((name, begin)) => name == upstream && model.starts_with(begin),
                None => upstream.starts_with(begin),
            },
        };
        self.0.iter().find(|(pattern, _)| fits(pattern)).map(|(_, rates)| *rates)
    }
}

/// Whether a pattern without `*` is this name.
fn whole(pattern: &str, upstream: &str, model: &str) -> bool {
    let rest = pattern.strip_prefix(upstream).and_then(|rest| rest.strip_prefix('/'));
    rest == Some(model)
}

/// `[usage]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Usage {
    pub currency: String,
    pub sessions_max: usize,
    pub days_max: usize,
    pub rows_max: usize,
    pub cache_ttl: Duration,
}

/// A part of the cache, which is counted and cleared by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// Answers to embedding requests.
    Embeddings,
    /// Answers of language models.
    Chat,
}

impl Namespace {
    /// All of them.
    pub const ALL: [Namespace; 2] = [Namespace::Embeddings, Namespace::Chat];

    /// Its number, from 0.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name in the file, in metrics and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Namespace::Embeddings => "embeddings",
            Namespace::Chat => "chat",
        }
    }
}

/// `[cache]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Cache {
    pub enabled: bool,
    pub embeddings: bool,
    pub ttl: Duration,
    pub stale_for: Duration,
    pub entries_max: usize,
    pub bytes_max: usize,
    pub entry_max: usize,
    pub waiting_max: usize,
    pub watch: Vec<WatchedFolder>,
}

/// `[[cache.watch]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedFolder {
    /// The folder.
    pub path: PathBuf,
    /// What a change in it makes out of date.
    pub namespace: Namespace,
}

/// `[config]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Versions {
    /// Zero: none.
    pub probation: Duration,
    pub versions_max: usize,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw.rs")]
pub struct Log {
    pub level: log::LevelFilter,
    /// `None`: standard error.
    pub dir: Option<PathBuf>,
    pub format: LogFormat,
    pub rotate_size: u64,
    pub keep_files: usize,
    pub pending_max: usize,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `time level event key=value …`
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_are_part_of_the_prompt_and_have_their_own_rate() {
        let rates = Rates { input: 10, output: 100, cached: 1 };
        assert_eq!(rates.cost(7, 3, 5), 2 * 10 + 5 + 3 * 100);
        assert_eq!(rates.cost(7, 0, 9), 7, "no more than there are");
        let most = Rates { input: u64::MAX, output: u64::MAX, cached: 0 };
        assert_eq!(most.cost(u64::MAX, 0, 0), u128::from(u64::MAX).pow(2));
    }

    #[test]
    fn the_longest_price_that_fits_counts_and_a_name_before_a_pattern() {
        let rates = |input| Rates { input, ..Rates::default() };
        let price = |pattern: &str, input| (pattern.to_owned(), rates(input));
        let prices = Prices::new(vec![
            price("*", 1),
            price("cloud/*", 2),
            price("cloud/gpt-*", 3),
            price("cloud/gpt-*", 3),
            price("cloud/gpt-4", 4),
            price("clo*", 5),
        ]);
        let check = |upstream, model, input| {
            assert_eq!(prices.of(upstream, model), Some(rates(input)), "{upstream}/{model}");
        };
        check("cloud", "gpt-4", 4);
        check("cloud", "gpt-4o", 3);
        check("cloud", "org/gpt-4", 2);
        check("clown", "gpt-4", 5);
        check("local", "gpt-4", 1);
        assert_eq!(Prices::new(vec![price("a/b", 1)]).of("a", "bc"), None);
        assert_eq!(Prices::default().of("a", "b"), None);
    }
}
