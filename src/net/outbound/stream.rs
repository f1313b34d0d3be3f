//! A connected socket, plain or under TLS. It never blocks: what would, says
//! [`io::ErrorKind::WouldBlock`].

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::sync::Arc;

use rustls::ClientConnection;
use socket2::Socket;

/// A connection's bytes.
pub(super) enum Stream {
    Plain(Arc<Socket>),
    Tls(Arc<Socket>, Box<ClientConnection>),
}

impl Stream {
    pub(super) fn socket(&self) -> &Arc<Socket> {
        match self {
            Stream::Plain(socket) | Stream::Tls(socket, _) => socket,
        }
    }

    /// Reads what there is. Zero is the end: under TLS only after a close_notify, without which it
    /// is [`io::ErrorKind::UnexpectedEof`].
    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => retry(|| (&**socket).read(buf)),
            Stream::Tls(socket, tls) => loop {
                match tls.reader().read(buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
                retry(|| tls.read_tls(&mut &**socket))?;
                tls.process_new_packets().map_err(io::Error::other)?;
                // Answers to the peer's own messages (key updates); they may wait.
                let _ = flush_tls(socket, tls);
            },
        }
    }

    /// Writes as much as goes, from `head` and then `body`.
    pub(super) fn write(&mut self, head: &[u8], body: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) if head.is_empty() => retry(|| socket.send(body)),
            Stream::Plain(socket) => {
                retry(|| socket.send_vectored(&[IoSlice::new(head), IoSlice::new(body)]))
            }
            Stream::Tls(socket, tls) => {
                // Bytes taken in before go first; rustls holds at most 64 KiB of them.
                flush_tls(socket, tls)?;
                let mut writer = tls.writer();
                let mut taken = writer.write(head)?;
                if taken == head.len() {
                    taken += writer.write(body)?;
                }
                match flush_tls(socket, tls) {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    _ => Ok(taken),
                }
            }
        }
    }

    /// Sends what TLS still holds back.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(_) => Ok(()),
            Stream::Tls(socket, tls) => flush_tls(socket, tls),
        }
    }

    /// Whether a read must be tried before a wait: data may have been taken off the socket already.
    pub(super) fn may_hold_data(&self) -> bool {
        matches!(self, Stream::Tls(..))
    }

    /// Whether an idle connection can carry another request: still open, and silent.
    pub(super) fn usable(&mut self) -> bool {
        let blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        match self {
            Stream::Plain(socket) => {
                let mut byte = [MaybeUninit::uninit(); 1];
                retry(|| socket.peek(&mut byte)).is_err_and(|error| blocked(&error))
            }
            // Session tickets may come late; a peek could not tell them from an end.
            Stream::Tls(..) => self.read(&mut [0]).is_err_and(|error| blocked(&error)),
        }
    }
}

/// Sends the records that TLS has made.
pub(super) fn flush_tls(socket: &Socket, tls: &mut ClientConnection) -> io::Result<()> {
    while tls.wants_write() {
        retry(|| tls.write_tls(&mut &*socket))?;
    }
    Ok(())
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
