//! A drill: a worker that hangs for good, on purpose, so that an operator (and a test) can see that it is
//! noticed and named while everybody else is answered.
//!
//! Only in a daemon that was started with `TIDEGATE_DRILLS=1`. A call of the model
//! `echo/drill-deadlock` then waits for a lock that the thread `drill` holds until a call of
//! `echo/drill-release` comes. `GET /drill/ws-echo` is a WebSocket that sends back what it is sent.

mod echo;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use crate::base::lock::{Locked, Rank};
use crate::base::thread::{self, Thread};

pub use echo::Echoes;

/// The variable that allows drills.
const VARIABLE: &str = "TIDEGATE_DRILLS";

/// The model of `echo` that hangs.
const DEADLOCK: &str = "drill-deadlock";
/// The model of `echo` that ends the drill.
const RELEASE: &str = "drill-release";

/// How long the thread may take to have the lock.
const BEGIN_MAX: Duration = Duration::from_secs(5);

/// The drill of a daemon that allows them.
#[derive(Debug)]
pub struct Drill {
    lock: Arc<Locked<()>>,
    running: Locked<Option<Holder>>,
    /// WebSocket connections that send back what they are sent.
    pub echoes: Echoes,
}

/// Who holds the lock. The channel's end lets it go; it comes first, so that the thread can end.
#[derive(Debug)]
struct Holder {
    release: Sender<()>,
    thread: Thread,
}

impl Drill {
    /// The drill, where the environment allows one.
    pub fn allowed(variable: &dyn Fn(&str) -> Option<String>) -> Option<Arc<Drill>> {
        let allowed = variable(VARIABLE).is_some_and(|value| value == "1");
        allowed.then(|| {
            log::warn!(remedy = "start without TIDEGATE_DRILLS to end this"; "drills_allowed");
            Arc::new(Drill {
                lock: Arc::new(Locked::new(Rank::Drill, ())),
                running: Locked::new(Rank::Guard, None),
                echoes: Echoes::default(),
            })
        })
    }

    /// Does what the model's name asks for, if anything.
    pub fn look(&self, model: &str) {
        match model {
            DEADLOCK => self.hang(),
            RELEASE => self.release(),
            _ => {}
        }
    }

    fn hang(&self) {
        if self.running.with(|running| running.is_none()) {
            let (release, released) = bounded::<()>(1);
            let (holding, held) = bounded(1);
            let lock = Arc::clone(&self.lock);
            let hold = move || {
                lock.with(|()| {
                    let _ = holding.try_send(());
                    // The very thing that nobody else may do: to wait while a lock is held.
                    let _ = released.recv();
                });
            };
            let Ok(thread) = thread::spawn("drill", hold) else { return };
            let _ = held.recv_timeout(BEGIN_MAX);
            let late = self.running.with(|running| match running {
                None => {
                    *running = Some(Holder { release, thread });
                    None
                }
                Some(_) => Some(Holder { release, thread }),
            });
            // Somebody else began one meanwhile: it ends before this call hangs on the other.
            end(late);
        }
        self.lock.with(|()| {});
    }

    fn release(&self) {
        end(self.running.with(Option::take));
    }
}

fn end(holder: Option<Holder>) {
    if let Some(Holder { release, thread }) = holder {
        drop(release);
        thread.join();
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::base::heartbeat::{Doing, Heartbeats};

    #[test]
    fn a_drill_hangs_until_it_is_released_and_only_where_it_is_allowed() {
        assert!(Drill::allowed(&|_| None).is_none());
        assert!(Drill::allowed(&|_| Some("0".to_owned())).is_none());
        let drill = Drill::allowed(&|name| (name == VARIABLE).then(|| "1".to_owned())).unwrap();
        drill.look("echo");
        let beats = Arc::<Heartbeats>::default();
        std::thread::scope(|scope| {
            let hangs = scope.spawn(|| {
                let beat = beats.register_one_of_many("data-1", Duration::from_secs(1));
                beat.tick();
                drill.look(DEADLOCK);
            });
            let hung = |doing| beats.pulses(clock::now()).iter().any(|pulse| pulse.doing == doing);
            while !hung(Doing::Lock(Rank::Drill)) {
                std::thread::yield_now();
            }
            assert!(!hangs.is_finished());
            drill.look(RELEASE);
            hangs.join().unwrap();
        });
    }
}
