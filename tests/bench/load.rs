//! The load: keep-alive connections that each ask again when their answer is whole and right.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use tidegate::base::clock;

use crate::answer::{Answer, Progress};
use crate::chat::{self, Expected, Kind};
use crate::stats::nanos;
use crate::{Outcome, Watch, fail};

/// Most answers of one run: what bounds the memory of its samples. Past it the run ends early.
const ANSWERS_MAX: usize = 1_000_000;

/// Most gaps between chunks that one run keeps (8 bytes each). Past it they are no longer noted.
const GAPS_MAX: usize = 2_000_000;

/// Longest time without a byte from any connection. Past it the run fails.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Longest wait for readiness before the deadlines are looked at again.
const POLL_MAX: Duration = Duration::from_millis(500);

const READ_BYTES: usize = 64 * 1024;

/// Connections to one front, all asking the same.
#[derive(Debug)]
pub struct Load {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    connections: Vec<Connection>,
    to: SocketAddr,
    kind: Kind,
    request: Vec<u8>,
    expected: Expected,
}

#[derive(Debug)]
struct Connection {
    socket: TcpStream,
    answer: Answer,
    asked: Instant,
    /// When the last chunk came.
    chunk: Instant,
    busy: bool,
}

/// What a run saw. Times in nanoseconds.
#[derive(Debug, Default)]
pub struct Sample {
    /// Right answers. There are no others: the first wrong one fails the run.
    pub answers: u64,
    /// From the first question to the last answer.
    pub elapsed: Duration,
    /// From each question to the end of its answer.
    pub whole: Vec<u64>,
    /// From each question to the first whole chunk of its answer.
    pub first: Vec<u64>,
    /// Between two chunks of one stream; none for the first.
    pub gaps: Vec<u64>,
    /// Reads that gave bytes.
    pub reads: u64,
}

