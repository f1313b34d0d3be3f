//! SIGHUP: read the configuration again, and take it over whole or not at all.

use std::sync::Arc;

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::metrics::{Counter, Registry};
use crate::config::ledger::{Signature, Standing};
use crate::config::settings::OWN_LIMIT;
use crate::config::versions::Rejected;
use crate::config::{self, Config, Fault, Loaded};
use crate::gateway::state::State;
use crate::observe::log::ReconfigureError;
use crate::ops::live;
use crate::ops::shown::Configured;

use super::running::{Running, tell_descriptors};

/// Why a reload was refused. The old configuration runs on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0}")]
    Faults(config::Faults),
    #[error("version {} has this content, and was rolled back: {}; change it, or insist with --force", .0.mark.version, .0.reason)]
    Rejected(Rejected),
    #[error("only a restart changes {}", .0.join(", "))]
    Restart(Vec<&'static str>),
    #[error("{0}")]
    Build(Error),
    #[error("{0}")]
    Log(ReconfigureError),
}

impl Refused {
    /// As whoever asked is told.
    pub(super) fn error(&self) -> Error {
        let kind = match self {
            Refused::Rejected(_) => Kind::ConfigRejected,
            _ => Kind::InvalidConfig,
        };
        Error::new(kind, self.to_string())
    }
}

/// A configuration that can be put in force.
pub(super) struct Prepared {
    config: Arc<Config>,
    state: State,
    configured: Configured,
}

/// How often a reload ended so.
fn reloads(registry: &Registry, outcome: &'static str) -> Arc<Counter> {
    let help = "Reloads, by outcome; a refused one leaves the old configuration in force.";
    registry.counter("tidegate_config_reloads_total", help, &[("outcome", outcome)])
}

/// Shows the counters from the start, so that the first reload can be seen as an increase.
pub(super) fn register(registry: &Registry) {
    for outcome in ["ok", "refused"] {
        reloads(registry, outcome);
    }
}

/// Exports series of the upstreams and the limits of these configurations, and of no others.
pub(super) fn export(registry: &Registry, configs: &[&Config]) {
    let limits = configs.iter().flat_map(|config| &config.limits);
    let names = limits.map(|limit| limit.name.as_str()).chain([OWN_LIMIT]);
    registry.keep_only("rate_limit", &names.collect::<Vec<_>>());
    let upstreams = configs.iter().flat_map(|config| &config.upstreams);
    let names: Vec<&str> = upstreams.map(|upstream| upstream.name.as_str()).collect();
    registry.keep_only("upstream", &names);
}

impl Running {
    /// Reads the configuration again. Requests in flight keep the one they began with.
    ///
    /// # Errors
    /// Why it was refused, in one text; the log has it with its lines.
    pub(super) fn reload(&mut self) -> Result<(), Error> {
        self.manager.reloading();
        let (outcome, result) = match self.try_reload() {
            Ok(warnings) => {
                for warning in &warnings {
                    let path = self.config.path.as_deref();
                    log::warn!(warning = warning.at(path); "config_warning");
                }
                let (upstreams, models) = (self.config.upstreams.len(), self.config.models.len());
                let detail = format!("{upstreams} upstreams, {models} models");
                let name = self.keeping.name();
                self.events.record(log::Level::Info, "reloaded", &name, detail);
                ("ok", Ok(()))
            }
            Err(refused) => {
                tell(&refused);
                let error = refused.error();
                let (level, why) = (log::Level::Warn, error.context().to_owned());
                self.events.record(level, "config_refused", &self.config_name(), why);
                ("refused", Err(error))
            }
        };
        // As for any other program: SIGHUP also means that log files may have been moved.
        self.log.reopen();
        reloads(&self.registry, outcome).inc();
        match &result {
            Ok(()) => self.manager.ready("reloaded"),
            // Ready as before; the words are all that a manager has for a refusal.
            Err(error) => self.manager.ready(&format!("reload refused: {error}")),
        }
        result
    }

