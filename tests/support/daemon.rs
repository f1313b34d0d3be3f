//! The program under test, running.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::conf::Conf;
use super::load::Load;
use super::metrics::Metrics;
use super::process::Process;
use super::sandbox::{Sandbox, free_port, loopback};
use super::wire::{self, Answer, Wire};
use super::{ask, patience};

/// How long a start may take, and a stop.
const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(40);

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("TIDEGATE_TEST_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_tidegate")), PathBuf::from)
}

/// A command that runs the program in a clean environment.
pub fn command(sandbox: &Sandbox) -> Command {
    let mut command = Command::new(program());
    clean(&mut command, sandbox);
    command
}

/// Gives a command nothing of the environment but a path, and the sandbox as its folder and state.
fn clean(command: &mut Command, sandbox: &Sandbox) {
    command.env_clear().current_dir(sandbox.dir()).stdin(Stdio::null());
    command.env("STATE_DIRECTORY", sandbox.path("state")).env("HOME", sandbox.dir());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    /// The data plane.
    pub addr: SocketAddr,
    /// The ops plane.
    pub ops: SocketAddr,
    /// The config file.
    pub config: PathBuf,
    stderr: PathBuf,
    load: Load,
    /// How long it took from its start until `/readyz` said yes.
    pub ready_after: Duration,
}

/// How to start a daemon when the usual way will not do.
#[derive(Clone, Default)]
pub struct Start {
    /// `ulimit -n`, hard and soft.
    pub descriptors: Option<u32>,
    /// `ulimit -Sn` only.
    pub descriptors_soft: Option<u32>,
    /// Where standard error goes instead of a file of the sandbox.
    pub stderr: Option<PathBuf>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    /// Whether standard error is a closed descriptor.
    pub stderr_closed: bool,
    /// A file system of its own, for a folder of this size (`1m`); needs the right to mount.
    pub tmpfs: Option<(PathBuf, String)>,
}

impl Daemon {
    /// Starts it with this config and waits until it is ready.
    pub fn start(sandbox: &Sandbox, conf: &Conf) -> Self {
        Daemon::start_with(sandbox, conf, &Start::default())
    }

    /// The same, in a given way.
    pub fn start_with(sandbox: &Sandbox, conf: &Conf, start: &Start) -> Self {
        for _ in 0..3 {
            let (addr, ops) = (loopback(free_port()), loopback(free_port()));
            let config = sandbox.write("tidegate.toml", conf.render(addr, ops));
            let mut daemon = Daemon::spawn(sandbox, &config, addr, ops, start);
            match daemon.wait_ready() {
                Ok(()) => return daemon,
                // Another process took the port since it was found free: once more, with others.
                Err(why) if why.contains("in use") => drop(daemon),
                Err(why) => {
                    panic!("the daemon did not become ready: {why}\n{}", conf.render(addr, ops))
                }
            }
        }
        panic!("every port that was found free was taken");
    }

    /// Starts it without waiting.
    pub fn spawn(
        sandbox: &Sandbox,
        config: &Path,
        addr: SocketAddr,
        ops: SocketAddr,
        start: &Start,
    ) -> Self {
        let stderr = sandbox.path("stderr.log");
        let mut limits = String::new();
        if let Some(soft) = start.descriptors_soft {
            limits.push_str(&format!("ulimit -Sn {soft}; "));
        }
        if let Some(hard) = start.descriptors {
            limits.push_str(&format!("ulimit -n {hard}; "));
        }
        let close = if start.stderr_closed { " 2>&-" } else { "" };
        // The shell is for its `ulimit` and its redirection; `exec` leaves the daemon in its place.
        let mut command = Command::new("/bin/sh");
        if let Some((folder, size)) = &start.tmpfs {
            command = Command::new("unshare");
            command.args(["-m", "/bin/sh"]);
            let folder = folder.display();
            limits.push_str(&format!(
                "mkdir -p {folder} && mount -t tmpfs -o size={size},mode=700 none {folder} || exit; "
            ));
        }
        clean(&mut command, sandbox);
        command.arg("-c").arg(format!("{limits}exec \"$0\" \"$@\"{close}")).arg(program());
        command.arg("run").arg("--config").arg(config);
        command.envs(start.env.iter().map(|(key, value)| (key, value)));
        let errors = start.stderr.as_ref().unwrap_or(&stderr);
        let open = File::options().append(true).create(true).open(errors).unwrap();
        command.stderr(open).stdout(File::create(sandbox.path("stdout.log")).unwrap());
        let child = command.spawn().unwrap();
        let config = config.to_owned();
        let load = Load::watch(Process(child.id()));
        Daemon { child, addr, ops, config, stderr, load, ready_after: Duration::ZERO }
    }

    /// Waits until `/readyz` says 200; else says why not.
    pub fn wait_ready(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let deadline = begun + patience(START);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("it ended with {status}: {}", self.log()));
            }
            if self.readyz().is_some_and(|answer| answer.status() == 200) {
                self.ready_after = begun.elapsed();
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not in time: {}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// The answer of `/readyz`, when the ops plane answers at all.
    pub fn readyz(&self) -> Option<Answer> {
        let mut wire = Wire::try_connect(self.ops).ok()?;
        wire.try_send(ask::get("/readyz?verbose")).ok()?;
        wire.answer().ok()
    }

    /// Another connection to the data plane.
    pub fn connect(&self) -> Wire {
        Wire::connect(self.addr)
    }

    /// One request on a fresh connection.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        wire::ask(self.addr, request)
    }

    /// The metrics now.
    pub fn metrics(&self) -> Metrics {
        let answer = wire::ask(self.ops, ask::get("/metrics"));
        assert_eq!(answer.status(), 200);
        Metrics::parse(&answer.text()).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// What a limit holds now.
    pub fn limit_now(&self, limit: &str) -> u64 {
        self.metrics().limit("now", limit)
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.stderr).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The process.
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// The bound that a time has to keep: larger when others keep the machine busy.
    pub fn allow(&self, bound: Duration) -> Duration {
        self.load.allow(bound)
    }

    /// How late this machine woke a sleeping thread, at worst, since the daemon was started.
    pub fn late(&self) -> Duration {
        self.load.late()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Waits until the store, which opens beside everything else, has taken its descriptors and memory.
    pub fn wait_for_the_store(&self) {
        let ready = || wire::ask(self.ops, ask::get("/readyz?verbose")).text();
        let end = Instant::now() + patience(Duration::from_secs(10));
        while !ready().contains("[+]store ok") {
            assert!(Instant::now() < end, "{}", ready());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails when it no longer runs or no longer answers.
    pub fn assert_well(&self, context: &str) {
        assert!(self.process().alive(), "{context}: the daemon is dead\n{}", self.log());
        let answer = self.ask(ask::get("/api/version"));
        assert_eq!(answer.status(), 200, "{context}");
        let panics = self.log().lines().filter(|line| line.contains("panic")).count();
        assert_eq!(panics, 0, "{context}: a panic\n{}", self.log());
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience(limit);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(STOP).unwrap_or_else(|| panic!("it does not stop\n{}", self.log()))
    }

    /// Rewrites the config file, listeners unchanged.
    pub fn rewrite(&self, conf: &Conf) {
        std::fs::write(&self.config, conf.render(self.addr, self.ops)).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(8).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("--- the daemon's last lines\n{}\n---", tail.join("\n"));
        }
    }
}
