//! A worker serves a connection: one request, and those that follow at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::conn::{ClientConn, Current, Fill};
use super::engine::Shared;
use super::http::{Request, Response};
use super::intake::Advance;
use super::park::Purpose;
use super::pump::Entering;
use super::respond;
use super::service::Step;
use super::settings::TURNS_MAX;
use super::turn::{OUT_BYTES_KEPT, Turn};
use super::websocket::{Accept, Taker};
use super::workers::{Occupied, Task, Work};
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::heartbeat::Beat;
use crate::base::permits::Permit;

/// What a worker keeps between requests.
#[derive(Default)]
pub struct Scratch {
    out: Vec<u8>,
    /// The right to run, of what goes on elsewhere.
    pub(super) slot: Option<Permit>,
}

/// What comes after an answer.
enum Next {
    /// Another request of the same connection is complete.
    Request(Box<Request>),
    /// The connection is somebody else's now, or closed.
    Done,
}

/// Serves `task`, and the requests behind it on the same connection for as long as that is right.
/// With `late` the first one is refused: it waited for a worker for too long.
pub fn serve(
    shared: &Arc<Shared>,
    task: Task,
    late: Option<Error>,
    scratch: &mut Scratch,
    beat: &Beat,
) {
    let Task { mut conn, work, .. } = task;
    let mut occupied: Option<Occupied> = None;
    let mut turns = 0;
    let mut work = match late {
        Some(error) => work.turn_down(shared, error),
        None => Err(work),
    };
    loop {
        let (keep, step) = match work {
            Ok(response) => (true, Step::Respond(response)),
            Err(work) => turn(shared, &mut conn, work, &mut occupied, scratch, false),
        };
        turns += 1;
        let next = match step {
            Step::Respond(response) => match respond_now(shared, conn, &response, keep, scratch) {
                Some(same) => {
                    conn = same;
                    following(shared, &mut conn, &mut occupied, turns)
                }
                None => return,
            },
            Step::Streamed { keep_alive: true } => {
                following(shared, &mut conn, &mut occupied, turns)
            }
            Step::Streamed { keep_alive: false } => {
                finish(shared, conn);
                return;
            }
            Step::Flow { flow, bytes } => {
                let chunked = conn.current.as_ref().is_some_and(|current| current.http11);
                let slot = scratch.slot.take();
                if let Some(pump) = shared.pump() {
                    pump.enter(Entering::Flow { conn, flow, slot, chunked, bytes });
                }
                return;
            }
            Step::Ask(call) => {
                let slot = scratch.slot.take();
                if let Some(pump) = shared.pump() {
                    pump.enter(Entering::Call { conn, call, slot });
                }
                return;
            }
            Step::Wait(job, wait) => {
                shared.inbox.park(conn, Purpose::Wait { job, wait });
                return;
            }
            Step::Upgrade { accept, taker } => {
                upgrade(shared, conn, &accept, taker);
                return;
            }
            Step::Defer(job) => {
                let slot = scratch.slot.take();
                shared.inbox.park(conn, Purpose::Resume { job, slot });
                return;
            }
        };
        match next {
            Next::Request(request) => {
                beat.tick();
                work = Err(Work::Start(request));
            }
            Next::Done => {
                // `following` says so only while the connection is ours: hand it on.
                shared.inbox.park(conn, Purpose::Next);
                return;
            }
        }
    }
}

/// Runs one turn. A panic is a 500, or the end of an answer that has begun, and a closed connection;
/// the worker lives.
pub(super) fn turn(
    shared: &Arc<Shared>,
    conn: &mut ClientConn,
    work: Work,
    occupied: &mut Option<Occupied>,
    scratch: &mut Scratch,
    on_pump: bool,
) -> (bool, Step) {
    if let Work::Start(request) = &work {
        conn.current = Some(Current::of_request(request));
    }
    let mut turn = Turn { shared, conn, occupied, slot: None, out: &mut scratch.out, on_pump };
    let ran = catch_unwind(AssertUnwindSafe(|| match work {
        Work::Start(request) => shared.service.start(*request, &mut turn),
        Work::Resume(job, permit) => job.run(permit, &mut turn),
    }));
    let slot = turn.slot.take();
    // What goes on elsewhere takes its slot along.
    let goes_on = matches!(ran, Ok(Step::Flow { .. } | Step::Ask(_) | Step::Defer(_)));
    scratch.slot = slot.filter(|_| goes_on);
    match ran {
        Ok(step) => (true, step),
        Err(_) => {
            shared.panics.inc();
            let error = Error::new(Kind::Internal, "a bug in the gateway; its log has the place");
            let step = match conn.current.as_ref() {
                Some(current) if !current.begun => {
                    Step::Respond(shared.service.broken(&error, current.route))
                }
                // A second head within the first answer would be taken for a part of it.
                _ => Step::Streamed { keep_alive: false },
            };
            (false, step)
        }
    }
}

