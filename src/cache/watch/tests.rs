use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::*;

struct Bench {
    folder: tempfile::TempDir,
    cleared: Arc<AtomicUsize>,
    registry: Arc<Registry>,
    events: Arc<Events>,
}

impl Bench {
    fn new() -> Self {
        let registry = Arc::new(Registry::default());
        let events = Events::new(Arc::clone(&registry));
        Bench { folder: tempfile::tempdir().unwrap(), cleared: Arc::default(), registry, events }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("watched")
    }

    /// A watch over one folder whose handler counts, and panics the first time if it is told to.
    fn watch(&self, panics: bool) -> Watch {
        let cleared = Arc::clone(&self.cleared);
        let handler: Handler = Arc::new(move |_| {
            if cleared.fetch_add(1, SeqCst) == 0 && panics {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
        });
        let folder = WatchedFolder { path: self.path(), namespace: Namespace::Embeddings };
        let heartbeats = Heartbeats::new(&self.registry);
        Watch::start(&[folder], handler, &self.events, &self.registry, &heartbeats).unwrap()
    }

    fn cleared(&self) -> usize {
        self.cleared.load(SeqCst)
    }

    /// Does something until the handler was called more often than before.
    fn until_cleared(&self, mut act: impl FnMut(usize)) {
        let (before, begun) = (self.cleared(), clock::now());
        let mut tries = 0;
        while self.cleared() == before {
            act(tries);
            tries += 1;
            assert!(clock::now() < begun + Duration::from_secs(30), "{:?}", self.kinds());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.events.recent().iter().map(|event| event.kind).collect()
    }

    fn count(&self, outcome: &str) -> u64 {
        let labels = [("outcome", outcome)];
        self.registry.counter("tidegate_cache_watch_total", "", &labels).value()
    }
}

fn write(path: &Path, n: usize) {
    std::fs::write(path.join("file"), n.to_string()).unwrap();
}

#[test]
fn a_change_clears_also_after_a_handler_panicked() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path()).unwrap();
    let watch = bench.watch(true);
    bench.until_cleared(|n| write(&bench.path(), n));
    bench.until_cleared(|n| write(&bench.path(), n));
    assert_eq!(bench.count("panicked"), 1);
    drop(watch);
}

#[test]
fn a_folder_that_is_not_there_is_looked_for_and_one_that_goes_is_watched_again_when_it_is_back() {
    let bench = Bench::new();
    let _watch = bench.watch(false);
    let begun = clock::now();
    while !bench.kinds().contains(&"cache_watch_failed") {
        assert!(clock::now() < begun + Duration::from_secs(30), "its absence is never told");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Its coming is a change, and it is watched from then on.
    bench.until_cleared(|n| {
        if n == 0 {
            std::fs::create_dir(bench.path()).unwrap();
        }
    });
    bench.until_cleared(|n| write(&bench.path(), n));
    bench.until_cleared(|n| {
        if n == 0 {
            std::fs::remove_dir_all(bench.path()).unwrap();
        }
    });
    std::fs::create_dir(bench.path()).unwrap();
    let armed =
        |bench: &Bench| bench.kinds().iter().filter(|kind| **kind == "cache_watch_armed").count();
    let begun: Instant = clock::now();
    while armed(&bench) < 2 {
        assert!(clock::now() < begun + Duration::from_secs(30), "{:?}", bench.kinds());
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.until_cleared(|n| write(&bench.path(), n));
}

#[test]
fn lost_notices_are_told_and_clear_at_once() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path()).unwrap();
    let watch = bench.watch(false);
    let lost = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    bench.until_cleared(|n| {
        if n == 0 {
            watch.shared.told(0, Path::new(""), Ok(lost.clone()));
        }
    });
    assert_eq!(bench.count("lost"), 1);
    // More at once than there is room for.
    bench.until_cleared(|n| {
        if n == 0 {
            watch.shared.overflow.store(true, SeqCst);
            watch.shared.told(0, Path::new(""), Err(notify::Error::generic("x")));
        }
    });
    assert!(bench.count("lost") >= 3);
    assert!(bench.kinds().contains(&"cache_watch_lost"));
    // To read is no change.
    let read = notify::Event::new(EventKind::Access(notify::event::AccessKind::Read));
    let before = watch.shared.notices.len();
    watch.shared.told(0, Path::new(""), Ok(read));
    assert_eq!(watch.shared.notices.len(), before);
}

#[test]
fn what_does_not_fit_is_marked_as_lost_and_never_blocks() {
    let (notices, queue) = bounded(1);
    let shared = Shared {
        notices,
        queued: Limit::detached(1),
        overflow: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
    };
    let event = || Ok(notify::Event::new(EventKind::Any));
    shared.told(0, Path::new(""), event());
    assert!(!shared.overflow.load(SeqCst), "exactly at the bound");
    shared.told(0, Path::new(""), event());
    assert!(shared.overflow.load(SeqCst));
    assert_eq!(queue.len(), 1);
}
