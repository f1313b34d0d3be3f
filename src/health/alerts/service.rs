//! Alerts as the daemon holds them: what is shared by the thread that looks, the thread that delivers, and
//! those who ask.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender as Channel, bounded};
use serde_json::Value;

use super::at::{At, Timeline};
use super::engine::{Engine, SILENCES_MAX, Timing};
use super::silence::Silence;
use super::{keep, look, view};
use crate::base::error::{Error, Kind};
use crate::base::events::Events;
use crate::base::health::{Affects, Board, Check};
use crate::base::heartbeat::Heartbeats;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Gauge, Registry};
use crate::base::thread::{self, Thread};
use crate::config::settings::Alerts;
use crate::config::settings::alerts::{Channel as Settings, ChannelKind, Endpoint};
use crate::health::notify::{self, Context, Outcome, Queue, Sender, delivery};
use crate::net::http_client::{Client, Site};
use crate::net::outbound::{Origin, Resolver};
use crate::observe::levels::Levels;
use crate::store::Store;

/// How long a request of the dead man's switch may take.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the threads may be silent beside what they say that they wait for.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What alerts look at and tell with.
#[derive(Clone)]
pub struct Hands {
    /// Metrics and limits.
    pub registry: Arc<Registry>,
    /// What happened.
    pub events: Arc<Events>,
    /// Checks, and the one of the alerts themselves.
    pub board: Arc<Board>,
    /// The beats of all threads.
    pub heartbeats: Arc<Heartbeats>,
    /// Where alerts and notices are kept.
    pub store: Arc<Store>,
    /// The figures of the container and the machine.
    pub levels: Arc<Levels>,
    /// For the addresses of channels.
    pub resolver: Arc<Resolver>,
}

impl std::fmt::Debug for Hands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hands").finish_non_exhaustive()
    }
}

/// What is called: made anew when the configuration changes.
#[derive(Debug, Default)]
pub(in crate::health) struct Calls {
    pub(in crate::health) senders: Vec<Arc<Sender>>,
    /// The dead man's switch, and the path of its request.
    pub(in crate::health) heartbeat: Option<(Client, String)>,
}

/// The alerts of the process.
#[derive(Debug)]
pub struct Handle {
    pub(in crate::health) hands: Hands,
    pub(in crate::health) settings: ArcSwap<Alerts>,
    pub(in crate::health) calls: ArcSwap<Calls>,
    pub(in crate::health) engine: Locked<Engine>,
    pub(in crate::health) queue: Locked<Queue>,
    pub(in crate::health) timeline: Timeline,
    /// Looks since the start: the dead man's switch wants them to go on.
    pub(in crate::health) looks: AtomicU64,
    /// What is in memory is not what is on disk.
    pub(in crate::health) unsaved: AtomicBool,
    /// The alerts of an earlier process have been read.
    pub(in crate::health) loaded: AtomicBool,
    /// Of which file the copy on disk is.
    pub(in crate::health) epoch: AtomicU64,
    pub(in crate::health) counts: Counts,
    pub(in crate::health) check: Arc<Check>,
    /// The machine's name.
    host: String,
    trials: AtomicU64,
    /// Wakes the thread that delivers.
    pub(in crate::health) nudge: Channel<()>,
    pub(in crate::health) nudged: Receiver<()>,
}

/// What is counted of alerts.
#[derive(Debug)]
pub(in crate::health) struct Counts {
    pub(in crate::health) firing: Arc<Gauge>,
    pub(in crate::health) undelivered: Arc<Gauge>,
    pub(in crate::health) missed: Arc<Counter>,
    pub(in crate::health) heartbeat_ok: Arc<Counter>,
    pub(in crate::health) heartbeat_failed: Arc<Counter>,
}

impl Counts {
    fn new(registry: &Registry) -> Self {
        let gauge = |name, help| registry.gauge(name, help, &[]);
        let heartbeat = |outcome| {
            let help = "Requests of the dead man's switch, by outcome.";
            registry.counter("tidegate_alerts_heartbeats_total", help, &[("outcome", outcome)])
        };
        Counts {
            firing: gauge("tidegate_alerts_firing", "Alerts that fire."),
            undelivered: gauge("tidegate_alerts_undelivered", "Notices that no channel has yet."),
            missed: registry.counter(
                "tidegate_alerts_events_missed_total",
                "Events that no rule has seen: too many came between two looks.",
                &[],
            ),
            heartbeat_ok: heartbeat("ok"),
            heartbeat_failed: heartbeat("failed"),
        }
    }
}

