//! Messages, as the other side takes them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::config::settings::alerts::Endpoint;
use crate::config::settings::{BaseUrl, Secret};

fn channel(kind: ChannelKind, path: &str, rest: &str) -> Channel {
    let url = BaseUrl { tls: true, host: "h.example".into(), port: 443, path: path.into() };
    Channel {
        name: "there".into(),
        kind,
        endpoint: Endpoint { url, rest: rest.into() },
        topic: "gateway".into(),
        key: Some(Secret::new("hush".into())),
        ca_file: None,
        ca_digest: None,
        proxy: None,
        severities: Vec::new(),
        per_minute: 20,
        timeout: Duration::from_secs(1),
        resend: Duration::from_secs(60),
    }
}

fn item(limit: &str, ended: Option<u64>) -> Item {
    let labels = [("alertname", "limit_exhausted"), ("limit", limit), ("severity", "critical")];
    Item {
        fingerprint: format!("print-{limit}"),
        firing: ended.is_none(),
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
        text: format!("{limit} is at 95.0% \"now\""),
        summary: "see tidegate limits".into(),
        value: Some(0.95),
        started: At(1_700_000_000_000),
        ended: ended.map(At),
    }
}

fn notice(items: Vec<Item>) -> Notice {
    Notice {
        id: "n1".into(),
        at: At(1_700_000_060_000),
        rule: "limit_exhausted".into(),
        severity: Severity::Critical,
        repeated: false,
        items,
    }
}

fn context() -> Context {
    Context { instance: "box-1".into(), now: At(1_700_000_100_000) }
}

fn json(message: &Message) -> Value {
    serde_json::from_slice(&message.body).unwrap()
}

#[test]
fn ntfy_is_given_json_at_its_root() {
    let channel = channel(ChannelKind::Ntfy, "", "");
    let message = render(&channel, &notice(vec![item("a", None), item("b", None)]), &context());
    assert_eq!(message.path, "/");
    let body = json(&message);
    assert_eq!((&body["topic"], &body["priority"]), (&"gateway".into(), &5.into()));
    assert_eq!(body["title"], "[critical (2)] limit_exhausted on box-1");
    assert_eq!(body["tags"][0], "rotating_light");
    let text = body["message"].as_str().unwrap();
    assert!(text.contains("a is at 95.0%") && text.ends_with("see tidegate limits"), "{text}");
    let over = render(&channel, &notice(vec![item("a", Some(1_700_000_090_000))]), &context());
    assert_eq!(
        (&json(&over)["priority"], &json(&over)["tags"][0]),
        (&2.into(), &"white_check_mark".into())
    );
    assert_eq!(json(&over)["title"], "[resolved] limit_exhausted on box-1");
    let many = (0..200).map(|n| item(&format!("{n}é").repeat(9), None)).collect();
    let text = json(&render(&channel, &notice(many), &context()))["message"].to_string();
    assert!(text.len() <= 4096 + 200 && text.contains('…'), "{}", text.len());
}

#[test]
fn sentry_is_given_an_envelope_of_one_event_with_the_moment_of_sending() {
    let channel = channel(ChannelKind::Sentry, "/api/42/envelope", "/");
    let one = notice(vec![item("a", None), item("b", None)]);
    let message = render(&channel, &one, &context());
    assert_eq!(message.path, "/");
    assert!(message.fields[1].1.ends_with("sentry_key=hush"), "{:?}", message.fields);
    let body = String::from_utf8(message.body.clone()).unwrap();
    let lines: Vec<&str> = body.split('\n').collect();
    assert_eq!((lines.len(), lines[3]), (4, ""));
    let [head, about, event] = [0, 1, 2].map(|n| serde_json::from_str::<Value>(lines[n]).unwrap());
    assert_eq!(head["sent_at"], "2023-11-14T22:15:00.000Z");
    assert_eq!(about["length"], lines[2].len());
    assert_eq!(head["event_id"], event["event_id"]);
    assert_eq!(event["event_id"].as_str().unwrap().len(), 32);
    assert_eq!(
        (&event["level"], &event["timestamp"]),
        (&"fatal".into(), &"2023-11-14T22:14:20.000Z".into())
    );
    assert_eq!(event["tags"]["alertname"], "limit_exhausted");
    assert_eq!(event["tags"].get("limit"), None, "they differ");
    // A second try is the same event, sent later.
    let again = Context { now: At(1_700_000_900_000), ..context() };
    let second = String::from_utf8(render(&channel, &one, &again).body).unwrap();
    assert_eq!(second.split('\n').nth(2), Some(lines[2]));
    assert_ne!(second.split('\n').next(), Some(lines[0]));
}

