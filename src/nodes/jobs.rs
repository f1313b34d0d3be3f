//! The method threads: a few for all connections. What they carry out must not take long.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::base::heartbeat::Heartbeats;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Limit;
use crate::base::thread::{self, Thread};

use super::limits::JOBS_MAX;
use super::line::Line;
use super::{Nodes, hello};

/// How many there are: as many as may wait for the disk, or for the main loop, at once, while the
/// others go on.
pub(super) const THREADS: usize = 4;

/// How long one may be at work: writing to the store and orders to the main loop have deadlines of
/// some seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The channel to them.
pub(super) type Jobs = Sender<Arc<Line>>;

/// The threads, and their channel.
#[derive(Debug)]
pub(super) struct Pool {
    inner: Locked<Inner>,
    gauge: Arc<Limit>,
}

#[derive(Debug)]
struct Inner {
    jobs: Option<Jobs>,
    /// Until the threads have it.
    queue: Option<Receiver<Arc<Line>>>,
    threads: Vec<Thread>,
}

impl Pool {
    /// No threads yet.
    pub(super) fn new(gauge: Arc<Limit>) -> Self {
        let (jobs, queue) = bounded(JOBS_MAX);
        let inner = Inner { jobs: Some(jobs), queue: Some(queue), threads: Vec::new() };
        Pool { inner: Locked::new(Rank::Leaf, inner), gauge }
    }

    /// Where jobs are put; starts the threads the first time. None: the room is closed.
    ///
    /// # Errors
    /// When the operating system refuses every thread.
    pub(super) fn open(&self, nodes: &Arc<Nodes>) -> io::Result<Option<Jobs>> {
        let (jobs, queue) = self.inner.with(|inner| (inner.jobs.clone(), inner.queue.take()));
        let Some(queue) = queue else { return Ok(jobs) };
        let (mut threads, mut refused) = (Vec::new(), None);
        for number in 1..=THREADS {
            match start(number, nodes, &queue) {
                Ok(thread) => threads.push(thread),
                Err(error) => refused = Some(error),
            }
        }
        let none = threads.is_empty();
        self.inner.with(|inner| {
            inner.threads.append(&mut threads);
            if none {
                inner.queue = Some(queue);
            }
        });
        match refused {
            Some(error) if none => Err(error),
            _ => Ok(jobs),
        }
    }

    /// Ends them, once every connection has let go of its end of the channel.
    pub(super) fn close(&self) -> Vec<Thread> {
        let (jobs, queue, threads) = self.inner.with(|inner| {
            (inner.jobs.take(), inner.queue.take(), std::mem::take(&mut inner.threads))
        });
        drop((jobs, queue));
        threads
    }

    /// Hands a message over; false: all threads are busy, and so many wait that this one must too.
    pub(super) fn put(&self, jobs: &Jobs, line: &Arc<Line>) -> bool {
        match jobs.try_send(Arc::clone(line)) {
            Ok(()) => {
                self.gauge.set_now(jobs.len() as u64);
                true
            }
            Err(TrySendError::Full(_)) => {
                self.gauge.refuse();
                false
            }
            // Only on the way out.
            Err(TrySendError::Disconnected(line)) => {
                line.cut();
                true
            }
        }
    }
}

fn start(number: usize, nodes: &Arc<Nodes>, queue: &Receiver<Arc<Line>>) -> io::Result<Thread> {
    let name = format!("nodes-{number}");
    let heartbeats: &Arc<Heartbeats> = &nodes.parts().heartbeats;
    let beat = heartbeats.register_one_of_many(&name, SILENCE_MAX);
    let (nodes, queue) = (Arc::downgrade(nodes), queue.clone());
    thread::spawn(&name, move || {
        loop {
            beat.rest();
            let Ok(line) = queue.recv() else { return };
            beat.tick();
            let Some(nodes) = nodes.upgrade() else { return };
            nodes.pool().gauge.set_now(queue.len() as u64);
            carry_out(&nodes, &line);
        }
    })
}

/// One message. A panic is an error of this request, and the connection goes on.
fn carry_out(nodes: &Arc<Nodes>, line: &Arc<Line>) {
    /// The connection reads on, whatever happens.
    struct Done<'a>(&'a Line);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.done();
        }
    }
    let _done = Done(line);
    let Some(message) = line.take() else { return };
    let ran = catch_unwind(AssertUnwindSafe(|| hello::message(nodes, line, &message)));
    if ran.is_err() {
        nodes.panicked();
        // Before it is known who it is there is nothing to go on with.
        if line.peer.identity().is_none() {
            line.peer.outbox().close(1011, "internal error");
        }
    }
    // It may have ended meanwhile: then what this has put there (a subscription, a call) came too
    // late to be taken away with the rest.
    if line.is_over() {
        nodes.gone(&line.peer);
    }
}
