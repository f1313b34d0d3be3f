//! What the operating system knows of the process, its container and the machine. On Linux from
//! `/proc` and `/sys/fs/cgroup`; elsewhere there are no such files, and the sections say so.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Found;

/// Most bytes read of one file.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Most threads told one by one; the rest is counted.
const THREADS_MAX: usize = 2048;
/// Most files that are open told by name.
const FILES_MAX: usize = 128;

/// A file of the kernel, whole when it is not too large.
fn read(path: impl AsRef<Path>) -> Result<String, String> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// A file as text, or why not.
fn told(path: impl AsRef<Path>) -> Value {
    read(path).unwrap_or_else(|why| format!("({why})")).into()
}

/// Lines of `key: value` as a table; sizes of `kB` become numbers of KiB.
fn table(text: &str, wanted: &dyn Fn(&str) -> bool) -> Value {
    let mut found = Map::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let (key, value) = (key.trim(), value.trim());
        if !wanted(key) {
            continue;
        }
        let number = value.strip_suffix(" kB").unwrap_or(value).parse::<u64>();
        found.insert(key.to_owned(), number.map_or_else(|_| value.into(), Value::from));
    }
    Value::Object(found)
}

/// Every thread: its name, what it does, where in the kernel it waits, and the CPU time it used.
pub(super) fn threads() -> Found {
    let folder = "/proc/self/task";
    let entries = fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut threads = Vec::new();
    let mut more = 0;
    for entry in entries.flatten() {
        if threads.len() >= THREADS_MAX {
            more += 1;
        } else if let Some(thread) = thread(&entry.path()) {
            threads.push(thread);
        }
    }
    Ok(json!({ "threads": threads, "more": more }))
}

/// None when it has ended meanwhile.
fn thread(folder: &Path) -> Option<Value> {
    let stat = read(folder.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc_pid_stat(5) counts from 1, and the first field of `rest` is its third.
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let used = ticks(14)? + ticks(15)?;
    let hertz = rustix::param::clock_ticks_per_second().max(1);
    let status = read(folder.join("status")).unwrap_or_default();
    let switches = table(&status, &|key| key.ends_with("ctxt_switches"));
    let call = read(folder.join("syscall")).unwrap_or_default();
    Some(json!({
        "name": read(folder.join("comm")).ok()?,
        "id": folder.file_name()?.to_str()?.parse::<u64>().ok()?,
        "state": fields.first()?,
        "cpu_seconds": used as f64 / hertz as f64,
        "waits_in": read(folder.join("wchan")).ok().filter(|name| name != "0"),
        "system_call": call.split(' ').next().filter(|call| !call.is_empty()),
        "switches": switches,
    }))
}

/// What the memory is made of, in KiB.
pub(super) fn memory() -> Found {
    let status = read("/proc/self/status")?;
    let kept = |key: &str| key.starts_with("Vm") || key.starts_with("Rss") || key == "Threads";
    let rollup =
        read("/proc/self/smaps_rollup").map(|text| table(&text, &|key| !key.contains(' ')));
    Ok(json!({
        "status_kib": table(&status, &kept),
        "smaps_rollup_kib": rollup.unwrap_or_else(|why| json!({ "missing": why })),
    }))
}

/// Open descriptors by kind, and the names of open files.
pub(super) fn descriptors() -> Found {
    let folder = "/proc/self/fd";
    let entries = fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut kinds: Map<String, Value> = Map::new();
    let mut files = Vec::new();
    let mut open = 0_u64;
    for target in entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()) {
        let target = target.display().to_string();
        let kind = match target.split_once(':') {
            Some(("anon_inode", kind)) => kind.trim_matches(['[', ']']).to_owned(),
            Some((kind, _)) if !target.starts_with('/') => kind.to_owned(),
            _ => "file".to_owned(),
        };
        open += 1;
        let count = kinds.get(&kind).and_then(Value::as_u64).unwrap_or(0) + 1;
        kinds.insert(kind, count.into());
        if target.starts_with('/') && files.len() < FILES_MAX {
            files.push(target);
        }
    }
    files.sort();
    let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // One of them is the descriptor that lists them.
    Ok(json!({ "open": open.saturating_sub(1), "max": max, "kinds": kinds, "files": files }))
}

