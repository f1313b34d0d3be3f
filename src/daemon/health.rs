//! The thread `health`: once a second it looks for threads that hang and at what the process depends
//! on, and says how the process is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::base::clock;
use crate::base::events::Events;
use crate::base::health::{Affects, Board, Check, Look, Phase, State};
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::metrics::{Gauge, Registry};
use crate::base::thread::{self, Thread};
use crate::config::Config;
use crate::config::settings::{CheckSpec, Probe, Recovery};
use crate::health::checks::{Checks, Inside, Tools};
use crate::health::stalls::{self, Change, Stalls};
use crate::health::status::{self, Report, Status};
use crate::health::task;
use crate::net::http_client::{Client, Site};
use crate::net::outbound::{Origin, Resolver};
use crate::upstream::breaker::Stand;
use crate::upstream::link::Links;

use super::dependencies::Dependencies;
use super::recovery::{Hands, Recovery as Ladder};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// The shortest wait between two looks at the schedule of the checks.
const WAIT_MIN: Duration = Duration::from_millis(5);

/// How long the thread may be silent: a look takes milliseconds.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// The name of the thread and of its beat.
const NAME: &str = "health";

/// Most threads that a reason names.
const NAMED_MAX: usize = 3;

/// What the thread looks at.
pub(super) struct Seen {
    pub(super) board: Arc<Board>,
    pub(super) heartbeats: Arc<Heartbeats>,
    pub(super) registry: Arc<Registry>,
    pub(super) events: Arc<Events>,
    pub(super) links: Arc<Links>,
    /// For the checks.
    pub(super) resolver: Arc<Resolver>,
    /// Where the data plane listens.
    pub(super) data: SocketAddr,
    /// Whether drills are allowed.
    pub(super) drills: bool,
}

/// The running thread. Dropped, it ends.
pub(super) struct Health {
    stop: Option<Sender<()>>,
    thread: Option<Thread>,
    guard: Guard,
    checks: Arc<ArcSwap<Vec<CheckSpec>>>,
    recovery: Arc<ArcSwap<Recovery>>,
}

