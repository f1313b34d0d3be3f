//! Names to addresses, with a cache, on threads of its own: the operating system's resolver cannot
//! be given a deadline, so nobody waits inside it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::control::Control;
use super::wait::{self, Stop, Watch};
use crate::base::bounded;
use crate::base::clock;
use crate::base::error::{Error, Kind, Phase};
use crate::base::heartbeat::{self, Doing};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Limit, Registry, Unit};
use crate::base::thread::{self, Thread};

/// Names remembered. Past it: the least recently used one is asked for again.
pub const NAMES_MAX: usize = 256;
/// How long an answer is fresh.
pub const FRESH_FOR: Duration = Duration::from_secs(60);
/// How long an old answer is used while a new one is being fetched, or cannot be had.
pub const STALE_FOR: Duration = Duration::from_secs(600);
/// How long a failure is remembered.
pub const FAILED_FOR: Duration = Duration::from_secs(2);
/// Threads that may be stuck in the operating system's resolver at once.
pub const THREADS_MAX: usize = 4;
/// Names waiting for a thread. Past it: the lookup fails at once (or an old answer is used).
pub const PENDING_MAX: usize = 64;
/// Callers waiting for one name. Past it: the lookup fails at once. Above `server.exchanges_max`
/// as people set it, since each exchange waits for one name.
pub const CALLERS_MAX: usize = 4096;
/// Addresses of one name that are used.
pub const ADDRESSES_MAX: usize = 8;
/// How often a waiting caller looks whether its client left or its call was cancelled.
pub const CLIENT_LOOK: Duration = Duration::from_millis(25);

/// How names are looked up: the system's way, or a test's.
pub trait Lookup: Send + Sync + 'static {
    /// The addresses of `host`, best first. May block for as long as it likes.
    ///
    /// # Errors
    /// When there are none.
    fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The operating system's resolver (getaddrinfo).
#[derive(Debug)]
struct System;

impl Lookup for System {
    fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        (host, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect())
    }
}

/// The addresses of a name, best first.
pub type Addresses = Arc<[IpAddr]>;
/// The reason of a failure; shared, since all who wait get it.
type Answer = Result<Addresses, Arc<str>>;

/// Resolves names. One for the whole process.
pub struct Resolver {
    shared: Arc<Shared>,
    /// Closed on drop, which ends the threads that wait for work.
    jobs: Option<Sender<Arc<str>>>,
    work: Receiver<Arc<str>>,
    threads: Locked<Vec<Thread>>,
    started: Arc<Limit>,
}

struct Shared {
    lookup: Box<dyn Lookup>,
    state: Locked<State>,
    failures: Arc<Counter>,
}

struct State {
    cache: bounded::Lru<Arc<str>, Entry>,
    /// Lookups on their way, with those who wait for them.
    flights: bounded::Map<Arc<str>, Vec<Sender<Answer>>>,
    /// The bound on those who wait for one name.
    callers: Arc<Limit>,
    /// Threads there are: as many as lookups on their way, up to [`THREADS_MAX`], and never fewer
    /// again.
    threads: usize,
}

#[derive(Clone)]
struct Entry {
    addresses: Option<Addresses>,
    fetched: Instant,
    failed: Option<(Instant, Arc<str>)>,
}

/// What the cache says.
enum Plan {
    Use(Answer),
    Wait(Receiver<Answer>),
}

impl Resolver {
    /// With the operating system's resolver.
    pub fn system(registry: &Registry) -> Self {
        Resolver::new(System, registry)
    }