#[test]
fn alertmanager_is_given_alerts_whose_end_lies_ahead_until_they_are_over() {
    let channel = channel(ChannelKind::Alertmanager, "/am", "");
    let items = vec![item("a", None), item("b", Some(1_700_000_090_000))];
    let message = render(&channel, &notice(items), &context());
    assert_eq!(message.path, "/api/v2/alerts");
    let body = json(&message);
    assert_eq!(body[0]["labels"]["instance"], "box-1");
    assert_eq!(body[0]["labels"]["limit"], "a");
    assert_eq!(body[0]["startsAt"], "2023-11-14T22:13:20.000Z");
    assert_eq!(body[0]["endsAt"], "2023-11-14T22:19:00.000Z", "four minutes ahead");
    assert_eq!(body[1]["endsAt"], "2023-11-14T22:14:50.000Z");
    assert_eq!(body[0]["annotations"]["summary"], "see tidegate limits");
}

#[test]
fn a_webhook_is_given_what_alertmanager_would_send_and_a_signature() {
    let channel = channel(ChannelKind::Webhook, "/hook", "/?a=b");
    let message = render(&channel, &notice(vec![item("a", None), item("b", None)]), &context());
    assert_eq!(message.path, "/?a=b");
    let names: Vec<&str> = message.fields.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["content-type", "webhook-id", "webhook-timestamp", "webhook-signature"]);
    let body = json(&message);
    assert_eq!((&body["version"], &body["status"]), (&"4".into(), &"firing".into()));
    assert_eq!(body["receiver"], "there");
    assert_eq!(body["alerts"][0]["fingerprint"], "print-a");
    assert_eq!(body["alerts"][0]["endsAt"], "0001-01-01T00:00:00Z");
    assert_eq!(body["commonLabels"]["alertname"], "limit_exhausted");
    assert_eq!(body["commonLabels"].get("limit"), None);
    let open = Channel { key: None, ..channel };
    assert_eq!(render(&open, &notice(vec![item("a", None)]), &context()).fields.len(), 3);
}

#[test]
fn a_delivery_says_what_became_of_it_and_shows_no_secret() {
    use crate::base::metrics::Registry;
    use crate::net::http_client::peer::{Act, Peer};
    use crate::net::outbound::Resolver;
    let peer = Peer::start(|seen| match seen.path.as_str() {
        "/" => Act::Json(200, "{}".into()),
        "/busy" => {
            Act::Raw(b"HTTP/1.1 429 x\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n".to_vec())
        }
        "/cut" => Act::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_vec()),
        _ => Act::Hang,
    });
    let registry = Registry::default();
    let resolver = Arc::new(Resolver::system(&registry));
    let send = |kind, port: u16, path: &str| {
        let mut channel = channel(kind, path, "");
        channel.endpoint.url =
            BaseUrl { tls: false, host: "127.0.0.1".into(), port, path: path.into() };
        channel.timeout = Duration::from_millis(300);
        let sender = Sender::new(Arc::new(channel), Arc::clone(&resolver));
        assert!(!format!("{sender:?}").contains("hush"));
        sender.send(&notice(vec![item("a", None)]), &context())
    };
    let port = peer.port();
    assert_eq!(send(ChannelKind::Ntfy, port, ""), Outcome::Delivered { wait: None });
    assert!(peer.seen()[0].head.to_lowercase().contains("authorization: bearer hush"));
    let seven = Some(Duration::from_secs(7));
    assert_eq!(
        send(ChannelKind::Ntfy, port, "/busy"),
        Outcome::Later { wait: seven, why: "answered 429".into() }
    );
    let why = |outcome| match outcome {
        Outcome::Later { wait: None, why } => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(send(ChannelKind::Webhook, port, "/hang")), "no answer in time");
    assert!(!peer.seen()[2].head.to_lowercase().contains("authorization"));
    assert_eq!(why(send(ChannelKind::Ntfy, port, "/cut")), "the answer was broken off");
    assert!(why(send(ChannelKind::Ntfy, Peer::nobody(), "")).starts_with("no connection"));
}
