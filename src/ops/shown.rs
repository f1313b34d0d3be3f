//! The configuration in force as a snapshot shows it, and what a snapshot must never show.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::base::metrics::{Limit, Registry, Unit};
use crate::config::Loaded;
use crate::config::settings::Secret;

use super::snapshot::{AT_ONCE_MAX, BYTES_MAX};

/// The configuration in force, and the bounds of snapshots. One for the whole process.
#[derive(Debug)]
pub struct Shown {
    now: ArcSwap<Configured>,
    /// Snapshots that are being taken.
    pub(super) running: Arc<Limit>,
    /// How large they were.
    pub(super) bytes: Arc<Limit>,
}

/// What is kept of a configuration. Its text is as long as the file makes it, which is bounded.
#[derive(Debug, Default)]
pub struct Configured {
    /// The settings in force with the origin of each, without secrets.
    pub(super) print: String,
    /// The file; none for the built-in defaults.
    pub(super) path: Option<PathBuf>,
    /// Where the log goes; none: to standard error.
    pub(super) log_dir: Option<PathBuf>,
    /// Keys for upstreams. Wherever one of them turns up, it is left out.
    pub(super) secrets: Vec<Secret>,
}

impl Configured {
    /// What is kept of this one.
    pub fn of(loaded: &Loaded) -> Self {
        let config = &loaded.config;
        Configured {
            print: loaded.print(),
            path: config.path.clone(),
            log_dir: config.log.dir.clone(),
            secrets: config.upstreams.iter().filter_map(|upstream| upstream.key.clone()).collect(),
        }
    }
}

impl Shown {
    /// With this configuration in force.
    pub fn new(registry: &Registry, seen: Configured) -> Arc<Self> {
        let refused = "503: another one is being taken";
        let cut = "the sections that do not fit are left out, and say so";
        Arc::new(Shown {
            now: ArcSwap::from_pointee(seen),
            running: registry.limit("snapshots_max", "", AT_ONCE_MAX, refused),
            bytes: registry.limit_each(
                Unit::Bytes,
                "snapshot.bytes_max",
                "",
                BYTES_MAX as u64,
                cut,
            ),
        })
    }

    /// Another configuration is in force.
    pub fn set(&self, seen: Configured) {
        self.now.store(Arc::new(seen));
    }

    /// The one in force.
    pub(super) fn now(&self) -> Arc<Configured> {
        self.now.load_full()
    }
}
