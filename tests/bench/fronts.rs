//! The processes under test and the mock: started, known ready, measured, stopped.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tidegate::base::clock;

use crate::account;
use crate::answer::{Answer, Progress};
use crate::chat::{self, Kind};
use crate::{Outcome, Setup, fail};

/// Longest time from start to the first right answer. Past it the front is left out.
const START_MAX: Duration = Duration::from_secs(5);

/// Pause between two attempts at the first answer, and so the grain of the start figure.
const START_POLL: Duration = Duration::from_micros(200);

/// Longest time for a front to stop after SIGTERM. Past it: SIGKILL, the whole tree.
const STOP_MAX: Duration = Duration::from_secs(5);

/// What stands between the load and the mock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Nothing: the floor of the rig itself.
    Direct,
    /// nginx as a plain reverse proxy.
    Nginx,
    /// `tidegate run`.
    Tidegate,
}

impl Name {
    /// Every front.
    pub const ALL: [Name; 3] = [Name::Direct, Name::Nginx, Name::Tidegate];

    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Direct => "direct",
            Name::Nginx => "nginx",
            Name::Tidegate => "tidegate",
        }
    }
}

/// A child process that ends with us, whatever happens to us.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let tree = account::tree(self.id());
        signal(self.id(), Signal::TERM);
        let end = clock::now() + STOP_MAX;
        while clock::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for pid in tree {
            signal(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Replaces this process by another one that gets SIGTERM when the bench dies. The first argument
/// is the bench's process id.
///
/// # Errors
/// When there is nothing to run.
pub fn run_bound(arguments: &[String]) -> Outcome<()> {
    let [bench, program, rest @ ..] = arguments else { return fail("nothing to run") };
    bind_to(bench)?;
    Err(format!("{program}: {}", Command::new(program).args(rest).exec()).into())
}

/// Serves as the mock until the bench dies, whose process id is the argument.
///
/// # Errors
/// When it cannot serve.
pub fn run_mock(arguments: &[String]) -> Outcome<()> {
    let [bench] = arguments else { return fail("no process id") };
    bind_to(bench)?;
    crate::mock::run()
}

/// Has the kernel send SIGTERM to this process when its parent, the bench, dies.
fn bind_to(bench: &str) -> Outcome<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have died before that.
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().to_string());
    if parent.as_deref() != Some(bench) {
        return fail("the bench is gone");
    }
    Ok(())
}

