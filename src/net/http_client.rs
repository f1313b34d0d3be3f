//! The HTTP client for every call that is not a model call: discovery, lists, health checks. The one
//! place that knows ureq.
//!
//! What is set, and why (`reliability.md` 15.2): no proxy but the configured one, since ureq reads
//! the environment; no redirects; a status is an answer, not an error; 16 KiB buffers instead of
//! 256 KiB a connection; no connection is kept, because these calls are rare and ureq fails on one
//! that its server has closed meanwhile. Names are resolved by our own resolver, whose threads are
//! bounded: ureq's starts a thread for each request that has a deadline.

mod connector;
mod fault;

#[cfg(test)]
pub(crate) mod peer;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};
use ureq::{Agent, Proxy, ProxyProtocol};

use self::connector::{Names, Relay, Tls};
use super::outbound::{Control, Origin, Resolver, tls};
use crate::base::error::{Error, Kind, Phase, Result};
use crate::base::heartbeat::{self, Doing};
use crate::base::{clock, lock};

/// Most bytes of an answer. Past it: the call fails as [`Kind::UpstreamMalformed`]. The largest
/// lists of providers have about 1 MiB, a verbose `/api/show` with its vocabulary about 5 MiB.
pub const ANSWER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most bytes of an answer's head. Past it: the call fails as [`Kind::UpstreamMalformed`].
pub const HEAD_BYTES_MAX: usize = 15 * 1024;
/// Bytes of each of the two buffers of a connection.
const BUFFER_BYTES: usize = 16 * 1024;
// ureq takes a head that does not fit into its buffer for the end of the connection.
const _: () = assert!(HEAD_BYTES_MAX < BUFFER_BYTES);
/// What we call ourselves.
const USER_AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

/// Whom to ask, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Site {
    /// Where it is and how it is reached. `idle_max` has no meaning here.
    pub origin: Origin,
    /// What stands before every path: empty, or `/v1`.
    pub prefix: String,
    /// The bearer key, a secret.
    pub key: Option<String>,
    /// Finding the address, connecting, and the TLS handshake. The call's deadline holds besides.
    pub connect_timeout: Duration,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        write!(f, "{:?}{}", self.origin, self.prefix)
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status, whatever it is.
    pub status: u16,
    /// The body, at most [`ANSWER_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// A whole answer with its header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status, whatever it is.
    pub status: u16,
    /// The fields whose values are text, at most [`HEAD_BYTES_MAX`] of them.
    pub fields: Vec<(String, String)>,
    /// The body, at most [`ANSWER_BYTES_MAX`].
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a field; names do not depend on case.
    pub fn field(&self, name: &str) -> Option<&str> {
        let same = |(have, _): &&(String, String)| have.eq_ignore_ascii_case(name);
        self.fields.iter().find(same).map(|(_, value)| value.as_str())
    }
}

/// A client of one site. Costs little until it is used: roots and the CA file are read at the first
/// call.
pub struct Client {
    site: Site,
    resolver: Arc<Resolver>,
    control: Arc<Control>,
    agent: OnceLock<Agent>,
}

impl Client {
    /// A client that has not called yet.
    pub fn new(site: Site, resolver: Arc<Resolver>) -> Self {
        Client { site, resolver, control: Arc::default(), agent: OnceLock::new() }
    }

    /// Whom it asks.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Asks for a path. Blocks until the answer is whole, at most until the deadline.
    ///
    /// # Errors
    /// [`Kind::UpstreamConnect`], [`Kind::UpstreamTimeout`], [`Kind::UpstreamCut`] and
    /// [`Kind::UpstreamMalformed`] (also for an answer that is too large), [`Kind::Draining`] after
    /// [`Client::close`], [`Kind::Internal`] for a `ca_file` or a key that cannot be used.
    pub fn get(&self, path: &str, deadline: Instant) -> Result<Answer> {
        self.get_up_to(path, ANSWER_BYTES_MAX, deadline)
    }

