//! A webhook: JSON as Alertmanager's own webhooks send it (version 4), so that what takes those takes
//! ours. With a key it is signed as Standard Webhooks has it (`webhook-signature`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::Sha256;

use super::alertmanager::{annotations, labels};
use super::{Context, Message, path};
use crate::config::settings::alerts::Channel;
use crate::health::alerts::{Item, Notice};

/// The end of an alert that goes on: Go's zero time, which is what Alertmanager sends.
const NO_END: &str = "0001-01-01T00:00:00Z";

/// The message.
pub fn message(channel: &Channel, notice: &Notice, context: &Context) -> Message {
    let body = document(channel, notice, context).to_string().into_bytes();
    let seconds = (context.now.0 / 1000).to_string();
    let mut fields = vec![
        ("content-type", "application/json".to_owned()),
        ("webhook-id", notice.id.clone()),
        ("webhook-timestamp", seconds.clone()),
    ];
    if let Some(key) = &channel.key {
        let signature = sign(key.expose(), &notice.id, &seconds, &body);
        fields.push(("webhook-signature", format!("v1,{signature}")));
    }
    Message { path: path(channel), fields, body }
}

fn document(channel: &Channel, notice: &Notice, context: &Context) -> Value {
    let alerts: Vec<Value> = notice.items.iter().map(|item| alert(item, context)).collect();
    let word = if notice.firing() { "firing" } else { "resolved" };
    let all: Vec<Map<String, Value>> =
        notice.items.iter().map(|item| labels(item, context)).collect();
    let first = all.first().cloned().unwrap_or_default();
    let common: Map<String, Value> = first
        .into_iter()
        .filter(|(name, value)| all.iter().all(|labels| labels.get(name) == Some(value)))
        .collect();
    let summary = notice.items.first().map_or("", |item| item.summary.as_str());
    json!({
        "version": "4",
        "groupKey": format!("{{}}:{{alertname={:?}}}", notice.rule),
        "truncatedAlerts": 0,
        "status": word,
        "receiver": channel.name,
        "groupLabels": {"alertname": notice.rule},
        "commonLabels": common,
        "commonAnnotations": {"summary": summary},
        "externalURL": "",
        "alerts": alerts,
    })
}

fn alert(item: &Item, context: &Context) -> Value {
    json!({
        "status": if item.firing { "firing" } else { "resolved" },
        "labels": labels(item, context),
        "annotations": annotations(item),
        "startsAt": item.started.text(),
        "endsAt": item.ended.map_or_else(|| NO_END.to_owned(), |at| at.text()),
        "generatorURL": "",
        "fingerprint": item.fingerprint,
    })
}

/// HMAC-SHA-256 of `id.timestamp.body`, in base64. A key that begins with `whsec_` is base64 itself.
fn sign(key: &str, id: &str, seconds: &str, body: &[u8]) -> String {
    let decoded = key.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
    let key = decoded.as_deref().unwrap_or(key.as_bytes());
    // A key of any length is taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(seconds.as_bytes());
    mac.update(b".");
    mac.update(body);
    STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification, as its libraries test it.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let signature = sign(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            b"{\"test\": 2432232314}",
        );
        assert_eq!(signature, "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
