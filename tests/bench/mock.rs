//! The model server behind the fronts: one thread, readiness-driven, no work but the writes.
//!
//! A stream is written as model servers do it: the head and the first event together, then each
//! event as an HTTP chunk and a write of its own, without Nagle's algorithm. Streams that run as
//! fast as they go take turns, an event each.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use memchr::memmem;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use tidegate::base::clock;

use crate::chat::{self, Kind};
use crate::{Outcome, fail};

/// Most connections. Past it a new one is closed at once.
const CONNECTIONS_MAX: usize = 25_000;

/// Largest request, in bytes. Past it the connection is closed.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Longest life of the process: an orphan ends by itself.
const LIFE_MAX: Duration = Duration::from_secs(900);

const POLL_MAX: Duration = Duration::from_secs(1);

const LISTENER: Token = Token(usize::MAX);

/// What is written for each kind of question: one piece, one write.
struct Script {
    kind: Kind,
    usage: bool,
    pieces: Vec<Vec<u8>>,
}

struct Connection {
    socket: TcpStream,
    input: Vec<u8>,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    /// The running answer: index of its script and of its next piece.
    answer: Option<(usize, usize)>,
    /// Pieces that are due but wait for the socket.
    owed: usize,
}

struct Mock {
    poll: Poll,
    scripts: Vec<Script>,
    models: Vec<u8>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Streams that take turns.
    turns: VecDeque<usize>,
    /// Streams that wait for their next chunk, for each kind in the order of their time: the pause
    /// is the same for all of a kind, so the queue is sorted by itself.
    timers: [VecDeque<(Instant, usize)>; 3],
}

/// Serves until the parent dies. Writes the port on standard output, on a line of its own.
///
/// # Errors
/// When it cannot listen.
pub fn run() -> Outcome<()> {
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", listener.local_addr()?.port())?;
    out.flush()?;
    let mut mock = Mock {
        poll,
        scripts: scripts(),
        models: plain("application/json", &models()),
        connections: Vec::new(),
        free: Vec::new(),
        turns: VecDeque::new(),
        timers: Default::default(),
    };
    let end = clock::now() + LIFE_MAX;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    while clock::now() < end {
        let pause = mock.pause();
        match mock.poll.poll(&mut events, Some(pause)) {
            Err(err) if err.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                mock.accept(&listener)?;
                continue;
            }
            let index = event.token().0;
            if event.is_readable() {
                mock.readable(index, &mut buffer);
            }
            if event.is_writable() {
                mock.writable(index);
            }
        }
        mock.due();
        mock.take_turns();
    }
    fail("the mock outlived its time")
}

impl Mock {
    fn pause(&self) -> Duration {
        if !self.turns.is_empty() {
            return Duration::ZERO;
        }
        let due = self.timers.iter().filter_map(|timers| timers.front()).map(|(due, _)| *due).min();
        due.map_or(POLL_MAX, |due| due.saturating_duration_since(clock::now()).min(POLL_MAX))
    }

