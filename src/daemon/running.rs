//! The running gateway: everything that was started, in the order in which it stops.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::base::clock;
use crate::base::events::Events;
use crate::base::exit::Exit;
use crate::base::health::Board;
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::hold::Hold;
use crate::base::memory::{self, Trimmer};
use crate::base::metrics::{Counter, Registry};
use crate::base::orders::{Asked, Desk};
use crate::config::Config;
use crate::config::boot::Booted;
use crate::gateway::cached::{self, Answers};
use crate::gateway::catalog::Catalog;
use crate::gateway::drill::Drill;
use crate::gateway::hooks::Hooks;
use crate::gateway::lockout::Lockouts;
use crate::gateway::metrics::Metrics;
use crate::gateway::rates::Rates;
use crate::gateway::state::State;
use crate::gateway::usage::{Accounts, Keeper};
use crate::gateway::{Gateway, Parts};
use crate::health::alerts;
use crate::health::overload::{Action, Level, Overload};
use crate::health::status;
use crate::health::trim::Trimmers;
use crate::net::control::Control;
use crate::net::engine::Engine;
use crate::net::outbound::Resolver;
use crate::nodes::limits::Limits;
use crate::nodes::runs::inward_max;
use crate::nodes::{self, Nodes};
use crate::observe::log::{self as logs, LogHandle};
use crate::observe::process;
use crate::observe::resources::Resources;
use crate::ops::shown::{Configured, Shown};
use crate::ops::{self, OpsHandler};
use crate::store::{self, Store};
use crate::upstream::calls::Calls;
use crate::upstream::link::Links;

use super::folders::Folders;
use super::health::{Health, Seen};
use super::history::Recorder;
use super::manager::Manager;
use super::overload::{Hands, Watch};
use super::versions::Keeping;
use super::{descriptors, planes, recovery, reload};

/// The main loop's own heartbeat: it wakes every second, and a reload takes less than this.
const MAIN_SILENCE_MAX: Duration = Duration::from_secs(30);

/// The running gateway.
pub struct Running {
    pub(super) config_path: Option<PathBuf>,
    pub(super) config: Arc<Config>,
    /// The file and the versions behind it.
    pub(super) keeping: Keeping,
    /// Whether requests are refused by order.
    pub(super) hold: Arc<Hold>,
    /// First, so that they end before what they have a hand on.
    /// The threads behind the alerts; they end first, since they look at everything.
    pub(super) alarm: alerts::Threads,
    pub(super) alerts: Arc<alerts::Handle>,
    pub(super) health: Health,
    pub(super) watch: Watch,
    pub(super) data: Engine,
    pub(super) ops: Engine,
    pub(super) control: Option<Control>,
    pub(super) manager: Manager,
    pub(super) gateway: Arc<Gateway>,
    pub(super) links: Arc<Links>,
    pub(super) calls: Arc<Calls>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) answers: Answers,
    pub(super) folders: Folders,
    pub(super) recorder: Recorder,
    pub(super) board: Arc<Board>,
    pub(super) registry: Arc<Registry>,
    /// Handed to whoever has something to tell.
    pub(super) events: Arc<Events>,
    pub(super) store: Arc<Store>,
    /// Of the accounts, in the store.
    pub(super) keeper: Keeper,
    pub(super) log: LogHandle,
    pub(super) descriptors: u64,
    /// What snapshots tell of the configuration.
    pub(super) configured: Arc<Shown>,
    /// The code that the process ends with.
    pub(super) exit: Exit,
    /// Orders to the main loop, and where they are put.
    pub(super) orders: Receiver<Asked>,
    pub(super) desk: Desk,
    /// The connections on WebSocket.
    pub(super) nodes: Arc<Nodes>,
    beat: Beat,
    trimmer: Trimmer,
    trims: Arc<Counter>,
    resources: Resources,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// An address cannot be bound.
    #[error("{key}: cannot listen on {address}: {error}; {}", remedy(.error))]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Where it is set.
        key: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// The log cannot start.
    #[error("the log cannot start: {0}")]
    Log(#[from] logs::StartError),
    /// Something about an upstream.
    #[error("{0}")]
    Upstream(#[from] crate::base::error::Error),
    /// A thread.
    #[error("no thread for {0}: {1}; raise the limit on processes and threads")]
    Thread(&'static str, std::io::Error),
}

/// What to do about an address that cannot be bound.
fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => {
            "stop what listens there, perhaps another tidegate, or set another port"
        }
        ErrorKind::PermissionDenied => {
            "set a port from 1024 on, or give the program the right to this one"
        }
        ErrorKind::AddrNotAvailable => "set an address of this machine",
        _ => "set another address",
    }
}

