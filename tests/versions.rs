//! Versions of the configuration: nothing that an operator or a crash does leaves the daemon without
//! a whole one, and one that does harm is taken back.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start, command};
use crate::support::peers::{FakeUpstream, answers};
use crate::support::random::Random;
use crate::support::sandbox::{Sandbox, free_port, loopback};
use crate::support::stream::Dialect;
use crate::support::wire;

/// How often the daemon is killed; `TIDEGATE_TEST_KILLS` says another number.
const KILLS: usize = 10;

fn cli(sandbox: &Sandbox, config: &Path, args: &[&str]) -> Command {
    let mut command = command(sandbox);
    command.arg("config").args(args).arg("--config").arg(config).env("USER", "ana");
    command
}

/// Runs `tidegate config …` for this daemon.
fn run(sandbox: &Sandbox, config: &Path, args: &[&str]) -> Output {
    cli(sandbox, config, args).output().unwrap()
}

#[track_caller]
fn good(sandbox: &Sandbox, config: &Path, args: &[&str]) -> String {
    let output = run(sandbox, config, args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(sandbox: &Sandbox, config: &Path, args: &[&str], code: i32) -> String {
    let output = run(sandbox, config, args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    errors
}

/// What `GET /config` says.
fn standing(daemon: &Daemon) -> Value {
    wire::ask(daemon.ops, ask::get("/config")).json()
}

fn version(daemon: &Daemon) -> u64 {
    standing(daemon)["version"].as_u64().unwrap()
}

fn chat(daemon: &Daemon, model: &str) -> u16 {
    daemon.ask(ask::chat(Dialect::OpenAi, model, "hi", false)).status()
}

/// Lines of the log that tell an event of this kind.
fn told(daemon: &Daemon, kind: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(&format!(" {kind} "))).count()
}

fn probation(window: &str) -> Conf {
    Conf::new().text(&format!("[config]\nprobation = \"{window}\""))
}

fn text(daemon: &Daemon) -> String {
    std::fs::read_to_string(&daemon.config).unwrap()
}

#[test]
fn a_version_that_makes_every_request_fail_is_taken_back_once_and_refused_when_tried_again() {
    let sandbox = Sandbox::new();
    let well = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "well"));
    let ill = FakeUpstream::start(Dialect::OpenAi, |_| {
        answers::json_answer(500, &serde_json::json!({"error": {"message": "ill"}}))
    });
    let conf = |upstream| probation("1m").fake("u", upstream, "").model("m", "u/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf(&well));
    assert_eq!(chat(&daemon, "m"), 200);
    let before = text(&daemon);
    let bad = sandbox.write("bad.toml", conf(&ill).render(daemon.addr, daemon.ops));
    let bad = bad.to_str().unwrap();
    let said = good(&sandbox, &daemon.config, &["apply", bad, "--reason", "a new upstream"]);
    assert_eq!(said, "version 2 is in force, and on probation for 59 s\n");
    good(&sandbox, &daemon.config, &["knob", "server.body_max=1KiB"]);
    for _ in 0..8 {
        assert_eq!(chat(&daemon, "m"), 500);
    }
    assert_eventually!(chat(&daemon, "m") == 200);
    // What was turned meanwhile may be what did the harm.
    assert_eventually!(
        standing(&daemon)["knobs"] == serde_json::json!([]),
        "not in force, but shown"
    );
    assert_eventually!(told(&daemon, "config_knobs_dropped") == 1);
    assert_eventually!(text(&daemon) == before, "the file is not put back");
    assert_eventually!(version(&daemon) == 3);
    assert_eventually!(told(&daemon, "config_rolled_back") == 1);
    let metrics = daemon.metrics();
    let name = "tidegate_config_rollbacks_total";
    assert_eq!(metrics.sum(name, &[("cause", "errors")]), Some(1.0));
    let events = [("kind", "config_rolled_back")];
    assert_eq!(metrics.sum("tidegate_events_total", &events), Some(1.0));
    // Once more: no, and why.
    let why = refused(&sandbox, &daemon.config, &["apply", bad], 65);
    assert!(why.contains("version 2 has this content") && why.contains("requests failed"), "{why}");
    std::fs::copy(bad, &daemon.config).unwrap();
    daemon.signal(Signal::HUP);
    assert_eventually!(told(&daemon, "reload_refused") == 1);
    assert_eq!((chat(&daemon, "m"), version(&daemon)), (200, 3));
    // Who insists gets it.
    good(&sandbox, &daemon.config, &["apply", bad, "--force"]);
    assert_eq!((chat(&daemon, "m"), version(&daemon)), (500, 4));
    let history = good(&sandbox, &daemon.config, &["history"]);
    let rows: Vec<&str> = history.lines().collect();
    assert!(rows[2].contains("tidegate") && rows[2].contains("rollback to version 1"), "{history}");
    assert!(rows[3].contains("ana") && rows[3].contains("a new upstream"), "{history}");
    daemon.assert_well("after it all");
}

#[test]
fn an_upstream_that_failed_before_is_not_blamed_on_a_change() {
    let sandbox = Sandbox::new();
    let ill = FakeUpstream::start(Dialect::OpenAi, |_| {
        answers::json_answer(500, &serde_json::json!({"error": {"message": "ill"}}))
    });
    let conf = probation("3s").fake("u", &ill, "").model("m", "u/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    assert_eventually!(standing(&daemon)["probation_seconds"].is_null());
    for _ in 0..10 {
        chat(&daemon, "m");
        std::thread::sleep(Duration::from_millis(150));
    }
    good(&sandbox, &daemon.config, &["set", "log.level", "warn"]);
    for _ in 0..10 {
        chat(&daemon, "m");
    }
    assert_eventually!(standing(&daemon)["last_good"] == 2, "{}", standing(&daemon));
}

#[test]
fn settings_are_changed_one_by_one_and_every_comment_stays() {
    let sandbox = Sandbox::new();
    let conf = probation("0s")
        .text("# the one that answers\n[[upstream]]\nname = \"e.1\"\nkind = \"echo\" # built in\n");
    let daemon = Daemon::start(&sandbox, &conf);
    let before = text(&daemon);
    let config = daemon.config.as_path();
    let set =
        ["set", "upstream[e.1].word_delay", "1ms", "server.body_max=1KiB", "--reason", "slow"];
    assert_eq!(good(&sandbox, config, &set), "version 2 is in force\n");
    let after = text(&daemon);
    let expected = before
        .replace(
            "kind = \"echo\" # built in\n",
            "kind = \"echo\" # built in\nword_delay = \"1ms\"\n",
        )
        .replace("\n\n[ops]", "\nbody_max = \"1KiB\"\n\n[ops]");
    assert_eq!(after, expected);
    let large = ask::chat(Dialect::OpenAi, "echo", &"x".repeat(2000), false);
    assert_eq!(daemon.ask(&large).status(), 413, "it is in force");
    let difference = good(&sandbox, config, &["diff"]);
    assert!(difference.contains("\n+word_delay = \"1ms\"\n"), "{difference}");
    assert_eq!(good(&sandbox, config, &["show", "1"]), before);
    assert_eq!(good(&sandbox, config, &["show"]), after);
    good(&sandbox, config, &["unset", "server.body_max"]);
    assert_eq!(daemon.ask(&large).status(), 200);
    // All faults at once, and nothing of it.
    let faults = refused(&sandbox, config, &["set", "server.body_max=0", "log.levl=debug"], 65);
    assert!(faults.contains("below 1KiB") && faults.contains("did you mean level?"), "{faults}");
    let faults = refused(&sandbox, config, &["set", "server.workers", "3"], 65);
    assert!(faults.contains("only a restart changes server.workers"), "{faults}");
    assert_eq!(version(&daemon), 3);
    good(&sandbox, config, &["rollback", "1"]);
    assert_eq!((text(&daemon), version(&daemon)), (before, 4));
    good(&sandbox, config, &["rollback"]);
    assert_eq!(version(&daemon), 5);
    let document: Value =
        serde_json::from_str(&good(&sandbox, config, &["history", "--json"])).unwrap();
    let newest = &document["versions"][0];
    assert_eq!((newest["version"].as_u64(), &newest["parent"]), (Some(5), &Value::from(4)));
    assert_eq!(newest["is"], serde_json::json!(["current", "last_good"]));
}

#[test]
fn whoever_was_overtaken_is_refused_and_no_edit_by_hand_is_lost() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &probation("0s"));
    let config = daemon.config.as_path();
    let sha = standing(&daemon)["sha256"].as_str().unwrap().to_owned();
    let base = text(&daemon);
    let file = sandbox.write("new.toml", format!("{base}# new\n"));
    let apply = ["apply", file.to_str().unwrap(), "--base", &sha];
    good(&sandbox, config, &apply);
    let why = refused(&sandbox, config, &apply, 75);
    assert!(why.contains("version 2 came into force meanwhile"), "{why}");
    // An edit that nobody applied.
    let edit = format!("{base}# by hand\n");
    std::fs::write(config, &edit).unwrap();
    let why = refused(&sandbox, config, &["set", "log.level", "warn"], 75);
    assert!(why.contains("holds an edit that is not in force"), "{why}");
    assert_eq!(text(&daemon), edit);
    good(&sandbox, config, &["set", "log.level", "warn", "--force"]);
    let aside = config.with_file_name("tidegate.toml.rejected-1");
    assert_eq!(std::fs::read_to_string(aside).unwrap(), edit);
    assert!(text(&daemon).contains("level = \"warn\"") && text(&daemon).contains("# new"));
    // The file itself may be applied: it is a reload with a name.
    std::fs::write(config, &edit).unwrap();
    good(&sandbox, config, &["apply", config.to_str().unwrap(), "--reason", "mine"]);
    assert_eq!((text(&daemon), version(&daemon)), (edit, 4));
}

