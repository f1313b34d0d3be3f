//! Folders whose changes make a namespace of the cache out of date (`[[cache.watch]]`).
//!
//! One thread, `cache-watch`, owns the watches. What the system tells comes over a bounded channel;
//! what does not fit, or what the system says it lost itself, counts as a change of everything, and
//! is told. A folder that is not there, or not any more, is looked for every second, and counts as
//! changed when it comes and when it goes. A handler that panics is counted, and the thread lives.
//!
//! `notify` has a thread of its own for each of its watchers, which ends when the watcher is dropped.
//! Nothing of ours runs on it but a `try_send`.

mod plan;

use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use crate::base::clock;
use crate::base::events::Events;
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::metrics::{Counter, Limit, Registry};
use crate::base::thread::{self, Thread};
use crate::config::settings::{Namespace, WatchedFolder};

use self::plan::Plan;

/// Notices of the system that the thread has not taken yet. Past it: they are lost, and every
/// namespace that is watched is cleared.
const NOTICES_MAX: usize = 256;

/// How often folders are looked for, and the heartbeat's interval.
const LOOK: Duration = Duration::from_secs(1);

/// How long the thread may be silent. Watching a deep tree of folders takes a while.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What is done when a folder has changed.
pub type Handler = Arc<dyn Fn(Namespace) + Send + Sync>;

/// The limit on notices. It is shown also where nothing is watched.
pub fn limit(registry: &Registry) -> Arc<Limit> {
    let consequence = "every watched namespace is cleared";
    registry.limit("cache.notices_max", "", NOTICES_MAX as u64, consequence)
}

enum Notice {
    /// Something in the folder of this number changed.
    Changed(usize),
    /// The system lost notices about this folder.
    Lost(usize),
    /// The folder itself is no more: its watch is dead, whatever comes in its place.
    Gone(usize),
    /// There is something new in `Shared`.
    Wake,
}

/// What the thread, the watchers and the owner share.
struct Shared {
    notices: Sender<Notice>,
    queued: Arc<Limit>,
    /// A notice did not fit.
    overflow: AtomicBool,
    stopping: AtomicBool,
}

/// The watch over the folders. Dropping it ends its thread.
pub struct Watch {
    shared: Arc<Shared>,
    /// Joined last, by its drop.
    _thread: Thread,
}

impl Watch {
    /// Watches these folders. The thread is ready when this returns; the folders may come later.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(
        folders: &[WatchedFolder],
        handler: Handler,
        events: &Arc<Events>,
        registry: &Registry,
        heartbeats: &Arc<Heartbeats>,
    ) -> std::io::Result<Watch> {
        let (notices, queue) = bounded(NOTICES_MAX);
        let queued = limit(registry);
        let (overflow, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { notices, queued, overflow, stopping });
        let counter = |outcome| {
            let help = "What the watch over folders for the cache met: changed, lost (notices of \
                        changes), unwatched (folders that could not be), panicked (handlers).";
            registry.counter("tidegate_cache_watch_total", help, &[("outcome", outcome)])
        };
        let folder = |folder: &WatchedFolder| Folder {
            path: folder.path.clone(),
            namespace: folder.namespace,
            armed: None,
            told: false,
        };
        let worker = Worker {
            shared: Arc::clone(&shared),
            queue,
            folders: folders.iter().map(folder).collect(),
            plan: Plan::default(),
            handler,
            events: Arc::clone(events),
            changed: counter("changed"),
            lost: counter("lost"),
            unwatched: counter("unwatched"),
            panicked: counter("panicked"),
        };
        let beat = heartbeats.register("cache-watch", SILENCE_MAX);
        let thread = thread::spawn("cache-watch", move || worker.run(&beat))?;
        Ok(Watch { shared, _thread: thread })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stopping.store(true, SeqCst);
        // A full channel wakes it as well.
        let _ = self.shared.notices.try_send(Notice::Wake);
    }
}

/// One folder.
struct Folder {
    path: PathBuf,
    namespace: Namespace,
    armed: Option<Armed>,
    /// That it cannot be watched was told.
    told: bool,
}

/// A folder that is watched. Another one at the same place is another one.
struct Armed {
    _watcher: RecommendedWatcher,
    identity: Identity,
}

/// What tells one folder from another at the same place: device, number, and when it was made, as
/// far as the file system says; numbers are used again.
type Identity = (u64, u64, Option<SystemTime>);

struct Worker {
    shared: Arc<Shared>,
    queue: Receiver<Notice>,
    folders: Vec<Folder>,
    plan: Plan,
    handler: Handler,
    events: Arc<Events>,
    changed: Arc<Counter>,
    lost: Arc<Counter>,
    unwatched: Arc<Counter>,
    panicked: Arc<Counter>,
}

