//! One question to one upstream.

use std::sync::Arc;
use std::time::Instant;

use super::parse::{self, Unreadable};
use super::question::{Fault, Known, Outcome, What};
use crate::base::error::{Error, Kind, Result};
use crate::config::settings::{Upstream, UpstreamKind};
use crate::net::http_client::{Client, Site};
use crate::net::outbound::Resolver;
use crate::upstream::link;

/// An upstream that can be asked.
#[derive(Debug)]
pub struct Source {
    config: Arc<Upstream>,
    client: Client,
}

impl Source {
    /// `None` for an upstream that stands nowhere (`echo`).
    pub fn new(config: &Arc<Upstream>, resolver: &Arc<Resolver>) -> Option<Self> {
        let client = Client::new(site(config)?, Arc::clone(resolver));
        Some(Source { config: Arc::clone(config), client })
    }

    /// Its settings.
    pub fn config(&self) -> &Upstream {
        &self.config
    }

    /// Whether both ask the same server in the same way.
    pub fn same(&self, other: &Source) -> bool {
        self.config.kind == other.config.kind && self.client.site() == other.client.site()
    }

    /// Whether both ask the same server.
    pub fn same_server(&self, other: &Source) -> bool {
        self.config.kind == other.config.kind && self.config.url == other.config.url
    }

    /// Ends what is being asked; nothing more can be asked.
    pub fn close(&self) {
        self.client.close();
    }

    /// Asks. Blocks until the deadline at most.
    pub fn ask(&self, what: &What, deadline: Instant) -> Outcome {
        self.fetch(what, deadline).map_err(|error| Fault::of(&error))
    }

    fn fetch(&self, what: &What, deadline: Instant) -> Result<Known> {
        let ollama = self.config.kind == UpstreamKind::Ollama;
        let answer = match what {
            What::List if ollama => self.client.get("/api/tags", deadline)?,
            What::List => self.client.get("/models", deadline)?,
            What::Ps => self.client.get("/api/ps", deadline)?,
            What::Show { model, verbose } => {
                let body = if *verbose {
                    serde_json::json!({ "model": &**model, "verbose": true })
                } else {
                    serde_json::json!({ "model": &**model })
                };
                self.client.post_json("/api/show", body.to_string().as_bytes(), deadline)?
            }
        };
        self.judge(what, answer.status)?;
        let read = match what {
            What::List if ollama => parse::tags(&answer.body).map(|list| Known::List(list.into())),
            What::List => parse::models(&answer.body).map(|list| Known::List(list.into())),
            What::Ps => parse::ps(&answer.body).map(|ps| Known::Ps(ps.into())),
            What::Show { .. } => parse::show(answer.body).map(|show| Known::Show(show.into())),
        };
        read.map_err(|why| self.unreadable(what, why))
    }

    /// What a status other than 200 means.
    fn judge(&self, what: &What, status: u16) -> Result<()> {
        let name = &self.config.name;
        let word = what.as_str();
        let kind = match (what, status) {
            (_, 200..=299) => return Ok(()),
            (What::Show { .. }, 404) => Kind::UpstreamModelNotFound,
            (_, 401 | 403) => Kind::UpstreamKeyRejected(status),
            (_, 429) => Kind::UpstreamRateLimited,
            (_, 500..=599) => Kind::UpstreamStatus(status),
            // A redirect or a 4xx: what stands there is not what the settings say.
            _ => Kind::UpstreamStatus(502),
        };
        Err(Error::new(kind, format!("upstream {name} answered {word} with {status}")))
    }

    fn unreadable(&self, what: &What, why: Unreadable) -> Error {
        let name = &self.config.name;
        let text = format!("the answer of upstream {name} to {}: {why}", what.as_str());
        Error::new(Kind::UpstreamMalformed, text).because(why)
    }
}

/// `None` for `echo`.
fn site(config: &Upstream) -> Option<Site> {
    Some(Site {
        origin: link::origin(config)?,
        prefix: config.url.as_ref()?.path.clone(),
        key: config.key.as_ref().map(|key| key.expose().to_owned()),
        connect_timeout: config.connect_timeout,
    })
}
