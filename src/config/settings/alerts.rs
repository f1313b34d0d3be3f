//! `[alerts]`, `[[alert]]` and `[[notify]]` as the program holds them: rules that are whole, and channels
//! that can be called.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{BaseUrl, Secret};

/// `[alerts]`, with all rules and channels.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw/alerts.rs")]
pub struct Alerts {
    pub enabled: bool,
    /// `None`: the machine's name.
    pub instance: Option<String>,
    pub interval: Duration,
    pub group_wait: Duration,
    pub group_interval: Duration,
    pub repeat: Duration,
    pub resolved: bool,
    pub spool_max: usize,
    pub spool_bytes_max: u64,
    pub spool_age: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
    pub heartbeat: Option<Endpoint>,
    pub heartbeat_interval: Duration,
    /// Those that are judged, built-in ones first.
    pub rules: Vec<Arc<Rule>>,
    pub channels: Vec<Arc<Channel>>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name, which is also that of its alerts.
    pub name: String,
    /// What it looks at.
    pub source: Source,
    /// How long it must be so before it is an alert.
    pub hold: Duration,
    /// How grave its alerts are.
    pub severity: Severity,
    /// What it means and what to do.
    pub summary: String,
    /// Further labels of its alerts.
    pub labels: Vec<(String, String)>,
    /// Rules that mute this one.
    pub muted_by: Vec<String>,
    /// Whether the program brought it.
    pub built_in: bool,
}

/// How grave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Somebody should look soon.
    Warning,
    /// Somebody should act now.
    Critical,
}

impl Severity {
    /// All of them, the gravest last.
    pub const ALL: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Critical];

    /// The word in files, labels and lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }

    /// The severity of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Severity::ALL.into_iter().find(|severity| severity.as_str() == word)
    }
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Series of a metric.
    Metric(Figure),
    /// Limits by their names.
    Limit {
        /// Which.
        name: Pattern,
        /// Whether the time that is left is judged, not the share that is used.
        time_left: bool,
        /// When it is an alert. A share is from 0 to 1, a time in seconds.
        when: When,
    },
    /// Checks of the board.
    Check {
        /// Which.
        name: Pattern,
        /// Whether those that are degraded are meant, not those that have failed.
        degraded: bool,
    },
    /// Events.
    Event {
        /// Their kinds; a pattern that is not whole takes those of the level `error` only.
        kinds: Vec<Pattern>,
        /// How long one lasts.
        window: Duration,
    },
    /// Threads that are silent: the longest silence that is still well is each thread's own.
    Threads,
    /// Channels that deliver nothing.
    Channels {
        /// When it is an alert: seconds since the first of the failures in a row.
        when: When,
    },
}

/// A figure of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Of which series.
    pub of: Selector,
    /// What it is divided by.
    pub per: Option<Selector>,
    /// Labels whose values are judged each by itself.
    pub by: Vec<String>,
    /// What is taken of them.
    pub measure: Measure,
    /// Over which time.
    pub window: Duration,
    /// How much must have been counted.
    pub count_min: u64,
    /// When it is an alert.
    pub when: When,
}

/// What is taken of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// As it is now.
    Value,
    /// What it grew by.
    Increase,
    /// What it grew by in a second.
    Rate,
    /// Its mean.
    Average,
    /// A quantile of a histogram, from 0 to 1.
    Quantile(f64),
}

/// When a figure is an alert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct When {
    /// Whether it is one above the threshold, else below it.
    pub above: bool,
    /// The threshold.
    pub threshold: f64,
    /// Where it is over again, on the good side of the threshold or on it.
    pub clear: f64,
    /// How figures are written.
    pub unit: Unit,
}

/// How a figure is written for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// As it is.
    Number,
    /// In percent.
    Share,
    /// As a duration; the figure is in seconds.
    Seconds,
    /// As a size; the figure is in bytes.
    Bytes,
}

/// Series of a metric: its name, and values of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector {
    /// The name, exactly.
    pub name: String,
    /// Labels, and the values that fit.
    pub labels: Vec<(String, Pattern)>,
}

/// A name, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// What it must be, or begin with.
    pub text: String,
    /// Whether more may follow.
    pub open: bool,
}

impl Pattern {
    /// `text`, with a `*` at its end for anything.
    pub fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(beginning) => Pattern { text: beginning.to_owned(), open: true },
            None => Pattern { text: text.to_owned(), open: false },
        }
    }

    /// Whether a name fits.
    pub fn fits(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Pattern { text, open } = self;
        write!(f, "{text}{}", if *open { "*" } else { "" })
    }
}

/// An address with all that stands behind it.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Everything up to the query. The path may be a secret, as a webhook's is.
    pub url: BaseUrl,
    /// What stands behind the path: its slash, and a query with its `?`; or nothing.
    pub rest: String,
}

/// Shortest part of an address that is taken for a token, in bytes. Shorter ones are words, such as the
/// names of folders, which would be found everywhere.
const TOKEN_BYTES_MIN: usize = 16;

impl Endpoint {
    /// The parts of the address that may be all that it takes to use it: long parts of its path, and
    /// long values of its query.
    fn secrets(&self) -> impl Iterator<Item = Secret> {
        let parts = self.url.path.split('/').chain(self.rest.split(['/', '?', '&', '=']));
        parts.filter(|part| part.len() >= TOKEN_BYTES_MIN).map(|part| Secret::new(part.to_owned()))
    }
}

impl Alerts {
    /// What must never be shown: the keys of channels, and tokens in addresses.
    pub fn secrets(&self) -> impl Iterator<Item = Secret> {
        let channels = self.channels.iter();
        let keys = channels.clone().filter_map(|channel| channel.key.clone());
        let endpoints = channels.map(|channel| &channel.endpoint).chain(&self.heartbeat);
        keys.chain(endpoints.flat_map(Endpoint::secrets))
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the path, which may be a secret.
        write!(f, "{}:{}", self.url.host, self.url.port)
    }
}

/// `[[notify]]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw/alerts.rs")]
pub struct Channel {
    pub name: String,
    pub kind: ChannelKind,
    pub endpoint: Endpoint,
    /// ntfy's topic; else empty.
    pub topic: String,
    /// The token, Sentry's public key, or the secret of the signature.
    pub key: Option<Secret>,
    pub ca_file: Option<PathBuf>,
    pub ca_digest: Option<[u8; 32]>,
    pub proxy: Option<BaseUrl>,
    /// Empty: all.
    pub severities: Vec<Severity>,
    pub per_minute: u64,
    pub timeout: Duration,
    /// Alertmanager only.
    pub resend: Duration,
}

impl Channel {
    /// Whether it is told of alerts of this severity.
    pub fn takes(&self, severity: Severity) -> bool {
        self.severities.is_empty() || self.severities.contains(&severity)
    }
}

/// What a channel speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// ntfy's JSON.
    Ntfy,
    /// Sentry's envelopes.
    Sentry,
    /// Alertmanager's API.
    Alertmanager,
    /// Alertmanager's webhooks.
    Webhook,
}

impl ChannelKind {
    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelKind::Ntfy => "ntfy",
            ChannelKind::Sentry => "sentry",
            ChannelKind::Alertmanager => "alertmanager",
            ChannelKind::Webhook => "webhook",
        }
    }
}