impl Running {
    /// Starts everything, bottom-up.
    ///
    /// # Errors
    /// What could not be started; then nothing is left running.
    pub fn start(config_path: Option<PathBuf>, booted: Booted) -> Result<Self, Refusal> {
        let registry = Arc::new(Registry::default());
        reload::register(&registry);
        let heartbeats = Heartbeats::new(&registry);
        let loaded = &booted.loaded;
        let log = logs::start(&loaded.config.log, &registry, &heartbeats)?;
        let events = Events::new(Arc::clone(&registry));
        for warning in &loaded.warnings {
            let path = loaded.config.path.as_deref();
            log::warn!(warning = warning.at(path); "config_warning");
        }
        let configured = Shown::new(&registry, Configured::of(loaded));
        let config = Arc::new(loaded.config.clone());
        let descriptors = descriptors::raise();
        tell_descriptors(&config, descriptors);

        let trims = registry.counter(
            "tidegate_memory_trims_total",
            "How often free memory was given back to the system.",
            &[],
        );
        let node_limits = Limits::new(&registry, &config.nodes, &config.hooks);
        let beat = heartbeats.register("main", MAIN_SILENCE_MAX);
        let board = Board::new(&registry);
        let resolver = Arc::new(Resolver::system(&registry));
        let beats = Arc::clone(&heartbeats);
        let catalog = Catalog::start(&config, Arc::clone(&resolver), &registry, beats);
        let names = Arc::clone(&resolver);
        let (of_links, for_checks) = (Arc::clone(&resolver), resolver);
        let links = Arc::new(Links::new(Arc::clone(&registry), Arc::clone(&events), of_links));
        let calls = Calls::new();
        reload::export(&registry, &[&config]);
        let addresses_max = config.server.addresses_max;
        let rates = Rates::new(&registry, addresses_max);
        let lockouts = Lockouts::new(&registry, &events, addresses_max, clock::now());
        let state = State::build(Arc::clone(&config), &links, &rates)?;
        state.adopt(&links);
        rates.adopt(&state.plan, addresses_max);
        let hold = Arc::new(Hold::default());
        let metrics = Metrics::new(Arc::clone(&registry));
        let keeping = Keeping::start(booted, &board, &events, &registry, Arc::clone(&metrics));
        let overload = Arc::new(Overload::default());
        let answers = cached::answers(&config.cache, &registry);
        let accounts = Accounts::new(&config.usage, &registry);
        let drill = Drill::allowed(&|name| std::env::var(name).ok());
        let drills = drill.is_some();
        let parts = Parts {
            metrics,
            calls: Arc::clone(&calls),
            catalog: Arc::clone(&catalog),
            overload: Arc::clone(&overload),
            hold: Arc::clone(&hold),
            rates,
            lockouts,
            hooks: Hooks::new(&registry, addresses_max),
            accounts: Arc::clone(&accounts),
            answers: answers.clone(),
            drill,
            board: Arc::clone(&board),
            heartbeats: Arc::clone(&heartbeats),
        };
        let gateway = Gateway::new(state, parts);

        let tools = store::Tools {
            registry: Arc::clone(&registry),
            events: Arc::clone(&events),
            board: Arc::clone(&board),
            heartbeats: Arc::clone(&heartbeats),
        };
        let store = Store::open(config.state_dir.as_deref(), &config.store, tools.clone());
        let recorder = Recorder::start(&config, &tools, &store)
            .map_err(|error| Refusal::Thread("history", error))?;
        let counted = Arc::clone(&accounts);
        let (desk, orders) = Desk::new(&registry);
        let alerts = alerts::Handle::new(
            &config.alerts,
            alerts::Hands {
                registry: Arc::clone(&registry),
                events: Arc::clone(&events),
                board: Arc::clone(&board),
                heartbeats: Arc::clone(&heartbeats),
                store: Arc::clone(&store),
                levels: recorder.levels(),
                resolver: names,
            },
        );
        let room = nodes::Parts {
            registry: Arc::clone(&registry),
            events: Arc::clone(&events),
            board: Arc::clone(&board),
            heartbeats: Arc::clone(&heartbeats),
            store: Arc::clone(&store),
            desk: desk.clone(),
            tail: Some(log.tail()),
            host: Arc::clone(&gateway) as Arc<dyn nodes::host::Host>,
            tables: Arc::clone(&gateway) as Arc<dyn nodes::host::Tables>,
            limits: node_limits,
            config: Some(Arc::clone(&keeping.shown)),
        };
        let nodes = Nodes::new(room, Arc::clone(&config));
        gateway.open_room(&nodes);
        let shown = ops::Parts {
            started: clock::now(),
            board: Arc::clone(&board),
            heartbeats: heartbeats.clone(),
            registry: Arc::clone(&registry),
            events: Arc::clone(&events),
            desk: desk.clone(),
            shown: Arc::clone(&configured),
            history: recorder.history(),
            levels: recorder.levels(),
            store: Arc::clone(&store),
            hold: Arc::clone(&hold),
            overload: Arc::clone(&overload),
            gateway: Some(Arc::clone(&gateway)),
            tail: Some(log.tail()),
            alerts: Some(Arc::clone(&alerts)),
            links: Some(Arc::clone(&links)),
            accounts: Some(accounts),
            answers: Some(answers.clone()),
            nodes: Some(Arc::clone(&nodes)),
            config: Some(Arc::clone(&keeping.shown)),
        };
        let control = super::control::start(&config, &shown, &heartbeats);
        let handler = OpsHandler::new(shown, &config.ops);
        let fixed = planes::ops_fixed(&config.ops);
        let ops = Engine::start(&fixed, planes::ops(), Arc::new(handler), &registry, &heartbeats)
            .map_err(|error| Refusal::Listen {
            address: fixed.listen,
            key: "ops.listen",
            error,
        })?;
        let fixed = planes::data_fixed(&config.server);
        let settings = planes::data(&config.server, connections(descriptors));
        let service = Arc::clone(&gateway);
        let data =
            Engine::start(&fixed, settings, service, &registry, &heartbeats).map_err(|error| {
                Refusal::Listen { address: fixed.listen, key: "server.listen", error }
            })?;
        nodes.open_inward(data.inward(&registry, inward_max(config.nodes.runs_max)));
        let trimmers = Arc::new(Trimmers::default());
        let pools = Arc::clone(&links);
        trimmers.register("upstream_connections", move |level| {
            if level >= Action::CachesTrimmed.from() {
                pools.close_idle();
            }
        });
        let kept = answers.clone();
        trimmers.register("answers", move |level| match level {
            Level::Critical => kept.trim(1.0),
            level if level >= Action::CachesTrimmed.from() => kept.trim(0.5),
            _ => {}
        });
        let helping = recovery::Hands {
            overload: Arc::clone(&overload),
            trimmers: Arc::clone(&trimmers),
            links: Arc::clone(&links),
            events: Arc::clone(&events),
            desk: desk.clone(),
            engines: [("data-", data.throttle()), ("ops-", ops.throttle())],
        };
        let hands = Hands {
            overload,
            trimmers,
            data: data.throttle(),
            catalog: Arc::clone(&catalog),
            events: Arc::clone(&events),
            descriptors,
        };
        let watch = Watch::start(config.overload.clone(), hands, &board, &registry, &heartbeats)
            .map_err(|error| Refusal::Thread("overload", error))?;
        let resources = Resources::new(&registry, &events, clock::now());
        let folders = Folders::start(
            &config.cache,
            answers.clone(),
            Arc::clone(&events),
            Arc::clone(&registry),
            Arc::clone(&heartbeats),
        );
        let seen = Seen {
            board: Arc::clone(&board),
            heartbeats: Arc::clone(&heartbeats),
            registry: Arc::clone(&registry),
            events: Arc::clone(&events),
            links: Arc::clone(&links),
            resolver: for_checks,
            data: data.address(),
            drills,
        };
        let health = Health::start(&config, seen, helping)
            .map_err(|error| Refusal::Thread("health", error))?;
        let alarm =
            alerts::Threads::start(&alerts).map_err(|error| Refusal::Thread("alerts", error))?;
        Ok(Running {
            config_path,
            config,
            alarm,
            alerts,
            health,
            keeping,
            hold,
            watch,
            data,
            ops,
            control,
            manager: Manager::new(Arc::clone(&heartbeats)),
            gateway,
            links,
            calls,
            catalog,
            answers,
            folders,
            recorder,
            board,
            registry,
            events,
            keeper: Keeper::new(counted, Arc::clone(&store), clock::now()),
            store,
            log,
            descriptors,
            configured,
            orders,
            desk,
            exit: Exit::Success,
            nodes,
            beat,
            trimmer: Trimmer::new(clock::now()),
            trims,
            resources,
        })
    }

