//! The one error taxonomy of what flows to a client or along a fallback chain.
//!
//! `origin` and `retry` are decided where the fault is seen, never guessed later from text. The
//! table in [`Kind::row`] is the only place that knows codes, statuses and log levels; codes are
//! never reused.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// The six classes that every entry shares (DESIGN section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request is wrong.
    Validation,
    /// The caller is not allowed.
    Auth,
    /// Too much, too fast.
    RateLimit,
    /// No room now.
    Overload,
    /// The service behind us failed.
    Upstream,
    /// We failed.
    Internal,
}

impl Class {
    /// The word in logs, metrics and problem documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Validation => "validation",
            Class::Auth => "auth",
            Class::RateLimit => "rate_limit",
            Class::Overload => "overload",
            Class::Upstream => "upstream",
            Class::Internal => "internal",
        }
    }
}

/// The phase whose deadline ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Finding the address.
    Resolve,
    /// TCP and TLS handshakes.
    Connect,
    /// Sending the request.
    Send,
    /// Waiting for the first content of a stream.
    FirstToken,
    /// Waiting for a whole answer.
    Answer,
    /// Between two events of a stream.
    Idle,
    /// The attempt as a whole.
    Attempt,
    /// The request as a whole.
    Request,
}

impl Phase {
    /// The name of the setting that gave the deadline.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Resolve | Phase::Connect => "connect_timeout",
            Phase::Send => "send",
            Phase::FirstToken => "first_token_timeout",
            Phase::Answer => "answer_timeout",
            Phase::Idle => "idle_timeout",
            Phase::Attempt => "total_timeout",
            Phase::Request => "request_timeout",
        }
    }
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Not HTTP as RFC 9112 has it.
    BadRequest,
    /// A transfer coding other than `chunked`.
    TransferEncoding,
    /// HTTP/2 or later, or no known version.
    HttpVersion,
    /// Head above `server.head_max` or `server.headers_max`.
    HeadTooLarge,
    /// Target above `server.target_max`.
    TargetTooLong,
    /// Head or body did not come in time.
    RequestTimeout,
    /// Body above `server.body_max`.
    BodyTooLarge,
    /// An expectation other than `100-continue`.
    Expectation,
    /// Another version of WebSocket than 13.
    WebSocketVersion,
    /// No such path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The body is not JSON.
    InvalidJson,
    /// A field is missing or of the wrong type.
    InvalidField,
    /// No model of that name.
    ModelNotFound,
    /// Nothing that is configured can carry this request.
    Unsupported,
    /// The upstream says that the request is wrong (400, 413, 422, other 4xx); its status is kept.
    UpstreamRejected(u16),
    /// No key, or not one of ours.
    Unauthorized,
    /// A `Host` that is not ours.
    HostNotAllowed,
    /// A browser page from elsewhere.
    OriginNotAllowed,
    /// The key has ended.
    KeyExpired,
    /// The key may not ask for this model.
    ModelNotAllowed,
    /// Too many wrong keys: nobody is listened to for a while.
    LockedOut,
    /// A body of a type that is no JSON.
    MediaType,
    /// `server.query_max`.
    QueryTooLong,
    /// One of our limits is used up.
    RateLimited,
    /// One request is estimated above what a limit ever lets through.
    TokensAboveLimit,
    /// Somebody else's.
    NotYours,
    /// The upstream limits us (429).
    UpstreamRateLimited,
    /// `server.queue_max`.
    QueueFull,
    /// No worker took the request within `server.queue_timeout`.
    QueueTimeout,
    /// The process is at its overload level `critical`.
    Overloaded,
    /// `server.connections_max`.
    ConnectionsFull,
    /// `server.bodies_total_max`.
    BodiesFull,
    /// `ops.live_max`.
    LiveFull,
    /// `server.waiting_max`, or `upstream.waiting_max`.
    WaitingFull,
    /// `server.waiting_timeout`.
    WaitingTimeout,
    /// On the way out.
    Draining,
    /// No connection to the upstream.
    UpstreamConnect,
    /// An upstream's deadline of this phase ran out.
    UpstreamTimeout(Phase),
    /// The upstream broke off.
    UpstreamCut,
    /// What came is not what the protocol says.
    UpstreamMalformed,
    /// A whole answer above `upstream.answer_max`. Clients hear the same as of a malformed one, but it
    /// says nothing against the upstream: clients ask for much.
    UpstreamAnswerTooLarge,
    /// Everybody who could answer is left alone for now: their breakers are open, or they asked for it.
    UpstreamUnavailable,
    /// `upstream.requests_per_minute` or `tokens_per_minute` of everybody who could answer.
    UpstreamQuota,
    /// An event above `upstream.stream_line_max`.
    UpstreamLineTooLong,
    /// An error inside a stream.
    UpstreamInBand,
    /// 5xx, or a status that makes no sense here; the upstream's status is kept.
    UpstreamStatus(u16),
    /// The upstream does not know the model (404).
    UpstreamModelNotFound,
    /// The upstream rejected our key (401, 403); the upstream's status is kept.
    UpstreamKeyRejected(u16),
    /// The proxy in front of the upstream wants credentials (407).
    UpstreamProxyRejected,
    /// `server.request_timeout` or `model.total_timeout`.
    RequestTotalTimeout,
    /// The client left. Never sent; it is for logs and metrics.
    ClientGone,
    /// The client did not read for `server.write_timeout`.
    ClientStalled,
    /// There is no state directory, or its files cannot be used now.
    StoreUnavailable,
    /// Too much waits for the store, or it did not come to it in time.
    StoreBusy,
    /// The disk of the state directory is nearly full, or a file of the store is as large as it may be.
    StoreFull,
    /// The store could not do it.
    StoreFailed,
    /// `nodes.devices_max`.
    DevicesFull,
    /// `nodes.pairings_max`, or the part of it that one address may have.
    PairingsFull,
    /// A configuration that was refused: the one that ran runs on.
    InvalidConfig,
    /// The configuration was changed by somebody else meanwhile.
    ConfigMoved,
    /// A configuration that was rolled back before.
    ConfigRejected,
    /// The configuration or a version of it cannot be written or read.
    ConfigUnwritten,
    /// Somebody else is changing the configuration.
    ConfigBusy,
    /// A bug of ours.
    Internal,
}

