//! `[alerts]`, `[[alert]]`, `[[notify]]`: what is told to people, when, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ALERT_LABELS_MAX, LIST_MAX};
use crate::config::unit::{Size, Span};

/// `[alerts]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAlerts {
    /// Whether rules are judged at all.
    pub enabled: bool,

    /// What this daemon is called in alerts.
    #[schemars(length(min = 1, max = 128), extend(
        "x-default" = "the machine's name",
        "x-example" = "gateway-1",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,

    /// Between two looks at all rules.
    #[schemars(extend("x-min" = "100ms", "x-max" = "5m"))]
    pub interval: Span,

    /// How long the first notice of a rule waits for further alerts of the same rule, which then
    /// stand in one notice with it.
    #[schemars(extend("x-min" = "0s", "x-max" = "10m"))]
    pub group_wait: Span,

    /// Between two notices of one rule.
    #[schemars(extend("x-min" = "0s", "x-max" = "24h"))]
    pub group_interval: Span,

    /// An alert that goes on is told again after this time.
    #[schemars(extend("x-min" = "1s", "x-max" = "720h"))]
    pub repeat: Span,

    /// Whether it is told that an alert is over. Without it, an alert that is over and comes again
    /// within `repeat` is not told again.
    pub resolved: bool,

    /// Notices that wait for their channels. They are kept in `durable.db` of the state directory and
    /// outlive a restart; without a state directory they are kept in memory.
    #[schemars(range(min = 16, max = 10_000), extend(
        "x-at-limit" = "the oldest is given up, the event alert_given_up, /readyz?verbose says so",
    ))]
    pub spool_max: usize,

    /// Bytes of all notices that wait.
    #[schemars(extend(
        "x-min" = "64KiB",
        "x-max" = "256MiB",
        "x-at-limit" = "the oldest is given up, the event alert_given_up, /readyz?verbose says so",
    ))]
    pub spool_bytes_max: Size,

    /// How long a notice is tried.
    #[schemars(extend(
        "x-min" = "1m",
        "x-max" = "720h",
        "x-at-limit" = "it is given up, the event alert_given_up, /readyz?verbose says so",
    ))]
    pub spool_age: Span,

    /// How long a channel that failed is left alone the first time; then twice as long after each
    /// further failure, up to `retry_max`, each give or take a half. A `Retry-After` counts instead
    /// where it is longer.
    #[schemars(extend("x-min" = "10ms", "x-max" = "10m"))]
    pub retry_min: Span,

    /// The longest of these times.
    #[schemars(extend("x-min" = "10ms", "x-max" = "24h"))]
    pub retry_max: Span,

    /// An address outside that is asked (`GET`) every `heartbeat_interval` as long as the daemon is
    /// well, and raises the alarm when it is not asked any more: a dead-man's switch, as healthchecks.io
    /// and others have it.
    #[schemars(length(min = 1, max = 2048), extend(
        "x-secret" = true,
        "x-default" = "none",
        "x-example" = "https://hc.example.org/ping/gateway-1",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_url: Option<String>,

    /// Between two of these requests.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h"))]
    pub heartbeat_interval: Span,
}

impl Default for RawAlerts {
    fn default() -> Self {
        RawAlerts {
            enabled: true,
            instance: None,
            interval: Span::seconds(5),
            group_wait: Span::seconds(30),
            group_interval: Span::seconds(5 * 60),
            repeat: Span::seconds(4 * 3600),
            resolved: true,
            spool_max: 1000,
            spool_bytes_max: Size::mib(4),
            spool_age: Span::seconds(24 * 3600),
            retry_min: Span::seconds(2),
            retry_max: Span::seconds(5 * 60),
            heartbeat_url: None,
            heartbeat_interval: Span::seconds(60),
        }
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawMeasure {
    /// A metric as it is now.
    Value,
    /// What a counter grew by within the window.
    Increase,
    /// What a counter grew by in a second, within the window.
    Rate,
    /// The mean of a metric, or of what a histogram saw, within the window.
    Average,
    /// The median of what a histogram saw within the window.
    P50,
    /// The value that 90 % of what a histogram saw within the window are below.
    P90,
    /// The same for 95 %.
    P95,
    /// The same for 99 %.
    P99,
    /// How much of a limit is used, as a share of it. A limit that refuses counts as used up.
    Share,
    /// The time until a limit is reached if its use grows on as it did, in seconds. Only a growth that is
    /// steady counts.
    TimeLeft,
    /// A check that has failed.
    Failed,
    /// A check that is degraded.
    Degraded,
}

/// On which side of its threshold something is an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawOp {
    /// Above it.
    Above,
    /// Below it.
    Below,
}

/// How grave an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSeverity {
    /// Somebody should act now.
    Critical,
    /// Somebody should look soon.
    Warning,
    /// Worth knowing.
    Info,
}