    /// The same for an answer of at most `bytes_max`.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn get_up_to(&self, path: &str, bytes_max: u64, deadline: Instant) -> Result<Answer> {
        let agent = self.agent()?;
        let request = agent.get(self.url(path)).header("accept", "application/json");
        let request = match &self.site.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        };
        let left = self.left(deadline)?;
        let _waiting = heartbeat::waiting(Doing::Call(Phase::Answer), deadline);
        let request = request.config().timeout_global(Some(left)).build();
        self.read(request.call(), bytes_max)
    }

    /// Sends a JSON body to a path. Blocks until the answer is whole, at most until the deadline.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn post_json(&self, path: &str, body: &[u8], deadline: Instant) -> Result<Answer> {
        let agent = self.agent()?;
        let request = agent
            .post(self.url(path))
            .header("accept", "application/json")
            .header("content-type", "application/json");
        let request = match &self.site.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        };
        let left = self.left(deadline)?;
        let _waiting = heartbeat::waiting(Doing::Call(Phase::Answer), deadline);
        let request = request.config().timeout_global(Some(left)).build();
        self.read(request.send(body), ANSWER_BYTES_MAX)
    }

    /// Sends a body to a path with these header fields. Blocks until the answer is whole, at most until
    /// the deadline.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn post(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
        deadline: Instant,
    ) -> Result<Reply> {
        let mut request = self.agent()?.post(self.url(path));
        if let Some(key) = &self.site.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let left = self.left(deadline)?;
        let _waiting = heartbeat::waiting(Doing::Call(Phase::Answer), deadline);
        let request = request.config().timeout_global(Some(left)).build();
        self.read_whole(request.send(body), ANSWER_BYTES_MAX)
    }

    /// Ends the calls that run, from another thread, and refuses new ones. A TCP connect that is on
    /// its way is not interrupted; `connect_timeout` bounds it.
    pub fn close(&self) {
        self.control.cancel();
        if let Some(agent) = self.agent.get() {
            agent.clone().shutdown();
        }
    }

    fn url(&self, path: &str) -> String {
        let Origin { tls, host, port, .. } = &self.site.origin;
        let scheme = if *tls { "https" } else { "http" };
        // The port is always written: it is right, and ureq leaves the scheme's own out of `Host`.
        let prefix = &self.site.prefix;
        if host.contains(':') {
            format!("{scheme}://[{host}]:{port}{prefix}{path}")
        } else {
            format!("{scheme}://{host}:{port}{prefix}{path}")
        }
    }

    /// The time left; none is an error.
    fn left(&self, deadline: Instant) -> Result<Duration> {
        lock::assert_none_held();
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            let what = format!("upstream {} was not asked in time", self.site.origin.name);
            return Err(Error::new(Kind::UpstreamTimeout(Phase::Answer), what));
        }
        Ok(left)
    }

    fn read(
        &self,
        sent: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        bytes_max: u64,
    ) -> Result<Answer> {
        self.read_whole(sent, bytes_max)
            .map(|reply| Answer { status: reply.status, body: reply.body })
    }

    fn read_whole(
        &self,
        sent: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        bytes_max: u64,
    ) -> Result<Reply> {
        let read = sent.and_then(|mut response| {
            let status = response.status().as_u16();
            let text = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
                Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
            };
            let fields = response.headers().iter().filter_map(text).collect();
            // ureq refuses a body that fills its limit: one byte more is the largest that fits.
            let limit = bytes_max + 1;
            let body = response.body_mut().with_config().limit(limit).read_to_vec()?;
            Ok(Reply { status, fields, body })
        });
        read.map_err(|error| {
            if self.control.cancelled() {
                return Error::new(Kind::Draining, "the gateway is stopping");
            }
            fault::error(&self.site.origin.name, error)
        })
    }

    /// The agent, made at the first call.
    fn agent(&self) -> Result<&Agent> {
        if self.control.cancelled() {
            return Err(Error::new(Kind::Draining, "the gateway is stopping"));
        }
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let made = self.make_agent()?;
        let agent = self.agent.get_or_init(|| made);
        if self.control.cancelled() {
            // It was closed meanwhile, before there was an agent to shut down.
            agent.clone().shutdown();
        }
        Ok(agent)
    }

    fn make_agent(&self) -> Result<Agent> {
        let Origin { name, tls: secure, ca_file, proxy, .. } = &self.site.origin;
        let trust = match (secure, ca_file) {
            (false, _) => None,
            (true, Some(file)) => Some(tls::only(file)?),
            (true, None) => Some(tls::platform()?),
        };
        if proxy.as_ref().is_some_and(|proxy| proxy.authorization.is_some()) {
            let what = format!("upstream {name}: a proxy with a password is not supported");
            return Err(Error::new(Kind::Internal, what));
        }
        // ureq would open a tunnel for plain HTTP too, which proxies refuse for most ports.
        let relay = proxy.as_ref().filter(|_| !secure);
        let tunnel = match proxy.as_ref().filter(|_| *secure) {
            None => None,
            Some(proxy) => {
                let made = Proxy::builder(ProxyProtocol::Http).host(&proxy.host).port(proxy.port);
                let unusable = |error| {
                    let what = format!("upstream {name}: its proxy cannot be used");
                    Error::new(Kind::Internal, what).because(error)
                };
                Some(made.build().map_err(unusable)?)
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(tunnel)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(USER_AGENT)
            .accept_encoding("identity")
            .max_response_header_size(HEAD_BYTES_MAX)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(0)
            .timeout_connect(Some(self.site.connect_timeout))
            .build();
        let names = Names {
            upstream: name.clone(),
            resolver: Arc::clone(&self.resolver),
            control: Arc::clone(&self.control),
            timeout: self.site.connect_timeout,
            instead: relay.map(|proxy| (proxy.host.clone(), proxy.port)),
        };
        let plain = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default());
        Ok(match relay {
            Some(_) => Agent::with_parts(config, plain.chain(Relay), names),
            None => Agent::with_parts(config, plain.chain(Tls { trust }), names),
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client of {:?}", self.site)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}
