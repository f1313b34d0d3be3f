//! What is known of each upstream's models: lists, what is in memory, descriptions. Asked for by at
//! most [`state::THREADS_MAX`] threads, one question for all who want the same; kept, and shown when
//! it is old, while it is asked for again and for as long as the upstream is away.
//!
//! Nobody waits here for longer than [`WAIT_MAX`], and only for what was never known.

mod date;
mod fetch;
pub mod parse;
pub mod state;

#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use self::fetch::Source;
use self::parse::{List, Ps, Show};
use self::state::{Fault, Found, Key, Known, Landed, Outcome, State, THREADS_MAX, What};
use crate::base::clock;
use crate::base::error::{Error, Kind, Phase, Result};
use crate::base::lock::{self, Locked, Rank};
use crate::base::metrics::{Counter, Limit, Registry};
use crate::base::thread::{self, Thread};
use crate::config::settings::{Config, Upstream, UpstreamKind};
use crate::log_limited;
use crate::net::outbound::Resolver;

/// The longest that a caller waits, whatever the number of upstreams, counted from when the question
/// was asked: an upstream that hangs costs its first second once, not each caller a second.
pub const WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest that a question takes.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(3);

/// How many tokens a model may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Tokens, above 0.
    pub tokens: u64,
    /// Who says so.
    pub source: ContextSource,
}

/// Who says how large the context is; the first that does decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextSource {
    /// The request (`options.num_ctx`).
    Request,
    /// The configuration (`upstream.num_ctx`).
    Config,
    /// The model's Modelfile (`PARAMETER num_ctx`).
    Modelfile,
    /// What the model was trained for (`model_info`).
    ModelInfo,
    /// The upstream's list of models (OpenAI).
    List,
}

/// The catalog. Its owner starts, reconfigures and stops it.
pub struct Catalog {
    shared: Arc<Shared>,
    threads: Locked<Threads>,
    /// Disconnected once every thread has ended.
    ended: Receiver<()>,
}

struct Shared {
    resolver: Arc<Resolver>,
    state: Locked<State>,
    wake: Sender<()>,
    work: Receiver<()>,
    waiting: Arc<Limit>,
    queue: Arc<Limit>,
    shows: Arc<Limit>,
    show_bytes: Arc<Limit>,
    counters: Counters,
}

struct Threads {
    started: Vec<Thread>,
    /// Each thread holds a copy; dropped when no more are started.
    alive: Option<Sender<()>>,
}

/// Counters for list, ps and show, in this order.
struct Counters {
    hits: [Arc<Counter>; 3],
    stale: [Arc<Counter>; 3],
    misses: [Arc<Counter>; 3],
    answers: [Arc<Counter>; 3],
    failures: [Arc<Counter>; 3],
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Catalog")
    }
}

impl Catalog {
    /// A catalog of this configuration's upstreams. Their lists are asked for at once; threads are
    /// started as they are needed.
    pub fn start(config: &Config, resolver: Arc<Resolver>, registry: &Registry) -> Arc<Self> {
        let (wake, work) = bounded(THREADS_MAX);
        let (alive, ended) = bounded(1);
        let limit =
            |name, max: usize, consequence| registry.limit(name, "", max as u64, consequence);
        let shared = Shared {
            resolver,
            state: Locked::new(Rank::Catalog, State::default()),
            wake,
            work,
            waiting: limit("catalog.waiting_max", 1, "what is known is shown without waiting"),
            queue: limit("catalog.queue_max", state::FLIGHTS_MAX, "what is known is shown"),
            shows: limit("catalog.shows_max", state::SHOWS_MAX, "the oldest is asked for again"),
            show_bytes: limit(
                "catalog.show_bytes_max",
                state::SHOW_BYTES_MAX,
                "the oldest descriptions are asked for again",
            ),
            counters: Counters::new(registry),
        };
        let threads = Threads { started: Vec::new(), alive: Some(alive) };
        let threads = Locked::new(Rank::Leaf, threads);
        let catalog = Arc::new(Catalog { shared: Arc::new(shared), threads, ended });
        catalog.reconfigure(config);
        catalog
    }

