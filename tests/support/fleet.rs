//! Many WebSocket connections on one thread: a client that leaves the cores to the gateway.
//!
//! It answers pings, reads everything at once, and tells when it came.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::Value;

use super::patience;
use super::ws::{CLOSE, CONTINUATION, Frame, Got, PING, PONG, TEXT, Ws};

/// Makes the `connect` request for the payload of a challenge.
pub type Greeting = Box<dyn Fn(&Value) -> Value>;

/// What came to one of them.
pub struct Came {
    /// Which one.
    pub who: usize,
    pub what: What,
    /// When it was read.
    pub at: Instant,
}

/// What came.
#[derive(Debug)]
pub enum What {
    /// It was let in.
    In,
    /// It was not; the error.
    Refused(Value),
    /// A whole text message after that.
    Text(String),
    /// The connection ended, with the code of the close frame if there was one.
    Gone(Option<u16>),
}

/// The connections. One that ended keeps its place.
pub struct Fleet {
    poll: Poll,
    events: Events,
    members: Vec<Member>,
    piece: Vec<u8>,
    to: SocketAddr,
}

struct Member {
    /// None once it ended.
    socket: Option<TcpStream>,
    phase: Phase,
    buffer: Vec<u8>,
    unsent: Vec<u8>,
    greeting: Greeting,
    code: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Upgrading,
    Challenged,
    Greeted,
    In,
}

impl Fleet {
    /// Nobody yet.
    pub fn new(to: SocketAddr) -> Self {
        let (poll, events) = (Poll::new().unwrap(), Events::with_capacity(1024));
        Fleet { poll, events, members: Vec::new(), piece: vec![0; 256 * 1024], to }
    }

    /// Begins a connection; what comes of it is told by [`Fleet::turn`].
    pub fn add(&mut self, greeting: Greeting) -> usize {
        let socket =
            std::net::TcpStream::connect_timeout(&self.to, patience(Duration::from_secs(5)));
        let socket = socket.unwrap_or_else(|e| panic!("connection {}: {e}", self.members.len()));
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut socket = TcpStream::from_std(socket);
        let who = self.members.len();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(who), interest).unwrap();
        self.members.push(Member {
            socket: Some(socket),
            phase: Phase::Upgrading,
            buffer: Vec::new(),
            unsent: Vec::new(),
            greeting,
            code: None,
        });
        let request = Ws::request("/", "c2l4dGVlbiBieXRlcyBvaw==", "");
        self.members[who].send(request.as_bytes());
        who
    }

    /// Lets `count` more in, at most `at_once` of them in their handshake at a time; gives their
    /// numbers. Fails the test when one is refused or it takes too long.
    pub fn admit(
        &mut self,
        count: usize,
        at_once: usize,
        mut greeting: impl FnMut(usize) -> Greeting,
    ) -> std::ops::Range<usize> {
        let first = self.members.len();
        let (mut begun, mut done) = (0, 0);
        let end = Instant::now() + patience(Duration::from_secs(30 + count as u64 / 20));
        while done < count {
            while begun < count && begun - done < at_once {
                self.add(greeting(begun));
                begun += 1;
            }
            for came in self.turn(Duration::from_millis(100)) {
                match came.what {
                    What::In => done += 1,
                    What::Text(_) => {}
                    other => panic!("connection {} of {count}: {other:?}", came.who),
                }
            }
            assert!(Instant::now() < end, "only {done} of {count} are in");
        }
        first..first + count
    }

    /// Sends a text message; what the socket does not take now is sent by later turns.
    pub fn say(&mut self, who: usize, text: &str) {
        // A mask of zeros is one, too.
        let frame = Frame::new(TEXT, text).mask(Some([0; 4])).bytes();
        self.members[who].send(&frame);
    }

    /// Ends all connections.
    pub fn drop_all(&mut self) {
        for member in &mut self.members {
            member.socket = None;
        }
    }

    /// Waits until something comes, at most so long; gives all of it.
    pub fn turn(&mut self, wait: Duration) -> Vec<Came> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Vec::new(),
            other => other.unwrap(),
        }
        let mut came = Vec::new();
        for event in &self.events {
            let who = event.token().0;
            let member = &mut self.members[who];
            if event.is_writable() {
                member.send(&[]);
            }
            if event.is_readable() || event.is_read_closed() {
                member.read(who, &mut self.piece, &mut came);
            }
        }
        came
    }
}

impl Member {
    fn send(&mut self, bytes: &[u8]) {
        let Some(socket) = &mut self.socket else { return };
        self.unsent.extend_from_slice(bytes);
        let mut sent = 0;
        while sent < self.unsent.len() {
            match socket.write(&self.unsent[sent..]) {
                Ok(n) => sent += n,
                // What is broken is found by reading.
                Err(e) if e.kind() != ErrorKind::Interrupted => break,
                Err(_) => {}
            }
        }
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
    }

    fn read(&mut self, who: usize, piece: &mut [u8], came: &mut Vec<Came>) {
        let gone = loop {
            let Some(socket) = &mut self.socket else { return };
            match socket.read(piece) {
                Ok(0) => break true,
                Ok(n) => self.buffer.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        let at = Instant::now();
        while let Some(what) = self.next() {
            came.push(Came { who, what, at });
        }
        if gone {
            self.socket = None;
            came.push(Came { who, what: What::Gone(self.code), at });
        }
    }

    /// The next of what was read that is to be told.
    fn next(&mut self) -> Option<What> {
        if self.phase == Phase::Upgrading {
            let end = self.buffer.windows(4).position(|four| four == b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            assert!(head.starts_with("HTTP/1.1 101 "), "no upgrade: {head}");
            self.buffer.drain(..end + 4);
            self.phase = Phase::Challenged;
        }
        loop {
            let (got, length) = Got::parse(&self.buffer)?;
            self.buffer.drain(..length);
            if self.buffer.is_empty() {
                self.buffer = Vec::new();
            }
            match got.opcode {
                PING => self.send(&Frame::new(PONG, got.payload).bytes()),
                PONG => {}
                CLOSE => {
                    self.code = Some(got.close_code().0);
                    self.send(&Frame::new(CLOSE, got.payload).bytes());
                }
                _ => {
                    assert!(
                        got.fin && got.opcode != CONTINUATION,
                        "the gateway sends whole frames"
                    );
                    let text = String::from_utf8(got.payload).unwrap();
                    if let Some(what) = self.message(text) {
                        return Some(what);
                    }
                }
            }
        }
    }

    fn message(&mut self, text: String) -> Option<What> {
        if self.phase == Phase::In {
            return Some(What::Text(text));
        }
        let mut frame: Value = serde_json::from_str(&text).unwrap();
        if self.phase == Phase::Challenged {
            assert_eq!(frame["event"], "connect.challenge", "{text}");
            let hello = (self.greeting)(&frame["payload"]).to_string();
            self.phase = Phase::Greeted;
            self.send(&Frame::text(&hello).bytes());
            return None;
        }
        assert_eq!(frame["type"], "res", "{text}");
        self.phase = Phase::In;
        Some(match frame["ok"].as_bool() {
            Some(true) => What::In,
            _ => What::Refused(frame["error"].take()),
        })
    }
}
