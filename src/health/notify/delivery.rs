//! The thread `notify`: it sends what the queue says, keeps Alertmanager told of what goes on, and asks the
//! address of the dead man's switch.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::queue::{Entry, Next};
use super::{Outcome, Sender, alertmanager};
use crate::base::clock;
use crate::base::error::Phase;
use crate::base::heartbeat::{Beat, Doing};
use crate::config::settings::alerts::ChannelKind;
use crate::health::alerts::service::Handle;
use crate::health::alerts::{At, keep};

/// What may become of a delivery, in metrics.
pub(in crate::health) const OUTCOMES: [&str; 4] = ["delivered", "later", "refused", "given_up"];

/// The longest wait without a look at what is due.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Slack beyond a call's own deadline before the thread counts as one that hangs.
const SLACK: Duration = Duration::from_secs(10);
/// How long a request of the dead man's switch may take.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until the channel closes.
pub(in crate::health) fn run(handle: &Arc<Handle>, stopped: &Receiver<()>, beat: &Beat) {
    let mut work = Work {
        handle,
        beat,
        resent: Vec::new(),
        heartbeat_at: clock::now(),
        looks: 0,
        dice: handle.now().0 | 1,
    };
    loop {
        let wait = work.turn();
        if stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected) {
            return;
        }
        if wait.is_zero() {
            continue;
        }
        beat.waits(Doing::Queue, clock::now() + wait);
        select! {
            recv(stopped) -> _ => return,
            recv(handle.nudged) -> _ => {}
            default(wait) => {}
        }
        beat.tick();
    }
}

struct Work<'a> {
    handle: &'a Arc<Handle>,
    beat: &'a Beat,
    /// When each Alertmanager was last told of what goes on.
    resent: Vec<(String, At)>,
    /// When the dead man's switch is asked next.
    heartbeat_at: Instant,
    /// The looks of the other thread at the last of these requests.
    looks: u64,
    dice: u64,
}