#[test]
fn many_writers_at_once_are_taken_one_by_one() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &probation("0s"));
    let writers: Vec<_> = (0..6)
        .map(|n| {
            let value = format!("{}ms", 100 + n);
            cli(&sandbox, &daemon.config, &["set", "server.head_timeout", &value]).spawn().unwrap()
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    assert_eq!(version(&daemon), 7);
    let document = good(&sandbox, &daemon.config, &["history", "--json"]);
    let document: Value = serde_json::from_str(&document).unwrap();
    let rows = document["versions"].as_array().unwrap();
    let parents: Vec<_> = rows.iter().map(|row| row["parent"].as_u64()).collect();
    assert_eq!(parents, [Some(6), Some(5), Some(4), Some(3), Some(2), Some(1), None]);
    let newest = good(&sandbox, &daemon.config, &["show"]);
    assert_eq!(text(&daemon), newest);
}

#[test]
fn a_file_that_is_read_only_is_refused_with_its_remedy() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &probation("0s"));
    let before = text(&daemon);
    let mode = |mode| {
        std::fs::set_permissions(&daemon.config, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o444);
    let why = refused(&sandbox, &daemon.config, &["set", "log.level", "warn"], 1);
    assert!(why.contains("read-only") && why.contains("give it write access"), "{why}");
    assert_eq!((text(&daemon), version(&daemon)), (before, 1));
    // Nothing of it stays: lines of information are written as before.
    assert_eq!(chat(&daemon, "echo"), 200);
    assert_eventually!(told(&daemon, "access") > 0);
    mode(0o644);
    good(&sandbox, &daemon.config, &["set", "log.level", "warn"]);
    daemon.assert_well("after a refusal");
}

