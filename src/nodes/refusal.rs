//! Errors as the protocol has them: `{code, message, details?, retryable?, retryAfterMs?}`.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::who::Scope;
use crate::base::error::{Class, Error};

/// The protocol's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request is wrong, or the state does not fit it.
    InvalidRequest,
    /// Not now, or not here.
    Unavailable,
    /// A right is missing.
    Forbidden,
    /// The device is not paired.
    NotPaired,
    /// The node is not connected.
    NotConnected,
    /// A node did not answer in time.
    Timeout,
    /// A run did not end in time.
    AgentTimeout,
}

impl Code {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidRequest => "INVALID_REQUEST",
            Code::Unavailable => "UNAVAILABLE",
            Code::Forbidden => "FORBIDDEN",
            Code::NotPaired => "NOT_PAIRED",
            Code::NotConnected => "NOT_CONNECTED",
            Code::Timeout => "TIMEOUT",
            Code::AgentTimeout => "AGENT_TIMEOUT",
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The protocol's code.
    pub code: Code,
    /// What is wrong, and what to do.
    pub message: Cow<'static, str>,
    /// Further details, an object, as the protocol has them for this case.
    pub details: Option<Value>,
    /// Whether, and after which time, a later try may work.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Refusal { code, message: message.into(), details: None, retry_after: None }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Refusal::new(Code::InvalidRequest, message)
    }

    /// Not now.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Refusal::new(Code::Unavailable, message)
    }

    /// A right is missing.
    pub fn missing(scope: Scope) -> Self {
        let word = scope.as_str();
        let details =
            json!({"code": "MISSING_SCOPE", "missingScope": word, "requiredScopes": [word]});
        Refusal::new(Code::Forbidden, format!("missing scope: {word}")).with(details)
    }

    /// With details.
    #[must_use]
    pub fn with(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// A later try may work.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The object on the wire.
    pub fn shape(&self) -> Value {
        let mut shape = Map::new();
        shape.insert("code".to_owned(), self.code.as_str().into());
        shape.insert("message".to_owned(), (&*self.message).into());
        if let Some(details) = &self.details {
            shape.insert("details".to_owned(), details.clone());
        }
        if let Some(after) = self.retry_after {
            shape.insert("retryable".to_owned(), true.into());
            let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            shape.insert("retryAfterMs".to_owned(), ms.into());
        }
        Value::Object(shape)
    }
}

/// An error of ours, in the protocol's words; its own code is in `details.reason`.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let row = error.row();
        let code = match row.class {
            Class::Validation => Code::InvalidRequest,
            Class::Auth if row.status == 403 => Code::Forbidden,
            Class::Auth => Code::InvalidRequest,
            _ => Code::Unavailable,
        };
        let refusal = Refusal::new(code, error.to_string()).with(json!({"reason": row.code}));
        match error.retry_after_seconds() {
            Some(seconds) => refusal.retry(Duration::from_secs(seconds)),
            None => refusal,
        }
    }
}
