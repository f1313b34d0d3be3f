//! `tidegate snapshot`: everything is in it, and no secret is, wherever one was planted.

use serde_json::{Value, json};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start, command};
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire;

fn snapshot(sandbox: &Sandbox, daemon: &Daemon, over_socket: bool) -> (Value, String) {
    let ops = daemon.ops.to_string();
    let config = daemon.config.display().to_string();
    let way = if over_socket { ["--config", &*config] } else { ["--ops", &*ops] };
    let output = command(sandbox).arg("snapshot").args(way).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{told}");
    let text = String::from_utf8(output.stdout).unwrap();
    (serde_json::from_str(&text).unwrap(), text)
}

#[test]
fn no_secret_that_was_planted_anywhere_is_in_a_snapshot() {
    let sandbox = Sandbox::new();
    sandbox.write("cloud.key", "sk-planted-in-a-file\n");
    // An upstream that repeats its key in an error, which goes into the log and into events.
    let upstream = FakeUpstream::start(Dialect::OpenAi, |_| {
        let message = "bad key sk-planted-in-the-environment";
        answers::json_answer(401, &json!({"error": {"message": message}}))
    });
    // Channels that take nothing, and say so in their own words.
    let channel = FakeUpstream::start(Dialect::OpenAi, |call| {
        let told = call.header("authorization").unwrap_or_default();
        answers::json_answer(403, &json!({"error": format!("{} {told}", call.path)}))
    });
    let at = channel.addr();
    sandbox.write("hook.key", "whsec_planted-in-a-signature\n");
    sandbox.write("dsn", format!("http://planted-in-a-dsn@{at}/42\n"));
    let notify = format!(
        "[alerts]\ninterval = \"100ms\"\ngroup_wait = \"0s\"\nretry_min = \"50ms\"\n\
         heartbeat_url = \"http://{at}/ping/planted-in-a-heartbeat\"\nheartbeat_interval = \"1s\"\n\
         [[alert]]\nname = \"visited\"\nmetric = \"tidegate_http_requests_total\"\nthreshold = \"0\"\n\
         [[notify]]\nname = \"hook\"\nkind = \"webhook\"\nkey_file = \"hook.key\"\n\
         url = \"http://{at}/hooks/planted-in-a-path?token=planted-in-an-address\"\n\
         [[notify]]\nname = \"phone\"\nkind = \"ntfy\"\nkey_env = \"PLANTED_TOKEN\"\n\
         topic = \"t\"\nurl = \"http://{at}\"\n\
         [[notify]]\nname = \"errors\"\nkind = \"sentry\"\nkey_file = \"dsn\"\n"
    );
    let client_key = "tg-planted-client-key";
    let digest = digest(client_key);
    let conf = Conf::new()
        .fake("one", &upstream, "api_key_env = \"PLANTED_KEY\"")
        .fake("two", &upstream, "api_key_file = \"cloud.key\"")
        .model("m", "one/x", &["two/x"])
        .log("dir = \"logs\"\nlevel = \"debug\"")
        .text(&format!("[[key]]\nname = \"k\"\nsha256 = \"{digest}\""))
        .text(&notify);
    let start = Start {
        env: vec![
            ("PLANTED_KEY".into(), "sk-planted-in-the-environment".into()),
            ("PLANTED_TOKEN".into(), "tk_planted-in-a-token".into()),
            ("OTHER_SECRET".into(), "planted-in-another-variable".into()),
        ],
        ..Start::default()
    };
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    let body = ask::chat_body("m", "planted-in-a-prompt", false).to_string();
    for key in [client_key, "tg-planted-wrong-key"] {
        let headers = format!("Authorization: Bearer {key}\r\nX-Custom: planted-in-a-header\r\n");
        daemon.ask(ask::post_with("/v1/chat/completions", &headers, body.as_bytes()));
        daemon.ask(ask::post_with("/v1/models?key=planted-in-a-query", &headers, body.as_bytes()));
    }
    assert!(upstream.calls() >= 2, "the keys were used");
    let paths = || channel.seen_all().iter().map(|seen| seen.call.path.clone()).collect::<Vec<_>>();
    let used = |words: &str| paths().iter().any(|path| path.contains(words));
    for words in ["planted-in-an-address", "planted-in-a-heartbeat", "/api/42/envelope"] {
        assert_eventually!(used(words), "{words}: {:?}", paths());
    }
    let failed = |name: &str| {
        let document = wire::ask(daemon.ops, ask::get("/alerts")).json();
        let rows = document["channels"].as_array().unwrap();
        rows.iter().any(|row| row["name"] == name && row["failures"].as_u64() > Some(0))
    };
    for name in ["hook", "phone", "errors"] {
        assert_eventually!(failed(name), "{name}");
    }

    // Lines are written by a thread of their own.
    assert_eventually!(
        snapshot(&sandbox, &daemon, false).0["log"].to_string().matches("access").count() >= 4
    );
    let (document, text) = snapshot(&sandbox, &daemon, false);
    let log = document["log"]["lines"].as_array().unwrap();
    assert!(log.iter().any(|line| line.as_str().unwrap().contains("access")), "{log:?}");
    let settings = document["config"]["settings"].to_string();
    assert!(settings.contains("PLANTED_KEY") && settings.contains("cloud.key"), "{settings}");
    assert!(document["system"]["variables"].to_string().contains("OTHER_SECRET"));
    let config = daemon.config.display().to_string();
    let command = |args: &[&str]| {
        let mut command = command(&sandbox);
        command.args(args).args(["--config", &config]).envs(start.env.iter().cloned());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let files = std::fs::read_dir(sandbox.path("logs")).unwrap().map(|file| file.unwrap().path());
    let log_files: String = files.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert!(log_files.contains("access"), "{log_files}");
    let mut told = vec![
        ("snapshot", text),
        ("status", command(&["status"])),
        ("alerts", command(&["alerts"])),
        ("rules", command(&["alerts", "--rules"])),
        ("print", command(&["config", "print"])),
        ("standard error", daemon.log()),
        ("log", log_files),
    ];
    for path in ["/alerts", "/live.json", "/health", "/status", "/breakers", "/config", "/metrics"]
    {
        told.push((path, wire::ask(daemon.ops, ask::get(path)).text()));
    }
    for (whose, text) in told {
        for secret in ["planted", &digest] {
            let found: Vec<&str> = text.lines().filter(|line| line.contains(secret)).collect();
            assert!(found.is_empty(), "{whose}: {secret}: {found:#?}");
        }
    }
}

fn digest(key: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_snapshot_tells_what_the_other_routes_tell_and_what_the_kernel_knows() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for _ in 0..5 {
        daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello there", true));
    }
    let (document, _) = snapshot(&sandbox, &daemon, true);
    assert_eq!(document["about"]["pid"], daemon.process().0);
    assert_eq!(document["about"]["phase"], "ready");
    let lines = document["readyz"].as_array().unwrap();
    assert_eq!(lines.last().unwrap(), "readyz check passed");
    let threads = document["threads"]["threads"].as_array().unwrap();
    for name in ["tidegate", "park-data", "accept-ops", "log"] {
        assert!(threads.iter().any(|thread| thread["name"] == name), "{name}: {threads:?}");
    }
    assert!(document["memory"]["status_kib"]["VmRSS"].as_u64().unwrap() > 1000);
    assert!(document["descriptors"]["kinds"]["socket"].as_u64().unwrap() >= 2);
    let requests = document["metrics"]["tidegate_http_requests_total"].as_object().unwrap();
    let sum: f64 = requests.values().map(|value| value.as_f64().unwrap()).sum();
    assert!(sum >= 5.0, "{requests:?}");
    assert!(document["config"]["in_force"].is_object(), "{}", document["config"]["in_force"]);
    assert!(document["history"]["process_open_fds"].is_object(), "{}", document["history"]);
    assert!(document["usage"]["totals"].is_object(), "{}", document["usage"]);
    // The command asks the socket first; the ops plane has the same, and a page of another site does not get it.
    assert_eq!(wire::ask(daemon.ops, ask::get("/snapshot")).status(), 200);
    let page = "GET /snapshot HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n";
    assert_eq!(wire::ask(daemon.ops, page).status(), 403);
    assert!(daemon.metrics().limit("high_water", "snapshot.bytes_max") > 10_000);
    daemon.assert_well("after snapshots");
}
