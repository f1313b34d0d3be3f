//! Alertmanager's API (`/api/v2/alerts`): a list of alerts, each with its labels. It tells people by
//! itself, and takes an alert that it does not hear of again for over; so those that go on are sent again,
//! each time with an end that lies ahead.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Context, Message};
use crate::config::settings::alerts::Channel;
use crate::health::alerts::Item;

/// An alert that is not sent again is over after so many of the times between two of them, as
/// Prometheus has it.
const RESENDS: u32 = 4;

/// The message.
pub fn message(channel: &Channel, items: &[Item], context: &Context) -> Message {
    let alerts: Vec<Value> =
        items.iter().map(|item| alert(item, channel.resend, context)).collect();
    Message {
        path: "/api/v2/alerts".to_owned(),
        fields: vec![("content-type", "application/json".to_owned())],
        body: Value::from(alerts).to_string().into_bytes(),
    }
}

fn alert(item: &Item, resend: Duration, context: &Context) -> Value {
    let ends = item.ended.unwrap_or_else(|| context.now.after(resend * RESENDS));
    json!({
        "labels": labels(item, context),
        "annotations": annotations(item),
        "startsAt": item.started.text(),
        "endsAt": ends.text(),
    })
}

/// All labels, with the instance.
pub(super) fn labels(item: &Item, context: &Context) -> Map<String, Value> {
    let own = item.labels.iter().map(|(name, value)| (name.clone(), value.clone().into()));
    own.chain([("instance".to_owned(), context.instance.clone().into())]).collect()
}

/// What was found, and what it means.
pub(super) fn annotations(item: &Item) -> Value {
    json!({"description": item.text, "summary": item.summary})
}