    /// Takes another configuration: what left it is dropped, what is new is asked for.
    pub fn reconfigure(&self, config: &Config) {
        // Half of the workers at most, so that the others answer meanwhile.
        self.shared.waiting.set_max((config.server.workers / 2).max(1) as u64);
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

    /// Ends every question and joins the threads; those that have not ended by the deadline (in a
    /// TCP connect) are left behind, and counted in the result.
    pub fn stop(&self, deadline: Instant) -> usize {
        lock::assert_none_held();
        let sources = self.shared.state.with(|state| {
            state.closed = true;
            state.sources()
        });
        for source in sources {
            source.close();
        }
        let fault = Fault::of(&Error::new(Kind::Draining, "the gateway is stopping"));
        let waiting = self.shared.state.with(|state| state.abandon(&fault));
        tell(waiting);
        for _ in 0..THREADS_MAX {
            let _ = self.shared.wake.try_send(());
        }
        let threads = self.threads.with(|threads| {
            threads.alive = None;
            std::mem::take(&mut threads.started)
        });
        let _ = self.ended.recv_deadline(deadline);
        let mut late = 0;
        for thread in threads {
            if thread.finished() || clock::now() < deadline {
                thread.join();
            } else {
                late += 1;
                thread.abandon();
            }
        }
        late
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

    /// How many tokens a model of this upstream may be given, when somebody says so. Never waits;
    /// what is not known is asked for, so that a later call knows it.
    pub fn context(
        &self,
        upstream: &Upstream,
        model: &str,
        requested: Option<u64>,
    ) -> Option<Context> {
        self.context_by(upstream, model, requested, |key| self.look(key))
    }

    /// The same, from what is known: asks nothing. For lists, which would ask about each entry.
    pub fn known_context(&self, upstream: &Upstream, model: &str) -> Option<Context> {
        let peek = |key: &Key| self.shared.state.with(|state| state.peek(key, clock::now()));
        self.context_by(upstream, model, None, peek)
    }

    fn context_by(
        &self,
        upstream: &Upstream,
        model: &str,
        requested: Option<u64>,
        find: impl Fn(&Key) -> Found,
    ) -> Option<Context> {
        let context = |source| move |tokens| Context { tokens, source };
        if let Some(tokens) = requested.filter(|tokens| *tokens > 0) {
            return Some(Context { tokens, source: ContextSource::Request });
        }
        if let Some(tokens) = upstream.num_ctx {
            return Some(Context { tokens, source: ContextSource::Config });
        }
        let key = |what| Key { upstream: upstream.name.as_str().into(), what };
        match upstream.kind {
            UpstreamKind::Echo => None,
            UpstreamKind::OpenAi => {
                let list = find(&key(What::List)).known.into_list()?;
                list.find(model)?.context.map(context(ContextSource::List))
            }
            UpstreamKind::Ollama => {
                let what = What::Show { model: model.into(), verbose: false };
                let Some(Known::Show(show)) = find(&key(what)).known else { return None };
                let modelfile = show.num_ctx.map(context(ContextSource::Modelfile));
                modelfile.or_else(|| show.context_length.map(context(ContextSource::ModelInfo)))
            }
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
        let found = shared.state.with(|state| state.look(key, clock::now()));
        let index = Counters::index(&key.what);
        let counters = &shared.counters;
        let counter = match (&found.known, found.fresh) {
            (Some(_), true) => &counters.hits,
            (Some(_), false) => &counters.stale,
            (None, _) => &counters.misses,
        };
        counter[index].inc();
        if found.refused {
            shared.queue.refuse();
        }
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
        let shared = &self.shared;
        let receiver = if until <= clock::now() {
            None
        } else {
            let lease = shared.waiting.try_take(1);
            lease.and_then(|lease| Some((shared.state.with(|s| s.wait(key))?, lease)))
        };
        let waited = receiver.and_then(|(receiver, _lease)| receiver.recv_deadline(until).ok());
        waited.or_else(|| {
            // It may have landed between the look and the wait.
            let found = shared.state.with(|state| state.peek(key, clock::now()));
            found.known.map(Ok).or_else(|| found.fault.map(Err))
        })
    }

    /// Wakes a thread; starts one when there are more questions than threads.
    fn wake(&self) {
        let need = self.shared.state.with(|state| {
            let need = !state.closed && state.threads < state.sizes().0.min(THREADS_MAX);
            state.threads += usize::from(need);
            need.then_some(state.threads)
        });
        if let Some(number) = need {
            self.start_thread(number);
        }
        // A full channel has a token for each thread already.
        let _ = self.shared.wake.try_send(());
    }

    fn start_thread(&self, number: usize) {
        let Some(alive) = self.threads.with(|threads| threads.alive.clone()) else { return };
        let shared = Arc::clone(&self.shared);
        let started = thread::spawn(&format!("catalog-{number}"), move || {
            run(&shared);
            drop(alive);
        });
        match started {
            Ok(thread) => {
                // After a stop nobody joins it, and it ends by itself.
                let late = self.threads.with(|threads| match threads.alive {
                    Some(_) => {
                        threads.started.push(thread);
                        None
                    }
                    None => Some(thread),
                });
                if let Some(thread) = late {
                    thread.abandon();
                }
            }
            Err(error) => {
                let fault = Fault::of(&Error::new(Kind::Internal, "no thread for the catalog"));
                let waiting = self.shared.state.with(|state| {
                    state.threads -= 1;
                    if state.threads == 0 { state.abandon(&fault) } else { Vec::new() }
                });
                tell(waiting);
                log_limited!(log::Level::Error, "catalog_thread_failed", error:% = error);
            }
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        // A connect that is on its way ends within its timeout, without us.
        self.stop(clock::now());
    }
}

impl Shared {
    fn measure(&self) {
        let (flights, shows, bytes) = self.state.with(|state| state.sizes());
        self.queue.set_now(flights as u64);
        self.shows.set_now(shows as u64);
        self.show_bytes.set_now(bytes as u64);
    }
}

impl Counters {
    fn new(registry: &Registry) -> Self {
        let each = |name, help, label, value| {
            ["list", "ps", "show"]
                .map(|what| registry.counter(name, help, &[("what", what), (label, value)]))
        };
        let lookups = |outcome| {
            let help = "Looks into what is known of the models of upstreams.";
            each("tidegate_catalog_lookups_total", help, "outcome", outcome)
        };
        let fetches = |outcome| {
            let help = "Questions to upstreams about their models.";
            each("tidegate_catalog_fetches_total", help, "outcome", outcome)
        };
        Counters {
            hits: lookups("hit"),
            stale: lookups("stale"),
            misses: lookups("miss"),
            answers: fetches("ok"),
            failures: fetches("failed"),
        }
    }

    fn index(what: &What) -> usize {
        match what {
            What::List => 0,
            What::Ps => 1,
            What::Show { .. } => 2,
        }
    }
}

/// A catalog thread: asks as long as there is something to ask.
fn run(shared: &Shared) {
    loop {
        while let Some(job) = shared.state.with(State::pick) {
            let deadline = clock::now() + FETCH_TIMEOUT;
            let asked = catch_unwind(AssertUnwindSafe(|| job.source.ask(&job.key.what, deadline)));
            let outcome = asked.unwrap_or_else(|_| {
                Err(Fault::of(&Error::new(Kind::Internal, "reading the answer failed")))
            });
            let index = Counters::index(&job.key.what);
            let counters = &shared.counters;
            let counter = if outcome.is_ok() { &counters.answers } else { &counters.failures };
            counter[index].inc();
            let told = outcome.clone();
            let landed = shared.state.with(|state| state.land(&job, outcome, clock::now()));
            shared.measure();
            report(&job.key, &told, &landed);
            if landed.more {
                let _ = shared.wake.try_send(());
            }
            tell(landed.waiters);
        }
        if shared.state.with(|state| state.closed) || shared.work.recv().is_err() {
            return;
        }
    }
}

/// Hands answers to those who wait. One that gave up is gone; each channel has room for its answer.
fn tell(waiters: Vec<(Sender<Outcome>, Outcome)>) {
    for (waiter, outcome) in waiters {
        let _ = waiter.try_send(outcome);
    }
}

/// Logs what changed.
fn report(key: &Key, outcome: &Outcome, landed: &Landed) {
    let (upstream, what) = (&*key.upstream, key.what.as_str());
    match outcome {
        Ok(known) => {
            if landed.turned == Some(true) {
                log_limited!(log::Level::Info, "catalog_upstream_back", upstream, what);
            }
            if let Known::List(list) = known
                && list.left_out > 0
            {
                let (left_out, kept) = (list.left_out, list.models.len());
                log_limited!(log::Level::Warn, "catalog_list_cut", upstream, left_out, kept);
            }
        }
        Err(fault) => {
            let first = landed.turned == Some(false) || landed.first_failure;
            let quiet = matches!(fault.kind(), Kind::UpstreamModelNotFound | Kind::Draining);
            let level = if first && !quiet { log::Level::Warn } else { log::Level::Debug };
            let (code, error) = (fault.kind().row().code, fault.error());
            log_limited!(level, "catalog_fetch_failed", upstream, what, code, error:% = error);
        }
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
