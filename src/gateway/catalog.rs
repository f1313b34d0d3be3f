//! What is known of each upstream's models: lists, what is in memory, descriptions. Asked for by at
//! most [`state::THREADS_MAX`] threads, one question for all who want the same; kept, and shown when
//! it is old, while it is asked for again and for as long as the upstream is away.
//!
//! Nobody waits here for longer than [`WAIT_MAX`], and only for what was never known.

mod context;
mod counters;
mod fetch;
pub mod parse;
pub mod question;
mod slot;
pub mod state;
mod threads;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use self::fetch::Source;
use self::parse::{List, Ps, Show};
use self::question::{Key, Known, Outcome, What};
use self::state::Found;
use self::threads::{Shared, Threads};
use crate::base::clock;
use crate::base::error::{Error, Kind, Phase, Result};
use crate::base::heartbeat::{self, Doing, Heartbeats};
use crate::base::lock::{self, Locked};
use crate::base::metrics::Registry;
use crate::config::settings::Config;
use crate::net::outbound::Resolver;

pub use self::context::{Context, ContextSource};

/// The longest that a caller waits, whatever the number of upstreams, counted from when the question
/// was asked: an upstream that hangs costs this once, not each caller. The answer is to be there
/// within a second, so the wait is shorter than that.
pub const WAIT_MAX: Duration = Duration::from_millis(800);
/// The longest that a question takes.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(3);

/// The catalog. Its owner starts, reconfigures and stops it.
pub struct Catalog {
    shared: Arc<Shared>,
    threads: Locked<Threads>,
    /// What is known is not asked for again.
    paused: AtomicBool,
    /// Disconnected once every thread has ended.
    ended: Receiver<()>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Catalog")
    }
}