/// One row of the table: everything that follows from a [`Kind`].
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The stable code.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The class.
    pub class: Class,
    /// The level at which the owner of the loop logs it.
    pub level: log::Level,
    /// Whether a later try may work: `Retry-After` and `x-should-retry` follow from it.
    pub later: bool,
}

impl Kind {
    /// The table.
    pub fn row(self) -> Row {
        use Class::{Auth, Internal, Overload, RateLimit, Upstream, Validation};
        use log::Level::{Debug, Error, Info, Warn};
        let (code, status, class, level, later) = match self {
            Kind::BadRequest => ("bad_request", 400, Validation, Info, false),
            Kind::TransferEncoding => ("transfer_encoding", 400, Validation, Info, false),
            Kind::HttpVersion => ("http_version", 505, Validation, Info, false),
            Kind::HeadTooLarge => ("head_too_large", 431, Validation, Info, false),
            Kind::TargetTooLong => ("target_too_long", 414, Validation, Info, false),
            Kind::RequestTimeout => ("request_timeout", 408, Validation, Info, false),
            Kind::BodyTooLarge => ("body_too_large", 413, Validation, Info, false),
            Kind::Expectation => ("expectation_failed", 417, Validation, Info, false),
            Kind::WebSocketVersion => ("websocket_version", 426, Validation, Info, false),
            Kind::NotFound => ("not_found", 404, Validation, Info, false),
            Kind::MethodNotAllowed => ("method_not_allowed", 405, Validation, Info, false),
            Kind::InvalidJson => ("invalid_json", 400, Validation, Info, false),
            Kind::InvalidField => ("invalid_field", 400, Validation, Info, false),
            Kind::ModelNotFound => ("model_not_found", 404, Validation, Info, false),
            Kind::Unsupported => ("unsupported", 400, Validation, Info, false),
            Kind::UpstreamRejected(status) => {
                ("upstream_rejected", status, Validation, Info, false)
            }
            Kind::Unauthorized => ("unauthorized", 401, Auth, Warn, false),
            Kind::HostNotAllowed => ("host_not_allowed", 403, Auth, Warn, false),
            Kind::OriginNotAllowed => ("origin_not_allowed", 403, Auth, Warn, false),
            Kind::KeyExpired => ("key_expired", 401, Auth, Warn, false),
            Kind::ModelNotAllowed => ("model_not_allowed", 403, Auth, Warn, false),
            Kind::LockedOut => ("locked_out", 429, Auth, Warn, true),
            Kind::MediaType => ("unsupported_media_type", 415, Validation, Info, false),
            Kind::QueryTooLong => ("query_too_long", 414, Validation, Info, false),
            Kind::RateLimited => ("rate_limited", 429, RateLimit, Info, true),
            Kind::TokensAboveLimit => ("tokens_above_limit", 413, Validation, Info, false),
            Kind::NotYours => ("not_yours", 403, Auth, Warn, false),
            Kind::UpstreamRateLimited => ("upstream_rate_limited", 429, RateLimit, Warn, true),
            Kind::QueueFull => ("queue_full", 503, Overload, Warn, true),
            Kind::QueueTimeout => ("queue_timeout", 503, Overload, Warn, true),
            Kind::Overloaded => ("overloaded", 503, Overload, Warn, true),
            Kind::ConnectionsFull => ("connections_full", 503, Overload, Warn, true),
            Kind::BodiesFull => ("bodies_full", 503, Overload, Warn, true),
            Kind::LiveFull => ("live_full", 503, Overload, Info, true),
            Kind::WaitingFull => ("waiting_full", 503, Overload, Warn, true),
            Kind::WaitingTimeout => ("waiting_timeout", 503, Overload, Warn, true),
            Kind::Draining => ("draining", 503, Overload, Info, true),
            Kind::UpstreamConnect => ("upstream_connect", 502, Upstream, Warn, true),
            Kind::UpstreamTimeout(_) => ("upstream_timeout", 504, Upstream, Warn, true),
            Kind::UpstreamCut => ("upstream_cut", 502, Upstream, Warn, true),
            Kind::UpstreamMalformed | Kind::UpstreamAnswerTooLarge => {
                ("upstream_malformed", 502, Upstream, Warn, true)
            }
            Kind::UpstreamLineTooLong => ("upstream_line_too_long", 502, Upstream, Warn, true),
            Kind::UpstreamInBand => ("upstream_in_band", 502, Upstream, Warn, true),
            Kind::UpstreamStatus(status) => ("upstream_error", status, Upstream, Warn, true),
            Kind::UpstreamQuota => ("upstream_quota", 503, Overload, Warn, true),
            Kind::UpstreamUnavailable => ("upstream_unavailable", 503, Upstream, Warn, true),
            Kind::UpstreamModelNotFound => ("upstream_model_not_found", 404, Upstream, Warn, false),
            Kind::UpstreamKeyRejected(status) => {
                ("upstream_key_rejected", status, Upstream, Error, false)
            }
            Kind::UpstreamProxyRejected => ("upstream_proxy_rejected", 502, Upstream, Error, false),
            Kind::RequestTotalTimeout => ("request_total_timeout", 504, Upstream, Warn, true),
            Kind::ClientGone => ("client_gone", 499, Validation, Debug, false),
            Kind::ClientStalled => ("client_stalled", 499, Validation, Info, false),
            Kind::StoreUnavailable => ("store_unavailable", 503, Overload, Warn, true),
            Kind::StoreBusy => ("store_busy", 503, Overload, Warn, true),
            Kind::StoreFull => ("store_full", 507, Overload, Error, true),
            Kind::StoreFailed => ("store_failed", 500, Internal, Error, false),
            Kind::DevicesFull => ("devices_full", 503, Overload, Warn, true),
            Kind::PairingsFull => ("pairings_full", 503, Overload, Warn, true),
            Kind::InvalidConfig => ("invalid_config", 422, Validation, Warn, false),
            Kind::ConfigMoved => ("config_moved", 412, Validation, Warn, false),
            Kind::ConfigRejected => ("config_rejected", 422, Validation, Warn, false),
            Kind::ConfigUnwritten => ("config_unwritten", 500, Internal, Error, false),
            Kind::ConfigBusy => ("config_busy", 503, Overload, Warn, true),
            Kind::Internal => ("internal", 500, Internal, Error, false),
        };
        Row { code, status, class, level, later }
    }
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The caller.
    Client,
    /// The service behind us.
    Upstream,
    /// Us.
    Ourselves,
}

