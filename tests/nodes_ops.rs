//! Operators on WebSocket look at the gateway and change it: configuration, log, models, usage.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::logs::hex;
use crate::support::ask;
use crate::support::daemon::{Daemon, command};
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire;
use crate::support::ws::room::{self, TOKEN};
use crate::support::ws::{Client, Hello};

/// Two keys, of which one may ask for one model only.
fn keys() -> String {
    let key = |name: &str, lines: &str| {
        format!("[[key]]\nname = \"{name}\"\nsha256 = \"{}\"\n{lines}\n", hex(&key_of(name)))
    };
    key("laptop", "models = [\"default\"]") + &key("phone", "")
}

fn key_of(name: &str) -> String {
    format!("key-{name}")
}

fn operator(daemon: &Daemon, token: &str) -> Client {
    Client::operator(daemon, Some(token), &["operator.read", "operator.write"])
}

fn text(daemon: &Daemon) -> String {
    std::fs::read_to_string(&daemon.config).unwrap()
}

/// Asks and expects an answer.
#[track_caller]
fn told(client: &mut Client, method: &str, params: Value) -> Value {
    client.request(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
}

/// Asks and expects a refusal.
#[track_caller]
fn refused(client: &mut Client, method: &str, params: Value) -> Value {
    match client.request(method, params) {
        Err(error) => error,
        Ok(payload) => panic!("{method}: {payload}"),
    }
}

fn config(client: &mut Client) -> Value {
    told(client, "config.get", json!({}))
}

#[test]
fn the_configuration_is_changed_by_what_was_seen_and_its_comments_stay() {
    let sandbox = Sandbox::new();
    let conf =
        room::conf(&sandbox, "").text("# why this is here\n[usage]\ndays_max = 30 # a month");
    let daemon = Daemon::start(&sandbox, &conf);
    let (mut admin, mut reader) = (room::admin(&daemon), operator(&daemon, TOKEN));
    let before = config(&mut admin);
    assert_eq!(before["raw"], text(&daemon));
    assert_eq!(
        (&before["valid"], &before["exists"], &before["issues"]),
        (&json!(true), &json!(true), &json!([]))
    );
    assert_eq!(before["path"], daemon.config.to_str().unwrap());
    assert_eq!(before["configRevisionHash"], before["appliedConfigHash"]);
    assert_eq!(before["config"]["usage"], json!({"days_max": 30}));
    assert_eq!(before["runtimeConfig"]["log"]["level"], "info");
    let patch = "{ log: {level: 'debug'}, usage: {days_max: null, sessions_max: 77}, }";
    let params = json!({"raw": patch, "baseHash": before["hash"], "note": "less noise"});
    let changed = told(&mut admin, "config.patch", params.clone());
    assert_eq!((&changed["ok"], &changed["version"]), (&json!(true), &json!(2)), "{changed}");
    assert_eq!(changed["config"]["usage"], json!({"sessions_max": 77}));
    let now = text(&daemon);
    assert!(now.contains("# why this is here") && now.contains("sessions_max = 77"), "{now}");
    assert!(now.contains("level = \"debug\"") && !now.contains("days_max"), "{now}");
    // Administrators hear of it, others do not.
    let event = admin.next_event("config.changed");
    assert_eq!((&event["hash"], &event["version"]), (&changed["hash"], &json!(2)));
    let after = config(&mut admin);
    assert_eq!((&after["hash"], &after["appliedConfigHash"]), (&changed["hash"], &changed["hash"]));
    assert_eq!(after["raw"], now);
    // What was seen first is no more.
    let error = refused(&mut admin, "config.patch", params);
    assert_eq!(error["message"], "config changed since last load; re-run config.get and retry");
    // A whole text, the same once more, and the settings as JSON.
    let whole = now.replace("sessions_max = 77", "sessions_max = 78 # more");
    let set = told(&mut admin, "config.set", json!({"raw": whole, "baseHash": after["hash"]}));
    assert_eq!(text(&daemon), whole);
    let same = told(&mut admin, "config.set", json!({"raw": whole, "baseHash": set["hash"]}));
    assert_eq!((&same["noop"], &same["hash"]), (&json!(true), &set["hash"]));
    let mut values = config(&mut admin)["config"].clone();
    values["usage"]["sessions_max"] = 79.into();
    let raw = values.to_string();
    let json = told(&mut admin, "config.apply", json!({"raw": raw, "baseHash": set["hash"]}));
    assert_eq!(text(&daemon), whole.replace("78", "79"), "{json}");
    let mut history = command(&sandbox);
    history.args(["config", "history", "--config"]).arg(&daemon.config);
    let history = String::from_utf8(history.output().unwrap().stdout).unwrap();
    assert!(history.contains("less noise") && history.contains("nodes"), "{history}");
    told(&mut reader, "models.list", json!({}));
    assert!(!reader.events.iter().any(|event| event["event"] == "config.changed"));
}

#[test]
fn a_change_that_does_not_fit_is_refused_with_the_sentences_that_clients_know() {
    let sandbox = Sandbox::new();
    let conf = room::conf(&sandbox, "").upstream("u", "openai", "http://127.0.0.1:1/v1", "");
    let conf = conf.model("m", "u/x", &["u/y"]);
    let daemon = Daemon::start(&sandbox, &conf);
    let mut admin = room::admin(&daemon);
    let (seen, before) = (config(&mut admin), text(&daemon));
    let message = |client: &mut Client, method: &str, raw: &str, base: &Value| {
        let error = refused(client, method, json!({"raw": raw, "baseHash": base}));
        assert_eq!(error["code"], "INVALID_REQUEST", "{error}");
        error
    };
    let error = refused(&mut admin, "config.set", json!({"raw": "log.level = \"info\""}));
    assert_eq!(error["message"], "config base hash required; re-run config.get and retry");
    let error = message(&mut admin, "config.patch", "{}", &json!("0".repeat(64)));
    assert_eq!(error["message"], "config changed since last load; re-run config.get and retry");
    let hash = &seen["hash"];
    let bad = before.replace("[ops]", "[ops]\nnonsense = 1") + "[[model]]\nname = \"n\"\n";
    let error = message(&mut admin, "config.set", &bad, hash);
    let issues = error["details"]["issues"].as_array().unwrap();
    assert!(
        issues.iter().any(|issue| issue["path"] == "ops.nonsense" && issue["line"].is_u64()),
        "{error}"
    );
    assert!(issues.len() >= 2, "{error}");
    assert!(error["message"].as_str().unwrap().starts_with("invalid config: "), "{error}");
    let error = message(&mut admin, "config.patch", "{server: {workers: 'many'}}", hash);
    assert_eq!(error["details"]["issues"][0]["path"], "server.workers", "{error}");
    for (patch, why) in [
        ("{log: }", "JSON5: "),
        ("[1]", "must be an object"),
        ("{server: {workers: 3}}", "server.workers"),
        ("{model: null}", "would remove entries from array path(s): model."),
        ("{model: [{name: 'm', fallbacks: []}]}", "array path(s): model[].fallbacks."),
    ] {
        let error = message(&mut admin, "config.patch", patch, hash);
        assert!(error["message"].as_str().unwrap().contains(why), "{patch}: {error}");
    }
    assert_eq!(text(&daemon), before, "nothing of it was written");
    let params = json!({
        "raw": "{model: [{name: 'm', fallbacks: []}]}", "baseHash": hash,
        "replacePaths": ["model[].fallbacks"],
    });
    told(&mut admin, "config.patch", params);
    assert!(text(&daemon).contains("fallbacks = []"), "{}", text(&daemon));
    // An edit of the file that is not in force is what a client sees, and may replace.
    std::fs::write(&daemon.config, before.clone() + "nonsense = [").unwrap();
    let broken = config(&mut admin);
    assert_eq!((&broken["valid"], &broken["raw"]), (&json!(false), &Value::Null));
    assert_ne!(broken["configRevisionHash"], broken["appliedConfigHash"]);
    let error = message(&mut admin, "config.patch", "{}", &broken["hash"]);
    assert!(error["message"].as_str().unwrap().ends_with("fix it before patching"), "{error}");
    told(&mut admin, "config.set", json!({"raw": before, "baseHash": broken["hash"]}));
    assert_eq!(text(&daemon), before);
    let mended = config(&mut admin);
    assert_eq!(mended["configRevisionHash"], mended["appliedConfigHash"]);
    read_only(&daemon.config, true);
    let params = json!({"raw": "{log: {level: 'warn'}}", "baseHash": mended["hash"]});
    let error = refused(&mut admin, "config.patch", params);
    assert_eq!(error["code"], "UNAVAILABLE", "{error}");
    assert!(error["message"].as_str().unwrap().contains("give it write access"), "{error}");
    read_only(&daemon.config, false);
    daemon.assert_well("after many refusals");
}

fn read_only(file: &Path, yes: bool) {
    let mode = if yes { 0o444 } else { 0o644 };
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn secrets_are_not_shown_and_a_mask_that_comes_back_means_the_secret() {
    let sandbox = Sandbox::new();
    let secret = hex(&key_of("laptop"));
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, "").text(&keys()));
    let (mut admin, mut reader) = (room::admin(&daemon), operator(&daemon, &key_of("phone")));
    for client in [&mut admin, &mut reader] {
        let seen = config(client);
        assert!(!seen.to_string().contains(&secret), "{seen}");
        assert_eq!(seen["config"]["key"][0]["sha256"], "__OPENCLAW_REDACTED__");
        assert_eq!(seen["runtimeConfig"]["key"][0]["sha256"], "__OPENCLAW_REDACTED__");
    }
    // Comments may hold anything: they are for those who may change them.
    assert_eq!(config(&mut reader)["raw"], Value::Null);
    let seen = config(&mut admin);
    let raw = seen["raw"].as_str().unwrap().replace("models = [\"default\"]", "models = []");
    let set = told(&mut admin, "config.set", json!({"raw": raw, "baseHash": seen["hash"]}));
    assert!(!set.to_string().contains(&secret), "{set}");
    assert!(text(&daemon).contains(&secret) && text(&daemon).contains("models = []"));
    let other = raw.replace("\"laptop\"", "\"desk\"");
    let error = refused(&mut admin, "config.set", json!({"raw": other, "baseHash": set["hash"]}));
    assert_eq!(error["details"]["issues"][0]["path"], "key[desk].sha256", "{error}");
    let hello = Hello::operator(&["operator.read"]).token(&key_of("laptop"));
    assert!(hello.connect(daemon.addr).is_ok(), "the key is what it was");
}