impl Handle {
    /// Alerts under these settings; nothing runs yet.
    pub fn new(settings: &Alerts, hands: Hands) -> Arc<Self> {
        let timeline = Timeline::start();
        let check = hands.board.check(super::judge::OWN_CHECK);
        check.set_affects(Affects::Degraded);
        check.ok();
        let (nudge, nudged) = bounded(1);
        let engine = Engine::new(Timing::from(settings), &hands.registry, timeline.now());
        let handle = Handle {
            engine: Locked::new(Rank::Leaf, engine),
            queue: Locked::new(Rank::Leaf, Queue::new(settings, &hands.registry)),
            settings: ArcSwap::from_pointee(settings.clone()),
            calls: ArcSwap::from_pointee(Calls::default()),
            timeline,
            looks: AtomicU64::new(0),
            unsaved: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
            epoch: AtomicU64::new(hands.store.durable().epoch()),
            counts: Counts::new(&hands.registry),
            check,
            host: host(),
            trials: AtomicU64::new(0),
            nudge,
            nudged,
            hands,
        };
        handle.call(settings);
        Arc::new(handle)
    }

    /// Takes over new settings.
    pub fn reconfigure(&self, settings: &Alerts) {
        if *self.settings.load_full() == *settings {
            return;
        }
        self.engine.with(|engine| engine.set_timing(Timing::from(settings)));
        let gone = self.queue.with(|queue| queue.reconfigure(settings));
        self.settings.store(Arc::new(settings.clone()));
        self.call(settings);
        self.rescue(gone);
        self.wake();
    }

    /// What was on its way to channels that are no more goes to others, where there are any.
    fn rescue(&self, gone: Vec<notify::queue::Entry>) {
        let now = self.now();
        for entry in gone {
            let targets = if entry.told { Vec::new() } else { self.targets(&entry.notice) };
            for channel in targets {
                let further = self.queue.with(|queue| queue.push(&entry.notice, &channel, 0));
                self.give_up(further, "no room", now);
            }
            self.give_up(vec![entry], "its channel was taken out", now);
        }
        self.unsaved.store(true, Relaxed);
    }

    fn targets(&self, notice: &super::Notice) -> Vec<String> {
        self.queue.with(|queue| queue.targets(notice))
    }

    /// Makes what calls. Channels that stayed the same keep what they have.
    fn call(&self, settings: &Alerts) {
        let names: Vec<&str> = settings.channels.iter().map(|c| c.name.as_str()).collect();
        self.hands.registry.keep_only("channel", &names);
        let before = self.calls.load_full();
        let sender = |channel: &Arc<Settings>| {
            let same = before.senders.iter().find(|sender| sender.channel() == channel);
            same.cloned().unwrap_or_else(|| {
                let resolver = Arc::clone(&self.hands.resolver);
                Arc::new(Sender::new(Arc::clone(channel), resolver))
            })
        };
        let senders = settings.channels.iter().map(sender).collect();
        let heartbeat = settings.heartbeat.as_ref().map(|endpoint| self.heartbeat(endpoint));
        for channel in &settings.channels {
            for outcome in delivery::OUTCOMES {
                self.count(&channel.name, outcome);
            }
        }
        self.calls.store(Arc::new(Calls { senders, heartbeat }));
    }

    fn heartbeat(&self, endpoint: &Endpoint) -> (Client, String) {
        let url = &endpoint.url;
        let site = Site {
            origin: Origin {
                name: "alerts.heartbeat_url".to_owned(),
                tls: url.tls,
                host: url.host.clone(),
                port: url.port,
                ca_file: None,
                ca_digest: None,
                proxy: None,
                idle_max: 0,
            },
            prefix: url.path.clone(),
            key: None,
            connect_timeout: HEARTBEAT_TIMEOUT,
        };
        let bare = url.path.is_empty() && !endpoint.rest.starts_with('/');
        let path = format!("{}{}", if bare { "/" } else { "" }, endpoint.rest);
        (Client::new(site, Arc::clone(&self.hands.resolver)), path)
    }

    /// The counter of what became of deliveries to a channel.
    pub(in crate::health) fn count(&self, channel: &str, outcome: &str) -> Arc<Counter> {
        let help = "Deliveries of notices, by channel and outcome.";
        let labels = [("channel", channel), ("outcome", outcome)];
        self.hands.registry.counter("tidegate_alerts_deliveries_total", help, &labels)
    }

    /// The time of alerts.
    pub(in crate::health) fn now(&self) -> At {
        self.timeline.now()
    }

    /// What every message names, at this moment.
    pub(in crate::health) fn context(&self) -> Context {
        let settings = self.settings.load();
        let instance = settings.instance.clone().unwrap_or_else(|| self.host.clone());
        Context { instance, now: self.now() }
    }

    /// Wakes the thread that delivers.
    pub(in crate::health) fn wake(&self) {
        let _ = self.nudge.try_send(());
    }

    /// Tells what was given up.
    pub(in crate::health) fn give_up(&self, gone: Vec<notify::queue::Entry>, why: &str, now: At) {
        for entry in gone {
            let lost = self.queue.with(|queue| queue.give_up(&entry, now));
            self.count(&entry.channel, "given_up").inc();
            let level = if lost { log::Level::Error } else { log::Level::Warn };
            let rule = &entry.notice.rule;
            let nobody = if lost { "; no channel has it" } else { "" };
            let detail = format!("a notice of {rule} after {} tries: {why}{nobody}", entry.tries);
            self.hands.events.record(level, "alert_given_up", &entry.channel, detail);
        }
    }