/// Whether the same request may go to the same upstream again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// No.
    Never,
    /// Only because the pooled connection was stale and not a byte came back.
    FreshConnection,
}

/// An error on its way to a client.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    origin: Origin,
    retry: Retry,
    context: Cow<'static, str>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What fallible functions on the way of a request return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of this kind. `context` says what was tried, on what, and what to do: lower case,
    /// no full stop, no secrets, no bodies.
    pub fn new(kind: Kind, context: impl Into<Cow<'static, str>>) -> Self {
        let origin = match kind.row().class {
            Class::RateLimit if kind == Kind::RateLimited => Origin::Client,
            Class::Validation | Class::Auth => Origin::Client,
            Class::Upstream | Class::RateLimit => Origin::Upstream,
            Class::Overload | Class::Internal => Origin::Ourselves,
        };
        Error {
            kind,
            origin,
            retry: Retry::Never,
            context: context.into(),
            retry_after: None,
            source: None,
        }
    }

    /// Marks that the pooled connection was stale.
    #[must_use]
    pub fn on_stale_connection(mut self) -> Self {
        self.retry = Retry::FreshConnection;
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds when the upstream wants to be asked again.
    #[must_use]
    pub fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The same error once more, for another who waited for the same thing. The cause stays with the
    /// first: it was logged there.
    #[must_use]
    pub fn again(&self) -> Self {
        Error {
            kind: self.kind,
            origin: self.origin,
            retry: self.retry,
            context: self.context.clone(),
            retry_after: self.retry_after,
            source: None,
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The row of the table.
    pub fn row(&self) -> Row {
        self.kind.row()
    }

    /// Whose fault it is.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Whether the same upstream may be asked again.
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// The sentence for people.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// How long the upstream asked to be left alone, as it said.
    pub fn asked_wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// `Retry-After` in whole seconds, between 1 and 60: the only range that the OpenAI clients
    /// all treat alike (`peers.md` 5.1). Present on each error that a later try may cure.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        if !self.row().later {
            return None;
        }
        let wait = self.retry_after.unwrap_or(Duration::from_secs(1));
        let up = u64::from(wait.subsec_nanos() > 0);
        Some((wait.as_secs().saturating_add(up)).clamp(1, 60))
    }
}

