//! A scripted HTTP server on plain sockets. It counts, keeps what it received, and notes when its
//! peer closes.

use std::io::Read;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::support::stream::Dialect;

/// What a request asked for.
#[derive(Clone, Debug)]
pub struct Call {
    /// What the upstream speaks.
    pub dialect: Dialect,
    pub method: String,
    pub path: String,
    /// The head as it came.
    pub head: String,
    /// The body as it came.
    pub body: Vec<u8>,
    /// The body as JSON, or null.
    pub json: Value,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Call {
    /// `model` of the body.
    pub fn model(&self) -> &str {
        self.json["model"].as_str().unwrap_or_default()
    }

    /// Whether a stream is asked for, by the rules of the dialect.
    pub fn stream(&self) -> bool {
        self.json["stream"].as_bool().unwrap_or(self.dialect == Dialect::Ollama)
    }

    /// The last message or the prompt.
    pub fn prompt(&self) -> &str {
        let last = self.json["messages"].as_array().and_then(|all| all.last());
        let text = last.map_or(&self.json["prompt"], |message| &message["content"]);
        text.as_str().unwrap_or_default()
    }

    /// A header field of the request.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (have, value) = line.split_once(':')?;
            have.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// What the upstream does next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends bytes in one write.
    Send(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Sends byte by byte, at this pace.
    Drip(Vec<u8>, Duration),
    /// Says nothing until the peer closes.
    Silence,
    /// Waits for the gate to open.
    Until(Arc<Gate>),
    /// Sends the same bytes for ever, at this pace.
    Repeat(Vec<u8>, Duration),
    /// Closes with FIN.
    Close,
    /// Closes with a reset.
    Reset,
}

/// Opens once.
#[derive(Debug, Default)]
pub struct Gate {
    open: AtomicBool,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

/// One request that the upstream saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub call: Call,
    /// When the request was complete.
    pub at: Instant,
    /// When the peer closed while the answer was under way.
    pub closed_at: Option<Instant>,
    /// When the script was through.
    pub done_at: Option<Instant>,
}

type Behaviour = dyn Fn(&Call) -> Vec<Step> + Send + Sync;

struct Shared {
    dialect: Dialect,
    behaviour: Box<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    /// Whether requests are kept, or only counted.
    keep: bool,
    calls: AtomicUsize,
    changed: Condvar,
    connections: AtomicUsize,
    open: AtomicUsize,
    stopping: AtomicBool,
    /// Connections whose peer sent a part of a request and closed.
    torn: AtomicUsize,
}

/// A fake upstream; stops when dropped.
pub struct FakeUpstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl FakeUpstream {
    /// Starts one that answers as `behaviour` says.
    pub fn start(
        dialect: Dialect,
        behaviour: impl Fn(&Call) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        FakeUpstream::start_keeping(dialect, true, behaviour)
    }

    /// Starts one that counts requests and keeps none of them, for tests that send very many.
    pub fn start_forgetful(
        dialect: Dialect,
        behaviour: impl Fn(&Call) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        FakeUpstream::start_keeping(dialect, false, behaviour)
    }

    fn start_keeping(
        dialect: Dialect,
        keep: bool,
        behaviour: impl Fn(&Call) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            dialect,
            behaviour: Box::new(behaviour),
            seen: Mutex::default(),
            keep,
            calls: AtomicUsize::new(0),
            changed: Condvar::new(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            torn: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if accepting.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let number = accepting.connections.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&accepting);
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || {
                        shared.open.fetch_add(1, Ordering::SeqCst);
                        let _ = Connection::new(&shared, socket, number).serve();
                        shared.open.fetch_sub(1, Ordering::SeqCst);
                    })
                    .unwrap();
            }
        });
        FakeUpstream { addr, shared }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `kind` in a config.
    pub fn kind(&self) -> &'static str {
        match self.shared.dialect {
            Dialect::OpenAi => "openai",
            Dialect::Ollama => "ollama",
        }
    }

    /// `url` in a config.
    pub fn url(&self) -> String {
        match self.shared.dialect {
            Dialect::OpenAi => format!("http://{}/v1", self.addr),
            Dialect::Ollama => format!("http://{}", self.addr),
        }
    }

    /// The model calls it saw (not the catalog's questions).
    pub fn seen(&self) -> Vec<Seen> {
        let seen = self.shared.seen.lock().unwrap();
        seen.iter()
            .filter(|seen| seen.call.method == "POST" && seen.call.path != "/api/show")
            .cloned()
            .collect()
    }

    /// How many model calls it saw, also when it keeps none.
    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// Every request it saw.
    pub fn seen_all(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The model calls with this in their prompt.
    pub fn seen_with(&self, prompt: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.call.prompt() == prompt);
        seen
    }

    /// Connections taken so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Connections on which only a part of a request came.
    pub fn torn(&self) -> usize {
        self.shared.torn.load(Ordering::SeqCst)
    }

    /// Waits until a look at the calls gives something.
    pub fn wait_for<T>(&self, limit: Duration, look: impl Fn(&[Seen]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + crate::support::patience(limit);
        let mut seen = self.shared.seen.lock().unwrap();
        loop {
            if let Some(found) = look(&seen) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            seen = self.shared.changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits until a call with this prompt is here.
    pub fn wait_seen(&self, prompt: &str) -> Seen {
        let find = |seen: &[Seen]| seen.iter().find(|seen| seen.call.prompt() == prompt).cloned();
        self.wait_for(Duration::from_secs(10), find)
            .unwrap_or_else(|| panic!("{prompt:?} never came"))
    }

    /// Waits until the peer of the call with this prompt closed, and says when.
    pub fn wait_closed(&self, prompt: &str) -> Option<Instant> {
        let find = |seen: &[Seen]| seen.iter().find(|s| s.call.prompt() == prompt)?.closed_at;
        self.wait_for(Duration::from_secs(5), find)
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

/// The connection is over.
struct Over;

struct Connection<'a> {
    shared: &'a Shared,
    socket: TcpStream,
    number: usize,
    buffer: Vec<u8>,
    /// Index of the call being answered.
    current: Option<usize>,
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Shared, socket: TcpStream, number: usize) -> Self {
        let _ = socket.set_nodelay(true);
        Connection { shared, socket, number, buffer: Vec::new(), current: None }
    }

    fn serve(mut self) -> Result<(), Over> {
        loop {
            let call = self.request()?;
            let script = (self.shared.behaviour)(&call);
            if call.method == "POST" && call.path != "/api/show" {
                self.shared.calls.fetch_add(1, Ordering::SeqCst);
            }
            if !self.shared.keep {
                for step in script {
                    self.step(step)?;
                }
                continue;
            }
            let seen = Seen { call, at: Instant::now(), closed_at: None, done_at: None };
            let index = {
                let mut all = self.shared.seen.lock().unwrap();
                all.push(seen);
                all.len() - 1
            };
            self.current = Some(index);
            self.shared.changed.notify_all();
            for step in script {
                self.step(step)?;
            }
            self.shared.seen.lock().unwrap()[index].done_at = Some(Instant::now());
            self.shared.changed.notify_all();
            self.current = None;
        }
    }

    fn step(&mut self, step: Step) -> Result<(), Over> {
        match step {
            Step::Send(bytes) => self.write(&bytes),
            Step::Pause(time) => self.watch(Some(time), || false),
            Step::Drip(bytes, pace) => {
                for byte in bytes {
                    self.write(&[byte])?;
                    self.watch(Some(pace), || false)?;
                }
                Ok(())
            }
            Step::Repeat(bytes, pace) => loop {
                self.write(&bytes)?;
                self.watch(Some(pace), || false)?;
            },
            Step::Silence => self.watch(None, || false),
            Step::Until(gate) => self.watch(None, || gate.open.load(Ordering::SeqCst)),
            Step::Close => {
                let _ = self.socket.shutdown(Shutdown::Both);
                Err(Over)
            }
            Step::Reset => {
                let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
                Err(Over)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Over> {
        if self.socket.write_all(bytes).is_err() {
            return Err(self.gone());
        }
        Ok(())
    }

    /// Notes that the peer is gone.
    fn gone(&self) -> Over {
        let now = Instant::now();
        if let Some(index) = self.current {
            self.shared.seen.lock().unwrap()[index].closed_at.get_or_insert(now);
            self.shared.changed.notify_all();
        }
        Over
    }

    /// Waits, looking at the socket: a peer that closes ends the script.
    fn watch(&mut self, time: Option<Duration>, enough: impl Fn() -> bool) -> Result<(), Over> {
        let end = time.map(|time| Instant::now() + time);
        loop {
            if enough() {
                return Ok(());
            }
            if self.shared.stopping.load(Ordering::SeqCst) {
                return Err(Over);
            }
            let mut wait = Duration::from_millis(if time.is_some() { 50 } else { 5 });
            if let Some(end) = end {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                wait = wait.min(left);
            }
            if self.hung_up(wait) {
                return Err(self.gone());
            }
        }
    }

    fn hung_up(&self, wait: Duration) -> bool {
        let flags = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.socket, flags)];
        let wait =
            Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        matches!(poll(&mut fds, Some(&wait)), Ok(n) if n > 0)
    }

    /// Reads one request.
    fn request(&mut self) -> Result<Call, Over> {
        let _ = self.socket.set_read_timeout(Some(Duration::from_millis(50)));
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut first = head.split(' ');
        let method = first.next().unwrap_or_default().to_owned();
        let path = first.next().unwrap_or_default().to_owned();
        let mut call = Call {
            dialect: self.shared.dialect,
            method,
            path,
            head,
            body: Vec::new(),
            json: Value::Null,
            connection: self.number,
        };
        assert!(call.header("transfer-encoding").is_none(), "a chunked request: {}", call.head);
        let length = call.header("content-length").map_or(0, |length| length.parse().unwrap());
        while self.buffer.len() < length {
            self.fill()?;
        }
        call.body = self.buffer.drain(..length).collect();
        call.json = serde_json::from_slice(&call.body).unwrap_or_default();
        Ok(call)
    }

    fn fill(&mut self) -> Result<(), Over> {
        let mut piece = [0; 64 * 1024];
        loop {
            match self.socket.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => {
                    self.buffer.extend_from_slice(&piece[..n]);
                    return Ok(());
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    if self.shared.stopping.load(Ordering::SeqCst) {
                        return Err(Over);
                    }
                }
                Err(_) => break,
            }
        }
        if !self.buffer.is_empty() {
            self.shared.torn.fetch_add(1, Ordering::SeqCst);
        }
        Err(Over)
    }
}
