//! Alerts from end to end: rules in a running daemon, and endpoints that take, refuse, hang and come back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start, command};
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::Dialect;
use crate::support::{patience, wire};

/// A server that is told of alerts. It keeps what it took with a 200.
struct Endpoint {
    server: FakeUpstream,
    taken: Arc<Mutex<Vec<Call>>>,
}

/// A way to treat a request.
#[derive(Clone, Copy, Debug)]
enum Treat {
    Take,
    /// This status, with these header lines.
    Answer(u16, &'static str),
    Hang,
    Reset,
    /// Half an answer.
    Cut,
}

impl Endpoint {
    /// Treats the first requests like this, and takes all after them.
    fn start(first: &'static [Treat]) -> Self {
        let asked = AtomicUsize::new(0);
        Endpoint::with(move |_| {
            let at = asked.fetch_add(1, Ordering::SeqCst);
            first.get(at).copied().unwrap_or(Treat::Take)
        })
    }

    fn with(treat: impl Fn(&Call) -> Treat + Send + Sync + 'static) -> Self {
        let taken: Arc<Mutex<Vec<Call>>> = Arc::default();
        let keep = Arc::clone(&taken);
        let server = FakeUpstream::start(Dialect::Ollama, move |call| match treat(call) {
            Treat::Take => {
                keep.lock().unwrap().push(call.clone());
                vec![Step::Send(answers::whole(200, "", b"{}"))]
            }
            Treat::Answer(status, headers) => {
                vec![Step::Send(answers::whole(status, headers, b"{}"))]
            }
            Treat::Hang => vec![Step::Silence],
            Treat::Reset => vec![Step::Reset],
            Treat::Cut => {
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{".to_vec();
                vec![Step::Send(head), Step::Close]
            }
        });
        Endpoint { server, taken }
    }

    fn taken(&self) -> Vec<Call> {
        self.taken.lock().unwrap().clone()
    }

    /// What a webhook took: for each alert its rule, whether it fires, and its labels.
    fn alerts(&self) -> Vec<(String, bool, Value)> {
        let of = |call: &Call| -> Vec<Value> {
            call.json["alerts"].as_array().cloned().unwrap_or_default()
        };
        let alerts = self.taken().iter().flat_map(of).collect::<Vec<_>>();
        let row = |alert: Value| {
            let rule = alert["labels"]["alertname"].as_str().unwrap().to_owned();
            (rule, alert["status"] == "firing", alert)
        };
        alerts.into_iter().map(row).collect()
    }

    /// How often a webhook was told of a rule, and how often that it was over.
    fn told(&self, rule: &str) -> (usize, usize) {
        let mine: Vec<_> = self.alerts().into_iter().filter(|(have, ..)| have == rule).collect();
        let firing = mine.iter().filter(|(_, firing, _)| *firing).count();
        (firing, mine.len() - firing)
    }

    fn channel(&self, kind: &str, name: &str, more: &str) -> String {
        let url = match kind {
            "sentry" => String::new(),
            _ => format!("url = \"http://{}\"\n", self.server.addr()),
        };
        channel(kind, name, &url, more)
    }
}

fn channel(kind: &str, name: &str, url: &str, more: &str) -> String {
    format!("[[notify]]\nname = \"{name}\"\nkind = \"{kind}\"\ntimeout = \"400ms\"\n{url}{more}\n")
}

/// Looks and tells at once, and tries again soon.
const QUICK: &str = "[alerts]\ninterval = \"100ms\"\ngroup_wait = \"0s\"\ngroup_interval = \"0s\"\n\
                     repeat = \"1h\"\nretry_min = \"50ms\"\nretry_max = \"300ms\"\n";

/// One alert for each route that somebody asked for.
const VISITED: &str = "[[alert]]\nname = \"visited\"\nmetric = \"tidegate_http_requests_total\"\n\
                       by = [\"route\"]\nthreshold = \"0\"\nseverity = \"critical\"\n";

fn quick(more: &[&str]) -> Conf {
    Conf::new().text(QUICK).text(&more.join("\n"))
}

fn alerts(daemon: &Daemon) -> Value {
    let answer = wire::ask(daemon.ops, ask::get("/alerts"));
    assert_eq!(answer.status(), 200);
    answer.json()
}

/// A field of a channel's row.
fn of_channel(daemon: &Daemon, name: &str, key: &str) -> Value {
    let document = alerts(daemon);
    let rows = document["channels"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name).unwrap()[key].clone()
}

/// Makes the configuration's file a bad one, and has it read.
fn config_fault(daemon: &Daemon) {
    let text = std::fs::read_to_string(&daemon.config).unwrap();
    std::fs::write(&daemon.config, format!("{text}\n[nonsense]\n")).unwrap();
    daemon.signal(Signal::HUP);
}

#[test]
fn endpoints_that_refuse_hang_and_break_off_are_told_of_each_alert_once_when_they_come_back() {
    use Treat::{Answer, Cut, Hang, Reset};
    let ntfy = Endpoint::start(&[Answer(429, "Retry-After: 1\r\n"), Hang, Answer(500, ""), Reset]);
    let sentry = Endpoint::start(&[
        Answer(503, ""),
        Answer(429, "X-Sentry-Rate-Limits: 1:error;transaction:key, 3000:transaction:org\r\n"),
        Reset,
        Hang,
        Cut,
    ]);
    let manager = Endpoint::start(&[Hang, Answer(502, ""), Cut, Reset]);
    let hook = Endpoint::start(&[Reset, Answer(408, ""), Hang, Answer(504, ""), Cut]);
    let sandbox = Sandbox::new();
    sandbox.write("dsn", format!("http://public@{}/42", sentry.server.addr()));
    sandbox.write("token", "tk_secret");
    let conf = quick(&[
        VISITED,
        &ntfy.channel("ntfy", "phone", "topic = \"gateway\"\nkey_file = \"token\""),
        &sentry.channel("sentry", "errors", "key_file = \"dsn\""),
        &manager.channel("alertmanager", "manager", "resend = \"1h\""),
        &hook.channel("webhook", "hook", "key_file = \"token\""),
    ]);
    let daemon = Daemon::start(&sandbox, &conf);
    // One after the other, so that each makes a notice of its own.
    let routes = ["/v1/models", "/api/tags", "/api/version"];
    for (at, route) in routes.iter().enumerate() {
        daemon.ask(ask::get(route));
        assert_eventually!(alerts(&daemon)["alerts"].as_array().unwrap().len() > at);
    }
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    let names = ["phone", "errors", "manager", "hook"];
    let through = || names.iter().all(|name| of_channel(&daemon, name, "delivered") == 3);
    while !through() {
        assert!(Instant::now() < deadline, "not told: {}\n{}", alerts(&daemon), daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Some more looks: nothing comes twice.
    let before = daemon.metrics().sum("tidegate_alerts_deliveries_total", &[]).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(daemon.metrics().sum("tidegate_alerts_deliveries_total", &[]), Some(before));
    let once = |found: Vec<String>, whose: &str| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        found.into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
        let expected = routes.map(|route| (route.to_owned(), 1)).into_iter().collect();
        assert_eq!(counts, expected, "{whose}");
    };
    let route = |value: &Value| value["route"].as_str().unwrap().to_owned();
    once(hook.alerts().iter().map(|(_, _, alert)| route(&alert["labels"])).collect(), "hook");
    let pushed = manager.taken();
    assert!(pushed.iter().all(|call| call.path == "/api/v2/alerts"), "{pushed:?}");
    let pushed = pushed.iter().flat_map(|call| call.json.as_array().unwrap().clone());
    once(pushed.map(|alert| route(&alert["labels"])).collect(), "manager");
    let said = ntfy.taken().into_iter().map(|call| {
        assert_eq!(call.header("authorization"), Some("Bearer tk_secret"));
        assert_eq!((&call.json["topic"], &call.json["priority"]), (&"gateway".into(), &5.into()));
        let text = call.json["message"].as_str().unwrap().to_owned();
        routes.iter().find(|route| text.contains(**route)).unwrap().to_string()
    });
    once(said.collect(), "phone");
    let envelope = |call: &Call| -> Vec<Value> {
        assert_eq!(call.path, "/api/42/envelope/");
        let lines = String::from_utf8(call.body.clone()).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    once(sentry.taken().iter().map(|call| route(&envelope(call)[2]["tags"])).collect(), "errors");
    // Each try is the same event to Sentry, and its limit was kept to.
    let tries = sentry.server.seen();
    let ids: std::collections::BTreeSet<String> =
        tries.iter().map(|seen| envelope(&seen.call)[0]["event_id"].to_string()).collect();
    assert_eq!((tries.len(), ids.len()), (8, 3));
    let limited = tries[2].at - tries[1].at;
    assert!(limited >= Duration::from_millis(990), "{limited:?}");
    // A signature that whoever has the secret can check.
    let signed = &hook.taken()[0];
    assert!(signed.header("webhook-signature").is_some_and(|text| text.starts_with("v1,")));
    assert!(signed.header("authorization").is_none());
    let log = daemon.log();
    assert!(!log.contains("tk_secret") && !alerts(&daemon).to_string().contains("tk_secret"));
}

#[test]
fn a_daemon_that_is_killed_before_it_could_tell_tells_it_after_its_restart_and_only_once() {
    let hook = Endpoint::start(&[]);
    let sandbox = Sandbox::new();
    let dead = free_port();
    let url = |port: u16| format!("url = \"http://127.0.0.1:{port}/x\"\n");
    let conf = |port: u16| quick(&[&channel("webhook", "hook", &url(port), "")]);
    {
        let daemon = Daemon::start(&sandbox, &conf(dead));
        config_fault(&daemon);
        assert_eventually!(of_channel(&daemon, "hook", "failures").as_u64() > Some(2));
        assert_eq!(of_channel(&daemon, "hook", "waiting"), 1);
        let mut silence = command(&sandbox);
        let config = daemon.config.to_str().unwrap();
        let args = ["alerts", "silence", "memory_*", "--for", "1h", "--config", config];
        let output = silence.args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        // Dropped: killed with SIGKILL.
    }
    let daemon = Daemon::start(&sandbox, &conf(hook.server.addr().port()));
    assert_eventually!(
        hook.told("config_fault") == (1, 0),
        "{:?}\n{}",
        hook.alerts(),
        daemon.log()
    );
    assert_eventually!(of_channel(&daemon, "hook", "waiting") == 0);
    let document = alerts(&daemon);
    assert_eq!(document["silences"][0]["match"], "memory_*");
    let fault = &document["alerts"][0];
    assert_eq!((&fault["rule"], &fault["state"]), (&"config_fault".into(), &"firing".into()));
    // Killed once more after it was told: not told again.
    drop(daemon);
    let daemon = Daemon::start(&sandbox, &conf(hook.server.addr().port()));
    assert_eventually!(alerts(&daemon)["alerts"][0]["rule"] == "config_fault");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(hook.told("config_fault"), (1, 0), "{:?}", hook.alerts());
}

#[test]
fn a_config_fault_is_told_once_however_often_it_is_met_and_a_limit_that_is_used_up_until_it_is_not()
{
    let hook = Endpoint::start(&[]);
    let sandbox = Sandbox::new();
    let conf = quick(&[
        "[[alert]]\nname = \"limit_exhausted\"\nfor = \"0s\"\nlabels = [\"team=ops\"]\n",
        &hook.channel("webhook", "hook", ""),
    ])
    .server("exchanges_max = 4")
    .upstream("slow", "echo", "", "word_delay = \"100ms\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let mut busy: Vec<_> = (0..4).map(|_| daemon.connect()).collect();
    let words = "word ".repeat(600);
    for wire in &mut busy {
        wire.send(ask::chat(Dialect::OpenAi, "slow/echo", &words, true));
    }
    let used = |label: &str, firing: bool| {
        let fits = |(rule, is, alert): &(String, bool, Value)| {
            let labels = &alert["labels"];
            rule == "limit_exhausted"
                && *is == firing
                && labels["limit"] == label
                && labels["owner"] == "data"
                && labels["team"] == "ops"
        };
        hook.alerts().iter().filter(|alert| fits(alert)).count()
    };
    assert_eventually!(used("server.exchanges_max", true) == 1, "{}", alerts(&daemon));
    drop(busy);
    assert_eventually!(used("server.exchanges_max", false) == 1, "{}", alerts(&daemon));
    for _ in 0..3 {
        config_fault(&daemon);
        let refused = [("outcome", "refused")];
        let reloads = || daemon.metrics().sum("tidegate_config_reloads_total", &refused);
        assert_eventually!(reloads() >= Some(1.0));
    }
    assert_eventually!(hook.told("config_fault") == (1, 0), "{:?}", hook.alerts());
    let (_, _, alert) =
        hook.alerts().into_iter().find(|(rule, ..)| rule == "config_fault").unwrap();
    // The last of those that came before the first look: with its file and line.
    assert!(alert["annotations"]["description"].to_string().contains("tidegate.toml:3"), "{alert}");
    assert_eq!(used("server.exchanges_max", true), 1);
}

#[test]
fn a_channel_that_is_dead_for_good_is_told_on_the_other_and_shown() {
    let hook = Endpoint::start(&[]);
    let sandbox = Sandbox::new();
    let dead = format!("url = \"http://127.0.0.1:{}\"\ntopic = \"x\"\n", free_port());
    let conf = quick(&[
        VISITED,
        "[[alert]]\nname = \"notify_failing\"\nthreshold = \"300ms\"\n",
        &channel("ntfy", "phone", &dead, ""),
        &hook.channel("webhook", "hook", ""),
    ]);
    let daemon = Daemon::start(&sandbox, &conf);
    daemon.ask(ask::get("/v1/models"));
    assert_eventually!(hook.told("notify_failing") == (1, 0), "{}", alerts(&daemon));
    let (_, _, alert) =
        hook.alerts().into_iter().find(|(rule, ..)| rule == "notify_failing").unwrap();
    assert_eq!(alert["labels"]["channel"], "phone");
    assert!(alert["annotations"]["description"].to_string().contains("no connection"), "{alert}");
    assert_eq!(hook.told("visited"), (1, 0));
    let ready = daemon.readyz().unwrap();
    assert_eq!(
        ready.status(),
        200,
        "that people are not reached is no reason to send none of them"
    );
    let line = ready.text().lines().find(|line| line.contains("alerts")).unwrap().to_owned();
    assert!(line.contains("nothing gets through on phone"), "{line}");
    // The other one has it: it is not undelivered.
    let undelivered = || daemon.metrics().sum("tidegate_alerts_undelivered", &[]);
    assert_eventually!(undelivered() == Some(0.0), "{}", alerts(&daemon));
    // Without the other it is.
    daemon.rewrite(&quick(&[VISITED, &channel("ntfy", "phone", &dead, "")]));
    daemon.signal(Signal::HUP);
    assert_eventually!(alerts(&daemon)["channels"].as_array().unwrap().len() == 1);
    daemon.ask(ask::get("/api/tags"));
    assert_eventually!(undelivered() > Some(0.0), "{}", alerts(&daemon));
    assert!(alerts(&daemon)["undelivered"].as_u64() > Some(0));
}

#[test]
fn alerts_are_silenced_tried_and_listed_by_command() {
    let hook = Endpoint::start(&[]);
    let broken = Endpoint::with(|_| Treat::Answer(403, ""));
    let sandbox = Sandbox::new();
    let conf = quick(&[
        VISITED,
        &hook.channel("webhook", "hook", ""),
        &broken.channel("webhook", "broken", "severities = [\"info\"]"),
    ]);
    let daemon = Daemon::start(&sandbox, &conf);
    let config = daemon.config.to_str().unwrap();
    let run = |args: &[&str]| {
        let output = command(&sandbox).arg("alerts").args(args).args(["--config", config]).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text, errors)
    };
    let (code, text, errors) = run(&["silence", "visited, route=/api/*", "--reason", "known"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("is silenced until") && !text.contains("in memory only"), "{text}");
    daemon.ask(ask::get("/api/tags"));
    daemon.ask(ask::get("/v1/models"));
    assert_eventually!(hook.told("visited") == (1, 0), "{}", alerts(&daemon));
    assert_eventually!(run(&[]).1.contains("firing (silenced)"), "{}", run(&[]).1);
    let (_, text, _) = run(&[]);
    assert!(text.contains("visited, route=/api/*") && text.contains("known"), "{text}");
    assert_eq!(hook.told("visited"), (1, 0));
    // What was silenced is told when that ends.
    assert_eq!(run(&["unsilence", "visited, route=/api/*"]).0, Some(0));
    assert_eventually!(hook.told("visited") == (2, 0), "{}", alerts(&daemon));
    // Faults of the command.
    for (args, says) in [
        (&["unsilence", "nothing"][..], "no silence nothing"),
        (&["silence", "a,,b"], "the match is empty"),
        (&["silence", "a", "--for", "90d"], "30 days"),
        (&["silence", "a", "--for", "soon"], "write a duration"),
        (&["test", "nobody"], "no [[notify]] of the name nobody"),
    ] {
        let (code, _, errors) = run(args);
        assert!(code != Some(0) && errors.contains(says), "{args:?}: {errors}");
    }
    let (code, text, _) = run(&["test", "hook"]);
    assert_eq!((code, text.as_str()), (Some(0), "hook: delivered\n"));
    assert_eq!(hook.told("test"), (1, 0));
    let (code, text, _) = run(&["test"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("broken: failed: answered 403; mend the key"), "{text}");
    let (_, text, _) = run(&["--rules"]);
    for rule in ["unresponsive", "memory_critical", "error_rate", "limit_trend", "visited"] {
        assert!(text.lines().any(|line| line.split(' ').next() == Some(rule)), "{rule}: {text}");
    }
    let (code, text, _) = run(&["--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, document["silences"].as_array().unwrap().len()), (Some(0), 0));
}

#[test]
fn what_fires_is_in_the_live_document_and_counted_by_status() {
    let sandbox = Sandbox::new();
    let dead = format!("url = \"http://127.0.0.1:{}\"\n", free_port());
    let daemon =
        Daemon::start(&sandbox, &quick(&[VISITED, &channel("webhook", "hook", &dead, "")]));
    let document = |path: &str| wire::ask(daemon.ops, ask::get(path)).json();
    let live = document("/live.json")["alerts"].clone();
    assert_eq!((&live["enabled"], &live["alerts"]), (&true.into(), &serde_json::json!([])));
    daemon.ask(ask::get("/v1/models"));
    let firing = || document("/live.json")["alerts"]["alerts"].clone();
    let found = |rows: &Value| {
        let rows = rows.as_array().unwrap();
        rows.iter().any(|row| row["rule"] == "visited" && row["state"] == "firing")
    };
    assert_eventually!(found(&firing()), "{}", firing());
    let counts = || document("/status")["alerts"].clone();
    let own = |key: &str| counts()[key].as_u64();
    assert_eventually!(own("firing") >= Some(1) && own("undelivered") >= Some(1), "{}", counts());
    let config = daemon.config.to_str().unwrap();
    let output = command(&sandbox).args(["status", "--config", config]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("alerts: ")).unwrap_or(&text);
    assert!(line.contains(" firing, ") && !line.starts_with("alerts: 0"), "{text}");
}

#[test]
fn a_thread_that_hangs_is_named_in_an_alert_and_the_dead_man_s_switch_is_let_go() {
    let hook = Endpoint::start(&[]);
    let switch = Endpoint::start(&[]);
    let sandbox = Sandbox::new();
    let beat = format!(
        "heartbeat_url = \"http://{}/ping?a=b\"\nheartbeat_interval = \"1s\"\n",
        switch.server.addr()
    );
    let conf =
        Conf::new().text(&format!("{QUICK}{beat}")).text(&hook.channel("webhook", "hook", ""));
    let start = Start { env: vec![("TIDEGATE_DRILLS".into(), "1".into())], ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    assert_eventually!(switch.server.seen_all().len() >= 2);
    assert!(switch.server.seen_all().iter().all(|seen| seen.call.path == "/ping?a=b"));
    let mut stuck = daemon.connect();
    stuck.send(ask::chat(Dialect::OpenAi, "echo/drill-deadlock", "x", false));
    let begun = Instant::now();
    let deadline = begun + patience(Duration::from_secs(30));
    while hook.told("unresponsive").0 == 0 {
        assert!(Instant::now() < deadline, "{}\n{}", alerts(&daemon), daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let found = hook.alerts();
    let (_, _, alert) = found.iter().find(|(rule, ..)| rule == "unresponsive").unwrap();
    let thread = alert["labels"]["thread"].as_str().unwrap();
    assert!(thread.starts_with("data-") || thread == "drill", "{alert}");
    assert!(alert["annotations"]["description"].to_string().contains("lock"), "{alert}");
    // The world outside hears no more that all is well.
    let withheld = [("outcome", "failed")];
    let count = || daemon.metrics().sum("tidegate_alerts_heartbeats_total", &withheld);
    assert_eventually!(count() > Some(0.0));
    let before = switch.server.seen_all().len();
    assert_eventually!(count() > Some(1.0));
    assert!(switch.server.seen_all().len() <= before + 1);
}
