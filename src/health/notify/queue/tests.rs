//! The queue under virtual time.

use super::*;
use crate::config::settings::BaseUrl;
use crate::config::settings::alerts::{ChannelKind, Endpoint, Severity};
use crate::health::alerts::Item;

fn channel(name: &str, severities: &[Severity]) -> Arc<Channel> {
    let url = BaseUrl { tls: false, host: "127.0.0.1".into(), port: 1, path: String::new() };
    Arc::new(Channel {
        name: name.into(),
        kind: ChannelKind::Ntfy,
        endpoint: Endpoint { url, rest: String::new() },
        topic: "t".into(),
        key: None,
        ca_file: None,
        ca_digest: None,
        proxy: None,
        severities: severities.to_vec(),
        per_minute: 600,
        timeout: Duration::from_secs(1),
        resend: Duration::from_secs(60),
    })
}

fn settings(channels: &[Arc<Channel>]) -> Alerts {
    let mut settings = crate::config::parse("", None, &|_| None).unwrap().config.alerts;
    settings.channels = channels.to_vec();
    settings.retry_min = Duration::from_secs(2);
    settings.retry_max = Duration::from_secs(60);
    settings
}

fn notice(id: u64, severity: Severity, labels: &[(&str, &str)]) -> Arc<Notice> {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let item = Item {
        fingerprint: format!("{id:016x}"),
        firing: true,
        labels,
        text: "x".into(),
        summary: String::new(),
        value: None,
        started: At(0),
        ended: None,
    };
    Arc::new(Notice {
        id: id.to_string(),
        at: At(id),
        rule: "r".into(),
        severity,
        repeated: false,
        items: vec![item],
    })
}

fn later(wait: Option<u64>) -> Outcome {
    Outcome::Later { wait: wait.map(Duration::from_secs), why: "answered 503".into() }
}

const DELIVERED: Outcome = Outcome::Delivered { wait: None };

fn queue(settings: &Alerts) -> (Registry, Queue) {
    let registry = Registry::default();
    let queue = Queue::new(settings, &registry);
    (registry, queue)
}

