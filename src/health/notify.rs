//! Delivery of notices: what each kind of channel is sent, what its answer means, and the queue between.
//!
//! `ntfy`, `sentry`, `alertmanager` and `webhook` turn a notice into a message; `outcome` reads the
//! answer; `queue` decides what is sent next. None of these does I/O or reads a clock. `sender` calls, and
//! `delivery` is the thread that does it all.

pub mod alertmanager;
pub(in crate::health) mod delivery;
pub mod ntfy;
pub mod outcome;
pub mod queue;
pub mod sender;
pub mod sentry;
pub mod webhook;

use crate::config::settings::alerts::{Channel, ChannelKind, Severity};
use crate::health::alerts::{At, Item, Notice};

pub use outcome::Outcome;
pub use queue::Queue;
pub use sender::Sender;

/// What every message names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// This daemon.
    pub instance: String,
    /// The moment of sending.
    pub now: At,
}

/// What goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What stands behind the path of the channel's address.
    pub path: String,
    /// Header fields.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// A notice as this channel takes it.
pub fn render(channel: &Channel, notice: &Notice, context: &Context) -> Message {
    match channel.kind {
        ChannelKind::Ntfy => ntfy::message(channel, notice, context),
        ChannelKind::Sentry => sentry::message(channel, notice, context),
        ChannelKind::Alertmanager => alertmanager::message(channel, &notice.items, context),
        ChannelKind::Webhook => webhook::message(channel, notice, context),
    }
}

/// The path where nothing stands behind that of the address: a request has one at least.
fn path(channel: &Channel) -> String {
    let endpoint = &channel.endpoint;
    let bare = endpoint.url.path.is_empty() && !endpoint.rest.starts_with('/');
    format!("{}{}", if bare { "/" } else { "" }, endpoint.rest)
}

/// A notice in a line.
pub fn title(notice: &Notice, instance: &str) -> String {
    let firing = notice.items.iter().filter(|item| item.firing).count();
    let over = notice.items.len() - firing;
    let what = match (firing, over) {
        (_, 0) if notice.repeated => "still".to_owned(),
        (1, 0) => notice.severity.as_str().to_owned(),
        (n, 0) => format!("{} ({n})", notice.severity.as_str()),
        (0, 1) => "resolved".to_owned(),
        (0, n) => format!("resolved ({n})"),
        (n, m) => format!("{} ({n}, resolved {m})", notice.severity.as_str()),
    };
    format!("[{what}] {} on {instance}", notice.rule)
}

/// A notice in lines: each alert, then what it means.
pub fn text(notice: &Notice) -> String {
    let mut lines: Vec<String> = notice.items.iter().map(line).collect();
    if let Some(item) = notice.items.first().filter(|item| !item.summary.is_empty()) {
        lines.push(item.summary.clone());
    }
    lines.join("\n")
}

fn line(item: &Item) -> String {
    match item.ended {
        None => format!("- {} (since {})", item.text, item.started.text()),
        Some(ended) => {
            format!("- over: {} (from {} to {})", item.text, item.started.text(), ended.text())
        }
    }
}

/// A text of at most `max` bytes, cut between characters.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max.saturating_sub(3)).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

/// The notice that a person sends to see whether a channel works.
pub fn trial(now: At, number: u64) -> Notice {
    let labels = [("alertname", "test"), ("severity", "info")];
    let item = Item {
        fingerprint: "0000000000000000".to_owned(),
        firing: true,
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        text: "this is a test: somebody ran tidegate alerts test".to_owned(),
        summary: "nothing has happened, and alerts get through on this channel".to_owned(),
        value: None,
        started: now,
        ended: None,
    };
    Notice {
        id: format!("t{:x}-{number}", now.0),
        at: now,
        rule: "test".to_owned(),
        severity: Severity::Info,
        repeated: false,
        items: vec![item],
    }
}

#[cfg(test)]
mod tests;
