//! Requests as the engine hands them over, and the answers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::base::health::{Board, Phase};
use crate::base::heartbeat::Heartbeats;
use crate::base::metrics::{Registry, Unit};
use crate::net::http::{BodyLength, Headers};
use crate::observe::levels::Levels;

struct Plane {
    ops: OpsHandler,
    board: Arc<Board>,
    heartbeats: Arc<Heartbeats>,
    registry: Arc<Registry>,
}

fn plane_on(listen: &str) -> Plane {
    let parts = Parts::bare();
    let (board, heartbeats) = (Arc::clone(&parts.board), Arc::clone(&parts.heartbeats));
    let registry = Arc::clone(&parts.registry);
    let ops = Ops { listen: listen.parse().unwrap(), live_max: 2, dashboard: true };
    Plane { ops: OpsHandler::new(parts, &ops), board, heartbeats, registry }
}

fn plane() -> Plane {
    plane_on("127.0.0.1:18790")
}

fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> Head {
    let mut headers = Headers::default();
    for (name, value) in fields {
        headers.push(name.as_bytes(), value.as_bytes());
    }
    Head {
        method: Method::parse(method),
        target: target.into(),
        http11: true,
        headers,
        body: BodyLength::None,
        keep_alive: true,
        expects_continue: false,
    }
}

impl Plane {
    fn ask(&self, method: &str, target: &str) -> Response {
        self.ops.handle_head(&head(method, target, &[]), clock::now())
    }

    fn get(&self, target: &str) -> (u16, String) {
        self.get_at(target, clock::now())
    }

    fn get_at(&self, target: &str, now: Instant) -> (u16, String) {
        let response = self.ops.handle_head(&head("GET", target, &[]), now);
        (response.status, String::from_utf8(response.body).unwrap())
    }

    fn check(&self, target: &str, status: u16, text: &str) {
        assert_eq!(self.get(target), (status, text.to_owned()), "{target}");
    }
}

fn field<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers.iter().find(|(have, _)| *have == name).map(|(_, value)| value.as_str())
}

#[test]
fn live_in_every_phase_while_every_thread_beats() {
    let plane = plane();
    let beat = plane.heartbeats.register("park", Duration::from_secs(5));
    for phase in [Phase::Starting, Phase::Ready, Phase::Draining, Phase::Stopping] {
        plane.board.set_phase(phase);
        for target in ["/livez", "/healthz", "/livez/", "/livez?x=1"] {
            plane.check(target, 200, "ok");
        }
    }
    plane.check("/livez?verbose", 200, "[+]park ok\nlivez check passed\n");
    let start = clock::now();
    beat.tick_at(start);
    let _other = plane.heartbeats.register("accept-0", Duration::from_secs(60));
    let (status, text) = plane.get_at("/livez", start + Duration::from_secs(7));
    assert_eq!(status, 503);
    assert_eq!(
        text,
        "[-]park failed: no beat for 7000 ms (at most 5000 ms)\n[+]accept-0 ok\nlivez check failed\n"
    );
    assert_eq!(plane.get_at("/livez/accept-0", start + Duration::from_secs(7)).0, 200);
    assert_eq!(plane.get_at("/livez/park", start + Duration::from_secs(7)).0, 503);
    assert_eq!(plane.get_at("/livez?exclude=park", start + Duration::from_secs(7)).0, 200);
}

#[test]
fn ready_only_in_its_phase_and_with_every_check() {
    let plane = plane();
    plane.check("/readyz", 503, "[-]phase failed: starting\nreadyz check failed\n");
    plane.board.set_phase(Phase::Ready);
    for target in ["/readyz", "/ready"] {
        plane.check(target, 200, "ok");
    }
    let (listener, disk) = (plane.board.check("listener"), plane.board.check("disk"));
    listener.ok();
    let pending =
        "[+]phase ok\n[+]listener ok\n[-]disk failed: not known yet\nreadyz check failed\n";
    plane.check("/readyz", 503, pending);
    disk.degraded("slow");
    let slow = "[+]phase ok\n[+]listener ok\n[+]disk degraded: slow\nreadyz check passed\n";
    plane.check("/readyz?verbose", 200, slow);
    plane.check("/readyz", 200, "ok");
    disk.failed("full");
    let full = "[+]phase ok\n[+]listener ok\n[-]disk failed: full\nreadyz check failed\n";
    plane.check("/readyz", 503, full);
    plane.check("/readyz/disk", 503, "[-]disk failed: full\n");
    plane.check("/readyz/listener", 200, "ok");
    assert_eq!(plane.get("/readyz/none").0, 404);
    plane.check("/readyz?exclude=disk", 200, "ok");
    let excluded = "[+]phase ok\n[+]listener ok\n[+]disk excluded: ok\nreadyz check passed\n";
    plane.check("/readyz?verbose&exclude=disk", 200, excluded);
    plane.board.set_phase(Phase::Draining);
    let (status, text) = plane.get("/readyz?exclude=disk&exclude=phase&exclude=none");
    assert_eq!(status, 503, "the phase cannot be excluded");
    assert!(text.starts_with("[-]phase failed: draining\n"), "{text}");
    assert!(
        text.contains("warn: phase cannot be excluded\nwarn: none cannot be excluded\n"),
        "{text}"
    );
}

