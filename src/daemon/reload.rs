//! SIGHUP: read the configuration again, and take it over whole or not at all.

use std::sync::Arc;

use crate::base::error::Error;
use crate::config::{self, Fault, Loaded};
use crate::gateway::state::State;

use super::running::{Running, tell_descriptors};

/// Why a reload was refused. The old configuration runs on.
enum Refused {
    Faults(config::Faults),
    Restart(Vec<&'static str>),
    Build(Error),
}

impl Running {
    /// Reads the configuration again. Requests in flight keep the one they began with.
    pub(super) fn reload(&mut self) {
        let outcome = match self.try_reload() {
            Ok(warnings) => {
                for warning in &warnings {
                    let path = self.config.path.as_deref();
                    log::warn!(warning = warning.at(path); "config_warning");
                }
                log::info!(upstreams = self.config.upstreams.len(), models = self.config.models.len(); "reloaded");
                "ok"
            }
            Err(refused) => {
                tell(&refused);
                "refused"
            }
        };
        // As for any other program: SIGHUP also means that log files may have been moved.
        self.log.reopen();
        let help = "Reloads, by outcome; a refused one leaves the old configuration in force.";
        self.registry.counter("tidegate_config_reloads_total", help, &[("outcome", outcome)]).inc();
    }

    fn try_reload(&mut self) -> Result<Vec<Fault>, Refused> {
        let Loaded { config, warnings, .. } =
            config::load(self.config_path.clone()).map_err(Refused::Faults)?;
        let restart = config::reload::compare(&self.config, &config);
        if !restart.is_empty() {
            return Err(Refused::Restart(restart));
        }
        let config = Arc::new(config);
        let state = State::build(Arc::clone(&config), &self.links).map_err(Refused::Build)?;
        // Nothing below can fail.
        if config.log != self.config.log
            && let Err(error) = self.log.reconfigure(&config.log)
        {
            log::warn!(error:% = error; "log_reconfigure");
        }
        tell_descriptors(&config, self.descriptors);
        self.data.reconfigure(self.data_settings(&config));
        self.gateway.reconfigure(state);
        self.catalog.reconfigure(&config);
        for upstream in &self.config.upstreams {
            if config.upstream(&upstream.name).is_none() {
                self.registry.retire("upstream", &upstream.name);
            }
        }
        self.config = config;
        Ok(warnings)
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
        Refused::Build(error) => log::error!(fault:% = error; "reload_refused"),
    }
}