/// The bounds that a container sets, and how near it is to them.
pub(super) fn cgroup() -> Found {
    let own = read("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.ok_or("there is no cgroup v2 here")?;
    let mut folder = PathBuf::from("/sys/fs/cgroup").join(path);
    if !folder.join("cgroup.controllers").exists() {
        // In a container its own group is the root.
        folder = PathBuf::from("/sys/fs/cgroup");
    }
    let files = [
        "memory.current",
        "memory.max",
        "memory.high",
        "memory.swap.current",
        "memory.events",
        "memory.pressure",
        "cpu.max",
        "cpu.stat",
        "cpu.pressure",
        "io.pressure",
        "pids.current",
        "pids.max",
    ];
    let mut found = Map::new();
    for name in files {
        if let Ok(text) = read(folder.join(name)) {
            found.insert(name.to_owned(), text.into());
        }
    }
    match found.is_empty() {
        true => Err(format!("{}: nothing can be read there", folder.display())),
        false => Ok(Value::Object(found)),
    }
}

/// The machine. Of the environment only the names: values may be keys.
pub(super) fn system() -> Found {
    let memory = read("/proc/meminfo").map(|text| {
        let wanted = ["MemTotal", "MemFree", "MemAvailable", "SwapTotal", "SwapFree", "Dirty"];
        table(&text, &|key| wanted.contains(&key))
    });
    let mut variables: Vec<String> =
        std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    variables.sort();
    Ok(json!({
        "kernel": told("/proc/sys/kernel/osrelease"),
        "host": told("/proc/sys/kernel/hostname"),
        "uptime": told("/proc/uptime"),
        "load": told("/proc/loadavg"),
        "processors": std::thread::available_parallelism().ok().map(usize::from),
        "memory_kib": memory.unwrap_or_else(|why| json!({ "missing": why })),
        "pressure": {
            "cpu": told("/proc/pressure/cpu"),
            "memory": told("/proc/pressure/memory"),
            "io": told("/proc/pressure/io"),
        },
        "sockets": told("/proc/net/sockstat"),
        "limits": read("/proc/self/limits").map(|text| {
            text.lines().map(Value::from).collect::<Value>()
        }).unwrap_or_default(),
        "arguments": std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "variables": variables,
    }))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn lines_become_tables() {
        let text = "VmRSS:\t  1234 kB\nName:\tx y\nThreads:\t7\nbroken";
        assert_eq!(table(text, &|_| true), json!({"VmRSS": 1234, "Name": "x y", "Threads": 7}));
        assert_eq!(table(text, &|key| key == "Name"), json!({"Name": "x y"}));
    }

    #[test]
    fn this_process_is_found_with_its_threads_memory_and_descriptors() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let threads = threads().unwrap();
        let own = std::thread::current().name().map(|name| name[..15.min(name.len())].to_owned());
        let names: Vec<&str> = threads["threads"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|t| t["name"].as_str())
            .collect();
        assert!(names.iter().any(|name| Some((*name).to_owned()) == own), "{own:?} {names:?}");
        assert!(memory().unwrap()["status_kib"]["VmRSS"].as_u64().unwrap() > 1000);
        let descriptors = descriptors().unwrap();
        assert!(descriptors["open"].as_u64().unwrap() >= 1);
        let files = descriptors["files"].as_array().unwrap();
        let path = file.path().display().to_string();
        assert!(files.len() >= FILES_MAX || files.contains(&path.into()), "{descriptors}");
        let system = system().unwrap();
        assert!(system["memory_kib"]["MemTotal"].as_u64().unwrap() > 1000, "{system}");
        assert!(system["variables"].as_array().unwrap().iter().any(|name| name == "PATH"));
    }
}
