//! The configuration in force and its versions: what comes into force is kept, watched, and taken
//! back when it does harm. Owned by the main loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::base::clock;
use crate::base::events::Events;
use crate::base::health::{Board, Check, Phase};
use crate::base::metrics::{Counter, Gauge, Registry};
use crate::config::boot::Booted;
use crate::config::edit::Edit;
use crate::config::ledger::{ASIDE_MAX, Base, Ledger, Signature, Standing};
use crate::config::overview::Overview;
use crate::config::probation::{Cause, Probation, Sample, Verdict};
use crate::config::versions::{DAMAGED_MAX, REJECTED_MAX};
use crate::config::{self, Config};
use crate::gateway::metrics::Metrics;

use super::running::Running;

/// Settings that are overridden for a time. Past it: refused.
pub const KNOBS_MAX: usize = 16;

/// Between two looks at how the gateway does.
const LOOK: Duration = Duration::from_secs(1);

/// A setting that is overridden for a time.
#[derive(Clone, Debug)]
pub(super) struct Knob {
    pub(super) edit: Edit,
    pub(super) until: Instant,
    pub(super) by: Signature,
}

/// The configuration in force.
pub(super) struct Keeping {
    pub(super) ledger: Ledger,
    pub(super) running: Standing,
    /// What is gone back to.
    pub(super) good: Option<Standing>,
    pub(super) knobs: Vec<Knob>,
    pub(super) shown: Arc<Overview>,
    probation: Probation,
    looked: Option<Instant>,
    /// Why the file is not what runs, if so.
    trouble: Option<String>,
    check: Arc<Check>,
    events: Arc<Events>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// The digest in `tidegate_config_info`.
    exported: String,
    gauges: Gauges,
}

struct Gauges {
    version: Arc<Gauge>,
    good: Arc<Gauge>,
    probation: Arc<Gauge>,
}

const INFO: (&str, &str) =
    ("tidegate_config_info", "The configuration in force, by the beginning of its SHA-256: 1.");

/// How often a configuration was taken back for this cause.
fn rollbacks(registry: &Registry, cause: &'static str) -> Arc<Counter> {
    let help = "Configurations that were taken back, by cause.";
    registry.counter("tidegate_config_rollbacks_total", help, &[("cause", cause)])
}

impl Keeping {
    /// What was started with. Tells what there is to tell of it.
    pub(super) fn start(
        booted: Booted,
        board: &Board,
        events: &Arc<Events>,
        registry: &Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let gauge = |name, help| registry.gauge(name, help, &[]);
        for cause in ["errors", "unready", "crash", "operator"] {
            rollbacks(registry, cause);
        }
        registry.limit("config.knobs_max", "", KNOBS_MAX as u64, "refused");
        let (max, consequence) = (REJECTED_MAX as u64, "the oldest is forgotten");
        registry.limit("config.rejected_max", "", max, consequence);
        let (max, consequence) = (DAMAGED_MAX as u64, "the oldest is deleted");
        registry.limit("config.damaged_max", "", max, consequence);
        let (max, consequence) = (ASIDE_MAX as u64, "the oldest is deleted");
        registry.limit("config.aside_max", "", max, consequence);
        let Booted { loaded, ledger, standing, good, probation, trouble, rolled_back, news } =
            booted;
        let mut keeping = Keeping {
            shown: Overview::new(ledger.versions().cloned()),
            ledger,
            running: standing,
            good,
            knobs: Vec::new(),
            probation: Probation::default(),
            looked: None,
            trouble,
            check: board.check("config"),
            events: Arc::clone(events),
            registry: Arc::clone(registry),
            metrics,
            exported: String::new(),
            gauges: Gauges {
                version: gauge("tidegate_config_version", "The version in force; 0: it has none."),
                good: gauge("tidegate_config_last_good", "The last good version; 0: none."),
                probation: gauge(
                    "tidegate_config_probation",
                    "1 while the version is on probation.",
                ),
            },
        };
        for news in news {
            events.record(news.level, news.kind, &news.subject, news.detail);
        }
        if let Some(cause) = rolled_back {
            rollbacks(registry, cause.as_str()).inc();
        }
        if probation {
            keeping.watch(loaded.config.versions.probation, Sample::default());
        }
        keeping.adopt(&loaded.config);
        keeping
    }

