//! `[server]`, `[ops]`, `[log]`, `[state]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LIST_MAX;
use crate::config::unit::{Rate, Size, Span};

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
    /// Dashboards that are open at once and told of everything each second. Each holds a connection of
    /// the 64 that the ops plane has, and no thread.
    #[schemars(range(min = 0, max = 32), extend(
        "x-at-limit" = "503 `live_full`; the page asks every few seconds instead",
    ))]
    pub live_max: usize,
}

impl Default for RawOps {
    fn default() -> Self {
        RawOps { listen: "127.0.0.1:18790".to_owned(), live_max: 16 }
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