#[test]
fn who_may_only_look_changes_nothing_and_who_changes_too_often_is_told_when_to_go_on() {
    let sandbox = Sandbox::new();
    let conf = room::conf(&sandbox, "writes_per_minute = 3").text(&keys());
    let daemon = Daemon::start(&sandbox, &conf);
    let mut reader = operator(&daemon, &key_of("phone"));
    for method in ["config.set", "config.apply", "config.patch"] {
        let error = refused(&mut reader, method, json!({"raw": "{}", "baseHash": ""}));
        assert_eq!(
            (&error["code"], &error["details"]["code"]),
            (&json!("FORBIDDEN"), &json!("MISSING_SCOPE"))
        );
        assert_eq!(error["message"], "missing scope: operator.admin");
    }
    for method in ["update.run", "exec.approval.list", "config.openFile"] {
        let error = refused(&mut reader, method, json!({}));
        assert_eq!(error["message"], format!("unknown method: {method}"));
    }
    let mut admin = room::admin(&daemon);
    for _ in 0..3 {
        let error = refused(&mut admin, "config.patch", json!({"raw": "{}"}));
        assert_eq!(error["code"], "INVALID_REQUEST", "{error}");
    }
    let error = refused(&mut admin, "config.patch", json!({"raw": "{}"}));
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("UNAVAILABLE"), &json!(true)),
        "{error}"
    );
    assert!((1..=20_000).contains(&error["retryAfterMs"].as_u64().unwrap()), "{error}");
    assert_eq!(error["details"]["method"], "config.patch");
    // Another connection is no way around it, another method is another matter.
    let error = refused(&mut room::admin(&daemon), "config.patch", json!({"raw": "{}"}));
    assert_eq!(error["code"], "UNAVAILABLE", "{error}");
    let error = refused(&mut admin, "config.set", json!({"raw": "x"}));
    assert_eq!(error["code"], "INVALID_REQUEST", "{error}");
}