    /// `version 42`, or what stands in its place.
    pub(super) fn name(&self) -> String {
        self.running.name()
    }

    /// How the gateway does now.
    fn sample(&self, ready: bool) -> Sample {
        let (requests, failures) = self.metrics.calls();
        Sample { requests, failures, ready }
    }

    /// It is on probation from now on, or good at once when there is none.
    fn watch(&mut self, window: Duration, seen: Sample) {
        if window.is_zero() {
            self.commit();
        } else {
            self.probation.begin(clock::now(), window, seen);
        }
    }

    /// It is good.
    fn commit(&mut self) {
        self.probation.end();
        self.good = Some(self.running.clone());
        let notes = self.ledger.good(&self.running);
        self.note(notes);
    }

    /// Another configuration is in force. `notes` is what could not be written.
    pub(super) fn entered(&mut self, now: Standing, config: &Config, ready: bool) {
        let known = self.good.as_ref().is_some_and(|good| good.sha256 == now.sha256);
        let old = std::mem::replace(&mut self.running, now);
        self.trouble = None;
        if known {
            self.probation.end();
            let mut notes = self.ledger.in_force(&self.running, None);
            notes.extend(self.ledger.good(&self.running));
            self.good = Some(self.running.clone());
            self.note(notes);
        } else {
            if self.good.is_none() {
                // Never found good, but it ran when this one came.
                let notes = self.ledger.good(&old);
                self.good = Some(old);
                self.note(notes);
            }
            let boots = (!config.versions.probation.is_zero()).then_some(0);
            let notes = self.ledger.in_force(&self.running, boots);
            self.note(notes);
            self.watch(config.versions.probation, self.sample(ready));
        }
        self.adopt(config);
    }

    /// The same configuration as before, with the file as it is.
    pub(super) fn settle(&mut self, config: &Config) {
        self.trouble = None;
        self.adopt(config);
    }

    /// Shows what is in force.
    fn adopt(&mut self, config: &Config) {
        self.ledger.keep(config.versions.versions_max);
        let max = config.versions.versions_max as u64;
        let consequence = "the oldest is deleted";
        let limit = self.registry.limit("config.versions_max", "", max, consequence);
        let held = self.ledger.versions().map_or(0, |versions| versions.numbers().len());
        limit.set_now(held as u64);
        let digest = self.running.sha256.get(..12).unwrap_or_default().to_owned();
        if digest != self.exported {
            self.registry.forget(INFO.0, &[("sha256", &self.exported)]);
            self.registry.gauge(INFO.0, INFO.1, &[("sha256", &digest)]).set(1);
            self.exported = digest;
        }
        self.show();
    }

    /// Tells the board and whoever looks.
    pub(super) fn show(&self) {
        let left = self.probation.left(clock::now());
        let good = self.good.as_ref().and_then(|good| good.version);
        self.gauges.version.set(self.running.version.unwrap_or(0));
        self.gauges.good.set(good.unwrap_or(0));
        self.gauges.probation.set(left.is_some().into());
        let now = clock::now();
        let knobs = self.knobs.iter().map(|knob| {
            let seconds = knob.until.saturating_duration_since(now).as_secs();
            json!({"key": knob.edit.0, "value": knob.edit.1, "seconds": seconds, "author": knob.by.author})
        });
        self.registry
            .limit("config.knobs_max", "", KNOBS_MAX as u64, "refused")
            .set_now(self.knobs.len() as u64);
        self.shown.set(json!({
            "version": self.running.version,
            "sha256": self.running.sha256,
            "file": self.ledger.file().display().to_string(),
            "last_good": good,
            "probation_seconds": left.map(|left| left.as_secs()),
            "trouble": self.trouble.as_deref().or(self.ledger.trouble()),
            "knobs": knobs.collect::<Vec<Value>>(),
        }));
        match (&self.trouble, self.ledger.trouble()) {
            (Some(trouble), _) => self.check.degraded(trouble.clone()),
            (None, Some(trouble)) => {
                self.check.degraded(format!("no versions are kept: {trouble}"))
            }
            (None, None) => self.check.ok(),
        }
    }

    /// Something could not be noted on disk. It is mended at the next start.
    pub(super) fn note(&self, notes: Vec<String>) {
        for note in notes {
            self.events.record(log::Level::Warn, "config_note_lost", &self.running.name(), note);
        }
    }