/// `[[alert]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub struct RawAlert {
    /// Its name: that of a built-in rule to change that one, or a new one: letters, digits, `-`, `_` and
    /// `.`. `tidegate alerts --rules` lists all rules.
    #[schemars(length(min = 1, max = 64), extend("x-example" = "memory_high"))]
    pub name: String,

    /// Whether it is judged.
    pub enabled: bool,

    /// The metric that it looks at, as on `/metrics`, with labels or without: the sum of all series that
    /// fit. A value may end in `*`.
    #[schemars(length(min = 1, max = 512), extend(
        "x-default" = "none; a new rule needs one of metric, limit, check and event",
        "x-example" = "tidegate_http_requests_total{code=\"upstream_timeout\"}",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,

    /// The metric that it is divided by.
    #[schemars(length(min = 1, max = 512), extend(
        "x-default" = "none",
        "x-example" = "tidegate_http_requests_total",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<String>,

    /// Labels whose values are judged each by itself.
    #[schemars(length(max = ALERT_LABELS_MAX), extend("x-example" = ["upstream"]))]
    pub by: Vec<String>,

    /// The limit that it looks at, as in `tidegate limits`; `*` at the end stands for anything. Those
    /// that make room by themselves when they are full, such as caches, are left out unless they are
    /// named in full.
    #[schemars(length(min = 1, max = 128), extend(
        "x-default" = "none",
        "x-example" = "server.connections_max",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,

    /// The check of `/readyz?verbose` that it looks at; `*` at the end stands for anything.
    #[schemars(length(min = 1, max = 128), extend("x-default" = "none", "x-example" = "store"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,

    /// The kind of event that it looks at, several with `|` between them; `*` at the end stands for
    /// anything at the level `error`. The alert is over when there was none for `window`.
    #[schemars(length(min = 1, max = 512), extend(
        "x-default" = "none",
        "x-example" = "breaker_opened",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,

    /// What is compared.
    #[schemars(extend(
        "x-default" = "value; share of a limit, failed of a check",
        "x-example" = "increase",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measure: Option<RawMeasure>,

    /// On which side of `threshold` it is an alert.
    #[schemars(extend("x-default" = "above", "x-example" = "above"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<RawOp>,

    /// The threshold: a number, or with a unit as in "90%", "2s" and "512MiB".
    #[schemars(length(min = 1, max = 32), extend("x-default" = "none", "x-example" = "90%"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<String>,

    /// Where it is over again. Between the two an alert stays what it is.
    #[schemars(length(min = 1, max = 32), extend(
        "x-default" = "5 % on the good side of the threshold",
        "x-example" = "80%",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clear: Option<String>,

    /// The time that increases, rates, means and percentiles are taken over, and that an event lasts.
    #[schemars(extend(
        "x-default" = "5m; 15m for events",
        "x-example" = "5m",
        "x-min" = "1s",
        "x-max" = "24h",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,

    /// How much a histogram, or the metric of `per`, must have counted within the window for the figure
    /// to say something.
    #[schemars(range(min = 0, max = 1_000_000_000), extend("x-default" = "0", "x-example" = 20))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_min: Option<u64>,

    /// How long it must be so before it is an alert.
    #[schemars(extend(
        "x-default" = "0s",
        "x-example" = "60s",
        "x-min" = "0s",
        "x-max" = "24h",
    ))]
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,

    /// How grave it is.
    #[schemars(extend("x-default" = "warning", "x-example" = "warning"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<RawSeverity>,

    /// What it means and what to do, in a sentence.
    #[schemars(length(min = 1, max = 512), extend(
        "x-default" = "none",
        "x-example" = "memory runs short; see tidegate limits",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,

    /// Further labels of its alerts, each as `name=value`.
    #[schemars(length(max = ALERT_LABELS_MAX), extend("x-example" = ["team=ops"]))]
    pub labels: Vec<String>,

    /// Rules that mute this one while they fire: it is shown, but not told.
    #[schemars(length(max = LIST_MAX), extend("x-example" = ["unresponsive"]))]
    pub muted_by: Vec<String>,
}

