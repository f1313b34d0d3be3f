//! What a configuration makes of the gateway: an immutable snapshot, swapped by a reload.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::clock;
use crate::base::error::Result;
use crate::config::Config;
use crate::config::settings::{Model, Target};
use crate::net::http::{Headers, Response};
use crate::upstream::link::{Link, Links};

use super::auth::{Keys, Models};
use super::browser::{self, Rules};
use super::rates::{Plan, Rates};

/// One configuration at work.
pub struct State {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who may ask.
    pub keys: Keys,
    /// Which hosts and web pages may.
    pub rules: Rules,
    /// How much they may.
    pub plan: Arc<Plan>,
    every_model: Models,
    links: HashMap<String, Arc<Link>>,
    /// The chains of the declared models, by name.
    chains: HashMap<String, Chain>,
}

/// Whom to ask, in order.
pub type Chain = Arc<[(Arc<Link>, Target)]>;

impl State {
    /// Builds the state of `config`. Links to upstreams whose address did not change have the
    /// connections and permits that there are. Nothing is in force before
    /// [`State::adopt`].
    ///
    /// # Errors
    /// When an upstream cannot be set up (its CA file cannot be read).
    pub fn build(config: Arc<Config>, links: &Links, rates: &Rates) -> Result<State> {
        let server = &config.server;
        let links = links.build(&config.upstreams)?;
        let mut state = State {
            plan: rates.plan(&config),
            every_model: Models::default(),
            keys: Keys::new(&config.keys),
            rules: Rules::new(server.listen, &server.allowed_hosts, &server.allowed_origins),
            links,
            chains: HashMap::new(),
            config: Arc::clone(&config),
        };
        for model in &config.models {
            let chain = state.chain_of(model);
            state.chains.insert(model.name.clone(), chain);
        }
        Ok(state)
    }

    /// The models that the holder of a key may ask for; without a key every one. A key that a
    /// reload has taken away may not ask for anything any more.
    pub fn models(&self, key: Option<&str>) -> Option<&Models> {
        match key {
            None => Some(&self.every_model),
            Some(key) => self.keys.named(key).map(|holder| holder.models()),
        }
    }

    /// Whom to ask for `model`.
    pub fn chain(&self, model: &Model) -> Chain {
        match self.chains.get(&model.name) {
            Some(chain) => Arc::clone(chain),
            // `upstream/model`, which nobody declared.
            None => self.chain_of(model),
        }
    }

    /// Puts its links in force.
    pub fn adopt(&self, links: &Links) {
        links.adopt(&self.links);
        self.declare();
    }

    /// Tells each link which of its models are declared.
    fn declare(&self) {
        let now = clock::now();
        for (name, link) in &self.links {
            let targets = self.config.models.iter().flat_map(|model| &model.chain);
            let mut models: Vec<&str> = targets
                .filter(|target| target.upstream.name == *name)
                .map(|target| &*target.model)
                .collect();
            models.sort_unstable();
            models.dedup();
            link.breakers.declare(&models, now);
        }
    }

    fn chain_of(&self, model: &Model) -> Chain {
        let link = |target: &Target| {
            let link = self.links.get(&target.upstream.name)?;
            Some((Arc::clone(link), target.clone()))
        };
        model.chain.iter().filter_map(link).collect()
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