impl Catalog {
    /// A catalog of this configuration's upstreams. Their lists are asked for at once; threads are
    /// started as they are needed.
    pub fn start(
        config: &Config,
        resolver: Arc<Resolver>,
        registry: &Registry,
        heartbeats: Arc<Heartbeats>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared::new(resolver, registry, heartbeats));
        let (threads, ended) = Threads::new();
        let catalog = Arc::new(Catalog { shared, threads, paused: AtomicBool::new(false), ended });
        catalog.reconfigure(config);
        catalog
    }

    /// Takes another configuration: what left it is dropped, what is new is asked for.
    pub fn reconfigure(&self, config: &Config) {
        // Half of the workers at most, so that the others answer meanwhile.
        self.shared.counters.waiting.set_max((config.server.workers / 2).max(1) as u64);
        let sources = config.upstreams.iter();
        let sources: Vec<_> = sources
            .filter_map(|upstream| Source::new(upstream, &self.shared.resolver).map(Arc::new))
            .collect();
        let names: Vec<Arc<str>> =
            sources.iter().map(|source| source.config().name.as_str().into()).collect();
        let dropped = self.shared.state.with(|state| state.reconfigure(sources));
        for source in dropped {
            source.close();
        }
        for upstream in names {
            self.look(&Key { upstream, what: What::List });
        }
    }

    /// While it is paused, what is known is shown however old it is, and not asked for again.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
    }

    /// The lists of these upstreams, in their order. Waits for those that were never known, at most
    /// [`WAIT_MAX`] in all. `None`: not known, or the upstream is none that can be asked.
    pub fn lists<'a>(
        &self,
        upstreams: impl IntoIterator<Item = &'a str>,
    ) -> Vec<Option<Arc<List>>> {
        let keys: Vec<_> = keys(upstreams, &What::List);
        let found = self.look_all(&keys);
        found.into_iter().map(IntoList::into_list).collect()
    }

    /// The same, without waiting and without asking.
    pub fn known_lists<'a>(
        &self,
        upstreams: impl IntoIterator<Item = &'a str>,
    ) -> Vec<Option<Arc<List>>> {
        let now = clock::now();
        let peek = |key: Key| self.shared.state.with(|state| state.peek(&key, now)).known;
        keys(upstreams, &What::List).into_iter().map(peek).map(IntoList::into_list).collect()
    }

    /// What these upstreams have in memory, in their order. As [`Catalog::lists`].
    pub fn ps<'a>(&self, upstreams: impl IntoIterator<Item = &'a str>) -> Vec<Option<Arc<Ps>>> {
        let keys: Vec<_> = keys(upstreams, &What::Ps);
        let ps = |known| match known {
            Some(Known::Ps(ps)) => Some(ps),
            _ => None,
        };
        self.look_all(&keys).into_iter().map(ps).collect()
    }

    /// Why the list of this upstream is not known.
    ///
    /// # Errors
    /// Always: it is the result.
    pub fn why_no_list(&self, upstream: &str) -> Error {
        let key = Key { upstream: upstream.into(), what: What::List };
        let found = self.shared.state.with(|state| state.peek(&key, clock::now()));
        found.fault.map_or_else(|| not_yet(&key), |fault| fault.error())
    }

    /// An Ollama upstream's description of a model. Waits when it was never known, at most
    /// [`WAIT_MAX`].
    ///
    /// # Errors
    /// [`Kind::UpstreamModelNotFound`] when it has no such model; else why it cannot be asked, or
    /// [`Kind::UpstreamTimeout`] when it did not answer in time.
    pub fn show(&self, upstream: &str, model: &str, verbose: bool) -> Result<Arc<Show>> {
        let what = What::Show { model: model.into(), verbose };
        let key = Key { upstream: upstream.into(), what };
        let found = self.look(&key);
        if let Some(Known::Show(show)) = found.known {
            return Ok(show);
        }
        let answer = match found.asked {
            Some(asked) => self.wait_for(&key, asked),
            None => found.fault.map(Err),
        };
        match answer {
            Some(Ok(Known::Show(show))) => Ok(show),
            Some(Err(fault)) => Err(fault.error()),
            _ => Err(not_yet(&key)),
        }
    }

    /// What is known of each, after a wait for what never was.
    fn look_all(&self, keys: &[Key]) -> Vec<Option<Known>> {
        let found: Vec<Found> = keys.iter().map(|key| self.look(key)).collect();
        let until = clock::now() + WAIT_MAX;
        let unknown = |found: &Found| found.known.is_none();
        let mut known = Vec::with_capacity(keys.len());
        for (key, found) in keys.iter().zip(found) {
            known.push(match (unknown(&found), found.asked) {
                (true, Some(asked)) => self
                    .wait_until(key, until.min(asked + WAIT_MAX))
                    .and_then(|outcome| outcome.ok()),
                _ => found.known,
            });
        }
        known
    }

    /// Looks, and has it asked when it is due.
    fn look(&self, key: &Key) -> Found {
        let shared = &self.shared;
        if self.paused.load(Relaxed) {
            let found = shared.state.with(|state| state.peek(key, clock::now()));
            if found.known.is_some() {
                shared.counters.looked(&key.what, &found);
                return found;
            }
        }
        let found = shared.state.with(|state| state.look(key, clock::now()));
        shared.counters.looked(&key.what, &found);
        if found.started {
            shared.measure();
            self.wake();
        }
        found
    }

    fn wait_for(&self, key: &Key, asked: Instant) -> Option<Outcome> {
        self.wait_until(key, asked + WAIT_MAX)
    }

    /// Waits for a question that was on its way a moment ago. `None`: no answer by then.
    fn wait_until(&self, key: &Key, until: Instant) -> Option<Outcome> {
        lock::assert_none_held();
        let _waiting = heartbeat::waiting(Doing::Answer, until);
        let shared = &self.shared;
        let receiver = if until <= clock::now() {
            None
        } else {
            let lease = shared.counters.waiting.try_take(1);
            lease.and_then(|lease| Some((shared.state.with(|s| s.wait(key))?, lease)))
        };
        let waited = receiver.and_then(|(receiver, _lease)| receiver.recv_deadline(until).ok());
        waited.or_else(|| {
            // It may have landed between the look and the wait.
            let found = shared.state.with(|state| state.peek(key, clock::now()));
            found.known.map(Ok).or_else(|| found.fault.map(Err))
        })
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        // A connect that is on its way ends within its timeout, without us.
        self.stop(clock::now());
    }
}

fn keys<'a>(upstreams: impl IntoIterator<Item = &'a str>, what: &What) -> Vec<Key> {
    let key = |upstream: &str| Key { upstream: upstream.into(), what: what.clone() };
    upstreams.into_iter().map(key).collect()
}

fn not_yet(key: &Key) -> Error {
    let (upstream, what) = (&key.upstream, key.what.as_str());
    let text = format!("upstream {upstream} has not answered {what} yet; ask again in a moment");
    Error::new(Kind::UpstreamTimeout(Phase::Answer), text)
}

/// Takes a list out of what is known.
trait IntoList {
    fn into_list(self) -> Option<Arc<List>>;
}

impl IntoList for Option<Known> {
    fn into_list(self) -> Option<Arc<List>> {
        match self {
            Some(Known::List(list)) => Some(list),
            _ => None,
        }
    }
}
