//! The access log: one line for each request, when it is over.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use log::kv::{self, Key, Source, Value, VisitSource};
use log::{Level, Record};

use crate::base::id::RequestId;
use crate::net::http::Method;

/// Where these lines come from, for the level filter.
const TARGET: &str = "tidegate::access";

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// Failed, with this code (`base::error::Kind::row`), before or within the answer.
    Error(&'static str),
    /// Not taken up: the request is wrong, not allowed, or there is no room. With its code.
    Refused(&'static str),
    /// The client left.
    ClientGone,
}

/// A link of the chain that did not answer, and why.
#[derive(Clone, Copy, Debug)]
pub struct FailedAttempt<'a> {
    /// The upstream's name.
    pub upstream: &'a str,
    /// The code of its failure.
    pub code: &'static str,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompt.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
    /// Counted by us, because the upstream did not say (a stream that was cut).
    pub estimated: bool,
}

/// One request, as the log shows it. Nothing in here comes from a body, except the model's name.
#[derive(Clone, Debug)]
pub struct AccessLine<'a> {
    /// The request's id.
    pub id: &'a RequestId,
    /// The name of its key.
    pub key: Option<&'a str>,
    /// Who asked.
    pub peer: SocketAddr,
    /// The method.
    pub method: Method,
    /// The path. A query is left out: people put keys there.
    pub path: &'a str,
    /// The status that was sent, or would have been.
    pub status: u16,
    /// The model that was asked for.
    pub model: Option<&'a str>,
    /// The upstream that answered, and the model as it knows it.
    pub answered_by: Option<(&'a str, &'a str)>,
    /// The links of the chain that failed before, in order.
    pub failed: &'a [FailedAttempt<'a>],
    /// From the first byte of the request to the first content of the answer.
    pub first_token: Option<Duration>,
    /// How long it waited for room: for an upstream's permit or moment, or to run at all.
    pub waited: Option<Duration>,
    /// From the first byte of the request to the last of the answer.
    pub total: Duration,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body, as sent.
    pub bytes_out: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the answer was a stream.
    pub stream: bool,
    /// Tokens, when they are known.
    pub tokens: Option<Tokens>,
    /// Where the answer came from, when the cache had a part in it: `hit`, `miss`, `stale`,
    /// `coalesced`. The tokens of all but `miss` were used by an earlier request.
    pub cache: Option<&'static str>,
}

impl AccessLine<'_> {
    /// Logs the line, at `info`.
    pub fn log(&self) {
        if Level::Info > log::max_level() {
            return;
        }
        let args = format_args!("access");
        let fields = self.fields();
        let record = Record::builder()
            .level(Level::Info)
            .target(TARGET)
            .args(args)
            .key_values(&fields)
            .build();
        log::logger().log(&record);
    }

    fn fields(&self) -> Fields<'_> {
        Fields(self, Failures(self.failed))
    }
}

/// Milliseconds with microseconds behind the point.
#[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// `local:upstream_connect,cloud:upstream_timeout`.
struct Failures<'a>(&'a [FailedAttempt<'a>]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, attempt) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_char(',')?;
            }
            write!(f, "{}:{}", attempt.upstream, attempt.code)?;
        }
        Ok(())
    }
}

/// The line's fields, in order: what a reader looks for first, and what a remote chooses (the
/// longest) last, so that a line that is cut keeps its figures.
struct Fields<'a>(&'a AccessLine<'a>, Failures<'a>);