    /// With another way of looking names up.
    pub fn new(lookup: impl Lookup, registry: &Registry) -> Self {
        let (jobs, work) = bounded(PENDING_MAX);
        let names = registry.limit(
            "resolver.names_max",
            "",
            NAMES_MAX as u64,
            "the least recently used name is looked up again",
        );
        let lookups = registry.limit(
            "resolver.lookups_max",
            "",
            (PENDING_MAX + THREADS_MAX) as u64,
            "an old answer is used, else the lookup fails",
        );
        let callers = registry.limit_each(
            Unit::Entries,
            "resolver.callers_max",
            "",
            CALLERS_MAX as u64,
            "the lookup fails",
        );
        let failures =
            registry.counter("tidegate_resolve_failures_total", "Name lookups that failed.", &[]);
        let state = State {
            cache: bounded::Lru::new(names),
            flights: bounded::Map::new(lookups),
            callers,
            threads: 0,
        };
        Resolver {
            shared: Arc::new(Shared {
                lookup: Box::new(lookup),
                state: Locked::new(Rank::Resolver, state),
                failures,
            }),
            jobs: Some(jobs),
            work,
            threads: Locked::new(Rank::Leaf, Vec::new()),
            started: registry.limit(
                "resolver.threads_max",
                "",
                THREADS_MAX as u64,
                "the lookup waits for a thread",
            ),
        }
    }

    /// The addresses of `host`, best first, never none: from the cache, or from a lookup that is
    /// waited for until the deadline, the client's leaving or a cancel. `upstream` is whose it is.
    ///
    /// # Errors
    /// [`Kind::UpstreamConnect`] when the lookup failed; those of a wait otherwise.
    pub(in crate::net) fn resolve(
        &self,
        upstream: &str,
        host: &str,
        watch: &Watch<'_>,
        control: &Control,
    ) -> Result<Addresses, Error> {
        if let Some(addresses) = literal(host) {
            return Ok(addresses);
        }
        let failed = |why: &str| {
            let what = format!("upstream {upstream}: the name {host} cannot be resolved: {why}");
            Error::new(Kind::UpstreamConnect, what)
        };
        let receiver = match self.plan(host, clock::now()) {
            Plan::Use(answer) => return answer.map_err(|why| failed(&why)),
            Plan::Wait(receiver) => receiver,
        };
        let watch = Watch { phase: Phase::Resolve, ..*watch };
        let _waiting = heartbeat::waiting(Doing::Name, watch.deadline);
        loop {
            let left = watch.deadline.saturating_duration_since(clock::now());
            match receiver.recv_timeout(left.min(CLIENT_LOOK)) {
                Ok(answer) => return answer.map_err(|why| failed(&why)),
                Err(RecvTimeoutError::Disconnected) => return Err(failed("the lookup was lost")),
                Err(RecvTimeoutError::Timeout) => {}
            }
            wait::look(&watch, control).map_err(|stop| match stop {
                Stop::Deadline(phase) => Error::new(
                    Kind::UpstreamTimeout(phase),
                    format!(
                        "upstream {upstream}: the name {host} was not resolved within {}",
                        phase.as_str()
                    ),
                ),
                other => other.error(upstream),
            })?;
        }
    }

    /// What to do about `host`; begins a lookup when one is due.
    fn plan(&self, host: &str, now: Instant) -> Plan {
        let (plan, begin) = self.shared.state.with(|state| state.plan(host, now));
        let Some(job) = begin else { return plan };
        self.begin(job);
        plan
    }

    /// Hands a lookup to a thread. Its flight is registered already.
    fn begin(&self, job: Arc<str>) {
        let thread = self.shared.state.with(|state| {
            let need = state.threads < state.flights.len().min(THREADS_MAX);
            state.threads += usize::from(need);
            need.then_some(state.threads)
        });
        if let Some(number) = thread {
            self.start_thread(number);
        }
        let sent = match &self.jobs {
            Some(jobs) => jobs.try_send(Arc::clone(&job)).is_ok(),
            None => false,
        };
        if !sent {
            let full = Err("too many names are being resolved".into());
            self.shared.land(&job, full, clock::now());
        }
    }

