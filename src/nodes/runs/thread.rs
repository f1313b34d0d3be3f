//! The thread `runs`: it reads what comes of all runs, tells it, and keeps their time. A run is data
//! here; nobody waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::heartbeat::Beat;
use crate::net::inward::{self, Came, InwardCall};
use crate::net::websocket::Bell;
use crate::nodes::run::{Delta, Ended, ErrorKind};

use super::Runs;
use super::tell::Audience;
use super::turn::RunId;

/// Reads of one run between two looks at the others.
const READS_MAX: usize = 4;

/// The longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// How long the thread may be at work: it reads some KiB of each run and puts frames into boxes.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A run whose answer is on its way.
struct Live {
    id: RunId,
    call: InwardCall,
    audience: Audience,
    ended: Option<Ended>,
}

/// The thread's life: until [`Runs::stop`].
pub fn run(runs: &Arc<Runs>, bell: &Bell, beat: &Beat) {
    let (mut lives, mut ready) = (Vec::new(), Vec::new());
    loop {
        beat.tick();
        let now = clock::now();
        let (arrived, stopping) = runs.arrived();
        for (id, call, session) in arrived {
            let audience = Audience::new(&session);
            let mut live = Live { id, call, audience, ended: None };
            guarded(runs, &mut live, |live| runs.begun(&live.id, &mut live.audience, now));
            lives.push(live);
        }
        for live in &mut lives {
            guarded(runs, live, |live| look(runs, live, now, stopping));
        }
        for live in lives.extract_if(.., |live| live.ended.is_some()) {
            let Live { id, call, mut audience, ended } = live;
            // First the upstream is let go, then everybody is told.
            drop(call);
            if let Some(ended) = ended {
                let told = AssertUnwindSafe(|| runs.ended(&id, ended, &mut audience));
                if catch_unwind(told).is_err() {
                    runs.panicked();
                }
            }
        }
        runs.look_after_others(now, stopping);
        if stopping && lives.is_empty() {
            return;
        }
        let until = lives.iter().filter_map(|live| runs.due(&live.id)).min();
        let until = until.into_iter().chain(runs.next_wait()).min().unwrap_or(now + SLEEP_MAX);
        inward::wait(bell, lives.iter().map(|live| &live.call), until, &mut ready);
        let now = clock::now();
        for (live, _) in lives.iter_mut().zip(&ready).filter(|(_, ready)| **ready) {
            guarded(runs, live, |live| read(runs, live, now));
        }
    }
}

/// Does something for one run. A panic costs that run, and says so.
fn guarded(runs: &Runs, live: &mut Live, step: impl FnOnce(&mut Live)) {
    if catch_unwind(AssertUnwindSafe(|| step(live))).is_err() {
        runs.panicked();
        let message = "a bug in the gateway ended this run; its log has the place".to_owned();
        live.ended = Some(Ended::Failed { message, kind: ErrorKind::Unknown, status: None });
    }
}

/// Looks at a run's time, and tells what is new of it.
fn look(runs: &Runs, live: &mut Live, now: Instant, stopping: bool) {
    if live.ended.is_some() {
        return;
    }
    let stopping = stopping.then(|| {
        let error = Error::new(Kind::Draining, "the gateway stopped before the answer was whole");
        Ended::by(&error)
    });
    live.ended = runs.verdict(&live.id, now).or(stopping);
    if live.audience.stale(now) {
        runs.refresh(&live.id, &mut live.audience, now);
    }
    if live.ended.is_none() {
        tell(runs, live, now, false);
    }
}

/// Tells what is new, when it is time, or when all is over.
fn tell(runs: &Runs, live: &mut Live, now: Instant, over: bool) {
    let news: Option<(Delta, String)> = runs.news(&live.id, now, over);
    if let Some((delta, text)) = news {
        runs.tell(&live.id, &mut live.audience, &delta, &text);
    }
}

/// Reads what came of a run.
fn read(runs: &Runs, live: &mut Live, now: Instant) {
    let mut bytes = Vec::new();
    for _ in 0..READS_MAX {
        bytes.clear();
        let came = live.call.read(&mut bytes);
        let status = live.call.head().map(|head| head.status);
        let mut ended = status.and_then(|status| runs.feed(&live.id, status, &bytes, now));
        match came {
            Ok(Came::Some) => {}
            Ok(Came::Nothing) if ended.is_none() => break,
            Ok(Came::Nothing) => {}
            Ok(Came::End) => ended = ended.or_else(|| runs.closed(&live.id, None)),
            Err(error) => ended = ended.or_else(|| runs.closed(&live.id, Some(&error))),
        }
        if ended.is_some() {
            live.ended = ended;
            break;
        }
    }
    tell(runs, live, now, live.ended.is_some());
}
