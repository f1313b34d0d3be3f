//! Which file, and reading it.

use std::path::{Path, PathBuf};

use super::fault::Faults;
use super::{Loaded, parse, secret};

/// Where the file is when nothing names another.
pub const PATH_DEFAULT: &str = "/etc/tidegate/tidegate.toml";

/// Names the file in the environment.
const PATH_VARIABLE: &str = "TIDEGATE_CONFIG";

/// Largest configuration file, in bytes: a thousand models with fifteen fallbacks each fit.
pub const CONFIG_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Loads the configuration: the file of `--config`, else that of `$TIDEGATE_CONFIG`, else
/// `/etc/tidegate/tidegate.toml`, else the built-in defaults, which run.
///
/// # Errors
/// Everything that is wrong, at once; also when a file that was named is not there.
pub fn load(path: Option<PathBuf>) -> Result<Loaded, Faults> {
    load_with(path, Path::new(PATH_DEFAULT), &|name| std::env::var(name).ok())
}

fn load_with(
    path: Option<PathBuf>,
    default: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Faults> {
    let variable = || env(PATH_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    match path.or_else(variable) {
        Some(path) => read(&path, env),
        // Only a file that is not there means the defaults: one that cannot be read is a fault.
        None => match std::fs::symlink_metadata(default) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => parse("", None, env),
            _ => read(default, env),
        },
    }
}

fn read(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Faults> {
    match secret::read_small(path, CONFIG_BYTES_MAX) {
        Ok((text, _)) => parse(&text, Some(path), env),
        Err(why) => Err(Faults::of_file(
            Some(path.to_owned()),
            format!("cannot be read: {why}"),
            "mend the file or its path, or name another with --config",
        )),
    }
}