    /// Whether rules are judged.
    pub fn enabled(&self) -> bool {
        self.settings.load().enabled
    }

    /// How many alerts fire, and how many notices no channel has yet.
    pub fn size(&self) -> (usize, usize) {
        let (firing, _) = self.engine.with(|engine| engine.size());
        (firing, self.queue.with(|queue| queue.undelivered()))
    }

    /// Alerts, silences, channels and rules, as lists show them.
    pub fn view(&self) -> Value {
        view::document(self)
    }

    /// Silences alerts for a time. The answer has the silence, and whether it outlives a restart.
    ///
    /// # Errors
    /// [`Kind::InvalidField`] for what cannot be a silence, [`Kind::QueueFull`] when there are too many.
    pub fn silence(
        &self,
        matching: &str,
        lasting: Duration,
        reason: &str,
    ) -> Result<(Silence, bool), Error> {
        let now = self.now();
        let made = self.engine.with(|engine| engine.silence(matching, lasting, reason, now));
        let silence = made.map_err(|why| match why {
            Some(why) => Error::new(Kind::InvalidField, why),
            None => {
                let text = format!("{SILENCES_MAX} silences are in force; end one first");
                Error::new(Kind::QueueFull, text)
            }
        })?;
        let kept = keep::save_dirty(self, Vec::new());
        Ok((silence, kept))
    }

    /// Ends the silence of this id, or all that are written like this; how many there were.
    pub fn unsilence(&self, what: &str) -> usize {
        let ended = self.engine.with(|engine| engine.unsilence(what));
        if ended > 0 {
            keep::save_dirty(self, Vec::new());
        }
        ended
    }

    /// Sends a notice of no meaning to one channel, or to all of them, now; blocks until it is known what
    /// became of it. Gives each channel with what became of it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no channel, or none of this name.
    pub fn trial(&self, channel: Option<&str>) -> Result<Vec<(String, Outcome)>, Error> {
        let calls = self.calls.load_full();
        let meant =
            |sender: &&Arc<Sender>| channel.is_none_or(|name| sender.channel().name == name);
        let senders: Vec<&Arc<Sender>> = calls.senders.iter().filter(meant).collect();
        if senders.is_empty() {
            let text = match channel {
                Some(name) => format!("there is no [[notify]] of the name {name}"),
                None => "there is no [[notify]]".to_owned(),
            };
            return Err(Error::new(Kind::NotFound, text));
        }
        let number = self.trials.fetch_add(1, Relaxed);
        let notice = notify::trial(self.now(), number);
        let outcome = |sender: &Arc<Sender>| {
            (sender.channel().name.clone(), sender.send(&notice, &self.context()))
        };
        Ok(senders.into_iter().map(outcome).collect())
    }

    /// What a channel of this kind is sent again and again: the alerts that fire and were told.
    pub(in crate::health) fn resent(&self, channel: &Settings) -> Vec<super::Item> {
        if channel.kind != ChannelKind::Alertmanager {
            return Vec::new();
        }
        let alerts = self.engine.with(|engine| engine.alerts());
        let goes_on = |alert: &super::Alert| {
            alert.state == super::State::Firing
                && alert.told.is_some_and(|told| told.firing)
                && channel.takes(alert.severity)
        };
        alerts.iter().filter(|alert| goes_on(alert)).map(super::Alert::item).collect()
    }
}

/// The machine's name, for alerts.
fn host() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}

/// The running threads. Dropped, they end.
#[derive(Debug)]
pub struct Threads {
    handle: Arc<Handle>,
    stop: Option<Channel<()>>,
    stop_notify: Option<Channel<()>>,
    threads: Vec<Thread>,
}

impl Threads {
    /// Starts both.
    ///
    /// # Errors
    /// When the operating system refuses one.
    pub fn start(handle: &Arc<Handle>) -> io::Result<Threads> {
        let (stop, stopped) = bounded(1);
        let (stop_notify, notify_stopped) = bounded(1);
        let mut threads = Vec::with_capacity(2);
        let beats = &handle.hands.heartbeats;
        let (theirs, beat) = (Arc::clone(handle), beats.register("alerts", SILENCE_MAX));
        threads.push(thread::spawn("alerts", move || look::run(&theirs, &stopped, &beat))?);
        let (theirs, beat) = (Arc::clone(handle), beats.register("notify", SILENCE_MAX));
        let run = move || delivery::run(&theirs, &notify_stopped, &beat);
        threads.push(thread::spawn("notify", run)?);
        let handle = Arc::clone(handle);
        Ok(Threads { handle, stop: Some(stop), stop_notify: Some(stop_notify), threads })
    }

    /// Ends them. A delivery that is under way is broken off; what waits stays on disk.
    pub fn stop(&mut self) {
        self.stop = None;
        self.stop_notify = None;
        let calls = self.handle.calls.load_full();
        calls.senders.iter().for_each(|sender| sender.close());
        if let Some((client, _)) = &calls.heartbeat {
            client.close();
        }
        self.threads.drain(..).for_each(Thread::join);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}
