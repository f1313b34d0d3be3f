//! What a configuration makes of the gateway: an immutable snapshot, swapped by a reload.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::error::Result;
use crate::config::Config;
use crate::net::http::{Headers, Response};
use crate::upstream::link::{Link, Links};

use super::auth::Keys;
use super::browser::{self, Rules};

/// One configuration at work.
pub struct State {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who may ask.
    pub keys: Keys,
    /// Which hosts and web pages may.
    pub rules: Rules,
    links: HashMap<String, Arc<Link>>,
}

impl State {
    /// Builds the state of `config`. Links to upstreams whose address and key did not change are
    /// taken over with their connections and permits.
    ///
    /// # Errors
    /// When an upstream cannot be set up (its CA file cannot be read).
    pub fn build(config: Arc<Config>, links: &Links) -> Result<State> {
        let server = &config.server;
        Ok(State {
            keys: Keys::new(&config.keys),
            rules: Rules::new(server.listen, &server.allowed_hosts, &server.allowed_origins),
            links: links.build(&config.upstreams)?,
            config,
        })
    }

    /// The link to an upstream of this configuration.
    pub fn link(&self, upstream: &str) -> Option<&Arc<Link>> {
        self.links.get(upstream)
    }

    /// An answer, readable for the web page that asked when its origin is allowed.
    pub fn readable(&self, headers: &Headers, mut response: Response) -> Response {
        if let Ok(Some(origin)) = self.rules.origin(headers) {
            for (name, value) in browser::readable_by(origin) {
                if !response.headers.iter().any(|(have, _)| *have == name) {
                    response = response.with(name, value);
                }
            }
        }
        response
    }
}
