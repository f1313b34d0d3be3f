//! Our client side of HTTP/1, for model calls: one connection per call, taken from a pool of its
//! upstream or made fresh, used by one thread that blocks in poll(2).
//!
//! Each wait ends at the first of: the socket is ready, the deadline, the client left, another
//! thread cancelled the call. The client is watched by the same poll as the upstream, so that its
//! leaving ends the call at once, in every phase; only name resolution, which has no descriptor to
//! poll, looks every [`resolve::CLIENT_LOOK`].

mod connect;
mod control;
mod exchange;
mod pause;
mod pool;
pub mod resolve;
mod stream;
pub(in crate::net) mod tls;
mod wait;

#[cfg(test)]
pub(in crate::net) mod tests;

use std::path::PathBuf;

pub use connect::reach;
pub use control::Control;
pub use exchange::{Begin, Exchange, Now, Outgoing};
pub use pause::pause;
pub use pool::{IDLE_AGE_MAX, Pool};
pub use resolve::Resolver;
pub use wait::Watch;

/// Where an upstream is and how it is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin {
    /// The upstream's name, for errors and metrics.
    pub name: String,
    /// https.
    pub tls: bool,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The only certificates trusted to sign the upstream's own (PEM); else the platform's.
    pub ca_file: Option<PathBuf>,
    /// What was in it: another content makes another origin.
    pub ca_digest: Option<[u8; 32]>,
    /// The proxy to go through.
    pub proxy: Option<ProxyAddr>,
    /// Most idle connections kept. Past it: the oldest is closed.
    pub idle_max: usize,
}

/// An HTTP proxy: CONNECT for https, absolute targets for http.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyAddr {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Value of `Proxy-Authorization`, a secret.
    pub authorization: Option<String>,
}

impl std::fmt::Debug for ProxyAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the authorization.
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{} ({scheme}://{}:{}", self.name, self.host, self.port)?;
        match &self.proxy {
            Some(proxy) => write!(f, " through {proxy:?})"),
            None => f.write_str(")"),
        }
    }
}