#[test]
fn a_broken_file_at_a_start_is_left_and_told_and_the_last_good_version_runs() {
    let sandbox = Sandbox::new();
    let conf = probation("0s").model("kept", "echo", &[]);
    let mut daemon = Daemon::start(&sandbox, &conf);
    let (addr, ops, config) = (daemon.addr, daemon.ops, daemon.config.clone());
    assert!(daemon.stop().success());
    let broken = format!("{}\n[server\nworkers = 0\n", text(&daemon));
    std::fs::write(&config, &broken).unwrap();
    let mut daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
    daemon.wait_ready().unwrap();
    assert_eq!((chat(&daemon, "kept"), version(&daemon)), (200, 1));
    assert_eq!(text(&daemon), broken, "it is not touched");
    let line = broken.lines().position(|line| line == "[server").unwrap() + 1;
    let verbose = daemon.readyz().unwrap().text();
    let said = verbose.lines().find(|line| line.contains("config degraded")).unwrap_or(&verbose);
    assert!(
        said.contains("version 1 runs") && said.contains(&format!("toml:{line}:")),
        "{verbose}"
    );
    assert!(verbose.contains("\nconfig version 1\n"), "{verbose}");
    assert_eq!(told(&daemon, "config_file_refused"), 1);
    // Mended, it is taken as ever.
    std::fs::write(&config, broken.replace("\n[server\nworkers = 0\n", "# mended\n")).unwrap();
    daemon.signal(Signal::HUP);
    assert_eventually!(version(&daemon) == 2);
    assert!(!daemon.readyz().unwrap().text().contains("degraded: version"));
}