impl Default for RawAlert {
    fn default() -> Self {
        RawAlert {
            name: String::new(),
            enabled: true,
            metric: None,
            per: None,
            by: Vec::new(),
            limit: None,
            check: None,
            event: None,
            measure: None,
            op: None,
            threshold: None,
            clear: None,
            window: None,
            count_min: None,
            hold: None,
            severity: None,
            summary: None,
            labels: Vec::new(),
            muted_by: Vec::new(),
        }
    }
}

/// What a channel speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawNotifyKind {
    /// ntfy: JSON published to `topic` at `url`; the key is an access token.
    Ntfy,
    /// Sentry, or what takes its envelopes; the key is the whole DSN, and there is no `url`.
    Sentry,
    /// Alertmanager's `/api/v2/alerts` below `url`; the key is a bearer token.
    Alertmanager,
    /// JSON as Alertmanager's own webhooks send it, posted to `url`; with a key it is signed as
    /// Standard Webhooks has it.
    Webhook,
}

/// `[[notify]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "kind"]))]
pub struct RawNotify {
    /// Its name in metrics and lists: letters, digits, `-`, `_` and `.`.
    #[schemars(length(min = 1, max = 64), extend("x-example" = "phone"))]
    pub name: String,

    /// What it speaks.
    #[schemars(extend("x-example" = "ntfy"))]
    pub kind: Option<RawNotifyKind>,

    /// Where it is. It is not shown, since a webhook's may be all that it takes to use it.
    #[schemars(length(min = 1, max = 2048), extend(
        "x-secret" = true,
        "x-default" = "none; needed but for sentry",
        "x-example" = "https://ntfy.example.org",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// ntfy's topic.
    #[schemars(length(min = 1, max = 64), extend(
        "x-default" = "none; needed for ntfy",
        "x-example" = "gateway",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,

    /// The environment variable that holds the key.
    #[schemars(length(min = 1, max = 256), extend(
        "x-default" = "none",
        "x-example" = "NTFY_TOKEN",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,

    /// The file that holds the key. A relative path starts from the folder of this file.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "none",
        "x-example" = "/etc/tidegate/ntfy.key",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,

    /// A PEM file with the only certificates to trust for this channel.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "the platform's",
        "x-example" = "/etc/tidegate/ca.pem",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,

    /// An HTTP proxy on the way. The proxies that the environment names are never used.
    #[schemars(length(min = 1, max = 2048), extend(
        "x-default" = "none",
        "x-example" = "http://192.0.2.1:3128",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,

    /// The severities that it is told of. Empty: all.
    #[schemars(length(max = 3), extend("x-example" = ["critical", "warning"]))]
    pub severities: Vec<RawSeverity>,

    /// Notices a minute, as many at once.
    #[schemars(range(min = 1, max = 600), extend("x-at-limit" = "the notice waits"))]
    pub per_minute: u64,

    /// One delivery, from finding the address to the end of the answer.
    #[schemars(extend("x-min" = "10ms", "x-max" = "30s", "x-at-limit" = "it is tried again"))]
    pub timeout: Span,

    /// Alertmanager: how often alerts that go on are sent again. Alertmanager takes one that it has not
    /// heard of for its `resolve_timeout` (5 minutes) for over.
    #[schemars(extend("x-default" = "1m", "x-example" = "1m", "x-min" = "1s", "x-max" = "1h"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resend: Option<Span>,
}

impl Default for RawNotify {
    fn default() -> Self {
        RawNotify {
            name: String::new(),
            kind: None,
            url: None,
            topic: None,
            key_env: None,
            key_file: None,
            ca_file: None,
            proxy: None,
            severities: Vec::new(),
            per_minute: 20,
            timeout: Span::seconds(10),
            resend: None,
        }
    }
}
