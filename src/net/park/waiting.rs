//! Requests that wait: for a permit, as data, and for a worker, in the queue.

use crossbeam_channel::TrySendError;
use mio::Interest;
use std::sync::Arc;
use std::time::Instant;

use crate::base::error::{Error, Kind};
use crate::base::permits::Place;
use crate::net::conn::ClientConn;
use crate::net::inbox::Grant;
use crate::net::service::{GiveUp, Job, Wait};
use crate::net::workers::{Task, Work};

use super::{Park, State};

impl Park {
    pub(super) fn wait(
        &mut self,
        conn: Box<ClientConn>,
        job: Box<dyn Job>,
        wait: Wait,
        now: Instant,
    ) {
        let index = self.reserve();
        self.generations += 1;
        let generation = self.generations;
        let shared = Arc::clone(&self.shared);
        let place = wait.permits.acquire_or_wait(move |permit| {
            shared.inbox.grant(Grant { index, generation, permit });
        });
        match place {
            Place::Granted(permit) => {
                self.free.push(index);
                self.dispatch(conn, Work::Resume(job, Some(permit)), now);
            }
            Place::Full => {
                self.free.push(index);
                let context = "too many requests wait already; try again shortly";
                self.give_up(conn, job, Error::new(Kind::WaitingFull, context), now);
            }
            Place::Queued(ticket) => {
                let state = State::Wait { job, _ticket: ticket };
                self.put(index, generation, conn, state);
                // Readable: only to see that the client leaves.
                self.watch(index, Interest::READABLE);
                self.set_timer(index, Some(wait.deadline));
            }
        }
    }

    pub(super) fn granted(&mut self, grant: Grant, now: Instant) {
        let Grant { index, generation, permit } = grant;
        let waits = self.entries.get(index).and_then(Option::as_ref).is_some_and(|entry| {
            entry.generation == generation && matches!(entry.state, State::Wait { .. })
        });
        if !waits {
            // Gone meanwhile: dropping the permit passes it on.
            drop(permit);
            return;
        }
        if let Some(entry) = self.remove(index)
            && let State::Wait { job, .. } = entry.state
        {
            self.dispatch(entry.conn, Work::Resume(job, Some(permit)), now);
        }
    }

    pub(super) fn client_left(&mut self, index: usize) {
        if let Some(entry) = self.remove(index)
            && let State::Wait { job, .. } = entry.state
        {
            let error = Error::new(Kind::ClientGone, "the client left while its request waited");
            // For the log and the counters; there is nobody to send it to.
            let _ = job.give_up(error);
        }
    }

    /// When the oldest task of the queue will have waited for too long.
    pub(super) fn queue_deadline(&mut self) -> Option<Instant> {
        let gone = self.waiting.len().saturating_sub(self.queue.len());
        self.waiting.drain(..gone);
        self.waiting.front().map(|since| *since + self.shared.queue_timeout())
    }

    /// Refuses tasks whose time is over. Workers do it themselves as they take tasks; this is for
    /// when there is none to take any.
    pub(super) fn expire_queue(&mut self, now: Instant) {
        while self.queue_deadline().is_some_and(|deadline| deadline <= now) {
            let Some(task) = self.shared.take_queued() else { return };
            let late = self.shared.line.overdue(task.since, self.shared.queue_timeout(), now);
            match late {
                Some(error) => match task.work.turn_down(&self.shared, error) {
                    Ok(response) => self.respond(task.conn, &response, true, now),
                    Err(work) => self.dispatch(task.conn, work, now),
                },
                // A worker took the old one meanwhile. This one goes to the end of the line.
                None => self.enqueue(task, now),
            }
        }
    }

    pub(super) fn dispatch(&mut self, conn: Box<ClientConn>, work: Work, now: Instant) {
        self.enqueue(Task { conn, work, since: now }, now);
    }

    pub(super) fn enqueue(&mut self, task: Task, now: Instant) {
        let since = task.since;
        match self.queue.try_send(task) {
            Ok(()) => {
                let queued = self.queue.len();
                self.shared.queued.set_now(queued as u64);
                self.waiting.push_back(since);
                let gone = self.waiting.len().saturating_sub(queued);
                self.waiting.drain(..gone);
            }
            Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) => {
                self.shared.queued.refuse();
                let context = "all workers are busy and the queue is full; try again shortly";
                let error = Error::new(Kind::QueueFull, context);
                // What could do without a permit cannot do without a worker.
                if let Ok(response) = task.work.turn_down(&self.shared, error) {
                    self.respond(task.conn, &response, true, now);
                }
            }
        }
    }

    pub(super) fn give_up(
        &mut self,
        conn: Box<ClientConn>,
        job: Box<dyn Job>,
        error: Error,
        now: Instant,
    ) {
        match job.give_up(error) {
            GiveUp::Respond(response) => self.respond(conn, &response, true, now),
            GiveUp::GoOn(job) => self.dispatch(conn, Work::Resume(job, None), now),
        }
    }
}