impl Error {
    /// `retry-after-ms`, which the OpenAI clients prefer: the same wait in milliseconds, at most a
    /// minute. Only where the wait is known.
    pub fn retry_after_ms(&self) -> Option<u64> {
        let wait = self.retry_after.filter(|_| self.row().later)?;
        Some(
            u64::try_from(wait.as_nanos().div_ceil(1_000_000))
                .map_or(60_000, |ms| ms.clamp(1, 60_000)),
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

/// Shows an error with its causes, for logs: `error:% = Causes(&error)`. `Display` of an error
/// prints itself only.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn std::error::Error + 'static));

/// Most causes shown: an error that is its own cause must not hold a line for ever.
const CAUSES_MAX: usize = 8;

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        for _ in 0..CAUSES_MAX {
            let Some(error) = cause else { break };
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_shown_behind_the_error() {
        let inner = std::io::Error::other("connection refused");
        let error = Error::new(Kind::UpstreamConnect, "no connection to local").because(inner);
        assert_eq!(error.to_string(), "no connection to local");
        assert_eq!(Causes(&error).to_string(), "no connection to local: connection refused");
    }

    #[test]
    fn retry_after_stays_where_every_client_reads_it_alike() {
        let error = |wait: Option<u64>| {
            Error::new(Kind::UpstreamRateLimited, "x").retry_after(wait.map(Duration::from_secs))
        };
        assert_eq!(error(None).retry_after_seconds(), Some(1));
        assert_eq!(error(Some(0)).retry_after_seconds(), Some(1));
        assert_eq!(error(Some(7)).retry_after_seconds(), Some(7));
        assert_eq!(error(None).retry_after_ms(), None);
        assert_eq!(error(Some(0)).retry_after_ms(), Some(1));
        assert_eq!(error(Some(7)).retry_after_ms(), Some(7000));
        assert_eq!(error(Some(86_400)).retry_after_ms(), Some(60_000));
        assert_eq!(error(Some(86_400)).retry_after_seconds(), Some(60));
        assert_eq!(Error::new(Kind::InvalidJson, "x").retry_after_seconds(), None);
    }
}