    /// Takes over what is in the file.
    fn try_reload(&mut self) -> Result<Vec<Fault>, Refused> {
        let path = config::find_file(self.config_path.clone());
        let text = match &path {
            Some(path) => config::read(path).map_err(Refused::Faults)?,
            None => String::new(),
        };
        let loaded = self.with_knobs(&text, path.as_deref())?;
        let warnings = loaded.warnings.clone();
        let standing = Standing::of(&text);
        let same = standing.sha256 == self.keeping.running.sha256;
        if !same && let Some(rejected) = self.keeping.ledger.rejected(&standing.sha256) {
            return Err(Refused::Rejected(rejected));
        }
        let prepared = self.prepare(loaded)?;
        let ready = self.board.ready(clock::now());
        self.swap(prepared);
        let config = Arc::clone(&self.config);
        if same {
            self.keeping.settle(&config);
            return Ok(warnings);
        }
        let by = Signature::new("file", "reloaded");
        let parent = self.keeping.running.version;
        let version = self.keeping.ledger.add(&text, parent, &by).unwrap_or_else(|error| {
            self.keeping.note(vec![error.to_string()]);
            None
        });
        self.keeping.entered(Standing { version, ..standing }, &config, ready);
        Ok(warnings)
    }

    /// Builds everything that a configuration needs, and puts nothing in force.
    pub(super) fn prepare(&self, loaded: Loaded) -> Result<Prepared, Refused> {
        let configured = Configured::of(&loaded);
        let config = loaded.config;
        let restart = config::reload::compare(&self.config, &config);
        if !restart.is_empty() {
            return Err(Refused::Restart(restart));
        }
        let config = Arc::new(config);
        export(&self.registry, &[&self.config, &config]);
        match self.build(&config) {
            Ok(state) => Ok(Prepared { config, state, configured }),
            Err(refused) => {
                self.drop_prepared();
                Err(refused)
            }
        }
    }

    /// What a refused configuration registered goes, and its bounds with it.
    fn drop_prepared(&self) {
        self.gateway.state().adopt(&self.links);
        export(&self.registry, &[&self.config]);
    }

    /// The same for one that was prepared and is not wanted any more.
    pub(super) fn drop_taken(&self, prepared: Prepared) {
        if prepared.config.log != self.config.log
            && let Err(error) = self.log.reconfigure(&self.config.log)
        {
            log::warn!(error:% = error; "log_reconfigure_pending");
        }
        self.drop_prepared();
    }

    /// Puts it in force. Nothing here can fail.
    pub(super) fn swap(&mut self, prepared: Prepared) {
        let Prepared { config, state, configured } = prepared;
        tell_descriptors(&config, self.descriptors);
        self.data.reconfigure(self.data_settings(&config));
        live::bound(&self.registry, config.ops.live_max);
        state.adopt(&self.links);
        self.gateway.reconfigure(state);
        self.catalog.reconfigure(&config);
        self.folders.reconfigure(&config.cache);
        self.store.reconfigure(&config.store);
        self.watch.reconfigure(config.overload.clone());
        self.health.reconfigure(&config);
        self.alerts.reconfigure(&config.alerts);
        self.recorder.reconfigure(&config.history);
        self.reconfigure_nodes(&config);
        export(&self.registry, &[&config]);
        self.config = config;
        self.configured.set(configured);
    }

    /// What can fail of a reload.
    fn build(&self, config: &Arc<Config>) -> Result<State, Refused> {
        let rates = self.gateway.rates();
        let state = State::build(Arc::clone(config), &self.links, rates).map_err(Refused::Build)?;
        if config.log != self.config.log {
            match self.log.reconfigure(&config.log) {
                Ok(()) => {}
                Err(refused @ ReconfigureError::Refused(_)) => return Err(Refused::Log(refused)),
                // It comes into force by itself.
                Err(pending) => log::warn!(error:% = pending; "log_reconfigure_pending"),
            }
        }
        Ok(state)
    }
}

fn tell(refused: &Refused) {
    match refused {
        Refused::Faults(faults) => {
            let path = faults.path.as_deref();
            for fault in &faults.faults {
                log::error!(fault = fault.at(path); "reload_refused");
            }
            if faults.omitted > 0 {
                log::error!(omitted = faults.omitted; "reload_refused");
            }
        }
        Refused::Restart(settings) => {
            log::error!(
                settings = settings.join(","),
                remedy = "restart the daemon to change them";
                "reload_refused"
            );
        }
        Refused::Rejected(_) => log::error!(fault:% = refused; "reload_refused"),
        Refused::Build(error) => log::error!(fault:% = error; "reload_refused"),
        Refused::Log(error) => log::error!(fault:% = error; "reload_refused"),
    }
}