impl Worker {
    fn run(mut self, beat: &Beat) {
        for index in 0..self.folders.len() {
            self.arm(index, false);
        }
        let mut look_at = clock::now() + LOOK;
        while !self.shared.stopping.load(SeqCst) {
            let now = clock::now();
            beat.tick_at(now);
            let until = self.plan.next().map_or(look_at, |due| due.min(look_at));
            match self.queue.recv_timeout(until.saturating_duration_since(now)) {
                Ok(notice) => self.take(&notice),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.shared.queued.set_now(self.queue.len() as u64);
            if self.shared.overflow.swap(false, SeqCst) {
                self.shared.queued.refuse();
                for index in 0..self.folders.len() {
                    self.tell_lost(index, "more changes at once than can be taken");
                    // That it is gone may be among them: it is watched anew.
                    self.folders[index].armed = None;
                }
            }
            let now = clock::now();
            if now >= look_at {
                look_at = now + LOOK;
                for index in 0..self.folders.len() {
                    self.look(index);
                }
            }
            for namespace in self.plan.due(now) {
                self.handle(namespace);
            }
        }
    }

    fn take(&mut self, notice: &Notice) {
        match *notice {
            Notice::Changed(index) => {
                if let Some(folder) = self.folders.get(index) {
                    self.plan.changed(folder.namespace, clock::now());
                }
            }
            Notice::Lost(index) => self.tell_lost(index, "the system lost notices of changes"),
            Notice::Gone(index) => {
                if let Some(folder) = self.folders.get_mut(index) {
                    folder.armed = None;
                    self.plan.lost(folder.namespace, clock::now());
                }
            }
            Notice::Wake => {}
        }
    }

    /// Changes that nobody can name: everything may have changed.
    fn tell_lost(&mut self, index: usize, why: &str) {
        let Some(folder) = self.folders.get(index) else { return };
        self.lost.inc();
        self.plan.lost(folder.namespace, clock::now());
        let (path, namespace) = (folder.path.display().to_string(), folder.namespace.as_str());
        let detail = format!("{why}; everything in {namespace} is asked for again");
        self.events.record(log::Level::Warn, "cache_watch_lost", &path, detail);
    }

    /// Whether the folder that is watched is still the one that is there.
    fn look(&mut self, index: usize) {
        let Some(folder) = self.folders.get_mut(index) else { return };
        match (&folder.armed, identity(&folder.path)) {
            (Some(armed), Some(there)) if armed.identity == there => {}
            (Some(_), _) => {
                folder.armed = None;
                self.plan.lost(folder.namespace, clock::now());
                self.arm(index, true);
            }
            (None, _) => self.arm(index, true),
        }
    }

    /// Begins to watch a folder, if that can be done. One that comes later counts as changed.
    fn arm(&mut self, index: usize, later: bool) {
        let Some(folder) = self.folders.get_mut(index) else { return };
        match watch(&folder.path, index, &self.shared) {
            Ok(armed) => {
                folder.armed = Some(armed);
                folder.told = false;
                if later {
                    self.plan.lost(folder.namespace, clock::now());
                    let path = folder.path.display().to_string();
                    let detail = "the folder is watched again".to_owned();
                    self.events.record(log::Level::Info, "cache_watch_armed", &path, detail);
                }
            }
            Err(error) if !folder.told => {
                folder.told = true;
                self.unwatched.inc();
                let path = folder.path.display().to_string();
                let detail = format!("it cannot be watched: {error}; it is tried every second");
                self.events.record(log::Level::Warn, "cache_watch_failed", &path, detail);
            }
            Err(_) => {}
        }
    }

    fn handle(&self, namespace: Namespace) {
        self.changed.inc();
        if catch_unwind(AssertUnwindSafe(|| (self.handler)(namespace))).is_err() {
            self.panicked.inc();
            let detail = "the handler of a change panicked; the watch goes on".to_owned();
            let subject = namespace.as_str();
            self.events.record(log::Level::Error, "cache_watch_panicked", subject, detail);
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.created().ok()))
}

fn watch(path: &Path, index: usize, shared: &Arc<Shared>) -> notify::Result<Armed> {
    let told = Arc::clone(shared);
    let root = path.to_owned();
    let mut watcher = notify::recommended_watcher(move |event| told.told(index, &root, event))?;
    let identity = identity(path).ok_or_else(notify::Error::path_not_found)?;
    watcher.watch(path, RecursiveMode::Recursive)?;
    Ok(Armed { _watcher: watcher, identity })
}

impl Shared {
    /// What the system tells, on the thread of its watcher. Never blocks.
    fn told(&self, index: usize, root: &Path, event: notify::Result<notify::Event>) {
        let notice = match event {
            Ok(event) if event.kind.is_remove() && event.paths.iter().any(|path| path == root) => {
                Notice::Gone(index)
            }
            Ok(event) if event.need_rescan() => Notice::Lost(index),
            // To read a file does not change it.
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
            Ok(_) => Notice::Changed(index),
            Err(_) => Notice::Lost(index),
        };
        if let Err(TrySendError::Full(_)) = self.notices.try_send(notice) {
            self.overflow.store(true, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