#[test]
fn metrics_are_a_page_of_the_text_format() {
    let plane = plane();
    plane.registry.counter("tidegate_x_total", "X.", &[]).add(3);
    let response = plane.ask("GET", "/metrics");
    assert_eq!(response.status, 200);
    let text = prometheus::Format::Text;
    assert_eq!(field(&response, "content-type"), Some(text.content_type()));
    let text = String::from_utf8(response.body).unwrap();
    assert!(text.contains("\ntidegate_x_total 3\n"), "{text}");
}

#[test]
fn limits_are_listed_by_name_with_their_unit_and_consequence() {
    let plane = plane();
    let queue = plane.registry.limit("server.queue_max", "data", 2, "503 queue_full");
    let bytes = Unit::Bytes;
    plane.registry.limit_of(bytes, "server.bodies_total_max", "data", 9, "503 bodies_full");
    plane.registry.limit("events.max", "", 5, "oldest dropped");
    plane.registry.limit_each(bytes, "upstream.answer_max", "u", 7, "next in chain").saw(5);
    let _held = queue.try_take(2);
    assert!(queue.try_take(1).is_none());
    let (status, text) = plane.get("/limits");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    let rows = document["limits"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["limit"].as_str().unwrap()).collect();
    assert!(names.is_sorted(), "{names:?}");
    let row = |name: &str| &rows[names.iter().position(|have| *have == name).unwrap()];
    assert_eq!(
        row("server.bodies_total_max"),
        &serde_json::json!({
            "limit": "server.bodies_total_max", "owner": "data",
            "setting": "server.bodies_total_max", "unit": "bytes", "each": false, "now": 0,
            "high_water": 0, "max": 9, "refused": 0, "consequence": "503 bodies_full",
        })
    );
    assert_eq!(
        row("upstream.answer_max"),
        &serde_json::json!({
            "limit": "upstream.answer_max", "owner": "u", "setting": "upstream.answer_max",
            "unit": "bytes", "each": true, "now": null, "high_water": 5, "max": 7, "refused": 0,
            "consequence": "next in chain",
        })
    );
    assert_eq!(row("events.max")["setting"], Value::Null);
    assert!(row("metrics.series_max")["now"].as_u64().unwrap() >= 4);
    let queue = row("server.queue_max");
    assert_eq!((&queue["now"], &queue["refused"]), (&2.into(), &1.into()));
}

#[test]
fn other_paths_and_methods_are_refused_with_what_to_do() {
    let plane = plane();
    for target in [
        "/nothing",
        "/dashboard/nothing",
        "/dashboard/app.js/x",
        "/live/x",
        "//",
        "/metrics/x",
        "/livezz",
        "/livez/none",
        "/READYZ",
        "*",
        "",
    ] {
        let response = plane.ask("GET", target);
        assert_eq!(response.status, 404, "{target}");
        assert_eq!(field(&response, "content-type"), Some("application/problem+json"));
        let problem: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&404.into(), &"not_found".into()));
    }
    for method in ["POST", "DELETE", "OPTIONS", "BREW"] {
        for target in ["/livez", "/readyz", "/metrics"] {
            let response = plane.ask(method, target);
            assert_eq!((response.status, field(&response, "allow")), (405, Some("GET, HEAD")));
        }
        assert_eq!(plane.ask(method, "/nothing").status, 404);
    }
    assert_eq!(plane.ask("HEAD", "/livez").status, 200);
}