#[test]
fn a_version_with_which_the_daemon_dies_twice_is_put_back_at_the_next_start() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &probation("0s"));
    let (addr, ops, config) = (daemon.addr, daemon.ops, daemon.config.clone());
    let first = text(&daemon);
    good(&sandbox, &config, &["set", "config.probation=1m", "--reason", "longer"]);
    let second = text(&daemon);
    let again = || {
        let mut daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
        daemon.wait_ready().unwrap();
        daemon
    };
    drop(daemon);
    let daemon = again();
    assert_eq!((version(&daemon), text(&daemon)), (2, second.clone()));
    drop(daemon);
    let daemon = again();
    assert_eq!((version(&daemon), text(&daemon)), (3, first));
    assert_eq!(told(&daemon, "config_rolled_back"), 1);
    let rollbacks = daemon.metrics().sum("tidegate_config_rollbacks_total", &[("cause", "crash")]);
    assert_eq!(rollbacks, Some(1.0));
    assert_eq!(good(&sandbox, &config, &["show", "2"]), second);
    assert!(good(&sandbox, &config, &["history"]).contains("taken back"));
}

#[test]
fn without_a_daemon_the_commands_work_on_the_files() {
    let sandbox = Sandbox::new();
    let (addr, ops) = (loopback(free_port()), loopback(free_port()));
    let config = sandbox.write("tidegate.toml", probation("0s").render(addr, ops));
    let set = |key: &str, value: &str| good(&sandbox, &config, &["set", key, value]);
    let said = set("log.level", "warn");
    assert_eq!(said, "version 2 is written; no daemon runs, the next start takes it\n");
    set("server.workers", "9");
    refused(&sandbox, &config, &["set", "server.workers", "0"], 65);
    good(&sandbox, &config, &["rollback", "2"]);
    let backup = sandbox.path("backup.json");
    good(&sandbox, &config, &["backup", backup.to_str().unwrap()]);
    let kept = std::fs::read_to_string(&config).unwrap();
    std::fs::remove_dir_all(sandbox.path("state")).unwrap();
    std::fs::write(&config, "[nonsense").unwrap();
    good(&sandbox, &config, &["restore", backup.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), kept);
    let history = good(&sandbox, &config, &["history"]);
    assert!(history.lines().count() >= 6 && history.contains("restore of version 4"), "{history}");
    let mut daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
    daemon.wait_ready().unwrap();
    assert!(version(&daemon) >= 5, "{}", standing(&daemon));
    assert!(!kept.contains("workers") && kept.contains("level = \"warn\""), "{kept}");
}

