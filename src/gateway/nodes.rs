//! The gateway as the room of WebSocket connections sees it: its keys.

use std::net::IpAddr;
use std::sync::Arc;

use super::Gateway;
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::config::names::ECHO;
use crate::nodes::host::{Host, Opened};
use crate::nodes::who::Scopes;

impl Host for Gateway {
    fn open(&self, shown: Option<&str>, address: IpAddr) -> Result<Opened, Error> {
        let state = self.state.load();
        if state.keys.is_empty() {
            return Ok(Opened::Open);
        }
        let missing = || Error::new(Kind::Unauthorized, "no key was sent");
        let shown = shown.ok_or_else(missing)?;
        let holder = self.holder(&state, shown.as_bytes(), || address, clock::now())?;
        let key = state.config.keys.iter().find(|key| *key.name == *holder.name);
        let scopes = key.map_or(Scopes::NONE, |key| Scopes::of(key.scopes.iter().copied()));
        Ok(Opened::Key { name: Arc::clone(&holder.name), scopes })
    }

    fn failed(&self, shown: &str, address: IpAddr) {
        let state = self.state.load();
        let settings = &state.config.auth;
        if settings.failures_max > 0 {
            self.lockouts.failed(address, shown.as_bytes(), clock::now(), settings);
        }
    }

    fn default_model(&self, key: Option<&str>) -> Option<String> {
        let state = self.state();
        let allowed = state.models(key)?;
        let models = &state.config.models;
        let may = |name: &str| allowed.allow(name);
        let default = models.iter().find(|model| model.name == "default" && may(&model.name));
        let declared = default.or_else(|| models.iter().find(|model| may(&model.name)));
        // With nothing declared there is at least what is built in.
        let built_in = || may(ECHO).then(|| ECHO.to_owned());
        declared.map(|model| model.name.clone()).or_else(built_in)
    }

    fn takes_images(&self, model: &str) -> bool {
        let state = self.state();
        // What cannot be found is told in the words of the chain.
        let chain = state.config.resolve(model).map(|resolved| resolved.model.chain.clone());
        chain.is_none_or(|chain| chain.iter().any(|target| target.images))
    }

    fn right(&self, shown: &str, address: IpAddr) {
        if self.state.load().config.auth.failures_max > 0 {
            self.lockouts.knows(address, shown.as_bytes(), clock::now());
        }
    }

    fn listens(&self, shown: &str, address: IpAddr) -> Result<(), Error> {
        if self.state.load().config.auth.failures_max == 0 {
            return Ok(());
        }
        self.lockouts.check(address, shown.as_bytes(), clock::now())
    }
}
