//! A scripted server for tests: plain sockets, one request a connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::base::lock::{Locked, Rank};
use crate::base::thread::{self, Thread};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// What the server does with a request.
pub(crate) enum Act {
    /// A JSON answer.
    Json(u16, String),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then silence, until the client goes.
    Stall(Vec<u8>),
    /// Silence, until the client goes.
    Hang,
}

/// A running server.
pub(crate) struct Peer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accept: Option<Thread>,
}

struct Shared {
    script: Box<dyn Fn(&Seen) -> Act + Send + Sync>,
    seen: Locked<Vec<Seen>>,
    stop: AtomicBool,
    connections: Locked<Vec<(TcpStream, Thread)>>,
}

impl Peer {
    pub(crate) fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Locked::new(Rank::Leaf, Vec::new()),
            stop: AtomicBool::new(false),
            connections: Locked::new(Rank::Leaf, Vec::new()),
        });
        let theirs = Arc::clone(&shared);
        let accept = thread::spawn("peer", move || {
            while let Ok((socket, _)) = listener.accept() {
                if theirs.stop.load(SeqCst) {
                    return;
                }
                let (ours, shared) = (socket.try_clone().unwrap(), Arc::clone(&theirs));
                let thread = thread::spawn("peer-conn", move || serve(socket, &shared)).unwrap();
                theirs.connections.with(|all| all.push((ours, thread)));
            }
        });
        Peer { address, shared, accept: Some(accept.unwrap()) }
    }

    /// A port on which nobody listens.
    pub(crate) fn nobody() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.with(|seen| seen.clone())
    }

    /// How many requests asked for this path.
    pub(crate) fn calls(&self, path: &str) -> usize {
        self.shared.seen.with(|seen| seen.iter().filter(|seen| seen.path == path).count())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        self.accept.take();
        for (socket, thread) in self.shared.connections.with(std::mem::take) {
            let _ = socket.shutdown(Shutdown::Both);
            thread.join();
        }
    }
}

fn serve(mut socket: TcpStream, shared: &Shared) {
    let Some(seen) = request(&mut socket) else { return };
    shared.seen.with(|all| all.push(seen.clone()));
    match (shared.script)(&seen) {
        Act::Json(status, body) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let _ = socket.write_all(head.as_bytes());
            let _ = socket.write_all(body.as_bytes());
        }
        Act::Raw(bytes) => {
            let _ = socket.write_all(&bytes);
        }
        Act::Stall(bytes) => {
            let _ = socket.write_all(&bytes);
            let _ = socket.read(&mut [0]);
        }
        Act::Hang => {
            let _ = socket.read(&mut [0]);
        }
    }
    let _ = socket.shutdown(Shutdown::Both);
}

fn request(socket: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let end = loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        let n = socket.read(&mut piece).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&piece[..n]);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    while bytes.len() < end + length {
        let n = socket.read(&mut piece).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&piece[..n]);
    }
    let mut words = head.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let body = String::from_utf8_lossy(&bytes[end..]).into_owned();
    Some(Seen { method, path, head, body })
}
