//! What metrics were: the history in memory and in the store, as it is asked for from outside.

use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire;

/// A look a second, so that tests need not wait.
const FAST: &str = "[history]\ninterval = \"1s\"";

fn history(daemon: &Daemon, query: &str) -> Value {
    let answer = wire::ask(daemon.ops, ask::get(&format!("/history{query}")));
    assert_eq!(answer.status(), 200, "{query}: {}", answer.text());
    answer.json()
}

fn values(series: &Value) -> Vec<f64> {
    series["values"].as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

/// The sum of what a counter grew by, over all series of the answer.
fn increase(answer: &Value) -> f64 {
    answer["series"].as_array().unwrap().iter().flat_map(values).sum()
}

#[test]
fn traffic_appears_in_the_history_and_agrees_with_the_metrics_page() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().text(FAST));
    for _ in 0..7 {
        daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", true));
    }
    let query = "?metric=tidegate_http_requests_total&label=code=ok&fn=increase&by=route&step=1";
    let counted = || -> f64 {
        let answer = wire::ask(daemon.ops, ask::get(&format!("/history{query}")));
        if answer.status() == 200 { increase(&answer.json()) } else { 0.0 }
    };
    let page = || daemon.metrics().sum("tidegate_http_requests_total", &[("code", "ok")]).unwrap();
    assert_eventually!(counted() == 7.0, "{} of {}", counted(), page());
    assert_eq!(page(), 7.0);
    // Where nothing was seen there is no value: the hour before the start.
    let answer = history(&daemon, query);
    let route = answer["series"].as_array().unwrap().iter();
    let route = route.filter(|series| series["labels"]["route"] == "/v1/chat/completions");
    let route: Vec<_> = route.collect();
    assert_eq!(route.len(), 1, "{answer}");
    assert!(route[0]["values"][0].is_null(), "{answer}");
    assert_eq!(
        answer["times"].as_array().unwrap().len(),
        route[0]["values"].as_array().unwrap().len()
    );
    // A histogram has percentiles, within its bounds, and a gauge a level.
    let seconds = history(&daemon, "?metric=tidegate_http_request_seconds&by=&fn=p95&from=-10m");
    let p95 = values(&seconds["series"][0]);
    assert!(!p95.is_empty() && p95.iter().all(|p95| (0.0..600.0).contains(p95)), "{seconds}");
    let memory = history(&daemon, "?metric=process_resident_memory_bytes&from=-10m");
    assert!(values(&memory["series"][0]).iter().all(|bytes| *bytes > 1e6), "{memory}");
    // What there is, by name.
    let all = history(&daemon, "");
    let names: Vec<&str> =
        all["metrics"].as_array().unwrap().iter().map(|m| m["metric"].as_str().unwrap()).collect();
    assert!(names.is_sorted() && names.contains(&"tidegate_limit_now"), "{names:?}");
}

#[test]
fn a_question_that_cannot_be_answered_is_told_why() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().text(FAST));
    let check = |query: &str, status: u16, says: &str| {
        let answer = wire::ask(daemon.ops, ask::get(&format!("/history?{query}")));
        assert_eq!(answer.status(), status, "{query}: {}", answer.text());
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(says), "{query}: {detail}");
    };
    assert_eventually!(!history(&daemon, "")["metrics"].as_array().unwrap().is_empty());
    check("metric=no_such_metric", 404, "GET /history names what is");
    check("metric=process_threads&fn=rate", 400, "says nothing of a gauge");
    check("metric=process_threads&fn=mode", 400, "fn: write one of");
    check("metric=process_threads&from=later", 400, "from: write seconds");
    check("metric=process_threads&colour=red", 400, "colour: is not known");
    let day = history(&daemon, "?metric=process_threads&from=-1d&step=1");
    assert!(day["times"].as_array().unwrap().len() <= 2001);
    assert!(day["notes"][0].as_str().unwrap().starts_with("the step is"), "{}", day["notes"]);
}