#[test]
fn a_change_that_does_harm_is_taken_back_and_administrators_hear_of_it() {
    let sandbox = Sandbox::new();
    let well = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "well"));
    let ill = FakeUpstream::start(Dialect::OpenAi, |_| {
        answers::json_answer(500, &json!({"error": {"message": "ill"}}))
    });
    let conf = |upstream| {
        let conf = room::conf(&sandbox, "").fake("u", upstream, "").model("m", "u/x", &[]);
        conf.text("[config]\nprobation = \"1m\"")
    };
    let daemon = Daemon::start(&sandbox, &conf(&well));
    let chat = || daemon.ask(ask::chat(Dialect::OpenAi, "m", "hi", false)).status();
    let mut admin = room::admin(&daemon);
    let before = config(&mut admin);
    let patch = json!({"upstream": [{"name": "u", "url": ill.url()}]}).to_string();
    let changed =
        told(&mut admin, "config.patch", json!({"raw": patch, "baseHash": before["hash"]}));
    assert!(changed["probationSeconds"].as_u64().unwrap() > 30, "{changed}");
    assert_eq!(admin.next_event("config.changed")["hash"], changed["hash"]);
    for _ in 0..8 {
        assert_eq!(chat(), 500);
    }
    assert_eq!(admin.next_event("config.changed")["hash"], before["hash"]);
    let after = config(&mut admin);
    assert_eq!((&after["hash"], &after["raw"]), (&before["hash"], &before["raw"]));
    assert_eq!(chat(), 200);
    // Once more is refused, with the reason.
    let error =
        refused(&mut admin, "config.patch", json!({"raw": patch, "baseHash": after["hash"]}));
    assert!(error["message"].as_str().unwrap().contains("requests failed"), "{error}");
}

