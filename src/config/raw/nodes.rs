//! `[nodes]`, `[hooks]`: companion devices and operators on WebSocket, and hooks for agents.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::secret::Named;
use crate::config::unit::{Size, Span};

/// `[nodes]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawNodes {
    /// Whether there are WebSocket connections at all. Off, an upgrade gets 404; connections that are
    /// open are closed.
    pub enabled: bool,

    /// The environment variable that holds the operators' shared token: who shows it may do everything
    /// that it asks for.
    #[schemars(length(min = 1, max = 256), extend(
        "x-default" = "none",
        "x-example" = "TIDEGATE_NODES_TOKEN",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,

    /// The file that holds it. Blanks around the token are cut. A relative path starts from the folder
    /// of this file.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "none",
        "x-example" = "/etc/tidegate/nodes.token",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,

    /// The environment variable that holds the operators' shared password, for clients that ask their
    /// user for one. It opens what the token opens.
    #[schemars(length(min = 1, max = 256), extend(
        "x-default" = "none",
        "x-example" = "TIDEGATE_NODES_PASSWORD",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,

    /// The file that holds it.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "none",
        "x-example" = "/etc/tidegate/nodes.password",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,

    /// Connections at once. Each has a thread of its own, and is one of `server.connections_max` too.
    #[schemars(range(min = 1, max = 65_536), extend("x-at-limit" = "503 with Retry-After"))]
    pub connections_max: usize,

    /// Connections at once of one key, token or device.
    #[schemars(range(min = 1, max = 65_536), extend("x-at-limit" = "UNAVAILABLE, close 1013"))]
    pub connections_per_key_max: usize,

    /// Connections at once from one client address (an IPv6 address by its first 64 bits), loopback
    /// too.
    #[schemars(range(min = 1, max = 65_536), extend("x-at-limit" = "503 with Retry-After"))]
    pub connections_per_address_max: usize,

    /// From the upgrade to the end of the handshake.
    #[schemars(extend("x-min" = "100ms", "x-max" = "5m", "x-at-limit" = "close 1008"))]
    pub handshake_timeout: Span,

    /// Largest message before the end of the handshake.
    #[schemars(extend("x-min" = "4KiB", "x-max" = "1MiB", "x-at-limit" = "close 1009"))]
    pub hello_max: Size,

    /// Between two pings; 0 turns them off, and then nobody finds out about a peer that has vanished
    /// but the system's keep-alive, after minutes.
    #[schemars(extend("x-min" = "0s", "x-max" = "10m"))]
    pub ping_interval: Span,

    /// From a ping to its pong. Any message counts as one.
    #[schemars(extend("x-min" = "100ms", "x-max" = "5m", "x-at-limit" = "the peer is dead: cut off"))]
    pub pong_timeout: Span,

    /// Between two `tick` events. A client that hears nothing for two of them connects again.
    #[schemars(extend("x-min" = "100ms", "x-max" = "10m"))]
    pub tick_interval: Span,

    /// Largest message after the handshake, as announced to clients.
    #[schemars(extend("x-min" = "64KiB", "x-max" = "256MiB", "x-at-limit" = "close 1009"))]
    pub payload_max: Size,

    /// Bytes of all messages that are on their way in.
    #[schemars(extend(
        "x-min" = "1MiB",
        "x-max" = "16GiB",
        "x-at-limit" = "nothing more is read until there is room; close 1013 when there is none",
    ))]
    pub messages_total_max: Size,

    /// Bytes that wait to be sent on one connection, as announced to clients. A larger message is
    /// sent nevertheless when nothing else waits.
    #[schemars(extend(
        "x-min" = "64KiB",
        "x-max" = "1GiB",
        "x-at-limit" = "close 1008, slow consumer",
    ))]
    pub buffered_max: Size,

    /// Bytes that wait to be sent on one connection from which on it gets no events any more that newer
    /// ones replace (ticks, presence, health).
    #[schemars(extend("x-min" = "4KiB", "x-max" = "256MiB", "x-at-limit" = "dropped, and counted"))]
    pub telemetry_max: Size,

    /// Bytes that wait to be sent on all connections.
    #[schemars(extend(
        "x-min" = "1MiB",
        "x-max" = "16GiB",
        "x-at-limit" = "close 1008, slow consumer",
    ))]
    pub buffered_total_max: Size,

    /// How long a peer may take nothing of what is sent to it.
    #[schemars(extend("x-min" = "100ms", "x-max" = "10m", "x-at-limit" = "close 1008, slow consumer"))]
    pub write_timeout: Span,

    /// Entries of presence.
    #[schemars(range(min = 1, max = 10_000), extend("x-at-limit" = "the oldest is left out"))]
    pub presence_max: usize,

    /// How long an entry of presence outlives its connection's last sign.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h", "x-at-limit" = "it is left out"))]
    pub presence_ttl: Span,

    /// How long an invocation of a node's command may take where its caller says nothing.
    #[schemars(extend("x-min" = "100ms", "x-max" = "10m", "x-at-limit" = "TIMEOUT"))]
    pub invoke_timeout: Span,

    /// Invocations under way.
    #[schemars(range(min = 1, max = 65_536), extend("x-at-limit" = "UNAVAILABLE"))]
    pub pending_max: usize,

    /// Chat sessions that are remembered.
    #[schemars(range(min = 1, max = 10_000), extend("x-at-limit" = "the one unused longest is forgotten"))]
    pub sessions_max: usize,

    /// Bytes of the messages of one session.
    #[schemars(extend(
        "x-min" = "16KiB",
        "x-max" = "64MiB",
        "x-at-limit" = "its oldest messages are forgotten",
    ))]
    pub session_bytes_max: Size,

    /// Runs of chat and agents at once.
    #[schemars(range(min = 1, max = 4096), extend("x-at-limit" = "UNAVAILABLE"))]
    pub runs_max: usize,

    /// How long a run may take.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h", "x-at-limit" = "it is aborted"))]
    pub run_timeout: Span,

    /// Devices that are paired.
    #[schemars(range(min = 1, max = 10_000), extend("x-at-limit" = "approvals are refused"))]
    pub devices_max: usize,

    /// Devices that wait to be paired.
    #[schemars(range(min = 1, max = 1024), extend("x-at-limit" = "the oldest is forgotten"))]
    pub pairings_max: usize,

    /// Idempotency keys that are remembered, for 5 minutes each.
    #[schemars(range(min = 16, max = 100_000), extend("x-at-limit" = "the oldest is forgotten"))]
    pub idempotency_max: usize,

    /// Changes of the gateway (`config.set` and the like) that one device may make in a minute.
    #[schemars(range(min = 1, max = 10_000), extend("x-at-limit" = "UNAVAILABLE with retryAfterMs"))]
    pub writes_per_minute: usize,
}