#[test]
fn the_command_draws_what_the_ops_plane_says() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().text(FAST));
    assert_eventually!(!history(&daemon, "")["metrics"].as_array().unwrap().is_empty());
    let tidegate = |args: &[&str]| {
        let output = command(&sandbox).args(args).arg("--config").arg(&daemon.config).output();
        let output = output.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (good, text) = tidegate(&["history", "process_threads", "--since", "2m", "--fn", "max"]);
    assert!(good && text.contains("max of process_threads"), "{text}");
    assert!(text.lines().nth(1).unwrap().contains(['▁', '█']), "{text}");
    let (good, text) = tidegate(&["history"]);
    assert!(good && text.contains("process_open_fds"), "{text}");
    let (good, text) = tidegate(&["history", "process_threads", "--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert!(good && json["metric"] == "process_threads", "{text}");
    assert!(!tidegate(&["history", "no_such_metric"]).0);
}

#[test]
fn a_restart_keeps_the_history_and_adds_to_it() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().text(FAST);
    let query =
        "?metric=tidegate_http_requests_total&label=code=ok&fn=increase&by=&step=60&from=-1h";
    let mut asked = 0;
    for requests in [5, 3] {
        let mut daemon = Daemon::start(&sandbox, &conf);
        for _ in 0..requests {
            daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", false));
        }
        asked += requests;
        let counted = || {
            let answer = wire::ask(daemon.ops, ask::get(&format!("/history{query}")));
            if answer.status() == 200 { increase(&answer.json()) } else { 0.0 }
        };
        assert_eventually!(counted() == f64::from(asked), "{} of {asked}", counted());
        let notes = history(&daemon, query)["notes"].clone();
        assert_eq!(notes.as_array().unwrap().len(), 0, "{notes}");
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_store_that_is_away_leaves_what_is_in_memory() {
    let sandbox = Sandbox::new();
    // A file stands where the folder should be.
    let state = sandbox.write("occupied", "");
    let text = format!("[state]\ndir = {:?}\n{FAST}", state.display().to_string());
    let daemon = Daemon::start(&sandbox, &Conf::new().text(&text));
    daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", false));
    let query = "?metric=tidegate_http_requests_total&label=code=ok&fn=increase&by=&step=1";
    assert_eventually!({
        let answer = wire::ask(daemon.ops, ask::get(&format!("/history{query}")));
        answer.status() == 200 && increase(&answer.json()) == 1.0
    });
    let notes = history(&daemon, query)["notes"].clone();
    assert!(notes[0].as_str().unwrap().starts_with("only what is in memory"), "{notes}");
}

#[test]
fn the_metrics_page_comes_in_the_format_that_is_asked_for() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello there", true));
    let get = |accept: &str| {
        let accept =
            if accept.is_empty() { String::new() } else { format!("Accept: {accept}\r\n") };
        wire::ask(daemon.ops, format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n"))
    };
    for accept in ["", "*/*", "text/plain", "application/openmetrics-text;q=0"] {
        let page = get(accept);
        let kind = page.header("content-type").unwrap().to_owned();
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accept}");
        crate::support::metrics::Metrics::parse(&page.text()).unwrap();
    }
    // As Prometheus itself asks.
    let page =
        get("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3");
    let kind = page.header("content-type").unwrap().to_owned();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert_eq!(page.header("vary"), Some("accept"));
    let text = page.text();
    assert!(text.ends_with("\n# EOF\n"), "{}", &text[text.len() - 80..]);
    for line in [
        "# TYPE tidegate_http_requests counter",
        "# TYPE tidegate_build info",
        "# UNIT gen_ai_server_request_duration_seconds seconds",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing");
    }
}

#[test]
fn the_four_levels_are_on_the_page_and_model_calls_in_the_words_of_the_conventions() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().model("talk", "echo/echo", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    // What the configuration names is there with 0, before anybody asks.
    let chat = [("upstream", "echo"), ("gen_ai_operation_name", "chat")];
    let before = daemon.metrics();
    assert_eq!(before.sum("gen_ai_server_request_duration_seconds_count", &chat), Some(0.0));
    for stream in [true, true, false] {
        daemon.ask(ask::chat(Dialect::OpenAi, "talk", "one two three four", stream));
    }
    let count = |name: &str| daemon.metrics().sum(&format!("{name}_count"), &chat);
    let calls = "gen_ai_server_request_duration_seconds";
    assert_eventually!(count(calls) == Some(3.0), "{:?}", count(calls));
    let page = daemon.metrics();
    assert!(page.sum("gen_ai_server_time_to_first_token_seconds_count", &chat) >= Some(2.0));
    assert!(page.types.contains_key("gen_ai_client_token_usage"));
    for name in ["process_resident_memory_bytes", "tidegate_http_requests_total"] {
        assert!(page.sum(name, &[]).is_some(), "{name}");
    }
    if cfg!(target_os = "linux") {
        let free = page.sum("tidegate_system_memory_available_bytes", &[]).unwrap();
        assert!(free > 1e6, "{free}");
        assert!(page.sum("tidegate_system_load1", &[]).is_some());
        let state = page.sum("tidegate_system_disk_free_bytes", &[("folder", "state")]);
        assert!(state.is_some_and(|free| free > 1e6), "{state:?}");
        // Of the container what its groups tell; where there are none, nothing, and no zeros.
        let memory = page.sum("tidegate_container_memory_bytes", &[]);
        assert!(memory.is_none_or(|bytes| bytes > 1e5), "{memory:?}");
    }
}
