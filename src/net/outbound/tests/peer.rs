//! A server that does as its script says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::base::thread;

/// One connection of a scripted server.
pub(super) struct Peer<S = TcpStream> {
    pub(super) stream: S,
    /// Read and not used yet.
    ahead: Vec<u8>,
}

impl<S: Read + Write> Peer<S> {
    pub(super) fn new(stream: S) -> Self {
        Peer { stream, ahead: Vec::new() }
    }

    /// A whole request with `Content-Length`; `None` when the other side closed.
    pub(super) fn request(&mut self) -> Option<String> {
        let head = self.head()?;
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length: ").and_then(|value| value.parse::<usize>().ok())
        });
        while self.ahead.len() < length.unwrap_or(0) {
            self.more()?;
        }
        let body: Vec<u8> = self.ahead.drain(..length.unwrap_or(0)).collect();
        Some(head + &String::from_utf8_lossy(&body))
    }

    /// Only the head of a request.
    pub(super) fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..end + 4).collect();
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            self.more()?;
        }
    }

    /// Reads this many bytes, or fewer when the other side closes; says how many.
    pub(super) fn rest(&mut self, length: usize) -> usize {
        while self.ahead.len() < length && self.more().is_some() {}
        self.ahead.drain(..length.min(self.ahead.len())).len()
    }

    fn more(&mut self) -> Option<()> {
        let mut bytes = [0; 4096];
        let count = self.stream.read(&mut bytes).ok().filter(|count| *count > 0)?;
        self.ahead.extend_from_slice(&bytes[..count]);
        Some(())
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
        let _ = self.stream.flush();
    }

    /// One write for each byte.
    pub(super) fn drip(&mut self, bytes: &str) {
        for byte in bytes.bytes() {
            self.send([byte]);
            std::thread::yield_now();
        }
    }

    /// Answers with this body.
    pub(super) fn answer(&mut self, body: &str) {
        let length = body.len();
        self.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"));
    }

    /// Answers each request with this body until the other side closes.
    pub(super) fn answer_all(&mut self, body: &str) {
        while self.request().is_some() {
            self.answer(body);
        }
    }

    /// Reads until the other side closes.
    pub(super) fn until_closed(&mut self) {
        while self.more().is_some() {
            self.ahead.clear();
        }
    }
}

/// Listens, and runs the script for each connection, with its number, on a thread of its own. The
/// threads end with the process.
pub(super) fn serve(script: impl Fn(Peer, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(script);
    let accept = move || {
        for (number, stream) in listener.incoming().enumerate() {
            let stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let script = Arc::clone(&script);
            thread::spawn("peer", move || script(Peer::new(stream), number)).unwrap().abandon();
        }
    };
    thread::spawn("peer-accept", accept).unwrap().abandon();
    address
}
