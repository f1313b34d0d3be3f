//! Which file, and reading it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::build::{self, Site};
use super::fault::Faults;
use super::raw::RawOps;
use super::{Loaded, parse, secret};

/// Where the file is when nothing names another.
pub const PATH_DEFAULT: &str = "/etc/tidegate/tidegate.toml";

/// Names the file in the environment.
const PATH_VARIABLE: &str = "TIDEGATE_CONFIG";

/// What systemd makes of `StateDirectory=` in conf/tidegate.service.
const STATE_DIR_OF_UNIT: &str = "/var/lib/tidegate";

/// Largest configuration file, in bytes: a thousand models with fifteen fallbacks each fit.
pub const CONFIG_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Loads the configuration: the file of `--config`, else that of `$TIDEGATE_CONFIG`, else
/// `/etc/tidegate/tidegate.toml`, else the built-in defaults, which run.
///
/// # Errors
/// Everything that is wrong, at once; also when a file that was named is not there.
pub fn load(path: Option<PathBuf>) -> Result<Loaded, Faults> {
    let variable = std::env::var_os(PATH_VARIABLE);
    load_with(path, variable, Path::new(PATH_DEFAULT), &|name| std::env::var(name).ok())
}

fn load_with(
    path: Option<PathBuf>,
    variable: Option<OsString>,
    default: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Faults> {
    match find(path, variable, default) {
        Some(path) => parse(&read(&path)?, Some(&path), env),
        None => parse("", None, env),
    }
}

/// Where the ops plane of a daemon with this configuration listens, for commands that ask it. The
/// rest of the file is not judged, and no key is read: whoever asks may not be who runs the daemon,
/// and the file may have got a fault since.
///
/// # Errors
/// A file that cannot be read, that is no TOML, or whose `ops.listen` is no address.
pub fn ops_listen(path: Option<PathBuf>) -> Result<SocketAddr, Faults> {
    let variable = std::env::var_os(PATH_VARIABLE);
    match find(path, variable, Path::new(PATH_DEFAULT)) {
        Some(path) => listen_in(&read(&path)?).map_err(|why| {
            let remedy = "mend it, or name the address with --ops";
            Faults::of_file(Some(path), why, remedy)
        }),
        None => listen_in("").map_err(|why| Faults::of_file(None, why, "")),
    }
}

/// The state directories that a daemon with this configuration may have, likeliest first, for commands
/// that look for its socket: the one that the file or the environment names, and the one that systemd
/// gives the shipped unit. As with [`ops_listen`], the rest of the file is not judged.
///
/// # Errors
/// A file that cannot be read, or whose `state.dir` is no text.
pub fn state_dirs(path: Option<PathBuf>) -> Result<Vec<PathBuf>, Faults> {
    let path = find(path, std::env::var_os(PATH_VARIABLE), Path::new(PATH_DEFAULT));
    let text = path.as_deref().map_or_else(|| Ok(String::new()), read)?;
    dirs_in(&text, path.as_deref(), &|name| std::env::var(name).ok()).map_err(|why| {
        let remedy = "mend it, or name the socket with --socket";
        Faults::of_file(path.clone(), why, remedy)
    })
}

pub(super) fn dirs_in(
    text: &str,
    path: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<PathBuf>, String> {
    // Also of a file that is no TOML any more: the commands that mend it come this way.
    let (tree, _) = DeTable::parse_recoverable(text);
    let state = tree.get_ref().get("state").and_then(|state| state.get_ref().as_table());
    let written = match state.and_then(|state| state.get("dir")) {
        Some(dir) => Some(dir.get_ref().as_str().ok_or("state.dir is no text")?),
        None => None,
    };
    let first = build::state_dir(written, &Site { path, env });
    let unit = written.is_none().then(|| PathBuf::from(STATE_DIR_OF_UNIT));
    Ok(first.into_iter().chain(unit).collect())
}

/// The configuration file that is meant; none for the built-in defaults.
pub fn find_file(path: Option<PathBuf>) -> Option<PathBuf> {
    find(path, std::env::var_os(PATH_VARIABLE), Path::new(PATH_DEFAULT))
}

/// Where the state of a daemon with this text would be, also when it has faults: what it says is
/// taken if it can be made out at all.
pub(super) fn state_dir(
    text: &str,
    path: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Option<PathBuf> {
    let (table, _) = DeTable::parse_recoverable(text);
    let state = table.get_ref().get("state").and_then(|state| state.get_ref().as_table());
    let dir = state.and_then(|state| state.get("dir")).and_then(|dir| dir.get_ref().as_str());
    build::state_dir(dir, &Site { path, env })
}

fn listen_in(text: &str) -> Result<SocketAddr, String> {
    let tree: toml::Table =
        text.parse().map_err(|e: toml::de::Error| format!("no TOML: {}", e.message()))?;
    let default = RawOps::default().listen;
    let listen = match tree.get("ops").and_then(|ops| ops.get("listen")) {
        Some(listen) => listen.as_str().unwrap_or_default(),
        None => &default,
    };
    listen.parse().map_err(|_| "ops.listen is no address with a port".to_owned())
}

/// The file; none means the built-in defaults.
fn find(path: Option<PathBuf>, variable: Option<OsString>, default: &Path) -> Option<PathBuf> {
    let variable = variable.filter(|path| !path.is_empty()).map(PathBuf::from);
    path.or(variable).or_else(|| match std::fs::symlink_metadata(default) {
        // Only a file that is not there means the defaults: one that cannot be read is a fault.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        _ => Some(default.to_owned()),
    })
}

/// The text of a configuration file.
///
/// # Errors
/// When it cannot be read, or is too large.
pub fn read(path: &Path) -> Result<String, Faults> {
    secret::read_small(path, CONFIG_BYTES_MAX).map(|(text, _)| text).map_err(|why| {
        Faults::of_file(
            Some(path.to_owned()),
            format!("cannot be read: {why}"),
            "mend the file or its path, or name another with --config",
        )
    })
}

/// The same; `None` when there is no such file.
///
/// # Errors
/// As [`read`].
pub fn read_if_there(path: &Path) -> Result<Option<String>, Faults> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => read(path).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn no_env(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_file_is_looked_for_in_order_and_only_its_absence_means_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let write = |name: &str, queue: usize| {
            fs::write(file(name), format!("server.queue_max = {queue}")).unwrap();
            file(name)
        };
        let (option, variable) = (write("option.toml", 1), write("variable.toml", 2));
        let default = file("default.toml");
        let variable = || Some(variable.clone().into_os_string());
        let queue = |loaded: Result<Loaded, Faults>| loaded.unwrap().config.server.queue_max;
        assert_eq!(queue(load_with(None, None, &default, &no_env)), 512);
        write("default.toml", 3);
        assert_eq!(queue(load_with(None, None, &default, &no_env)), 3);
        assert_eq!(queue(load_with(None, variable(), &default, &no_env)), 2);
        assert_eq!(queue(load_with(None, Some(OsString::new()), &default, &no_env)), 3);
        assert_eq!(queue(load_with(Some(option.clone()), variable(), &default, &no_env)), 1);
        let loaded = load_with(Some(option.clone()), variable(), &default, &no_env).unwrap();
        assert_eq!(loaded.config.path, Some(option));
        // A link to nowhere is a file that was meant to be there.
        fs::remove_file(&default).unwrap();
        symlink(file("nowhere"), &default).unwrap();
        let faults = load_with(None, None, &default, &no_env).unwrap_err();
        assert!(faults.to_string().contains("no such file"), "{faults}");
    }

    #[test]
    fn the_ops_address_is_found_in_a_file_that_has_faults_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        let check = |text: &str, expected: Result<&str, &str>| {
            fs::write(&file, text).unwrap();
            match (ops_listen(Some(file.clone())), expected) {
                (Ok(listen), Ok(expected)) => assert_eq!(listen.to_string(), expected, "{text}"),
                (Err(why), Err(expected)) => assert!(why.to_string().contains(expected), "{why}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        };
        check("", Ok("127.0.0.1:18790"));
        check("ops.listen = \"[::1]:7\"\nnonsense = 3", Ok("[::1]:7"));
        let keyless = "[[upstream]]\nname = \"x\"\napi_key_file = \"nowhere\"";
        check(keyless, Ok("127.0.0.1:18790"));
        check("ops.listen = 7", Err("ops.listen is no address"));
        check("ops = 7", Ok("127.0.0.1:18790"));
        check("[ops", Err("no TOML"));
        let missing = ops_listen(Some(folder.path().join("none"))).unwrap_err();
        assert!(missing.to_string().contains("no such file"), "{missing}");
    }

    #[test]
    fn the_state_directory_is_looked_for_as_the_daemon_does_and_where_systemd_puts_it() {
        let env = |name: &str| (name == "STATE_DIRECTORY").then(|| "/var/s:/x".to_owned());
        let file = Some(Path::new("/etc/a/a.toml"));
        let check = |text: &str, expected: &[&str]| {
            let found = dirs_in(text, file, &env).unwrap();
            assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{text}");
        };
        check("state.dir = \"/s\"", &["/s"]);
        check("state.dir = \"s\"\nserver.listen = 7", &["/etc/a/s"]);
        check("", &["/var/s", STATE_DIR_OF_UNIT]);
        assert_eq!(dirs_in("", None, &no_env).unwrap(), [PathBuf::from(STATE_DIR_OF_UNIT)]);
        assert!(dirs_in("state.dir = 7", None, &no_env).is_err());
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path, why: &str| {
            let faults =
                load_with(Some(path.to_owned()), None, path, &no_env).unwrap_err().to_string();
            assert!(faults.contains(why), "{faults}");
        };
        check(folder.path(), "not a regular file");
        let file = folder.path().join("a.toml");
        fs::write(&file, b"a = 1\nb = \"\xff\"").unwrap();
        check(&file, "not UTF-8 on line 2");
        let large = usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1;
        fs::write(&file, "#".repeat(large)).unwrap();
        check(&file, "larger than 2MiB");
        assert!(read_if_there(&file).is_err());
        assert_eq!(read_if_there(&folder.path().join("none")), Ok(None));
        fs::write(&file, "#".repeat(large - 1)).unwrap();
        assert!(load_with(Some(file), None, folder.path(), &no_env).is_ok());
    }
}