impl Source for Fields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        let Fields(line, failures) = self;
        let mut put = |key: &'static str, value: Value<'kvs>| {
            visitor.visit_pair(Key::from_str_static(key), value)
        };
        put("id", line.id.as_str().into())?;
        if let Some(key) = line.key {
            put("key", key.into())?;
        }
        put("peer", Value::from_display(&line.peer))?;
        put("method", line.method.as_str().into())?;
        put("path", line.path.split('?').next().unwrap_or_default().into())?;
        put("status", line.status.into())?;
        let (outcome, code) = match line.outcome {
            Outcome::Ok => ("ok", None),
            Outcome::Error(code) => ("error", Some(code)),
            Outcome::Refused(code) => ("refused", Some(code)),
            Outcome::ClientGone => ("client_gone", None),
        };
        put("outcome", outcome.into())?;
        if let Some(code) = code {
            put("code", code.into())?;
        }
        if let Some(first_token) = line.first_token {
            put("first_token_ms", ms(first_token).into())?;
        }
        if let Some(waited) = line.waited {
            put("waited_ms", ms(waited).into())?;
        }
        put("total_ms", ms(line.total).into())?;
        put("bytes_in", line.bytes_in.into())?;
        put("bytes_out", line.bytes_out.into())?;
        put("stream", line.stream.into())?;
        if let Some(tokens) = line.tokens {
            put("tokens_in", tokens.input.into())?;
            put("tokens_out", tokens.output.into())?;
            put("estimated", tokens.estimated.into())?;
        }
        if let Some(cache) = line.cache {
            put("cache", cache.into())?;
        }
        if let Some((upstream, model)) = line.answered_by {
            put("upstream", upstream.into())?;
            put("upstream_model", model.into())?;
        }
        if !failures.0.is_empty() {
            put("failed", Value::from_display(failures))?;
        }
        if let Some(model) = line.model {
            put("model", model.into())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Written(String);

    impl<'kvs> VisitSource<'kvs> for Written {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            write!(self.0, " {key}={value}").map_err(|_| kv::Error::msg("no room"))
        }
    }

    fn written(line: &AccessLine<'_>) -> String {
        let mut out = Written(String::new());
        line.fields().visit(&mut out).unwrap();
        out.0
    }

    fn plain(id: &RequestId) -> AccessLine<'_> {
        AccessLine {
            id,
            key: None,
            peer: "127.0.0.1:5000".parse().unwrap(),
            method: Method::Get,
            path: "/v1/models",
            status: 200,
            model: None,
            answered_by: None,
            failed: &[],
            first_token: None,
            waited: None,
            total: Duration::from_micros(31),
            bytes_in: 0,
            bytes_out: 17,
            outcome: Outcome::Ok,
            stream: false,
            tokens: None,
            cache: None,
        }
    }

    #[test]
    fn a_plain_request_has_a_short_line() {
        let id = RequestId::from_client(b"r1").unwrap();
        assert_eq!(
            written(&plain(&id)),
            " id=r1 peer=127.0.0.1:5000 method=GET path=/v1/models status=200 outcome=ok \
             total_ms=0.031 bytes_in=0 bytes_out=17 stream=false"
        );
    }

    #[test]
    fn a_request_that_went_down_the_chain_tells_all_of_it_and_no_query() {
        let id = RequestId::from_client(b"r2").unwrap();
        let failed = [
            FailedAttempt { upstream: "local", code: "upstream_connect" },
            FailedAttempt { upstream: "cloud", code: "upstream_timeout" },
        ];
        let line = AccessLine {
            key: Some("laptop"),
            method: Method::Post,
            path: "/v1/chat/completions?key=secret",
            model: Some("default"),
            answered_by: Some(("spare", "gpt-oss:120b")),
            failed: &failed,
            first_token: Some(Duration::from_millis(1500)),
            total: Duration::from_secs(3),
            bytes_in: 100,
            bytes_out: 2000,
            outcome: Outcome::Error("upstream_cut"),
            stream: true,
            tokens: Some(Tokens { input: 10, output: 20, estimated: true }),
            cache: Some("miss"),
            ..plain(&id)
        };
        assert_eq!(
            written(&line),
            " id=r2 key=laptop peer=127.0.0.1:5000 method=POST path=/v1/chat/completions \
             status=200 outcome=error code=upstream_cut first_token_ms=1500 total_ms=3000 \
             bytes_in=100 bytes_out=2000 stream=true tokens_in=10 tokens_out=20 estimated=true cache=miss \
             upstream=spare upstream_model=gpt-oss:120b \
             failed=local:upstream_connect,cloud:upstream_timeout model=default"
        );
    }
}