#[test]
fn the_schema_says_of_each_setting_what_it_is() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, ""));
    let mut client = operator(&daemon, TOKEN);
    let schema = told(&mut client, "config.schema", json!({}));
    assert_eq!(schema["schema"]["properties"]["nodes"]["type"], "object");
    assert!(schema["uiHints"]["nodes.token_file"]["help"].is_string());
    let found = told(&mut client, "config.schema.lookup", json!({"path": "nodes.runs_max"}));
    assert_eq!((&found["reloadKind"], &found["children"]), (&json!("hot"), &json!([])));
    let error = refused(&mut client, "config.schema.lookup", json!({"path": "no.such"}));
    assert_eq!(error["message"], "config schema path not found");
}

/// The lines of all log files, oldest first.
fn lines_of(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Numbers come before the name of the one that is written to, as letters go.
    files.sort_by_key(|path| path.to_str().unwrap().replace("rCURRENT", "~"));
    files.iter().flat_map(|path| lines_in(path)).collect()
}

fn lines_in(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_follower_of_the_log_gets_every_line_once_over_rotations() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("logs");
    let log = format!("dir = {folder:?}\nrotate_size = \"4KiB\"\nkeep_files = 50");
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, "").log(&log));
    let mut client = operator(&daemon, TOKEN);
    // The folder is made with the first line; before it there is no place to go on from.
    assert_eventually!(folder.join("tidegate_rCURRENT.log").exists());
    let first = told(&mut client, "logs.tail", json!({}));
    assert!(first["file"].as_str().unwrap().ends_with("tidegate_rCURRENT.log"), "{first}");
    assert_eq!((&first["reset"], &first["truncated"]), (&json!(false), &json!(false)));
    let strings = |slice: &Value| -> Vec<String> {
        let lines = slice["lines"].as_array().unwrap().iter();
        lines.map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    let (mut seen, mut cursor, mut resets) = (strings(&first), first["cursor"].clone(), 0);
    for round in 0..40 {
        for _ in 0..5 {
            daemon.ask(ask::get(&format!("/v1/models/none-{round}")));
        }
        let slice = told(&mut client, "logs.tail", json!({"cursor": cursor}));
        assert_eq!(slice["truncated"], false, "{slice}");
        resets += u32::from(slice["reset"].as_bool().unwrap());
        seen.extend(strings(&slice));
        cursor = slice["cursor"].clone();
    }
    assert!(resets >= 2, "only {resets} rotations, {} lines", seen.len());
    assert_eventually!(
        {
            let slice = told(&mut client, "logs.tail", json!({"cursor": cursor}));
            seen.extend(strings(&slice));
            cursor = slice["cursor"].clone();
            seen == lines_of(&folder)
        },
        "{} lines of {}",
        seen.len(),
        lines_of(&folder).len()
    );
    // From the beginning of the current file, which may have been made just now.
    let few = told(&mut client, "logs.tail", json!({"limit": 1, "maxBytes": 100_000_000}));
    assert!(few["lines"].as_array().unwrap().len() <= 1, "{few}");
    let error = refused(&mut client, "logs.tail", json!({"limit": 0}));
    assert_eq!(error["code"], "INVALID_REQUEST");
}

#[test]
fn a_log_that_goes_to_standard_error_is_followed_in_memory() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, ""));
    let mut client = operator(&daemon, TOKEN);
    let first = told(&mut client, "logs.tail", json!({}));
    assert!(first["lines"][0].as_str().unwrap().contains("tidegate"), "{first}");
    daemon.ask(ask::get("/v1/models/none-such"));
    let cursor = &first["cursor"];
    assert_eventually!(
        told(&mut client, "logs.tail", json!({"cursor": cursor})).to_string().contains("none-such")
    );
    let slice = told(&mut client, "logs.tail", json!({"cursor": cursor}));
    assert!(!slice["lines"].as_array().unwrap().contains(&first["lines"][0]), "{slice}");
}