    /// The configuration's file, or what stands in its place.
    pub fn config_name(&self) -> String {
        let path = self.config.path.as_ref();
        path.map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string())
    }

    /// Where the data plane listens.
    pub fn data_address(&self) -> SocketAddr {
        self.data.address()
    }

    /// Where the ops plane listens.
    pub fn ops_address(&self) -> SocketAddr {
        self.ops.address()
    }

    /// Opens the log files again.
    pub(super) fn reopen(&self) {
        self.log.reopen();
        log::info!("log_reopened");
    }

    /// What is looked after every second.
    pub fn tick(&mut self) {
        self.beat.tick();
        self.tell_manager();
        self.health.guard();
        self.look_at_config();
        self.store.tick(clock::now());
        self.keeper.tick(clock::now());
        self.links.sweep();
        self.gateway.sweep();
        // Also before the first connection: a device may have been removed while the store was away.
        self.nodes.devices().tick();
        self.answers.sweep(clock::now());
        self.trim();
        self.resources.tick(clock::now(), &self.config.resources);
    }

    /// Tells the service manager that the process is alive, and how it is.
    fn tell_manager(&mut self) {
        let (now, board, data) = (clock::now(), &self.board, &self.data);
        self.manager.tick(now, || {
            let report = status::judge(board.phase(), &board.looks(now));
            let running = data.throttle().load().running.0;
            let first = report.reasons.first().map(|why| format!(": {why}")).unwrap_or_default();
            format!("{}, {running} requests run{first}", report.status.as_str())
        });
    }

    /// Gives memory back that a burst left behind.
    fn trim(&mut self) {
        let Some(resident) = process::resident_bytes() else { return };
        if self.trimmer.due(clock::now(), resident) {
            memory::trim();
            self.trims.inc();
            let after = process::resident_bytes().unwrap_or(resident);
            self.trimmer.trimmed(clock::now(), resident, after);
        }
    }

    /// What the data plane is told now.
    pub(super) fn data_settings(&self, config: &Config) -> crate::net::settings::Settings {
        planes::data(&config.server, connections(self.descriptors))
    }
}

