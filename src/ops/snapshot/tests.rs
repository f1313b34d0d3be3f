//! Sections that fail, that are too large or too slow, and secrets wherever they may stand.

use super::*;
use crate::base::health::Phase;
use crate::ops::Parts;
use crate::ops::shown::Shown;

fn handler(seen: Configured) -> OpsHandler {
    let mut parts = Parts::bare();
    parts.shown = Shown::new(&parts.registry, seen);
    parts.board.set_phase(Phase::Ready);
    OpsHandler::behind_the_socket(parts)
}

fn taken(handler: &OpsHandler, sections: &[Section]) -> Value {
    let source = Source { handler, seen: handler.parts.shown.now(), now: clock::now() };
    let text = document(&source, sections, &mut clock::now);
    assert!(text.len() <= BYTES_MAX, "{}", text.len());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_snapshot_has_every_section_or_says_why_not() {
    let handler = handler(Configured { print: "# a\n[server]\n".into(), ..Configured::default() });
    handler.parts.events.record(::log::Level::Warn, "tried", "x", "y".into());
    let answer = answer(&handler, clock::now());
    assert_eq!(answer.status, 200);
    let document: Value = serde_json::from_slice(&answer.body).unwrap();
    for (name, _) in SECTIONS {
        assert!(!document[name].is_null(), "{name}");
    }
    assert_eq!(document["about"]["phase"], "ready");
    assert_eq!(document["config"]["settings"][1], "[server]");
    assert_eq!(document["events"][0]["kind"], "tried");
    assert!(document["limits"]["limits"].as_array().unwrap().len() > 2);
    assert!(document["metrics"]["process_resident_memory_bytes"][""].as_f64().unwrap() > 1e6);
    assert!(document["log"]["missing"].as_str().unwrap().contains("standard error"));
    assert_eq!(document["format"], FORMAT);
}

#[test]
fn a_section_fails_alone() {
    let sections: &[Section] = &[
        ("good", |_| Ok(json!(1))),
        ("bad", |_| Err("no such thing".into())),
        ("broken", |_| std::panic::resume_unwind(Box::new(()))),
        ("large", |_| Ok("x".repeat(SECTION_BYTES_MAX).into())),
        ("after", |_| Ok(json!(2))),
    ];
    let found = taken(&handler(Configured::default()), sections);
    assert_eq!((&found["good"], &found["after"]), (&json!(1), &json!(2)));
    assert_eq!(found["bad"]["missing"], "no such thing");
    assert!(found["broken"]["missing"].as_str().unwrap().contains("panicked"));
    assert!(
        found["large"]["missing"].as_str().unwrap().starts_with("left out: it has 3145730 bytes")
    );
}

#[test]
fn what_is_too_much_together_or_too_late_is_left_out() {
    let half: Section = ("half", |_| Ok("x".repeat(SECTION_BYTES_MAX - 2).into()));
    let found = taken(&handler(Configured::default()), &[half, ("a", half.1), ("b", half.1)]);
    assert!(found["half"].is_string());
    assert!(found["b"]["missing"].as_str().unwrap().starts_with("left out: it has"));
    let handler = handler(Configured::default());
    let source = Source { handler: &handler, seen: handler.parts.shown.now(), now: clock::now() };
    let mut time = clock::now();
    let mut late = || {
        time += TIME_MAX / 2 + Duration::from_millis(1);
        time
    };
    let one: Section = ("one", |_| Ok(json!(1)));
    let text = document(&source, &[one, ("two", one.1), ("three", one.1)], &mut late);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["one"], 1);
    assert!(found["two"]["missing"].as_str().unwrap().contains("took too long"), "{found}");
}

#[test]
fn keys_of_upstreams_are_nowhere() {
    let secrets = ["sk-hush-hush", "with \"marks\" \\ in", "short"].map(|s| Secret::new(s.into()));
    let handler = handler(Configured { secrets: secrets.into(), ..Configured::default() });
    let sections: &[Section] = &[("a", |_| {
        Ok(
            json!({"sk-hush-hush": ["x sk-hush-hush y", {"b": "with \"marks\" \\ in"}], "c": "short"}),
        )
    })];
    let found = taken(&handler, sections);
    assert_eq!(found["a"], json!({"(secret)": ["x (secret) y", {"b": "(secret)"}], "c": "short"}));
}

#[test]
fn only_one_at_a_time_and_none_where_others_listen() {
    let mut handler = handler(Configured::default());
    let shown = std::sync::Arc::clone(&handler.parts.shown);
    let running = shown.running.try_take(1).unwrap();
    let refused = answer(&handler, clock::now());
    assert_eq!(refused.status, 503);
    assert_eq!(shown.running.refused(), 1);
    drop(running);
    assert_eq!(answer(&handler, clock::now()).status, 200);
    handler.loopback = false;
    let refused = answer(&handler, clock::now());
    assert_eq!(refused.status, 403);
    assert!(String::from_utf8_lossy(&refused.body).contains("control socket"));
}
