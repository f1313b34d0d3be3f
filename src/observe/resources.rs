//! The resource log: what the process holds, how fast that grows, and a warning when it grows
//! steadily. `daemon` looks once a second whether a look is due; what is seen is judged by
//! [`growth`], which is pure.

pub mod growth;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use growth::{Change, Growth, MEASURES, Measure, Values};

use super::process::Process;
use crate::base::events::Events;
use crate::base::metrics::{Gauge, NamedLimit, Registry};
use crate::config::settings::Resources as Settings;

/// Most bytes of the containers in a line; those that are fullest come first.
const CONTAINERS_BYTES_MAX: usize = 1024;

/// The resource log.
pub struct Resources {
    registry: Arc<Registry>,
    events: Arc<Events>,
    growth: Growth,
    line_at: Instant,
    /// By measure: growth in an hour, and whether a warning stands.
    gauges: [(Arc<Gauge>, Arc<Gauge>); MEASURES.len()],
}

impl Resources {
    /// One that looks from now on.
    pub fn new(registry: &Arc<Registry>, events: &Arc<Events>, now: Instant) -> Self {
        let limit = |name, max: usize| {
            registry.limit(name, "", max as u64, "the oldest sample is forgotten")
        };
        let (hour, day) = (growth::HOUR_SAMPLES_MAX, growth::DAY_SAMPLES_MAX);
        let limits = [limit("resources.hour_max", hour), limit("resources.day_max", day)];
        let gauges = MEASURES.map(|measure| {
            let labels = [("measure", measure.as_str())];
            let help = "Growth in an hour, by the samples of the last one; 0 while it shrinks.";
            let slope = registry.gauge("tidegate_resource_growth_per_hour", help, &labels);
            let help = "1 while a warning of steady growth stands.";
            (slope, registry.gauge("tidegate_resource_growing", help, &labels))
        });
        Resources {
            registry: Arc::clone(registry),
            events: Arc::clone(events),
            growth: Growth::new(limits, now),
            line_at: now,
            gauges,
        }
    }

    /// Looks, when it is time to: every minute, and for each line.
    pub fn tick(&mut self, now: Instant, settings: &Settings) {
        // A shorter interval counts from the last line, also while a longer one runs.
        self.line_at = self.line_at.min(now + settings.log_interval);
        let line = now >= self.line_at;
        if !line && !self.growth.due(now) {
            return;
        }
        let process = Process::now();
        if self.growth.due(now) {
            let rules = growth::Rules {
                per_hour: settings.growth_per_hour,
                per_day_percent: settings.growth_per_day,
            };
            let changes = self.growth.sample(now, values(&process), rules);
            changes.iter().for_each(|change| self.tell(change));
            for (measure, (slope, growing)) in MEASURES.into_iter().zip(&self.gauges) {
                slope.set(self.growth.per_hour(measure).max(0).unsigned_abs());
                growing.set(u64::from(self.growth.growing(measure)));
            }
        }
        if line {
            self.line_at = now + settings.log_interval;
            self.line(&process);
        }
    }

    fn tell(&self, change: &Change) {
        let subject = change.measure.as_str();
        let (level, kind) = match change.grows {
            true => (log::Level::Warn, "resource_growth"),
            false => (log::Level::Info, "resource_growth_ended"),
        };
        self.events.record(level, kind, subject, change.to_string());
    }

    fn line(&self, process: &Process) {
        let number = |value: Option<u64>| value.unwrap_or_default();
        let growth = self.growth.per_hour(Measure::Memory);
        log::info!(
            resident = number(process.resident_bytes),
            anonymous = number(process.anonymous_bytes),
            growth_per_hour = growth,
            descriptors = number(process.open_fds),
            threads = number(process.threads),
            cpu_seconds = process.cpu_seconds.unwrap_or_default(),
            held = containers(&self.registry.limits());
            "resources"
        );
    }
}

fn values(process: &Process) -> Values {
    let figure = |measure| match measure {
        Measure::Memory => process.resident_bytes,
        Measure::Descriptors => process.open_fds,
        Measure::Threads => process.threads,
    };
    MEASURES.map(figure)
}

/// What is in the containers that hold something, the fullest first, in bounded length.
fn containers(limits: &[NamedLimit]) -> String {
    let share = |named: &NamedLimit| named.limit.now() as f64 / named.limit.max().max(1) as f64;
    let holds = |named: &&NamedLimit| !named.each && named.limit.now() > 0;
    let mut held: Vec<&NamedLimit> = limits.iter().filter(holds).collect();
    held.sort_by(|a, b| share(b).total_cmp(&share(a)));
    let mut out = String::new();
    for (told, named) in held.iter().enumerate() {
        let begun = out.len();
        let comma = if told == 0 { "" } else { "," };
        let dot = if named.owner.is_empty() { "" } else { "@" };
        let _ = write!(out, "{comma}{}{dot}{}:{}", named.name, named.owner, named.limit.now());
        if out.len() > CONTAINERS_BYTES_MAX {
            out.truncate(begun);
            let _ = write!(out, ",+{}", held.len() - told);
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn containers_are_told_fullest_first_and_in_bounded_length() {
        let registry = Registry::default();
        registry.limit("a", "", 100, "x").set_now(10);
        registry.limit("b", "u", 10, "x").set_now(9);
        registry.limit("empty", "", 10, "x");
        registry.limit_each(crate::base::metrics::Unit::Bytes, "each", "", 10, "x").saw(9);
        let text = containers(&registry.limits());
        assert!(text.starts_with("b@u:9,a:10,metrics.series_max:"), "{text}");
        assert!(!text.contains("empty") && !text.contains("each"), "{text}");
        for n in 0..300 {
            registry.limit("many", &n.to_string(), 10, "x").set_now(1);
        }
        let text = containers(&registry.limits());
        assert!(text.len() <= CONTAINERS_BYTES_MAX + 8, "{}", text.len());
        let (told, left_out) = text.rsplit_once(",+").unwrap();
        assert_eq!(told.split(',').count() + left_out.parse::<usize>().unwrap(), 303, "{text}");
    }

    #[test]
    fn a_line_comes_at_its_interval_and_a_sample_each_minute() {
        let registry = Arc::new(Registry::default());
        let events = Events::new(Arc::clone(&registry));
        let start = crate::base::clock::now();
        let mut resources = Resources::new(&registry, &events, start);
        let settings = |seconds| Settings {
            log_interval: Duration::from_secs(seconds),
            growth_per_hour: 1,
            growth_per_day: 1,
        };
        let samples = || {
            let limits = registry.limits();
            limits.iter().find(|l| l.name == "resources.hour_max").unwrap().limit.now()
        };
        resources.tick(start, &settings(300));
        assert_eq!((samples(), resources.line_at), (0, start + Duration::from_secs(300)));
        let warm = start + growth::WARM_UP;
        resources.tick(warm, &settings(300));
        assert_eq!((samples(), resources.line_at), (1, warm + Duration::from_secs(300)));
        resources.tick(warm + Duration::from_secs(59), &settings(300));
        assert_eq!(samples(), 1);
        resources.tick(warm + Duration::from_secs(61), &settings(300));
        assert_eq!(samples(), 2);
        // A shorter interval is in force at once.
        resources.tick(warm + Duration::from_secs(62), &settings(10));
        assert_eq!((samples(), resources.line_at), (2, warm + Duration::from_secs(72)));
        assert!(events.recent().is_empty());
    }
}
