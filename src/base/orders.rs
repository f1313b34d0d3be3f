//! Orders to the main loop. Whoever wants something done that only the owner of the running parts can do
//! (a reload, a drain) puts an order on its desk and waits for the outcome under a deadline.
//!
//! The main loop carries out one order at a time, between signals: nothing else changes the running
//! parts, so nothing needs a lock.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use serde_json::Value;

use super::clock;
use super::error::{Error, Kind};
use super::heartbeat::{self, Doing};
use super::lock;
use super::metrics::{Limit, Registry};

/// Orders that wait for the main loop. Past it: 503.
pub const ORDERS_MAX: usize = 16;

/// What the main loop can be asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration file again, as SIGHUP does.
    Reload,
    /// Open the log files again, as SIGUSR1 does.
    Reopen,
    /// Drain and stop, as SIGTERM does.
    Stop,
    /// The same, with the exit code that asks to be started again.
    Restart,
    /// Change the configuration.
    Config {
        /// How.
        change: ConfigChange,
        /// Who wants it, for the history.
        author: String,
        /// Why.
        reason: String,
    },
}

/// A change of the configuration. What is `force`d goes on where it would be refused: over an edit of
/// the file that is not in force, which is kept aside, and with a content that was rolled back before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// A whole text takes its place.
    Apply {
        /// The text.
        text: String,
        /// What messages call it: the file that it was read from.
        name: String,
        /// SHA-256 of the configuration that it is a change of: the one in force, or what the file
        /// holds. Another one is a refusal.
        base: Option<String>,
        /// See above.
        force: bool,
    },
    /// Single settings, as `config::edit` calls them; no value takes one out of the file.
    Edit {
        /// Settings and values.
        edits: Vec<(String, Option<String>)>,
        /// As above.
        base: Option<String>,
        /// See above.
        force: bool,
    },
    /// An older version takes its place.
    Rollback {
        /// Its number; the one before the one in force when there is none.
        version: Option<u64>,
        /// See above.
        force: bool,
    },
    /// A setting is overridden for a time, and the file is not touched; no value ends that.
    Knob {
        /// The setting.
        key: String,
        /// Its value.
        value: Option<String>,
        /// For how long.
        span: std::time::Duration,
    },
}

/// An order and where its outcome goes.
#[derive(Debug)]
pub struct Asked {
    /// What is to be done.
    pub order: Order,
    reply: Sender<Result<Value, Error>>,
}

impl Asked {
    /// Tells the outcome. Whoever asked may have stopped waiting; that is no fault.
    pub fn answer(self, outcome: Result<Value, Error>) {
        let _ = self.reply.try_send(outcome);
    }
}

/// Where orders are put. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Desk {
    orders: Sender<Asked>,
    limit: Arc<Limit>,
}

impl Desk {
    /// A desk, and the end that the main loop takes orders from.
    pub fn new(registry: &Registry) -> (Self, Receiver<Asked>) {
        let (orders, taken) = bounded(ORDERS_MAX);
        let limit = registry.limit("orders_max", "", ORDERS_MAX as u64, "503");
        (Desk { orders, limit }, taken)
    }

    /// Has an order carried out, and waits for its outcome until `deadline`.
    ///
    /// # Errors
    /// What the order came to, [`Kind::QueueFull`] when too many wait, [`Kind::QueueTimeout`] when
    /// there is no outcome in time (it may still come about), [`Kind::Draining`] when the loop has ended.
    pub fn ask(&self, order: Order, deadline: Instant) -> Result<Value, Error> {
        lock::assert_none_held();
        let (reply, outcome) = bounded(1);
        self.orders.try_send(Asked { order, reply }).map_err(|fault| match fault {
            TrySendError::Full(_) => {
                self.limit.refuse();
                Error::new(Kind::QueueFull, "too many orders wait; try again")
            }
            TrySendError::Disconnected(_) => ended(),
        })?;
        self.limit.set_now(self.orders.len() as u64);
        let wait = deadline.saturating_duration_since(clock::now());
        let _waiting = heartbeat::waiting(Doing::Answer, deadline);
        match outcome.recv_timeout(wait) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                let text = "no outcome in time; the order may still be carried out";
                Err(Error::new(Kind::QueueTimeout, text))
            }
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }

    /// To be called when orders were taken, for the gauge.
    pub fn taken(&self) {
        self.limit.set_now(self.orders.len() as u64);
    }
}

fn ended() -> Error {
    Error::new(Kind::Draining, "the daemon is on its way out")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        clock::now() + Duration::from_secs(10)
    }

    #[test]
    fn an_outcome_comes_back_to_whoever_asked() {
        let (desk, orders) = Desk::new(&Registry::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let asked = orders.recv().unwrap();
                assert_eq!(asked.order, Order::Reload);
                asked.answer(Ok(Value::from(7)));
            });
            assert_eq!(desk.ask(Order::Reload, soon()).unwrap(), 7);
        });
    }

    #[test]
    fn too_many_orders_late_ones_and_an_ended_loop_are_told_apart() {
        let registry = Registry::default();
        let (desk, orders) = Desk::new(&registry);
        let kind = |outcome: Result<Value, Error>| outcome.unwrap_err().kind();
        for _ in 0..ORDERS_MAX {
            assert_eq!(kind(desk.ask(Order::Stop, clock::now())), Kind::QueueTimeout);
        }
        assert_eq!(kind(desk.ask(Order::Stop, soon())), Kind::QueueFull);
        let limit = &registry.limits()[0].limit;
        assert_eq!((limit.now(), limit.refused()), (ORDERS_MAX as u64, 1));
        // Whoever stopped waiting does not stop the loop.
        orders.recv().unwrap().answer(Ok(Value::Null));
        desk.taken();
        assert_eq!(limit.now(), ORDERS_MAX as u64 - 1);
        drop(orders);
        assert_eq!(kind(desk.ask(Order::Stop, soon())), Kind::Draining);
    }
}
