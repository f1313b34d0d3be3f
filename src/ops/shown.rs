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
    /// Keys for upstreams and channels, shared tokens and passwords, and tokens in addresses. Wherever one of them turns up, it is left out.
    pub(super) secrets: Vec<Secret>,
}

impl Configured {
    /// What is kept of this one.
    pub fn of(loaded: &Loaded) -> Self {
        let config = &loaded.config;
        let keys = config.upstreams.iter().filter_map(|upstream| upstream.key.clone());
        let shared = [&config.nodes.token, &config.nodes.password, &config.hooks.token];
        let keys = keys.chain(shared.into_iter().flatten().cloned());
        Configured {
            print: loaded.print(),
            path: config.path.clone(),
            log_dir: config.log.dir.clone(),
            secrets: keys.chain(config.alerts.secrets()).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn keys_of_upstreams_and_channels_and_tokens_in_addresses_are_not_to_be_shown() {
        let text = r#"
            alerts.heartbeat_url = "https://alive.example/ping/0123456789abcdef?token=fedcba9876543210"
            [[upstream]]
            name = "cloud"
            kind = "openai"
            url = "https://cloud.example/v1"
            api_key_env = "CLOUD"
            [[notify]]
            name = "hook"
            kind = "webhook"
            url = "https://hooks.example/services/T0000/aBcDeFgHiJkLmNoP"
            key_env = "HOOK"
            [[notify]]
            name = "errors"
            kind = "sentry"
            key_env = "DSN"
            [nodes]
            token_env = "NODES"
            password_env = "PASSWORD"
            [hooks]
            token_env = "HOOKS"
        "#;
        let env = |name: &str| match name {
            "DSN" => Some("https://public-key-of-sentry@sentry.example/42".to_owned()),
            name => Some(format!("key-in-{name}")),
        };
        let loaded = parse(text, None, &env).unwrap();
        let seen = Configured::of(&loaded);
        let found: Vec<&str> = seen.secrets.iter().map(Secret::expose).collect();
        let all = [
            "key-in-CLOUD",
            "key-in-NODES",
            "key-in-PASSWORD",
            "key-in-HOOKS",
            "key-in-HOOK",
            "public-key-of-sentry",
            "aBcDeFgHiJkLmNoP",
            "0123456789abcdef",
            "fedcba9876543210",
        ];
        assert_eq!(found, all, "and no word of a path");
        assert!(!all.iter().any(|secret| seen.print.contains(secret)), "{}", seen.print);
    }
}
