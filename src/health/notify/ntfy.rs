//! ntfy: JSON published to the root of the server, since header fields hold ASCII only
//! (`docs.ntfy.sh/publish`). The token goes as a bearer key.

use serde_json::json;

use super::{Context, Message, cut, path, text, title};
use crate::config::settings::alerts::{Channel, Severity};
use crate::health::alerts::Notice;

/// Most bytes of a message: ntfy makes an attachment of a longer one.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The message.
pub fn message(channel: &Channel, notice: &Notice, context: &Context) -> Message {
    // 1 to 5; a phone rings through its do-not-disturb from 5 on only.
    let (priority, tag) = match notice.severity {
        _ if !notice.firing() => (2, "white_check_mark"),
        Severity::Critical => (5, "rotating_light"),
        Severity::Warning => (4, "warning"),
        Severity::Info => (3, "information_source"),
    };
    let body = json!({
        "topic": channel.topic,
        "title": title(notice, &context.instance),
        "message": cut(text(notice), MESSAGE_BYTES_MAX),
        "priority": priority,
        "tags": [tag, notice.rule],
    });
    Message {
        path: path(channel),
        fields: vec![("content-type", "application/json".to_owned())],
        body: body.to_string().into_bytes(),
    }
}