    fn start_thread(&self, number: usize) {
        let shared = Arc::clone(&self.shared);
        let work = self.work.clone();
        match thread::spawn(&format!("resolve-{number}"), move || run(&shared, &work)) {
            Ok(thread) => self.threads.with(|threads| {
                threads.push(thread);
                self.started.set_now(threads.len() as u64);
            }),
            // The lookup waits for another thread; with none, its callers' deadlines end it.
            Err(_) => self.shared.state.with(|state| state.threads -= 1),
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.jobs = None;
        // A thread may be stuck in the operating system for longer than a stop may take. It holds
        // nothing that matters, and ends by itself once it returns.
        for thread in self.threads.with(std::mem::take) {
            thread.abandon();
        }
    }
}

impl State {
    /// What to do about `host`, and the lookup to begin.
    fn plan(&mut self, host: &str, now: Instant) -> (Plan, Option<Arc<str>>) {
        let entry = self.cache.get(host).map(|entry| entry.clone());
        let age = |at: Instant| now.saturating_duration_since(at);
        let failed = entry.as_ref().and_then(|entry| entry.failed.clone());
        let failed = failed.filter(|(at, _)| age(*at) < FAILED_FOR).map(|(_, why)| why);
        let old = entry.and_then(|entry| {
            let addresses = entry.addresses?;
            (age(entry.fetched) < STALE_FOR).then_some((addresses, age(entry.fetched)))
        });
        match (old, failed) {
            (Some((addresses, age)), _) if age < FRESH_FOR => (Plan::Use(Ok(addresses)), None),
            (Some((addresses, _)), Some(_)) => (Plan::Use(Ok(addresses)), None),
            (Some((addresses, _)), None) => (Plan::Use(Ok(addresses)), self.depart(host, None)),
            (None, Some(why)) => (Plan::Use(Err(why)), None),
            (None, None) => {
                let (sender, receiver) = bounded(1);
                let job = self.depart(host, Some(sender));
                (Plan::Wait(receiver), job)
            }
        }
    }

    /// Joins the lookup of `host`, or registers one that is to begin.
    fn depart(&mut self, host: &str, caller: Option<Sender<Answer>>) -> Option<Arc<str>> {
        if let Some(callers) = self.flights.get_mut(host) {
            match caller {
                Some(caller) if (callers.len() as u64) < self.callers.max() => {
                    callers.push(caller);
                    self.callers.saw(callers.len() as u64);
                }
                Some(caller) => {
                    self.callers.refuse();
                    let _ = caller.try_send(Err("too many requests wait for this name".into()));
                }
                None => {}
            }
            return None;
        }
        let host: Arc<str> = host.into();
        match self.flights.insert(Arc::clone(&host), caller.into_iter().collect()) {
            Ok(_) => Some(host),
            Err(refused) => {
                for caller in refused {
                    let _ = caller.try_send(Err("too many names are being resolved".into()));
                }
                None
            }
        }
    }
}

impl Shared {
    /// Ends the lookup of `host`: remembers its answer and tells all who wait.
    fn land(&self, host: &Arc<str>, answer: Answer, now: Instant) {
        let callers = self.state.with(|state| {
            let before = state.cache.pop(&**host);
            let entry = match &answer {
                Ok(addresses) => {
                    Entry { addresses: Some(Arc::clone(addresses)), fetched: now, failed: None }
                }
                Err(why) => {
                    let failed = Some((now, Arc::clone(why)));
                    match before {
                        Some(entry) => Entry { failed, ..entry },
                        None => Entry { addresses: None, fetched: now, failed },
                    }
                }
            };
            state.cache.put(Arc::clone(host), entry);
            state.flights.remove(&**host)
        });
        if answer.is_err() {
            self.failures.inc();
        }
        for caller in callers.unwrap_or_default() {
            // One that gave up is gone; each channel has room for its one answer.
            let _ = caller.try_send(answer.clone());
        }
    }
}

/// A resolver thread.
fn run(shared: &Shared, work: &Receiver<Arc<str>>) {
    while let Ok(host) = work.recv() {
        let found =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shared.lookup.lookup(&host)));
        let answer: Answer = match found {
            Ok(Ok(addresses)) if addresses.is_empty() => Err("it has no address".into()),
            Ok(Ok(addresses)) => Ok(distinct(addresses).into()),
            Ok(Err(error)) => Err(error.to_string().into()),
            Err(_) => Err("the resolver failed".into()),
        };
        shared.land(&host, answer, clock::now());
    }
}