    /// Something keeps the file and what runs apart.
    pub(super) fn trouble(&mut self, trouble: Option<String>) {
        self.trouble = trouble;
        self.show();
    }

    /// A stop in order says nothing against what is on probation.
    pub(super) fn stopped(&self) {
        self.ledger.stopped();
    }
}

impl Running {
    /// Looks at how the configuration does, once a second.
    pub(super) fn look_at_config(&mut self) {
        let now = clock::now();
        let due = self.keeping.looked.is_none_or(|looked| now >= looked + LOOK);
        // On the way out nothing is shown by not taking requests.
        if !due || self.board.phase() != Phase::Ready {
            return;
        }
        let before = self.keeping.looked.replace(now).unwrap_or(now);
        self.end_knobs(now);
        let seen = self.keeping.sample(self.board.ready(now));
        if self.hold.on() {
            let time = now.saturating_duration_since(before);
            self.keeping.probation.pass_over(seen, time);
            return self.keeping.show();
        }
        match self.keeping.probation.step(now, seen) {
            Verdict::Wait => {}
            Verdict::Good => {
                self.keeping.commit();
                let name = self.keeping.name();
                let detail = "it is the last good one from now on".to_owned();
                self.events.record(log::Level::Info, "config_good", &name, detail);
            }
            Verdict::Bad(cause) => self.take_back(cause),
        }
        self.keeping.show();
    }

    /// The configuration in force does harm: the last good one takes its place.
    fn take_back(&mut self, cause: Cause) {
        self.keeping.probation.end();
        let bad = self.keeping.running.clone();
        let reason = cause.to_string();
        let Some(good) = self.keeping.good.clone().filter(|good| good.sha256 != bad.sha256) else {
            let detail = format!("{reason}; there is no other to go back to");
            self.events.record(log::Level::Warn, "config_unhealthy", &bad.name(), detail);
            return;
        };
        let (ledger, path) = (&mut self.keeping.ledger, self.config.path.clone());
        let mut notes = ledger.reject(&bad, &reason);
        // First in force, then on disk: a full disk must not keep a bad configuration running.
        let taken = config::parse_in(&good.text, path.as_deref()).map_err(|f| f.to_string());
        let taken =
            taken.and_then(|loaded| self.prepare(loaded).map_err(|refused| refused.to_string()));
        let fault = match taken {
            Ok(prepared) => {
                self.swap(prepared);
                self.drop_knobs("the configuration was rolled back");
                None
            }
            Err(fault) => Some(fault),
        };
        let by = Signature::new("tidegate", format!("rollback to {}: {reason}", good.name()));
        let base = Base::OrAside(bad.sha256.clone());
        let (now, trouble) = match self.keeping.ledger.change(&good.text, &base, bad.version, &by) {
            Ok(changed) => {
                notes.extend(changed.notes);
                if let Some(aside) = changed.aside {
                    notes.push(format!("an edit of the file is in {}", aside.display()));
                }
                (Standing { version: changed.version.or(good.version), ..good.clone() }, None)
            }
            Err(error) => {
                let why =
                    format!("{} runs, but the file could not be put back: {error}", good.name());
                (good.clone(), Some(why))
            }
        };
        rollbacks(&self.registry, cause.as_str()).inc();
        match fault {
            None => {
                let detail = format!("{} is in force: {reason}", now.name());
                let config = Arc::clone(&self.config);
                self.keeping.entered(now, &config, true);
                self.keeping.trouble(trouble);
                self.events.record(log::Level::Error, "config_rolled_back", &bad.name(), detail);
            }
            Some(fault) => {
                // The file is put back; what runs can only be left by a restart.
                notes.extend(self.keeping.ledger.in_force(&now, None));
                let why = format!("{} runs on until a restart: {reason}; {fault}", bad.name());
                self.keeping.trouble(Some(why.clone()));
                self.events.record(log::Level::Error, "config_rolled_back", &bad.name(), why);
            }
        }
        self.keeping.note(notes);
    }
}

/// The configuration's own counters, beside those of `daemon/reload.rs`.
pub(super) fn taken_back_by_operator(registry: &Registry) {
    rollbacks(registry, "operator").inc();
}