#[test]
fn who_starts_it_a_second_time_beside_the_first_takes_nothing_back() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &probation("0s"));
    let (addr, ops, config) = (daemon.addr, daemon.ops, daemon.config.clone());
    assert!(daemon.stop().success());
    let second = text(&daemon).replace("\"0s\"", "\"1m\"") + "# by hand\n";
    std::fs::write(&config, &second).unwrap();
    let mut daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
    daemon.wait_ready().unwrap();
    let before = standing(&daemon);
    for _ in 0..2 {
        let other = command(&sandbox).arg("run").arg("--config").arg(&config).output().unwrap();
        assert_eq!(other.status.code(), Some(1), "the address is taken");
    }
    assert_eq!(text(&daemon), second, "the edit is still there");
    // Killed once, it is not more than that.
    drop(daemon);
    let mut daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
    daemon.wait_ready().unwrap();
    let version = before["version"].as_u64().unwrap() + 1;
    assert_eq!((told(&daemon, "config_rolled_back"), self::version(&daemon)), (1, version));
}

#[test]
fn requests_refused_by_order_say_nothing_of_a_version_and_call_nobody() {
    let sandbox = Sandbox::new();
    let conf = probation("2s").text("[recovery]\nafter = \"1s\"\nsettle = \"1s\"");
    let daemon = Daemon::start(&sandbox, &conf);
    assert_eventually!(told(&daemon, "config_good") == 1);
    good(&sandbox, &daemon.config, &["set", "server.body_max", "1MiB"]);
    let changed = text(&daemon);
    let drain = |more: &str| {
        let mut command = command(&sandbox);
        command.args(["drain", more, "--config"]).arg(&daemon.config);
        assert!(command.output().unwrap().status.success());
    };
    drain("--stay");
    assert_eq!(chat(&daemon, "echo"), 503);
    // For longer than its probation.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(chat(&daemon, "echo"), 503);
    assert!(standing(&daemon)["probation_seconds"].is_u64(), "it is on probation as before");
    drain("--undo");
    assert_eq!(chat(&daemon, "echo"), 200);
    assert_eventually!(told(&daemon, "config_good") == 2);
    assert_eq!((text(&daemon), version(&daemon)), (changed, 2));
    for kind in ["config_rolled_back", "recovery_step", "recovery_operator"] {
        assert_eq!(told(&daemon, kind), 0, "{kind}");
    }
}

#[test]
fn a_knob_overrides_a_setting_for_its_time_and_leaves_the_file_alone() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &probation("0s"));
    let config = daemon.config.as_path();
    let before = text(&daemon);
    let large = ask::chat(Dialect::OpenAi, "echo", &"x".repeat(2000), false);
    good(&sandbox, config, &["knob", "server.body_max=1KiB", "--for", "1h"]);
    assert_eq!(daemon.ask(&large).status(), 413);
    assert_eq!(standing(&daemon)["knobs"][0]["key"], "server.body_max");
    good(&sandbox, config, &["knob", "server.body_max", "--end"]);
    assert_eq!(daemon.ask(&large).status(), 200);
    // By itself, and over a reload of the file.
    good(&sandbox, config, &["knob", "server.body_max", "1KiB", "--for", "2s"]);
    good(&sandbox, config, &["set", "log.level", "info"]);
    assert_eq!(daemon.ask(&large).status(), 413);
    assert_eventually!(daemon.ask(&large).status() == 200);
    assert_eventually!(standing(&daemon)["knobs"] == serde_json::json!([]));
    assert_eq!(text(&daemon), before.replace("[log]\n", "[log]\nlevel = \"info\"\n"));
    for (knob, why) in [
        ("server.workers=3", "only a restart changes"),
        ("server.body_max=0", "below 1KiB"),
        ("server.nonsense=1", "is not known"),
    ] {
        let told = refused(&sandbox, config, &["knob", knob], 65);
        assert!(told.contains(why), "{told}");
    }
    // So many and no more.
    for n in 0..16 {
        good(&sandbox, config, &["knob", &format!("upstream[k{n}].kind=echo")]);
    }
    let told = refused(&sandbox, config, &["knob", "server.body_max=1KiB"], 65);
    assert!(told.contains("16 settings are overridden"), "{told}");
    assert_eq!(daemon.limit_now("config.knobs_max"), 16);
    daemon.assert_well("after knobs");
}