impl RawNodes {
    /// Where the token is.
    pub(in crate::config) fn token(&self) -> Named<'_> {
        Named {
            keys: ("token_env", "token_file"),
            env: self.token_env.as_deref(),
            file: self.token_file.as_deref(),
        }
    }

    /// Where the password is.
    pub(in crate::config) fn password(&self) -> Named<'_> {
        Named {
            keys: ("password_env", "password_file"),
            env: self.password_env.as_deref(),
            file: self.password_file.as_deref(),
        }
    }
}

impl Default for RawNodes {
    fn default() -> Self {
        RawNodes {
            enabled: true,
            token_env: None,
            token_file: None,
            password_env: None,
            password_file: None,
            connections_max: 1024,
            connections_per_key_max: 256,
            connections_per_address_max: 256,
            handshake_timeout: Span::seconds(15),
            hello_max: Size::kib(64),
            ping_interval: Span::seconds(25),
            pong_timeout: Span::seconds(10),
            tick_interval: Span::seconds(15),
            payload_max: Size::mib(25),
            messages_total_max: Size::mib(128),
            buffered_max: Size::mib(8),
            telemetry_max: Size::kib(256),
            buffered_total_max: Size::mib(256),
            write_timeout: Span::seconds(30),
            presence_max: 200,
            presence_ttl: Span::seconds(300),
            invoke_timeout: Span::seconds(30),
            pending_max: 1024,
            sessions_max: 100,
            session_bytes_max: Size::mib(1),
            runs_max: 64,
            run_timeout: Span::seconds(600),
            devices_max: 256,
            pairings_max: 64,
            idempotency_max: 1000,
            writes_per_minute: 30,
        }
    }
}

/// `[hooks]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawHooks {
    /// The environment variable that holds the hooks' token. Without a token there are no hooks: 404.
    #[schemars(length(min = 1, max = 256), extend(
        "x-default" = "none",
        "x-example" = "TIDEGATE_HOOKS_TOKEN",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,

    /// The file that holds it. Blanks around the token are cut. A relative path starts from the folder
    /// of this file.
    #[schemars(length(min = 1, max = 4096), extend(
        "x-default" = "none",
        "x-example" = "/etc/tidegate/hooks.token",
    ))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,

    /// Largest body of a hook.
    #[schemars(extend("x-min" = "1KiB", "x-max" = "16MiB", "x-at-limit" = "413"))]
    pub body_max: Size,

    /// So many requests with a wrong token from one address lock this address out of the hooks; 0 turns
    /// this off.
    #[schemars(range(min = 0, max = 1_000_000), extend("x-at-limit" = "429 with Retry-After"))]
    pub failures_max: usize,

    /// The time in which they are counted.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h"))]
    pub window: Span,

    /// How long a lockout lasts.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h"))]
    pub lockout: Span,
}

impl RawHooks {
    /// Where the token is.
    pub(in crate::config) fn token(&self) -> Named<'_> {
        Named {
            keys: ("token_env", "token_file"),
            env: self.token_env.as_deref(),
            file: self.token_file.as_deref(),
        }
    }
}

impl Default for RawHooks {
    fn default() -> Self {
        RawHooks {
            token_env: None,
            token_file: None,
            body_max: Size::kib(256),
            failures_max: 20,
            window: Span::seconds(60),
            lockout: Span::seconds(60),
        }
    }
}
