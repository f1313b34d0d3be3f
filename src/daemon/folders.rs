//! The folders whose changes clear a part of the cache.

use std::sync::Arc;

use crate::base::events::Events;
use crate::base::heartbeat::Heartbeats;
use crate::base::metrics::Registry;
use crate::cache::watch::{self, Handler, Watch};
use crate::config::settings::{Cache, Namespace, WatchedFolder};
use crate::gateway::cached::Answers;

/// The watch over the folders of the configuration, if it has any.
pub struct Folders {
    answers: Answers,
    events: Arc<Events>,
    registry: Arc<Registry>,
    heartbeats: Arc<Heartbeats>,
    watched: Vec<WatchedFolder>,
    watch: Option<Watch>,
}

impl Folders {
    /// Watches the folders of this configuration.
    pub fn start(
        config: &Cache,
        answers: Answers,
        events: Arc<Events>,
        registry: Arc<Registry>,
        heartbeats: Arc<Heartbeats>,
    ) -> Self {
        watch::limit(&registry);
        let watched = Vec::new();
        let mut folders = Folders { answers, events, registry, heartbeats, watched, watch: None };
        folders.reconfigure(config);
        folders
    }

    /// Watches those of another configuration. Between the two watches a change may be missed, so
    /// that what the new ones guard is asked for again.
    pub fn reconfigure(&mut self, config: &Cache) {
        let wanted = if config.enabled { config.watch.as_slice() } else { &[] };
        if wanted == self.watched {
            return;
        }
        self.watch = None;
        self.watched = wanted.to_vec();
        if wanted.is_empty() {
            return;
        }
        let answers = self.answers.clone();
        let events = Arc::clone(&self.events);
        let handler: Handler = Arc::new(move |namespace: Namespace| {
            let dropped = answers.clear(namespace);
            let detail = format!("{dropped} answers dropped: a watched folder changed");
            events.record(log::Level::Info, "cache_cleared", namespace.as_str(), detail);
        });
        let (registry, heartbeats) = (&self.registry, &self.heartbeats);
        match Watch::start(wanted, handler, &self.events, registry, heartbeats) {
            Ok(watch) => self.watch = Some(watch),
            // The next reload tries again.
            Err(error) => {
                self.watched.clear();
                let detail = format!("no thread for cache.watch: {error}");
                self.events.record(log::Level::Error, "cache_watch_failed", "", detail);
            }
        }
        for folder in wanted {
            self.answers.clear(folder.namespace);
        }
    }
}