/// The first [`ADDRESSES_MAX`] different addresses.
fn distinct(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    addresses
}

/// Addresses that need no lookup.
fn literal(host: &str) -> Option<Addresses> {
    if host.eq_ignore_ascii_case("localhost") {
        return Some([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into());
    }
    host.parse::<IpAddr>().ok().map(|address| [address].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cache under a clock of its own; lookups land when the test says so.
    struct Clocked {
        resolver: Resolver,
        start: Instant,
    }

    impl Clocked {
        fn new() -> Self {
            let resolver = Resolver::new(System, &Registry::default());
            Clocked { resolver, start: clock::now() }
        }

        /// What a caller gets at this second: an answer (the last byte of its address, or a
        /// failure) or none yet; and whether a lookup begins.
        fn plan(&self, host: &str, second: u64) -> (Option<Result<u8, ()>>, bool) {
            let at = self.start + Duration::from_secs(second);
            let (plan, begin) = self.resolver.shared.state.with(|state| state.plan(host, at));
            let answer = match plan {
                Plan::Use(Ok(addresses)) => match addresses[0] {
                    IpAddr::V4(address) => Some(Ok(address.octets()[3])),
                    IpAddr::V6(address) => panic!("{address}"),
                },
                Plan::Use(Err(_)) => Some(Err(())),
                Plan::Wait(_) => None,
            };
            (answer, begin.is_some())
        }

        fn land(&self, host: &str, answer: Result<u8, ()>, second: u64) {
            let answer = answer
                .map(|last| [IpAddr::from([10, 0, 0, last])].into())
                .map_err(|()| "no such name".into());
            self.resolver.shared.land(
                &host.into(),
                answer,
                self.start + Duration::from_secs(second),
            );
        }
    }

    #[test]
    fn an_old_answer_serves_while_a_new_one_is_fetched_or_cannot_be_had() {
        let names = Clocked::new();
        assert_eq!(names.plan("a", 0), (None, true));
        assert_eq!(names.plan("a", 0), (None, false), "one lookup for all");
        names.land("a", Ok(1), 0);
        assert_eq!(names.plan("a", 59), (Some(Ok(1)), false));
        assert_eq!(names.plan("a", 60), (Some(Ok(1)), true));
        assert_eq!(names.plan("a", 61), (Some(Ok(1)), false), "the refresh is on its way");
        names.land("a", Err(()), 62);
        assert_eq!(names.plan("a", 63), (Some(Ok(1)), false), "it failed a moment ago");
        assert_eq!(names.plan("a", 64), (Some(Ok(1)), true));
        names.land("a", Ok(2), 65);
        assert_eq!(names.plan("a", 66), (Some(Ok(2)), false));
        // Ten minutes old: of no use any more.
        assert_eq!(names.plan("a", 665), (None, true));
        names.land("a", Err(()), 666);
        assert_eq!(names.plan("a", 667), (Some(Err(())), false));
        assert_eq!(names.plan("a", 668), (None, true));
    }

    #[test]
    fn names_and_lookups_are_bounded() {
        let names = Clocked::new();
        for n in 0..=NAMES_MAX {
            names.plan(&n.to_string(), 0);
            names.land(&n.to_string(), Ok(1), 0);
        }
        let kept = names.resolver.shared.state.with(|state| state.cache.len());
        assert_eq!(kept, NAMES_MAX);
        assert_eq!(names.plan("0", 1), (None, true), "the least recently used went");

        for n in 0..PENDING_MAX + THREADS_MAX {
            names.plan(&format!("pending {n}"), 1);
        }
        let (plan, begin) =
            names.resolver.shared.state.with(|state| state.plan("one more", names.start));
        assert!(begin.is_none());
        let Plan::Wait(receiver) = plan else { panic!("it is not known") };
        assert!(receiver.try_recv().unwrap().is_err(), "told at once");
    }
}