#[test]
fn a_web_page_cannot_ask() {
    let admitted = |plane: &Plane, fields: &[(&str, &str)]| {
        let peer = "127.0.0.1:1".parse().unwrap();
        let id = RequestId::generate();
        let admission = plane.ops.admit(&head("GET", "/metrics", fields), &peer, &id);
        admission.map(|admission| admission.body_max).map_err(|response| response.status)
    };
    let plane = plane();
    for host in
        ["127.0.0.1:18790", "localhost", "LOCALHOST:18790", "[::1]:18790", "[::1]", "10.0.0.1"]
    {
        assert_eq!(admitted(&plane, &[("host", host)]), Ok(BODY_BYTES_MAX), "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:18790", "127.0.0.1.evil.example"] {
        assert_eq!(admitted(&plane, &[("host", host)]), Err(403), "{host}");
    }
    let page = [("host", "localhost"), ("origin", "http://localhost:3000")];
    assert_eq!(admitted(&plane, &page), Err(403));
    // Our own page may ask, as far as its browser says that it is ours.
    let own = "127.0.0.1:18790";
    for origin in ["http://127.0.0.1:18790", "https://127.0.0.1:18790"] {
        let fields = [("host", own), ("origin", origin), ("sec-fetch-site", "same-origin")];
        assert_eq!(admitted(&plane, &fields), Ok(BODY_BYTES_MAX), "{origin}");
    }
    for origin in ["null", "", "http://", "http://127.0.0.1", "ftp://127.0.0.1:18790"] {
        assert_eq!(admitted(&plane, &[("host", own), ("origin", origin)]), Err(403), "{origin}");
    }
    assert_eq!(admitted(&plane, &[("origin", "http://")]), Err(403));
    let fetched = |site: &str, mode: &str, dest: &str| {
        let fields = [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
        admitted(&plane, &[&[("host", own)], &fields[..]].concat())
    };
    for site in ["same-origin", "none"] {
        assert_eq!(fetched(site, "cors", "empty"), Ok(BODY_BYTES_MAX), "{site}");
    }
    for site in ["cross-site", "same-site"] {
        assert_eq!(fetched(site, "no-cors", "image"), Err(403), "{site}: an image");
        assert_eq!(fetched(site, "navigate", "iframe"), Err(403), "{site}: a frame");
        assert_eq!(fetched(site, "navigate", "document"), Ok(BODY_BYTES_MAX), "{site}: a link");
    }
    let mut text = Vec::new();
    let format = prometheus::Format::Text;
    prometheus::render(&plane.registry, &Levels::default(), format, &mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("tidegate_ops_refused_total{code=\"host_not_allowed\"} 3\n"), "{text}");
    // HTTP/1.0 has no Host; and where others reach the listener, names are how they do.
    assert_eq!(admitted(&plane, &[]), Ok(BODY_BYTES_MAX));
    assert_eq!(
        admitted(&plane_on("0.0.0.0:18790"), &[("host", "gateway:18790")]),
        Ok(BODY_BYTES_MAX)
    );
    assert_eq!(admitted(&plane_on("0.0.0.0:18790"), &page), Err(403));
}

#[test]
fn health_is_told_in_json_with_ages_and_reasons() {
    let plane = plane();
    let get = || {
        let (status, text) = plane.get("/health");
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let (status, document) = get();
    assert_eq!((status, &document["status"]), (503, &"unhealthy".into()), "starting");
    plane.board.set_phase(Phase::Ready);
    let disk = plane.board.check_every("disk", Duration::from_secs(10));
    disk.degraded("slow");
    disk.runs_next(clock::now() + Duration::from_secs(100));
    let (status, document) = get();
    assert_eq!(
        (status, &document["ok"], &document["status"]),
        (200, &true.into(), &"degraded".into())
    );
    assert_eq!(document["reasons"], serde_json::json!(["disk: slow"]));
    let check = &document["checks"][0];
    assert_eq!(check["last_error"], "slow");
    assert_eq!((&check["state"], &check["interval_seconds"]), (&"degraded".into(), &10.0.into()));
    assert!(check["next_run_seconds"].as_f64().unwrap() > 90.0, "{check}");
    disk.ok();
    plane.check(
        "/readyz?verbose",
        200,
        "[+]phase ok\n[+]disk ok (checked 0 s ago)\nreadyz check passed\n",
    );
    let start = clock::now();
    plane.heartbeats.register_one_of_many("data-1", Duration::from_secs(5)).tick_at(start);
    let beat = plane.heartbeats.register_one_of_many("data-2", Duration::from_secs(5));
    beat.tick_at(start);
    let later = start + Duration::from_secs(7);
    let (status, text) = plane.get_at("/livez?verbose", later);
    assert_eq!(status, 200, "one of many: {text}");
    assert!(text.contains("[+]data-2 degraded: no beat for 7000 ms"), "{text}");
    let (_, text) = plane.get_at("/health", later);
    assert!(text.contains("data-2 is blocked on its work for 7 s"), "{text}");
    assert_eq!(plane.get("/health/").0, 404);
}