#[test]
fn killed_at_any_moment_of_a_change_it_comes_back_with_a_whole_version_and_its_history() {
    let kills = std::env::var("TIDEGATE_TEST_KILLS").ok().and_then(|n| n.parse().ok());
    let kills = kills.unwrap_or(KILLS);
    let sandbox = Sandbox::new();
    let mut random = Random::new(0x5eed);
    let mut daemon = Daemon::start(&sandbox, &Conf::new().text("# end\n"));
    let (addr, ops, config) = (daemon.addr, daemon.ops, daemon.config.clone());
    let mut known: BTreeMap<u64, String> = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for n in 0..kills {
        let conf = Conf::new().model(&format!("gen-{n}"), "echo", &[]).text("# end\n");
        let new = sandbox.write("new.toml", conf.render(addr, ops));
        let what = ["apply", "rollback", "reload"][random.below(3) as usize];
        let mut child = match what {
            "reload" => {
                std::fs::copy(&new, sandbox.path("tidegate.toml.tmp")).unwrap();
                std::fs::rename(sandbox.path("tidegate.toml.tmp"), &config).unwrap();
                daemon.signal(Signal::HUP);
                None
            }
            what => {
                let file = new.to_str().unwrap();
                let args = if what == "apply" { vec!["apply", file] } else { vec!["rollback"] };
                let mut command = cli(&sandbox, &config, &args);
                Some(command.stderr(std::process::Stdio::null()).spawn().unwrap())
            }
        };
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        drop(daemon);
        if let Some(child) = &mut child {
            let _ = child.wait();
        }
        daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
        daemon.wait_ready().unwrap_or_else(|why| panic!("kill {n}, {what}: {why}"));
        let now = standing(&daemon);
        let context = format!("kill {n}, {what}: {now}");
        assert!(now["trouble"].is_null(), "{context}");
        let in_file = std::fs::read_to_string(&config).unwrap();
        assert!(in_file.ends_with("# end\n\n"), "{context}: not whole: {in_file:?}");
        let current = now["version"].as_u64().unwrap();
        assert_eq!(good(&sandbox, &config, &["show", &current.to_string()]), in_file, "{context}");
        let document = good(&sandbox, &config, &["history", "--json"]);
        let document: Value = serde_json::from_str(&document).unwrap();
        let rows = document["versions"].as_array().unwrap();
        let now: BTreeMap<u64, String> = rows
            .iter()
            .map(|row| {
                assert!(row["fault"].is_null(), "{context}: {row}");
                (row["version"].as_u64().unwrap(), row["sha256"].as_str().unwrap().to_owned())
            })
            .collect();
        let first = *now.keys().next().unwrap();
        for (number, sha256) in known.range(first..) {
            assert_eq!(now.get(number), Some(sha256), "{context}: version {number}");
        }
        assert!(now.len() <= 100 && now.contains_key(&current), "{context}: {}", now.len());
        known = now;
        *seen.entry(what).or_insert(0) += 1;
    }
    eprintln!("{kills} kills ({seen:?}), {} versions", known.len());
    assert!(known.len() > 1, "nothing ever came into force");
    daemon.assert_well("after kills");
}