impl Health {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub(super) fn start(config: &Config, seen: Seen, hands: Hands) -> io::Result<Health> {
        let (stop, stopped) = bounded(1);
        let beat = seen.heartbeats.register(NAME, SILENCE_MAX);
        let guard = Guard {
            heartbeats: Arc::clone(&seen.heartbeats),
            events: Arc::clone(&seen.events),
            stalls: Stalls::default(),
        };
        let threads = seen.board.check("threads");
        threads.ok();
        let specs = Arc::new(ArcSwap::from_pointee(config.checks.clone()));
        let settings = Arc::new(ArcSwap::from_pointee(config.recovery.clone()));
        let mut checks = Checks::new(Tools {
            board: Arc::clone(&seen.board),
            registry: Arc::clone(&seen.registry),
            events: Arc::clone(&seen.events),
            heartbeats: Arc::clone(&seen.heartbeats),
            resolver: Arc::clone(&seen.resolver),
            inside: inside(&seen),
        });
        // Before the process is ready: what is not known yet counts.
        checks.reconfigure(&config.checks);
        let recovery =
            Ladder::new(hands, Arc::clone(&settings), &seen.board, &seen.registry, seen.drills);
        let mut work = Work {
            adopted: specs.load_full(),
            specs: Arc::clone(&specs),
            checks,
            recovery,
            stalls: Stalls::default(),
            dependencies: Dependencies::new(&seen.registry),
            threads,
            shown: Shown::new(&seen.registry),
            before: None,
            seen,
        };
        // So that every series is there from the start.
        work.dependencies.look(&work.seen.board, &work.seen.links);
        work.status(clock::now());
        let thread = thread::spawn(NAME, move || work.run(&stopped, &beat))?;
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Health { stop, thread, guard, checks: specs, recovery: settings })
    }

    /// Takes over new settings, at the next look.
    pub(super) fn reconfigure(&self, config: &Config) {
        self.recovery.store(Arc::new(config.recovery.clone()));
        if **self.checks.load() != config.checks {
            self.checks.store(Arc::new(config.checks.clone()));
        }
    }

    /// To be called by the main loop each second: it watches over this thread, which watches over all
    /// others.
    pub(super) fn guard(&mut self) {
        self.guard.look();
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whoever watches over the watch.
struct Guard {
    heartbeats: Arc<Heartbeats>,
    events: Arc<Events>,
    stalls: Stalls,
}

impl Guard {
    fn look(&mut self) {
        let mut late = self.heartbeats.late(clock::now());
        late.retain(|pulse| pulse.name == NAME);
        for change in self.stalls.look(late) {
            tell(&self.events, &change);
        }
    }
}

/// What the thread holds.
struct Work {
    seen: Seen,
    specs: Arc<ArcSwap<Vec<CheckSpec>>>,
    /// The checks that are in force.
    adopted: Arc<Vec<CheckSpec>>,
    checks: Checks,
    recovery: Ladder,
    stalls: Stalls,
    dependencies: Dependencies,
    threads: Arc<Check>,
    shown: Shown,
    /// The status at the last look, once the process was ready.
    before: Option<Status>,
}

impl Work {
    fn run(mut self, stopped: &Receiver<()>, beat: &Beat) {
        let mut look_at = clock::now() + LOOK;
        loop {
            let now = clock::now();
            beat.tick_at(now);
            if now >= look_at {
                look_at = now + LOOK;
                self.look(now);
            }
            let due = self.checks.look(now).map_or(look_at, |due| due.min(look_at));
            let wait = due.saturating_duration_since(clock::now()).max(WAIT_MIN);
            if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&mut self, now: Instant) {
        let specs = self.specs.load_full();
        if !Arc::ptr_eq(&specs, &self.adopted) {
            self.checks.reconfigure(&specs);
            self.adopted = specs;
        }
        self.stalls();
        self.dependencies.look(&self.seen.board, &self.seen.links);
        let looks = self.status(now);
        let stalled: Vec<_> = self.stalls.stalled().collect();
        self.recovery.look(now, &stalled, &looks);
    }

    fn stalls(&mut self) {
        let mut late = self.seen.heartbeats.late(clock::now());
        late.retain(|pulse| pulse.name != NAME);
        for change in self.stalls.look(late) {
            tell(&self.seen.events, &change);
        }
        let stalled: Vec<_> = self.stalls.stalled().collect();
        if stalled.is_empty() {
            self.threads.ok();
            return;
        }
        let mut why: Vec<String> =
            stalled.iter().take(NAMED_MAX).map(|pulse| stalls::told(pulse)).collect();
        if stalled.len() > NAMED_MAX {
            why.push(format!("and {} more", stalled.len() - NAMED_MAX));
        }
        let why = why.join("; ");
        // One of many may hang while the others go on; without an essential one nothing goes.
        if stalled.iter().any(|pulse| pulse.essential) {
            self.threads.failed(why);
        } else {
            self.threads.degraded(why);
        }
    }

    fn status(&mut self, now: Instant) -> Vec<Look> {
        let board = &self.seen.board;
        let (phase, looks) = (board.phase(), board.looks(now));
        let report = status::judge(phase, &looks);
        self.shown.show(&self.seen.registry, &report, &looks);
        if phase != Phase::Ready {
            return looks;
        }
        if let Some(before) = self.before.replace(report.status)
            && before != report.status
        {
            self.changed(before, &report);
        }
        looks
    }

    fn changed(&self, before: Status, report: &Report) {
        let level = match report.status {
            Status::Unhealthy => log::Level::Error,
            Status::Degraded if before < report.status => log::Level::Warn,
            _ => log::Level::Info,
        };
        let (from, to) = (before.as_str(), report.status.as_str());
        let detail = match report.reasons.is_empty() {
            true => format!("{from} -> {to}"),
            false => format!("{from} -> {to}: {}", report.reasons.join("; ")),
        };
        self.seen.events.record(level, "status_changed", to, detail);
    }
}

/// Tells a stall, with what the kernel says of the thread, and its end.
fn tell(events: &Events, change: &Change) {
    match change {
        Change::Stalled(pulse) => {
            let mut detail = stalls::told(pulse);
            let kernel = pulse.number.map(task::told).filter(|text| !text.is_empty());
            if let Some(kernel) = kernel {
                detail = format!("{detail}; {kernel}");
            }
            events.record(log::Level::Error, "thread_stalled", &pulse.name, detail);
        }
        Change::WentOn { name, silence } => {
            let detail = format!("{name} goes on, or has ended, after {} s", silence.as_secs());
            events.record(log::Level::Info, "thread_went_on", name, detail);
        }
    }
}

/// What metrics show of the board.
struct Shown {
    status: Arc<Gauge>,
    /// The checks that have a series.
    names: Vec<String>,
}

/// The name of the series of each check.
const CHECK_STATE: &str = "tidegate_check_state";

impl Shown {
    fn new(registry: &Registry) -> Self {
        let help = "How the process is: 0 healthy, 1 degraded, 2 unhealthy.";
        Shown { status: registry.gauge("tidegate_health_status", help, &[]), names: Vec::new() }
    }

    fn show(&mut self, registry: &Registry, report: &Report, looks: &[Look]) {
        self.status.set(report.status as u64);
        let gone = |name: &&String| !looks.iter().any(|look| look.name == **name);
        for name in self.names.iter().filter(gone) {
            registry.forget(CHECK_STATE, &[("check", name)]);
        }
        self.names = looks.iter().map(|look| look.name.clone()).collect();
        for look in looks {
            let help = "Each check: 0 ok, 1 degraded, 2 failed, 3 not known yet.";
            let gauge = registry.gauge(CHECK_STATE, help, &[("check", &look.name)]);
            gauge.set(match look.state {
                State::Ok => 0,
                State::Degraded(_) => 1,
                State::Failed(_) => 2,
                State::Pending => 3,
            });
        }
    }
}

/// A check that makes the process degraded, and no more, when it fails.
pub(super) fn dependency(board: &Board, name: &str) -> Arc<Check> {
    let check = board.check(name);
    check.set_affects(Affects::Degraded);
    check
}

/// The looks at the gateway itself.
fn inside(seen: &Seen) -> Inside {
    let (links, resolver, data) = (Arc::clone(&seen.links), Arc::clone(&seen.resolver), seen.data);
    Arc::new(move |probe, deadline| match probe {
        Probe::DataPlane => data_plane(data, &resolver, deadline),
        Probe::Upstreams => upstreams(&links),
    })
}

/// A request through the port of the data plane, as a client sends it.
fn data_plane(data: SocketAddr, resolver: &Arc<Resolver>, deadline: Instant) -> Result<(), String> {
    let address = match data.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    let origin = Origin {
        name: "data_plane".to_owned(),
        tls: false,
        host: address.to_string(),
        port: data.port(),
        ca_file: None,
        ca_digest: None,
        proxy: None,
        idle_max: 0,
    };
    let connect_timeout = deadline.saturating_duration_since(clock::now());
    let site = Site { origin, prefix: String::new(), key: None, connect_timeout };
    let client = Client::new(site, Arc::clone(resolver));
    match client.get_up_to("/healthz", 64 * 1024, deadline) {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("the data plane answers with {}", answer.status)),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether there is an upstream that may be asked.
fn upstreams(links: &Links) -> Result<(), String> {
    let views = links.breakers();
    let addresses: Vec<_> = views.iter().filter(|view| view.model.is_none()).collect();
    if addresses.is_empty() || addresses.iter().any(|view| view.stand != Stand::Open) {
        return Ok(());
    }
    Err(format!("none of {} upstreams may be asked: their breakers are open", addresses.len()))
}
