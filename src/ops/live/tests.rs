//! Viewers under virtual time, and what a document says.

use serde_json::{Value, json};

use super::*;
use crate::base::health::Phase;

fn live(live_max: usize) -> (Arc<Live>, Parts) {
    let parts = Parts::bare();
    (Live::new(parts.clone(), live_max), parts)
}

fn viewer(live: &Arc<Live>, now: Instant) -> Viewer {
    let place = live.places.try_take(1).unwrap();
    Viewer { live: Arc::clone(live), _place: place, next: now, sent: now }
}

/// The numbers of the events in `out`.
fn numbers(out: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(out).unwrap();
    let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.map(|id| id.parse().unwrap()).collect()
}

#[test]
fn one_document_a_second_serves_all_viewers() {
    let (live, _) = live(3);
    let start = clock::now();
    let mut viewers: Vec<Viewer> = (0..3).map(|_| viewer(&live, start)).collect();
    let mut got = vec![Vec::new(); 3];
    for ms in (0..5000).step_by(10) {
        let now = start + Duration::from_millis(ms);
        for (viewer, out) in viewers.iter_mut().zip(&mut got) {
            if viewer.deadline() <= now {
                assert_eq!(viewer.expired(now, out), FlowStep::Wait);
            }
        }
    }
    for out in &got {
        assert_eq!(numbers(out), [1, 2, 3, 4, 5]);
    }
    assert_eq!(got[0], got[2], "one document, made once");
    drop(viewers);
    assert_eq!((live.places.now(), live.places.high_water()), (0, 3));
}

#[test]
fn whoever_comes_between_gets_the_last_document_at_once() {
    let (live, _) = live(2);
    let start = clock::now();
    let mut out = Vec::new();
    viewer(&live, start).read(start, &mut out);
    let later = start + Duration::from_millis(400);
    let mut second = viewer(&live, later);
    second.read(later, &mut out);
    assert_eq!(numbers(&out), [1, 1]);
    assert_eq!(second.deadline(), start + EVERY, "from then on together with the others");
}

#[test]
fn one_who_was_skipped_goes_on_with_what_is_now_and_has_to_take_it_in_time() {
    let (live, _) = live(2);
    let start = clock::now();
    let (mut slow, mut fast) = (viewer(&live, start), viewer(&live, start));
    let (mut to_slow, mut to_fast) = (Vec::new(), Vec::new());
    slow.read(start, &mut to_slow);
    for second in 0..4 {
        fast.read(start + EVERY * second, &mut to_fast);
    }
    assert_eq!(slow.end_by(), start + TAKEN_MAX);
    let now = start + EVERY * 4;
    slow.expired(now, &mut to_slow);
    assert_eq!(numbers(&to_slow), [1, 5]);
    assert_eq!(slow.end_by(), now + TAKEN_MAX);
    slow.lost(Error::new(Kind::ClientGone, "gone"));
    assert_eq!(live.stalled.value(), 0);
    slow.lost(Error::new(Kind::ClientStalled, "stalled"));
    assert_eq!(live.stalled.value(), 1);
}

fn document(live: &Live) -> Value {
    let response = live.once();
    assert_eq!(response.status, 200);
    serde_json::from_slice(&response.body).unwrap()
}

#[test]
fn a_document_adds_up_what_metrics_has_one_by_one() {
    let (live, parts) = live(2);
    parts.board.set_phase(Phase::Ready);
    parts.board.check("disk").degraded("nearly full");
    let count = |route, status, code, n| {
        let labels = [("route", route), ("status", status), ("code", code)];
        parts.registry.counter("tidegate_http_requests_total", "R.", &labels).add(n);
    };
    count("/a", "200", "ok", 3);
    count("/b", "200", "ok", 4);
    count("/a", "503", "overloaded", 1);
    count("/b", "404", "not_found", 0);
    for (route, ms) in [("/a", 2), ("/a", 40), ("/b", 40)] {
        let name = "tidegate_http_request_seconds";
        let histogram = parts.registry.histogram(name, "S.", &[("route", route)]);
        histogram.observe(Duration::from_millis(ms));
    }
    parts.registry.gauge("tidegate_overload_level", "L.", &[]).set(2);
    parts.registry.counter("tidegate_secret_total", "Not shown.", &[]).inc();
    for n in 0..60 {
        parts.events.record(log::Level::Warn, "breaker_opened", "local", n.to_string());
    }
    let document = document(&live);
    assert_eq!(
        document["metrics"]["tidegate_http_requests_total"],
        json!({ "by": ["status", "code"], "rows": [["200", "ok", 7], ["503", "overloaded", 1]] })
    );
    let seconds = &document["metrics"]["tidegate_http_request_seconds"];
    let [counts, sum] = &seconds["rows"][0][0].as_array().unwrap()[..] else { panic!("{seconds}") };
    let bound = |bound: f64| seconds["bounds"].as_array().unwrap().iter().position(|b| *b == bound);
    assert_eq!(counts[bound(0.0025).unwrap()], 1);
    assert_eq!(counts[bound(0.05).unwrap()], 2);
    assert!((sum.as_f64().unwrap() - 0.082).abs() < 1e-9);
    assert_eq!((&document["overload"], &document["ready"]), (&"degraded".into(), &true.into()));
    let health = &document["health"];
    assert_eq!((&health["status"], &health["phase"]), (&"degraded".into(), &"ready".into()));
    assert_eq!(health["checks"][0]["reason"], "nearly full");
    let events = document["events"].as_array().unwrap();
    assert_eq!((events.len(), &events[0]["number"]), (40, &60.into()), "the newest first");
    assert!(document["metrics"].get("tidegate_secret_total").is_none());
    assert!(
        document["limits"].as_array().unwrap().iter().any(|row| row["limit"] == "ops.live_max")
    );
}

#[test]
fn a_document_is_one_event_whatever_stands_in_it() {
    let (live, parts) = live(1);
    let nasty = "a\r\n\r\ndata: b\u{2028}\n";
    parts.events.record(log::Level::Error, "tried", nasty, nasty.into());
    let mut out = Vec::new();
    let now = clock::now();
    viewer(&live, now).read(now, &mut out);
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let [id, data, ""] = lines[..] else { panic!("{text:?}") };
    assert_eq!(id, "id: 1");
    let document: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(document["events"][0]["detail"], nasty);
}