fn sent(next: Next) -> (String, String) {
    match next {
        Next::Send(entry) => (entry.notice.id.clone(), entry.channel),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_channel_that_fails_is_left_alone_for_longer_each_time_and_holds_up_nobody() {
    let (_, mut queue) = queue(&settings(&[channel("a", &[]), channel("b", &[])]));
    let one = notice(1, Severity::Warning, &[]);
    for name in queue.targets(&one) {
        assert!(queue.push(&one, &name, 0).is_empty());
    }
    let Next::Send(first) = queue.next(At(10)) else { panic!() };
    assert_eq!(first.channel, "a");
    let mut now = At(10);
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert!(queue.done(&first, &later(None), now, 0.5).is_none());
        let at = queue.lanes()[0].1.not_before;
        waits.push(at.since(now).as_secs());
        now = at;
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
    let (id, to) = sent(queue.next(At(11)));
    assert_eq!((id.as_str(), to.as_str()), ("1", "b"));
    assert_eq!(queue.undelivered(), 1);
    let Next::Send(second) = queue.next(At(11)) else { panic!() };
    queue.done(&second, &DELIVERED, At(11), 0.5).unwrap();
    assert_eq!((queue.undelivered(), queue.entries().len()), (0, 1), "b has it, a will");
    assert!(queue.trouble(now).unwrap().contains("on a"));
    let Next::Wait(at) = queue.next(At(12)) else { panic!() };
    assert_eq!(at, now);
    assert_eq!(queue.seen()[0].failing_since, Some(At(10)));
    queue.done(&first, &DELIVERED, now, 0.5).unwrap();
    assert_eq!((queue.next(now), queue.trouble(now)), (Next::Idle, None));
}

#[test]
fn what_a_channel_asks_for_is_kept_to() {
    let (_, mut queue) = queue(&settings(&[channel("a", &[])]));
    queue.push(&notice(1, Severity::Warning, &[]), "a", 0);
    let Next::Send(entry) = queue.next(At(0)) else { panic!() };
    queue.done(&entry, &later(Some(50)), At(0), 1.0);
    assert_eq!(queue.next(At(49_999)), Next::Wait(At(50_000)));
    let Next::Send(entry) = queue.next(At(50_000)) else { panic!() };
    let limited = Outcome::Delivered { wait: Some(Duration::from_secs(9)) };
    queue.done(&entry, &limited, At(50_000), 1.0).unwrap();
    queue.push(&notice(2, Severity::Warning, &[]), "a", 0);
    assert_eq!(queue.next(At(50_001)), Next::Wait(At(59_000)));
}

#[test]
fn a_notice_that_a_channel_chokes_on_goes_behind_the_others() {
    let (_, mut queue) = queue(&settings(&[channel("a", &[])]));
    for id in 1..=3 {
        queue.push(&notice(id, Severity::Warning, &[]), "a", 0);
    }
    let Next::Send(poison) = queue.next(At(10)) else { panic!() };
    queue.done(&poison, &later(None), At(10), 0.0);
    assert_eq!(sent(queue.next(At(10_000))).0, "2");
    let Next::Send(refused) = queue.next(At(10_000)) else { panic!() };
    let outcome = Outcome::Refused { channel: false, why: "answered 413".into() };
    let gone = queue.done(&refused, &outcome, At(10_000), 0.0).unwrap();
    assert!(queue.give_up(&gone, At(10_000)), "nobody else has it");
    assert_eq!((queue.lost(), queue.lanes()[0].1.given_up), (1, 1));
    assert_eq!(sent(queue.next(At(10_000))).0, "3", "it says nothing of the others");
    assert!(queue.trouble(At(10_000)).unwrap().contains("lost"));
    assert!(!queue.trouble(At(10_000 + 3_600_000)).unwrap().contains("lost"));
}

#[test]
fn notices_go_where_they_are_wanted_and_not_to_whom_they_are_about() {
    use Severity::{Critical, Info, Warning};
    let channels = [channel("phone", &[Critical]), channel("mail", &[Critical, Warning])];
    let (_, queue) = queue(&settings(&channels));
    assert_eq!(queue.targets(&notice(1, Critical, &[])), ["phone", "mail"]);
    assert_eq!(queue.targets(&notice(1, Warning, &[])), ["mail"]);
    assert_eq!(queue.targets(&notice(1, Info, &[])), [""; 0]);
    let about = |name, severity| notice(1, severity, &[("channel", name)]);
    assert_eq!(queue.targets(&about("phone", Critical)), ["mail"]);
    assert_eq!(queue.targets(&about("mail", Warning)), ["phone"], "better than nobody");
    let (_, alone) = self::queue(&settings(&channels[..1]));
    assert_eq!(alone.targets(&about("phone", Critical)), ["phone"]);
}

#[test]
fn the_queue_is_bounded_by_count_bytes_and_age_and_tells_what_goes() {
    let mut settings = settings(&[channel("a", &[]), channel("b", &[])]);
    settings.spool_max = 4;
    let (registry, mut queue) = queue(&settings);
    for id in 1..=4 {
        assert!(queue.push(&notice(id, Severity::Warning, &[]), "a", 0).is_empty());
    }
    assert!(queue.push(&notice(4, Severity::Warning, &[]), "a", 0).is_empty(), "known already");
    let gone = queue.push(&notice(5, Severity::Warning, &[]), "a", 0);
    assert_eq!(gone.iter().map(|e| e.notice.id.as_str()).collect::<Vec<_>>(), ["1"]);
    let limits = registry.limits();
    let limit = |name| &limits.iter().find(|l| l.name == name).unwrap().limit;
    assert_eq!((limit("alerts.spool_max").now(), limit("alerts.spool_max").refused()), (4, 1));
    let each = limit("alerts.spool_bytes_max").now() / 4;
    assert!(each > ENTRY_BYTES);
    settings.spool_bytes_max = each * 2;
    queue.reconfigure(&settings);
    let gone = queue.push(&notice(6, Severity::Warning, &[]), "a", 0);
    assert_eq!(gone.len(), 3);
    assert_eq!(limit("alerts.spool_bytes_max").now(), each * 2);
    // Age counts from the notice, also over restarts.
    assert!(queue.expire(At(6)).is_empty());
    let age = u64::try_from(settings.spool_age.as_millis()).unwrap();
    assert_eq!(queue.expire(At(5 + age)).len(), 1);
    assert_eq!(queue.expire(At(6 + age)).len(), 1);
    // A channel that is taken out.
    queue.push(&notice(9, Severity::Warning, &[]), "b", 0);
    settings.channels.pop();
    assert_eq!(queue.reconfigure(&settings).len(), 1);
    assert_eq!((queue.lanes().len(), queue.next(At(0))), (1, Next::Idle));
}

#[test]
fn a_channel_s_rate_makes_notices_wait() {
    let slow = Arc::new(Channel { per_minute: 6, ..(*channel("a", &[])).clone() });
    let (_, mut queue) = queue(&settings(&[slow]));
    for id in 1..=20 {
        queue.push(&notice(id, Severity::Warning, &[]), "a", 0);
    }
    let (mut now, mut times) = (At(1_000_000), Vec::new());
    while times.len() < 20 {
        match queue.next(now) {
            Next::Send(entry) => {
                queue.done(&entry, &DELIVERED, now, 0.5).unwrap();
                times.push((now.0 - 1_000_000) / 1000);
            }
            Next::Wait(at) => now = at,
            Next::Idle => panic!(),
        }
    }
    assert_eq!(times[..6], [0; 6], "a minute's at once");
    assert_eq!(times[6..9], [10, 20, 30]);
    assert_eq!(times[19], 140);
}