    fn accept(&mut self, listener: &TcpListener) -> Outcome<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(err) if err.kind() == ErrorKind::ConnectionAborted => continue,
                Err(err) => return Err(err.into()),
            };
            let index = match self.free.pop() {
                Some(index) => index,
                None if self.connections.len() < CONNECTIONS_MAX => {
                    self.connections.push(None);
                    self.connections.len() - 1
                }
                None => continue,
            };
            socket.set_nodelay(true)?;
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, Token(index), both)?;
            self.connections[index] = Some(Connection {
                socket,
                input: Vec::with_capacity(1024),
                unsent: Vec::new(),
                answer: None,
                owed: 0,
            });
        }
    }

    fn readable(&mut self, index: usize, buffer: &mut [u8]) {
        loop {
            let Some(connection) = self.connections[index].as_mut() else { return };
            match connection.socket.read(buffer) {
                Ok(count) if count > 0 => {
                    connection.input.extend_from_slice(&buffer[..count]);
                    if connection.input.len() > REQUEST_BYTES_MAX {
                        return self.close(index);
                    }
                    if connection.answer.is_none() {
                        self.begin(index);
                    }
                    if count < buffer.len() {
                        return;
                    }
                }
                Err(err) if err.kind() == ErrorKind::WouldBlock => return,
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return self.close(index),
            }
        }
    }

    /// Begins the answer to a request that is complete.
    fn begin(&mut self, index: usize) {
        let Some(connection) = self.connections[index].as_mut() else { return };
        let length = match request_length(&connection.input) {
            Ok(Some(length)) if length <= connection.input.len() => length,
            Ok(_) => return,
            Err(()) => return self.refuse(index),
        };
        let request: Vec<u8> = connection.input.drain(..length).collect();
        if request.starts_with(b"GET ") {
            let models = self.models.clone();
            return self.write(index, &models);
        }
        let Some(script) = choose(&self.scripts, &request) else { return self.refuse(index) };
        connection.answer = Some((script, 0));
        self.piece(index);
    }

    /// Writes the next piece of the running answer, and sees to the one after it.
    fn piece(&mut self, index: usize) {
        let Some(connection) = self.connections[index].as_mut() else { return };
        let Some((script, next)) = connection.answer else { return };
        if !connection.unsent.is_empty() {
            connection.owed += 1;
            return;
        }
        let Script { kind, pieces, .. } = &self.scripts[script];
        let (kind, last) = (*kind, next + 1 == pieces.len());
        connection.answer = if last { None } else { Some((script, next + 1)) };
        // The script stays where it is while it is written from.
        let piece = pieces[next].clone();
        self.write(index, &piece);
        if last {
            // A request that came while the answer was under way.
            return self.begin(index);
        }
        match kind {
            Kind::Whole => {}
            Kind::Burst => self.turns.push_back(index),
            Kind::Brisk => self.timers[0].push_back((clock::now() + kind.pause(), index)),
            Kind::Paced => self.timers[1].push_back((clock::now() + kind.pause(), index)),
            Kind::Slow => self.timers[2].push_back((clock::now() + kind.pause(), index)),
        }
    }

    fn write(&mut self, index: usize, bytes: &[u8]) {
        let Some(connection) = self.connections[index].as_mut() else { return };
        let sent = match connection.socket.write(bytes) {
            Ok(sent) => sent,
            Err(err) if err.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return self.close(index),
        };
        connection.unsent.extend_from_slice(&bytes[sent..]);
    }

    fn writable(&mut self, index: usize) {
        let Some(connection) = self.connections[index].as_mut() else { return };
        if connection.unsent.is_empty() {
            return;
        }
        match connection.socket.write(&connection.unsent) {
            Ok(sent) => drop(connection.unsent.drain(..sent)),
            Err(err) if err.kind() == ErrorKind::WouldBlock => return,
            Err(_) => return self.close(index),
        }
        if connection.unsent.is_empty() && connection.owed > 0 {
            connection.owed -= 1;
            self.piece(index);
        }
    }

    fn due(&mut self) {
        for kind in 0..self.timers.len() {
            let now = clock::now();
            while self.timers[kind].front().is_some_and(|(due, _)| *due <= now) {
                if let Some((_, index)) = self.timers[kind].pop_front() {
                    self.piece(index);
                }
            }
        }
    }

    fn take_turns(&mut self) {
        for _ in 0..self.turns.len() {
            if let Some(index) = self.turns.pop_front() {
                self.piece(index);
            }
        }
    }

    /// Answers 400 and leaves the connection to the other side.
    fn refuse(&mut self, index: usize) {
        self.write(index, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        if let Some(connection) = self.connections[index].as_mut() {
            connection.input.clear();
        }
    }

    fn close(&mut self, index: usize) {
        // A turn or a timer may still name it: they must not meet the next connection there.
        self.turns.retain(|&other| other != index);
        for timers in &mut self.timers {
            timers.retain(|&(_, other)| other != index);
        }
        if let Some(mut connection) = self.connections[index].take() {
            let _ = self.poll.registry().deregister(&mut connection.socket);
            self.free.push(index);
        }
    }
}

/// The length of the request at the start of `input`, when its head is complete.
fn request_length(input: &[u8]) -> Result<Option<usize>, ()> {
    let Some(end) = memmem::find(input, b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
    let head = std::str::from_utf8(&input[..end]).map_err(|_| ())?;
    let mut length = 0;
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().map_err(|_| ())?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(());
        }
    }
    Ok(Some(end + length.min(REQUEST_BYTES_MAX)))
}

fn choose(scripts: &[Script], request: &[u8]) -> Option<usize> {
    let has = |text: &str| memmem::find(request, text.as_bytes()).is_some();
    let streamed = has(r#""stream":true"#) || has(r#""stream": true"#);
    let usage = has(r#""include_usage":true"#) || has(r#""include_usage": true"#);
    scripts.iter().position(|script| {
        script.kind.streamed() == streamed
            && script.usage == (usage && streamed)
            && has(&format!(r#""{}""#, script.kind.model()))
    })
}

fn scripts() -> Vec<Script> {
    let mut scripts = Vec::new();
    for kind in Kind::ALL {
        if !kind.streamed() {
            let pieces = vec![plain("application/json", &chat::whole(kind.model()))];
            scripts.push(Script { kind, usage: false, pieces });
            continue;
        }
        for usage in [false, true] {
            scripts.push(Script { kind, usage, pieces: stream(&chat::events(kind, usage)) });
        }
    }
    scripts
}

fn stream(events: &[String]) -> Vec<Vec<u8>> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let mut pieces: Vec<Vec<u8>> = events
        .iter()
        .map(|event| format!("{:x}\r\n{event}\r\n", event.len()).into_bytes())
        .collect();
    if let Some(first) = pieces.first_mut() {
        first.splice(0..0, head.bytes());
    }
    if let Some(last) = pieces.last_mut() {
        last.extend_from_slice(b"0\r\n\r\n");
    }
    pieces
}

fn plain(content_type: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn models() -> String {
    let entries: Vec<String> = chat::models()
        .iter()
        .map(|name| {
            format!(r#"{{"id":"{name}","object":"model","created":1767225600,"owned_by":"bench"}}"#)
        })
        .collect();
    format!(r#"{{"object":"list","data":[{}]}}"#, entries.join(","))
}