impl Work<'_> {
    /// One thing that is due; then how long nothing else is.
    fn turn(&mut self) -> Duration {
        let handle = self.handle;
        self.heartbeat();
        let calls = handle.calls.load_full();
        for sender in &calls.senders {
            self.resend(sender);
        }
        let now = handle.now();
        let entry = match handle.queue.with(|queue| queue.next(now)) {
            Next::Send(entry) => entry,
            Next::Wait(at) => {
                return handle.timeline.until(at).clamp(Duration::from_millis(1), WAIT_MAX);
            }
            Next::Idle => return self.idle(),
        };
        let Some(sender) = calls.senders.iter().find(|s| s.channel().name == entry.channel) else {
            // Between two configurations.
            return Duration::from_millis(10);
        };
        self.deliver(sender, &entry);
        Duration::ZERO
    }

    /// Until something else than a notice is due.
    fn idle(&self) -> Duration {
        let settings = self.handle.settings.load();
        let resend = settings.channels.iter().filter(|c| c.kind == ChannelKind::Alertmanager);
        let resend = resend.map(|channel| channel.resend).min().unwrap_or(WAIT_MAX);
        let heartbeat = match settings.heartbeat {
            Some(_) => self.heartbeat_at.saturating_duration_since(clock::now()),
            None => WAIT_MAX,
        };
        WAIT_MAX.min(resend).min(heartbeat).max(Duration::from_millis(10))
    }

    fn deliver(&mut self, sender: &Sender, entry: &Entry) {
        let handle = self.handle;
        self.calling(sender.channel().timeout);
        let outcome = sender.send(&entry.notice, &handle.context());
        self.beat.tick();
        let jitter = self.jitter();
        let now = handle.now();
        let over = handle.queue.with(|queue| queue.done(entry, &outcome, now, jitter));
        let word = match &outcome {
            Outcome::Delivered { .. } => "delivered",
            Outcome::Later { .. } => "later",
            Outcome::Refused { .. } => "refused",
        };
        handle.count(&entry.channel, word).inc();
        match (over, outcome) {
            (None, Outcome::Later { why, .. }) => {
                log::warn!(channel = entry.channel.as_str(), why = why; "alert_not_delivered");
                keep::tried(handle, entry);
            }
            (None, _) => {}
            (Some(over), outcome) => {
                keep::done(handle, std::slice::from_ref(&over));
                if let Outcome::Refused { why, .. } = outcome {
                    handle.give_up(vec![over], &why, now);
                }
            }
        }
    }

    /// Alertmanager takes what it does not hear of again for over.
    fn resend(&mut self, sender: &Sender) {
        let (handle, channel) = (self.handle, sender.channel());
        if channel.kind != ChannelKind::Alertmanager {
            return;
        }
        let now = handle.now();
        let known = self.resent.iter().position(|(name, _)| *name == channel.name);
        let Some((_, at)) = known.and_then(|known| self.resent.get_mut(known)) else {
            // One for each channel: few.
            let senders = &handle.calls.load().senders;
            self.resent.retain(|(name, _)| senders.iter().any(|s| s.channel().name == *name));
            self.resent.push((channel.name.clone(), now));
            return;
        };
        let lane = handle
            .queue
            .with(|queue| queue.lanes().into_iter().find(|(have, _, _)| have.name == channel.name));
        let left_alone = lane.is_some_and(|(_, lane, _)| lane.not_before > now);
        if now.since(*at) < channel.resend || left_alone {
            return;
        }
        *at = now;
        let items = handle.resent(channel);
        if items.is_empty() {
            return;
        }
        self.calling(channel.timeout);
        let outcome = sender.post(&alertmanager::message(channel, &items, &handle.context()));
        self.beat.tick();
        if !matches!(outcome, Outcome::Delivered { .. }) {
            let (now, jitter) = (handle.now(), self.jitter());
            handle.queue.with(|queue| queue.answered(&channel.name, &outcome, now, jitter));
        }
    }

    /// Tells the outside that all is well, as long as every thread goes on and rules are judged.
    fn heartbeat(&mut self) {
        let handle = self.handle;
        let calls = handle.calls.load_full();
        let Some((client, path)) = &calls.heartbeat else { return };
        let now = clock::now();
        if now < self.heartbeat_at {
            return;
        }
        let settings = handle.settings.load_full();
        self.heartbeat_at = now + settings.heartbeat_interval;
        let looks = handle.looks.load(Relaxed);
        let judged = looks != self.looks || settings.interval >= settings.heartbeat_interval;
        self.looks = looks;
        let well = judged && handle.hands.heartbeats.late(now).is_empty();
        if !well {
            // Whoever waits for it outside raises the alarm.
            handle.counts.heartbeat_failed.inc();
            log::warn!("alert_heartbeat_withheld");
            return;
        }
        self.calling(HEARTBEAT_TIMEOUT);
        let answer = client.get(path, now + HEARTBEAT_TIMEOUT);
        self.beat.tick();
        let why = match answer {
            Ok(answer) if answer.status < 400 => return handle.counts.heartbeat_ok.inc(),
            Ok(answer) => format!("answered {}", answer.status),
            Err(error) => crate::base::error::Causes(&error).to_string(),
        };
        handle.counts.heartbeat_failed.inc();
        log::warn!(why = why; "alert_heartbeat_failed");
        // Sooner than the next one would be: the other side counts the missing ones.
        self.heartbeat_at = clock::now() + settings.heartbeat_interval / 4;
    }

    /// Says how long a call may take.
    fn calling(&self, timeout: Duration) {
        self.beat.waits(Doing::Call(Phase::Answer), clock::now() + timeout + SLACK);
    }

    /// A number from 0 to 1 (xorshift): it only keeps many daemons from coming back at the same moment.
    fn jitter(&mut self) -> f64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        f64::from(u16::try_from(self.dice % 1000).unwrap_or(0)) / 1000.0
    }
}