/// What the descriptor limit allows, as a count.
pub(super) fn connections(descriptors: u64) -> usize {
    usize::try_from(descriptors::connections(descriptors)).unwrap_or(usize::MAX)
}

/// Says when the descriptor limit is below what the configuration asks for.
pub(super) fn tell_descriptors(config: &Config, descriptors: u64) {
    let (asked, allowed) = (config.server.connections_max, connections(descriptors));
    if asked > allowed {
        log::warn!(
            asked, allowed, descriptors,
            remedy = "raise the descriptor limit (ulimit -n, LimitNOFILE=) or lower \
                      server.connections_max";
            "connections_limited"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_bound_is_told_with_its_setting_and_remedy() {
        let check = |kind: ErrorKind, remedy: &str| {
            let address = SocketAddr::from(([127, 0, 0, 1], 80));
            let refusal = Refusal::Listen { address, key: "ops.listen", error: kind.into() };
            let text = refusal.to_string();
            assert!(text.starts_with("ops.listen: cannot listen on 127.0.0.1:80: "), "{text}");
            assert!(text.ends_with(remedy), "{text}");
        };
        check(ErrorKind::AddrInUse, "or set another port");
        check(ErrorKind::PermissionDenied, "the right to this one");
        check(ErrorKind::AddrNotAvailable, "set an address of this machine");
        check(ErrorKind::OutOfMemory, "set another address");
    }
}