/// Sends a 101 without blocking, and hands the connection over; what the socket does not take now
/// is parked.
pub(super) fn upgrade(shared: &Arc<Shared>, conn: Box<ClientConn>, accept: &Accept, taker: Taker) {
    let Some(current) = conn.current.as_ref() else { return };
    let mut out = accept.head(current);
    let Ok(sent) = conn.send_now(&out) else { return };
    if sent == out.len() {
        taker(conn.upgraded());
    } else {
        out.drain(..sent);
        shared.inbox.park(conn, Purpose::Upgrade { out, taker });
    }
}

/// Sends a whole answer without blocking; what the socket does not take now is parked. The
/// connection comes back when it can go on.
fn respond_now(
    shared: &Arc<Shared>,
    conn: Box<ClientConn>,
    response: &Response,
    keep: bool,
    scratch: &mut Scratch,
) -> Option<Box<ClientConn>> {
    let current = conn.current.as_ref()?;
    let keep_alive = keep && current.keep_alive && shared.keeps_connections();
    let out = &mut scratch.out;
    out.clear();
    respond::whole(out, response, current, keep_alive, shared.pressure.notice());
    let sent = match conn.send_now(out) {
        Ok(sent) => sent,
        Err(_) => return None,
    };
    let rest = (sent < out.len()).then(|| out.split_off(sent));
    if out.capacity() > OUT_BYTES_KEPT {
        *out = Vec::new();
    }
    if let Some(rest) = rest {
        shared.inbox.park(conn, Purpose::Flush { out: rest, close: !keep_alive });
        return None;
    }
    if !keep_alive {
        finish(shared, conn);
        return None;
    }
    Some(conn)
}

/// Ends a connection after its last answer, so that the answer arrives.
fn finish(shared: &Arc<Shared>, conn: Box<ClientConn>) {
    conn.shut_write();
    shared.inbox.park(conn, Purpose::Linger);
}

/// Looks for the next request: in what was read already, then, when other workers are free, in
/// what comes within a moment.
fn following(
    shared: &Arc<Shared>,
    conn: &mut ClientConn,
    occupied: &mut Option<Occupied>,
    turns: u32,
) -> Next {
    conn.current = None;
    if turns >= TURNS_MAX && !shared.queue_empty() {
        return Next::Done;
    }
    loop {
        if !conn.input.is_empty() {
            let settings = shared.settings.load();
            let env = shared.env(&settings, conn.peer());
            match conn.intake.advance(&mut conn.input, &env, clock::now()) {
                Advance::Ready(request) => return Next::Request(request),
                Advance::More => {}
                // Rare: the parking thread knows what to do with these.
                Advance::NoRoom => return Next::Done,
                Advance::Continue => {
                    let _ = conn.send_now(super::http1::CONTINUE);
                    return Next::Done;
                }
                Advance::Refuse(refusal) => {
                    conn.refusal = Some(refusal);
                    return Next::Done;
                }
            }
        }
        if !conn.intake.idle() || shared.draining() {
            return Next::Done;
        }
        // At the cap the connection must be in the parking lot, where it can make room.
        if shared.connections.now() >= shared.connections.max() {
            return Next::Done;
        }
        if occupied.is_none() {
            *occupied = Occupied::begin_if_free(shared);
        }
        if occupied.is_none() {
            return Next::Done;
        }
        match conn.fill(true) {
            Ok(Fill::Bytes(_)) => {}
            // The parking thread finds the close again, and is the one place that deals with it.
            Ok(Fill::Closed | Fill::Nothing) | Err(_) => return Next::Done,
        }
    }
}
