//! The way out: no new connections, answers finish, streams that do not end with an error of
//! their own dialect, then everything stops.

use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::exit::Exit;
use crate::base::health::Phase;

use super::LOG_STOP_MAX;
use super::running::Running;
use super::signals::{Event, Signals};

/// How often it looks whether everything is done.
const LOOK: Duration = Duration::from_millis(20);

/// After the deadline: how long the last in-band errors may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the ops plane may take to end.
const OPS_STOP_MAX: Duration = Duration::from_secs(1);

/// How long the books may take to be loaded, when there was no time for it before.
const LOAD_MAX: Duration = Duration::from_secs(1);

/// How long the store may take to write what waits.
const STORE_STOP_MAX: Duration = Duration::from_secs(5);

/// Drains and stops.
pub fn drain(running: Running, signals: &Signals) -> Exit {
    let timeout = running.config.server.drain_timeout;
    running.board.set_phase(Phase::Draining);
    log::info!(timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX); "draining");
    running.manager.stopping(timeout + LAST_WORDS + OPS_STOP_MAX + LOG_STOP_MAX);
    let mut running = running;
    running.drain_nodes(timeout);
    running.data.begin_drain();
    let patient = wait(&mut running, signals, clock::now() + timeout);
    if !running.drained() {
        running.nodes.hurry();
        let cut = running.calls.cancel_all();
        log::warn!(requests = cut, second_signal = !patient; "drain_cut");
        let last_words = if patient { LAST_WORDS } else { Duration::from_millis(200) };
        let until = clock::now() + last_words;
        while !running.drained() && clock::now() < until {
            std::thread::sleep(LOOK);
        }
    }
    running.board.set_phase(Phase::Stopping);
    running.alarm.stop();
    running.health.stop();
    running.keeping.stopped();
    running.watch.stop();
    running.recorder.stop();
    let late = running.stop_nodes(LAST_WORDS)
        + running.data.stop(clock::now() + LAST_WORDS)
        + running.catalog.stop(clock::now() + LAST_WORDS);
    if late > 0 {
        log::error!(threads = late; "threads_left_behind");
    }
    let until = clock::now() + OPS_STOP_MAX;
    let late = running.control.as_mut().map_or(0, |control| control.stop(until));
    if late > 0 {
        log::warn!(threads = late; "control_threads_left_behind");
    }
    running.ops.stop(clock::now() + OPS_STOP_MAX);
    running.keeper.finish(clock::now() + LOAD_MAX);
    if !running.store.stop(clock::now() + STORE_STOP_MAX) {
        log::error!("store_left_behind");
    }
    log::info!("stopped");
    let exit = running.exit;
    running.log.stop(LOG_STOP_MAX);
    exit
}

/// Waits until all is done or the deadline; false when a second signal came.
fn wait(running: &mut Running, signals: &Signals, deadline: Instant) -> bool {
    while !running.drained() && clock::now() < deadline {
        while let Ok(asked) = running.orders.try_recv() {
            asked.answer(Err(Error::new(Kind::Draining, "the daemon is on its way out")));
        }
        match signals.events.recv_timeout(LOOK) {
            Ok(Event::Stop) => return false,
            Ok(Event::Reopen) => running.log.reopen(),
            Ok(Event::Reload) => log::warn!("reload_refused_while_draining"),
            Err(RecvTimeoutError::Timeout) => running.tick(),
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
    }
    true
}