/// Starts the mock; gives its process and its address.
///
/// # Errors
/// When it does not come up.
pub fn start_mock() -> Outcome<(Process, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child =
        command.args(["mock", &own_id()]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take();
    let process = Process { child };
    let mut line = String::new();
    if let Some(out) = out {
        BufReader::new(out).read_line(&mut line)?;
    }
    let port = line.trim().parse().map_err(|_| "the mock did not tell its port")?;
    Ok((process, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// A front that answers.
#[derive(Debug)]
pub struct Front {
    /// Which one.
    pub name: Name,
    /// Where it listens.
    pub address: SocketAddr,
    /// From its start to the end of its first right answer.
    pub start: Duration,
    process: Option<Process>,
}

impl Front {
    /// Starts a front and asks it until it answers.
    ///
    /// # Errors
    /// When it cannot be started, ends, or gives no right answer in time.
    pub fn start(name: Name, mock: SocketAddr, setup: &Setup) -> Outcome<Front> {
        let folder = setup.folder(name.as_str())?;
        let (address, process, started) = match name {
            Name::Direct => (mock, None, clock::now()),
            Name::Nginx => {
                let address = free_address()?;
                let config =
                    write(&folder.join("nginx.conf"), &nginx(&folder, address, mock, setup))?;
                let prefix = folder.to_string_lossy().into_owned();
                let arguments = ["nginx", "-p", &prefix, "-c", &config, "-e", "error.log"];
                let started = clock::now();
                (address, Some(spawn(&arguments, &folder)?), started)
            }
            Name::Tidegate => {
                let address = free_address()?;
                let ops = free_address()?;
                let text = tidegate(&folder, address, ops, mock, setup);
                let config = write(&folder.join("tidegate.toml"), &text)?;
                let arguments = [setup.tidegate.as_str(), "run", "--config", &config];
                let started = clock::now();
                (address, Some(spawn(&arguments, &folder)?), started)
            }
        };
        let mut front = Front { name, address, start: Duration::ZERO, process };
        match front.first_answer(started) {
            Ok(()) => front.start = started.elapsed(),
            Err(err) => {
                let said = fs::read_to_string(folder.join("output")).unwrap_or_default();
                let errors = fs::read_to_string(folder.join("error.log")).unwrap_or_default();
                let said = format!("{said}{errors}");
                let said = said.lines().last().unwrap_or("it said nothing");
                return fail(format!("{err}; {said}"));
            }
        }
        Ok(front)
    }

    /// Its process; none for the direct way.
    pub fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// CPU time used so far; nothing for the direct way.
    pub fn cpu(&self) -> Option<account::Cpu> {
        self.process().map(account::Cpu::of)
    }

    /// Memory in use.
    pub fn memory(&self) -> account::Memory {
        self.process().map(account::memory).unwrap_or_default()
    }

    fn first_answer(&mut self, started: Instant) -> Outcome<()> {
        let request = chat::request(Kind::Whole, self.address);
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.child.try_wait()?
            {
                return fail(format!("it ended before it answered ({status})"));
            }
            if let Ok(socket) = TcpStream::connect_timeout(&self.address, START_MAX) {
                return ask(socket, &request);
            }
            if started.elapsed() > START_MAX {
                return fail(format!("it did not listen within {START_MAX:?}"));
            }
            std::thread::sleep(START_POLL);
        }
    }
}

/// One question and its answer on a connection of its own.
fn ask(mut socket: TcpStream, request: &[u8]) -> Outcome<()> {
    socket.set_read_timeout(Some(START_MAX))?;
    socket.write_all(request)?;
    let expected = chat::expected(Kind::Whole);
    let mut answer = Answer::new();
    let mut buffer = [0; 4096];
    loop {
        let count = socket.read(&mut buffer).map_err(|err| format!("no first answer: {err}"))?;
        if count == 0 {
            return fail("it closed its first answer");
        }
        if answer.feed(&buffer[..count], &expected)? == Progress::Complete {
            return Ok(());
        }
    }
}

fn spawn(arguments: &[&str], folder: &Path) -> Outcome<Process> {
    // By way of ourselves, so that it ends when we do; costs one exec, for all fronts alike.
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bound", &own_id()]).args(arguments);
    let out = fs::File::create(folder.join("output"))?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    // Nothing of the caller's surroundings may change what a front does.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    Ok(Process { child: command.spawn()? })
}

fn own_id() -> String {
    std::process::id().to_string()
}

/// A loopback address that was free a moment ago.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?.local_addr()?)
}

fn write(path: &PathBuf, text: &str) -> Outcome<String> {
    fs::write(path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// nginx as a plain reverse proxy, set up as well as it can be for this job: connections to the
/// mock are kept, nothing is buffered, no connection is closed for having served many requests.
fn nginx(folder: &Path, address: SocketAddr, mock: SocketAddr, setup: &Setup) -> String {
    let folder = folder.display();
    // Workers of a master that runs as root would lose the right to their own folder.
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let log = if setup.access_log { format!("{folder}/access.log") } else { "off".to_owned() };
    format!(
        "daemon off;
{user}
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log {log};
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_max_body_size 32m;
    upstream mock {{
        server {mock};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {address} backlog=4096;
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 60s;
        }}
    }}
}}
",
        workers = setup.nginx_workers,
        // One to the client and one to the mock for each stream; nginx closes idle ones when less
        // than a sixteenth is free.
        connections = 2 * setup.streams_max * 16 / 15 + 1024,
    )
}

/// Tidegate with its defaults, but for the limits that the count of streams needs and the log.
fn tidegate(
    folder: &Path,
    address: SocketAddr,
    ops: SocketAddr,
    mock: SocketAddr,
    setup: &Setup,
) -> String {
    let room = setup.streams_max + 64;
    let level = if setup.access_log { "info" } else { "warn" };
    let models: Vec<String> = chat::models()
        .iter()
        .map(|name| format!("[[model]]\nname = \"{name}\"\nprimary = \"mock/{name}\"\n"))
        .collect();
    format!(
        "[server]
listen = \"{address}\"
exchanges_max = {room}
connections_max = {connections}

[ops]
listen = \"{ops}\"

[log]
level = \"{level}\"
dir = \"{folder}/log\"

[state]
dir = \"{folder}/state\"

[[upstream]]
name = \"mock\"
kind = \"openai\"
url = \"http://{mock}/v1\"
concurrency_max = {room}

{models}",
        folder = folder.display(),
        connections = room.max(4096),
        models = models.join("\n"),
    )
}