#[test]
fn a_key_is_shown_its_models_and_a_token_all_of_them() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "hi"));
    let conf = room::conf(&sandbox, "").text(&keys());
    let conf = conf.fake("local", &upstream, "num_ctx = 4096").model("default", "local/a", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let list = |token: &str| told(&mut operator(&daemon, token), "models.list", json!({}));
    let default =
        json!({"id": "default", "name": "default", "provider": "local", "contextWindow": 4096});
    assert_eq!(list(&key_of("laptop")), json!({"models": [default]}));
    for token in [TOKEN, &key_of("phone")] {
        let all = list(token);
        let names: Vec<&str> =
            all["models"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
        assert!(names.contains(&"default") && names.contains(&"echo"), "{all}");
        let echo = all["models"].as_array().unwrap().iter().find(|m| m["id"] == "echo").unwrap();
        assert!(echo.get("contextWindow").is_none(), "{all}");
    }
}

#[test]
fn usage_is_what_usage_over_http_says_each_to_its_own_account() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "a b"));
    let prices = "[[price]]\nmodel = \"oa/m\"\ninput = 1\noutput = 10\n[usage]\ncache_ttl = \"0s\"";
    let conf = room::conf(&sandbox, "").text(&keys().replace("[\"default\"]", "[]")).text(prices);
    let daemon = Daemon::start(&sandbox, &conf.fake("oa", &upstream, ""));
    let chat = |key: &str, model: &str| {
        let body = ask::chat_body(model, "hi", false).to_string();
        let bearer =
            format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", key_of(key));
        let request = ask::post_with("/v1/chat/completions", &bearer, body.as_bytes());
        assert_eq!(daemon.ask(request).status(), 200);
    };
    chat("laptop", "oa/m");
    chat("laptop", "oa/unpriced");
    chat("phone", "oa/unpriced");
    let http = |query: &str| wire::ask(daemon.ops, ask::get(&format!("/usage?{query}"))).json();
    assert_eventually!(http("")["totals"]["requests"] == 3);
    let cost = |token: &str, scope: &str| {
        let mut client = Client::operator(&daemon, Some(token), &[scope]);
        told(&mut client, "usage.cost", json!({"days": 7}))
    };
    for (who, scope, query) in [
        (key_of("laptop"), "operator.read", "key=laptop"),
        (key_of("phone"), "operator.read", "key=phone"),
        (TOKEN.to_owned(), "operator.admin", ""),
    ] {
        let (told, http) = (cost(&who, scope), http(query));
        for name in
            ["input", "output", "totalTokens", "totalCost", "missingCostEntries", "requests"]
        {
            assert_eq!(told["totals"][name], http["totals"][name], "{name}: {told} {http}");
            assert_eq!(told["daily"][0][name], http["rows"][0][name], "{name}: {told} {http}");
        }
        assert_eq!(
            (&told["days"], &told["daily"][0]["date"]),
            (&json!(7), &http["rows"][0]["date"])
        );
    }
    // Nobody said what it costs: that is not nothing.
    let phone = cost(&key_of("phone"), "operator.read");
    assert_eq!(
        (&phone["totals"]["totalCost"], &phone["totals"]["missingCostEntries"]),
        (&Value::Null, &json!(1))
    );
    // The shared token's own account has used nothing.
    assert_eq!(cost(TOKEN, "operator.read")["totals"]["requests"], 0);
    let mut client = operator(&daemon, &key_of("phone"));
    let status = told(&mut client, "usage.status", json!({}));
    assert!(status["providers"].as_array().unwrap().iter().any(|row| row["provider"] == "oa"));
}

#[test]
fn a_report_about_usage_is_made_once_for_all_who_ask_within_half_a_minute() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &room::conf(&sandbox, ""));
    let mut clients: Vec<Client> = (0..8).map(|_| room::admin(&daemon)).collect();
    // All at once, four times.
    let ids: Vec<Vec<String>> = clients
        .iter_mut()
        .map(|client| (0..4).map(|_| client.ask("usage.cost", json!({"days": 3}))).collect())
        .collect();
    for (client, ids) in clients.iter_mut().zip(&ids) {
        for id in ids {
            assert_eq!(client.answer(id).unwrap()["days"], 3);
        }
    }
    let made = || daemon.metrics().sum("tidegate_nodes_reports_total", &[]);
    assert_eq!(made(), Some(1.0));
    told(&mut clients[0], "usage.cost", json!({"days": 4}));
    assert_eq!(made(), Some(2.0));
    assert_eq!(daemon.limit_now("nodes.reports_max"), 2);
}
