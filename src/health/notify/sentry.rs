//! Sentry's envelopes (`develop.sentry.dev/sdk/data-model/envelopes`): three lines of JSON, one event.
//! `sent_at` is the moment of sending, not that of the alert, and the id of the event is the same at each try, so that
//! Sentry counts it once.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Context, Message, text, title};
use crate::config::settings::alerts::{Channel, Severity};
use crate::health::alerts::Notice;

/// What we call ourselves.
const CLIENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

/// The message.
pub fn message(channel: &Channel, notice: &Notice, context: &Context) -> Message {
    let id = event_id(&channel.name, &notice.id);
    let event = event(notice, &id, context).to_string();
    let public = channel.key.as_ref().map_or("", |key| key.expose());
    let head = json!({"event_id": id, "sent_at": context.now.text()});
    let item = json!({
        "type": "event",
        "length": event.len(),
        "content_type": "application/json",
    });
    let auth = format!("Sentry sentry_version=7, sentry_client={CLIENT}, sentry_key={public}");
    Message {
        path: channel.endpoint.rest.clone(),
        fields: vec![
            ("content-type", "application/x-sentry-envelope".to_owned()),
            ("x-sentry-auth", auth),
        ],
        body: format!("{head}\n{item}\n{event}\n").into_bytes(),
    }
}

/// 32 hexadecimal digits.
fn event_id(channel: &str, notice: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(channel.as_bytes());
    digest.update([0]);
    digest.update(notice.as_bytes());
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn event(notice: &Notice, id: &str, context: &Context) -> Value {
    let level = match notice.severity {
        _ if !notice.firing() => "info",
        Severity::Critical => "fatal",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    let mut tags = Map::new();
    if let Some(item) = notice.items.first() {
        for (name, value) in &item.labels {
            // Labels that the alerts of a notice do not share would be those of the first one only.
            if notice.items.iter().all(|other| other.label(name) == value) {
                tags.insert(name.clone(), value.clone().into());
            }
        }
    }
    // What is over makes a group of its own: it must not look like a relapse.
    let mut print = vec!["tidegate".to_owned(), context.instance.clone(), notice.rule.clone()];
    if !notice.firing() {
        print.push("resolved".to_owned());
    }
    json!({
        "event_id": id,
        "timestamp": notice.at.text(),
        "platform": "other",
        "level": level,
        "logger": "tidegate.alerts",
        "server_name": context.instance,
        "release": CLIENT,
        "message": {"formatted": format!("{}\n{}", title(notice, &context.instance), text(notice))},
        "tags": tags,
        "extra": {"notice": notice.id, "alerts": notice.items},
        "fingerprint": print,
    })
}