impl Load {
    /// No connection yet.
    ///
    /// # Errors
    /// When the operating system refuses a poll.
    pub fn new(kind: Kind, to: SocketAddr) -> Outcome<Load> {
        Ok(Load {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; READ_BYTES],
            connections: Vec::new(),
            to,
            kind,
            request: chat::request(kind, to),
            expected: chat::expected(kind),
        })
    }

    /// Opens connections.
    ///
    /// # Errors
    /// When one is refused.
    pub fn connect(&mut self, count: usize) -> Outcome<()> {
        for _ in 0..count {
            let socket = std::net::TcpStream::connect_timeout(&self.to, Duration::from_secs(5))
                .map_err(|err| format!("connect to {}: {err}", self.to))?;
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let mut socket = TcpStream::from_std(socket);
            let token = Token(self.connections.len());
            self.poll.registry().register(&mut socket, token, Interest::READABLE)?;
            let now = clock::now();
            let answer = Answer::new();
            self.connections.push(Connection {
                socket,
                answer,
                asked: now,
                chunk: now,
                busy: false,
            });
        }
        Ok(())
    }

    /// Closed loop: every connection asks, and again after each answer, for so long; then what is
    /// under way is awaited, so that whole answers are counted and nothing else.
    ///
    /// # Errors
    /// At the first answer that is wrong or late.
    pub fn run(&mut self, time: Duration, watch: &Watch) -> Outcome<Sample> {
        let mut sample = Sample::default();
        let started = clock::now();
        let end = started + time;
        for index in 0..self.connections.len() {
            self.ask(index)?;
        }
        let mut busy = self.connections.len();
        let mut heard = started;
        while busy > 0 {
            for index in self.wait(POLL_MAX, &mut heard, watch)? {
                if !self.read(index, &mut sample)? {
                    continue;
                }
                if clock::now() < end && sample.whole.len() < ANSWERS_MAX {
                    self.ask(index)?;
                } else {
                    busy -= 1;
                }
            }
        }
        sample.elapsed = started.elapsed();
        Ok(sample)
    }

    /// Opens connections one after the other over `ramp`, asks once on each, and awaits all answers.
    ///
    /// # Errors
    /// At the first answer that is wrong or late.
    pub fn once_each(
        &mut self,
        count: usize,
        ramp: Duration,
        watch: &Watch,
        mut each_second: impl FnMut(),
    ) -> Outcome<Sample> {
        let mut sample = Sample::default();
        let started = clock::now();
        let mut heard = started;
        let mut second = started;
        let mut done = 0;
        while done < count {
            let mut pause = POLL_MAX;
            while self.connections.len() < count {
                let share = self.connections.len() as f64 / count as f64;
                let due = started + ramp.mul_f64(share);
                let now = clock::now();
                if due > now {
                    pause = due - now;
                    break;
                }
                self.connect(1)?;
                self.ask(self.connections.len() - 1)?;
            }
            for index in self.wait(pause, &mut heard, watch)? {
                done += usize::from(self.read(index, &mut sample)?);
            }
            if second.elapsed() >= Duration::from_secs(1) {
                second = clock::now();
                each_second();
            }
        }
        sample.elapsed = started.elapsed();
        Ok(sample)
    }

    /// Waits until a connection that awaits an answer can be read.
    fn wait(&mut self, pause: Duration, heard: &mut Instant, watch: &Watch) -> Outcome<Vec<usize>> {
        watch.check()?;
        match self.poll.poll(&mut self.events, Some(pause)) {
            Err(err) if err.kind() == ErrorKind::Interrupted => return Ok(Vec::new()),
            other => other?,
        }
        let ready: Vec<usize> = self
            .events
            .iter()
            .map(|event| event.token().0)
            .filter(|&index| self.connections[index].busy)
            .collect();
        if !ready.is_empty() {
            *heard = clock::now();
        } else if heard.elapsed() > SILENCE_MAX {
            return fail(format!("no byte from {} for {SILENCE_MAX:?}", self.to));
        }
        Ok(ready)
    }

    fn ask(&mut self, index: usize) -> Outcome<()> {
        let connection = &mut self.connections[index];
        connection.answer.reset();
        connection.busy = true;
        connection.asked = clock::now();
        // A request is far smaller than an empty socket buffer.
        let written = connection
            .socket
            .write(&self.request)
            .map_err(|err| format!("write to {}: {err}", self.to))?;
        if written < self.request.len() {
            return fail(format!("only {written} bytes of a request fit into an idle connection"));
        }
        Ok(())
    }

    /// Reads what is there; true when the answer is whole. Readiness is edge-triggered: a read that
    /// fills less than the buffer took all there was, and what comes later is told anew.
    fn read(&mut self, index: usize, sample: &mut Sample) -> Outcome<bool> {
        let connection = &mut self.connections[index];
        loop {
            let count = match connection.socket.read(&mut self.buffer) {
                Ok(0) => return fail(format!("{} closed an answer under way", self.to)),
                Ok(count) => count,
                Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(err) if err.kind() == ErrorKind::Interrupted => continue,
                Err(err) => return fail(format!("read from {}: {err}", self.to)),
            };
            let now = clock::now();
            sample.reads += 1;
            let chunks = connection.answer.chunks();
            let progress = connection
                .answer
                .feed(&self.buffer[..count], &self.expected)
                .map_err(|err| format!("wrong answer from {}: {err}", self.to))?;
            for chunk in chunks..connection.answer.chunks() {
                if chunk == 0 {
                    sample.first.push(nanos(now - connection.asked));
                } else if sample.gaps.len() < GAPS_MAX && !self.kind.pause().is_zero() {
                    sample.gaps.push(nanos(now - connection.chunk));
                }
                connection.chunk = now;
            }
            if progress == Progress::Complete {
                connection.busy = false;
                sample.answers += 1;
                sample.whole.push(nanos(now - connection.asked));
                return Ok(true);
            }
            if count < self.buffer.len() {
                return Ok(false);
            }
        }
    }
}
