//! Answers on their way out: what the socket did not take at once, and connections that linger so that
//! their answer arrives.

use mio::Interest;
use std::time::Instant;

use crate::base::clock;
use crate::net::conn::{ClientConn, Fill};
use crate::net::http::Response;
use crate::net::intake::Refusal;
use crate::net::respond;
use crate::net::settings::{DRAIN_TIMEOUT, LINGER_BYTES_MAX, LINGER_TIMEOUT, PARK_READ_BYTES_MAX};
use crate::net::unsent::{Sent, Unsent};
use crate::net::websocket::Taker;

use super::{ANSWER_REST_MIN, Linger, Park, State};

impl Park {
    pub(super) fn refuse(&mut self, mut conn: Box<ClientConn>, refusal: Refusal, now: Instant) {
        let Refusal { response, current, drain } = refusal;
        conn.current = Some(current);
        conn.drain = drain;
        self.respond(conn, &response, true, now);
    }

    pub(super) fn respond(
        &mut self,
        mut conn: Box<ClientConn>,
        response: &Response,
        keep: bool,
        now: Instant,
    ) {
        let Some(current) = conn.current.take() else { return };
        let keep_alive = keep && current.keep_alive && self.shared.keeps_connections();
        let mut out = Vec::with_capacity(512 + response.body.len());
        respond::whole(&mut out, response, &current, keep_alive, self.shared.pressure.notice());
        self.flush(conn, out, !keep_alive, now);
    }

    /// Sends what the socket takes; waits for the rest while there is progress, and not past
    /// `server.request_timeout`.
    pub(super) fn flush(&mut self, conn: Box<ClientConn>, out: Vec<u8>, close: bool, now: Instant) {
        let end_by = now + self.shared.settings.load().request_timeout;
        let mut unsent = Unsent::new(out, close, now, end_by);
        match unsent.send(&conn, now) {
            Ok(Sent::All) => self.answered(conn, close, now),
            Ok(Sent::Rest) => self.hold(conn, unsent, now),
            Err(_) => {}
        }
    }

    /// Sends the rest of a 101, which is rare: the socket was full of an answer before it.
    pub(super) fn upgrade(
        &mut self,
        conn: Box<ClientConn>,
        out: Vec<u8>,
        taker: Taker,
        now: Instant,
    ) {
        let end_by = now + self.shared.settings.load().request_timeout;
        let mut unsent = Unsent::new(out, true, now, end_by);
        match unsent.send(&conn, now) {
            Ok(Sent::All) => taker(conn.upgraded()),
            Ok(Sent::Rest) => {
                unsent.taker = Some(taker);
                self.hold(conn, unsent, now);
            }
            Err(_) => {}
        }
    }

    /// Keeps the rest of an answer, if there is memory for it.
    pub(super) fn hold(&mut self, conn: Box<ClientConn>, mut unsent: Unsent, now: Instant) {
        let bytes = unsent.len() as u64;
        let mut held = self.shared.answers.try_take(bytes);
        while held.is_none() && self.give_up_an_answer(now) {
            held = self.shared.answers.try_take(bytes);
        }
        let Some(held) = held else {
            self.shared.answers_cut.inc();
            return;
        };
        unsent.hold(held);
        let deadline = unsent.deadline(self.shared.settings.load().write_timeout);
        let index = self.insert(conn, State::Flush(unsent));
        self.watch(index, Interest::WRITABLE);
        self.set_timer(index, Some(deadline));
    }

    /// Closes the connection whose client has taken nothing for longest, to make room for another
    /// answer. False when there is none that stands still.
    pub(super) fn give_up_an_answer(&mut self, now: Instant) -> bool {
        let entries = self.entries.iter().enumerate();
        let waiting = entries.filter_map(|(index, entry)| match &entry.as_ref()?.state {
            State::Flush(unsent) => Some((unsent.moved(), index)),
            _ => None,
        });
        let Some((moved, index)) = waiting.min() else { return false };
        if now.saturating_duration_since(moved) < ANSWER_REST_MIN {
            return false;
        }
        self.shared.answers_cut.inc();
        self.remove(index);
        true
    }

    /// Goes on with an answer that was held.
    pub(super) fn send_on(&mut self, index: usize, now: Instant) {
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        let State::Flush(unsent) = &mut entry.state else { return };
        let write_timeout = self.shared.settings.load().write_timeout;
        match unsent.send(&entry.conn, now) {
            Ok(Sent::Rest) if unsent.late(write_timeout, now) => {
                self.shared.stalled.inc();
                self.remove(index);
            }
            Ok(Sent::Rest) => {
                let deadline = unsent.deadline(write_timeout);
                self.set_timer(index, Some(deadline));
            }
            Ok(Sent::All) => {
                let (close, taker) = (unsent.close, unsent.taker.take());
                if let Some(entry) = self.remove(index) {
                    match taker {
                        Some(taker) => taker(entry.conn.upgraded()),
                        None => self.answered(entry.conn, close, now),
                    }
                }
            }
            Err(_) => {
                self.remove(index);
            }
        }
    }

    /// The client has its answer, or the kernel for it.
    pub(super) fn answered(&mut self, mut conn: Box<ClientConn>, close: bool, now: Instant) {
        if close {
            conn.shut_write();
            self.linger(conn, now);
        } else {
            conn.drain = 0;
            // Read in the next round, not here: a client that sends one request after another
            // that is refused would take this thread, and its stack, for itself.
            let index = self.insert(conn, State::Next);
            self.rest(index, now);
            self.again.push(index);
        }
    }

    /// Reads on for a while behind an answer after which the connection is closed: closed now, what
    /// the client still sends would reset the answer away (RFC 9112 section 9.6).
    pub(super) fn linger(&mut self, conn: Box<ClientConn>, now: Instant) {
        let drain = if conn.drain > 0 { self.shared.drains.try_take(1) } else { None };
        let (left, time) = match drain {
            Some(_) => (conn.drain.max(LINGER_BYTES_MAX), DRAIN_TIMEOUT),
            None => (LINGER_BYTES_MAX, LINGER_TIMEOUT),
        };
        let until = now + time;
        let index = self.insert(conn, State::Linger(Linger { left, until, _drain: drain }));
        self.watch(index, Interest::READABLE);
        self.set_timer(index, Some(until));
        // It may make room for a newcomer, as an idle one may.
        self.set_idle(index, Some(now));
        self.discard(index);
    }

    /// Throws away what came, a part of it at a time: others want to be looked at too.
    pub(super) fn discard(&mut self, index: usize) {
        let mut budget = PARK_READ_BYTES_MAX;
        while budget > 0 {
            let Some(Some(entry)) = self.entries.get_mut(index) else { return };
            let State::Linger(linger) = &mut entry.state else { return };
            match entry.conn.discard() {
                Ok(Fill::Bytes(n)) if n as u64 <= linger.left => {
                    linger.left -= n as u64;
                    budget = budget.saturating_sub(n);
                }
                Ok(Fill::Nothing) if clock::now() < linger.until => return,
                _ => {
                    self.remove(index);
                    return;
                }
            }
        }
        self.again.push(index);
    }
}
