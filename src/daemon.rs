//! `tidegate run`: start order, phases, signals, reload, drain, stop.
//!
//! One loop over one closed set of events. It starts bottom-up (log, links, ops plane, data plane)
//! and stops top-down.

mod control;
mod dependencies;
mod change;
mod descriptors;
mod drain;
mod folders;
mod health;
mod history;
mod manager;
mod nodes;
mod orders;
mod overload;
mod planes;
mod recovery;
mod reload;
mod running;
mod signals;
mod versions;

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, select};

use crate::base::exit::Exit;
use crate::base::health::Phase;
use crate::base::memory;
use crate::config;

use running::{Refusal, Running};
use signals::{Event, Signals};

/// How often the loop looks after things that nobody else does (old idle connections).
const TICK: Duration = Duration::from_secs(1);

/// How long the last log lines may take.
const LOG_STOP_MAX: Duration = Duration::from_secs(2);

/// Runs the gateway until it is told to stop. `config_path` is that of `--config`.
pub fn run(config_path: Option<PathBuf>) -> Exit {
    memory::settle();
    // Before anything else: a signal that comes early must not kill half a start.
    let signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => return failed("signals cannot be caught", &error),
    };
    let booted = match config::boot::boot(config_path.clone()) {
        Ok(booted) => booted,
        Err(faults) => {
            remark(&faults.to_string());
            return Exit::Config;
        }
    };
    let excuse = booted.excuse();
    let running = match Running::start(config_path, booted) {
        Ok(running) => running,
        Err(refusal) => {
            if matches!(refusal, Refusal::Listen { .. }) {
                excuse.no_address();
            }
            remark(&format!("tidegate: {refusal}"));
            return Exit::Failure;
        }
    };
    serve(running, &signals)
}

/// The loop. Ends with the process.
fn serve(mut running: Running, signals: &Signals) -> Exit {
    running.board.set_phase(Phase::Ready);
    running.manager.ready("ready");
    log::info!(
        data = running.data_address().to_string(),
        ops = running.ops_address().to_string(),
        config = running.config_name(),
        config_version = running.keeping.name(),
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION");
        "ready"
    );
    let (name, consequence) = ("signals_max", "dropped: the same ones wait already");
    let waiting = running.registry.limit(name, "", signals::EVENTS_MAX as u64, consequence);
    loop {
        let (mut event, mut asked) = (Err(RecvTimeoutError::Timeout), None);
        select! {
            recv(signals.events) -> signal => event = signal.map_err(RecvTimeoutError::from),
            // The running parts hold a desk, so there is always somebody who may ask.
            recv(running.orders) -> order => asked = order.ok(),
            default(TICK) => {}
        }
        waiting.set_now(signals.events.len() as u64);
        running.desk.taken();
        // After events too: signals without a pause must not look like a loop that hangs.
        running.tick();
        match event {
            Err(RecvTimeoutError::Timeout) => {}
            // The log says why it was refused.
            Ok(Event::Reload) => drop(running.reload()),
            Ok(Event::Reopen) => running.reopen(),
            // Without the signal thread nobody could stop us any more.
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some(asked) = asked
            && orders::carry_out(&mut running, asked)
        {
            break;
        }
    }
    drain::drain(running, signals)
}

fn failed(what: &str, error: &std::io::Error) -> Exit {
    remark(&format!("tidegate: {what}: {error}"));
    Exit::Failure
}

/// A line on standard error, for faults that come before there is a log. When that fails there is
/// nobody left to tell.
fn remark(line: &str) {
    use std::io::Write;
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
