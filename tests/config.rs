//! The configuration as people meet it: files of every kind of fault with the words that they get,
//! the documents that are made from the schema, and the commands around it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tidegate::base::exit::Exit;
use tidegate::config::{self, Loaded, render};

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(tree(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Compares with a file of the tree; rewrites it when `UPDATE_GOLDEN=1`.
fn golden(path: &str, text: &str) {
    if std::env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1") {
        fs::write(tree(path), text).unwrap();
    }
    let stands = fs::read_to_string(tree(path)).unwrap_or_default();
    assert_eq!(stands, text, "{path} is not in step; UPDATE_GOLDEN=1 cargo test rewrites it");
}

fn env(name: &str) -> Option<String> {
    match name {
        "CLOUD_KEY" => Some("sk-test".to_owned()),
        "TWO_LINES" => Some("one\ntwo".to_owned()),
        _ => None,
    }
}

fn parse(name: &str) -> Result<Loaded, config::Faults> {
    config::parse(&read(&format!("tests/configs/{name}")), Some(Path::new(name)), &env)
}

/// Files of `tests/configs` that begin so.
fn files(begin: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(tree("tests/configs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(begin) && name.ends_with(".toml"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no {begin}*.toml");
    names
}

#[test]
fn every_bad_file_is_refused_with_all_its_faults() {
    for name in files("bad_") {
        let faults = parse(&name).map(|_| ()).expect_err(&name);
        let told = format!("{faults}\n");
        assert!(!told.contains("not-be-shown") && !told.contains("not_be_shown"), "{told}");
        golden(&format!("tests/configs/{}", name.replace(".toml", ".err")), &told);
    }
}

#[test]
fn every_good_file_is_taken_and_only_what_is_doubtful_is_warned_of() {
    for name in files("good_") {
        let loaded = parse(&name).unwrap_or_else(|faults| panic!("{faults}"));
        let warnings = loaded.warnings.iter().map(|w| w.at(loaded.config.path.as_deref()) + "\n");
        let warnings: String = warnings.collect();
        let path = format!("tests/configs/{}", name.replace(".toml", ".warn"));
        if !warnings.is_empty() || tree(&path).exists() {
            golden(&path, &warnings);
        }
    }
}

#[test]
fn the_example_files_are_made_from_the_schema_and_run() {
    golden("conf/tidegate.full.toml", &render::full_example());
    let page = render::man_page(&read("man/tidegate.toml.5")).expect("markers stand in the page");
    golden("man/tidegate.toml.5", &page);
    for name in ["conf/tidegate.toml", "conf/tidegate.full.toml"] {
        let loaded = config::load(Some(tree(name))).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(loaded.warnings, [], "{name}");
    }
}

#[test]
fn what_the_short_example_shows_in_comments_is_valid() {
    let text = read("conf/tidegate.toml");
    let (before, comments) = text.split_once("# [[upstream]]").unwrap();
    let before = before.split("# The built-in echo").next().unwrap();
    let comments = format!("# [[upstream]]{comments}");
    let on = |line: &str| line.strip_prefix("# ").unwrap_or("").to_owned() + "\n";
    let lines = comments.lines().take_while(|line| line.starts_with('#'));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("cloud.key"), "sk-test\n").unwrap();
    let path = folder.path().join("tidegate.toml");
    fs::write(&path, format!("{before}{}", lines.map(on).collect::<String>())).unwrap();
    let loaded = config::load(Some(path)).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(loaded.config.models.len(), 1);
    assert_eq!(loaded.config.models[0].chain.len(), 2);
}

#[test]
fn exit_codes_are_those_of_the_page() {
    let page = read("man/tidegate.8");
    let section = page.split(".Sh EXIT STATUS").nth(1).unwrap().split(".Sh ").next().unwrap();
    let codes: Vec<u8> =
        section.lines().filter_map(|line| line.strip_prefix(".It ")?.parse().ok()).collect();
    assert_eq!(codes, Exit::ALL.map(Exit::code));
}

#[test]
fn the_unit_gives_the_drain_its_time_and_knows_which_ends_are_final() {
    let unit = read("conf/tidegate.service");
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key}")).to_owned()
    };
    let stop: u64 = value("TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    let defaults = config::parse("", None, &env).unwrap().config;
    assert!(stop > defaults.server.drain_timeout.as_secs());
    let codes = format!("{} {}", Exit::Usage.code(), Exit::Config.code());
    assert_eq!(value("RestartPreventExitStatus"), codes);
    let plist = read("conf/org.tidegate.tidegate.plist");
    assert!(plist.contains(&format!("<integer>{stop}</integer>")));
}

fn tidegate(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_remove("TIDEGATE_CONFIG").current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(args).output().unwrap()
}

#[track_caller]
fn check(args: &[&str], exit: Exit, out: &str, err: &str) {
    let output = tidegate(args);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(exit.code().into()), "{args:?}: {stdout}{stderr}");
    assert!(stdout.contains(out), "{args:?}: {out:?} is not in {stdout}");
    assert!(stderr.contains(err), "{args:?}: {err:?} is not in {stderr}");
}

#[test]
fn commands_answer_and_end_with_their_codes() {
    check(
        &["check", "conf/tidegate.toml"],
        Exit::Success,
        "good (1 upstream, 1 model, 0 keys, 0 w",
        "",
    );
    check(&["check", "--config", "conf/tidegate.toml"], Exit::Success, "good", "");
    check(
        &["check", "tests/configs/bad_bounds.toml"],
        Exit::Config,
        "",
        "tests/configs/bad_bounds.toml:2: server.workers: 0 is below 1; set 1 or more",
    );
    check(
        &["check", "nowhere.toml"],
        Exit::Config,
        "",
        "nowhere.toml: cannot be read: no such file",
    );
    check(&["check", "/dev/null"], Exit::Config, "", "not a regular file");
    check(&["run", "--config", "tests/configs/bad_chain.toml"], Exit::Config, "", "");
    check(&["config", "print"], Exit::Success, "queue_max = 512 # default", "");
    check(
        &["config", "print", "-c", "tests/configs/bad_syntax.toml"],
        Exit::Config,
        "",
        "not TOML",
    );
    check(&["completions", "bash"], Exit::Success, "_tidegate()", "");
    check(&["--version"], Exit::Success, env!("CARGO_PKG_VERSION"), "");
    check(&["config"], Exit::Usage, "", "Usage: tidegate config");
    check(&["completions", "klingon"], Exit::Usage, "", "klingon");
}

#[test]
fn the_schema_is_json_and_names_bounds_and_reload_classes() {
    let schema: serde_json::Value =
        serde_json::from_slice(&tidegate(&["config", "schema"]).stdout).unwrap();
    let workers = &schema["properties"]["server"]["properties"]["workers"];
    assert_eq!((&workers["minimum"], &workers["x-reload"]), (&1.into(), &"restart".into()));
    let body = &schema["properties"]["server"]["properties"]["body_max"];
    assert_eq!((&body["default"], &body["x-reload"]), (&"32MiB".into(), &"live".into()));
}

#[test]
fn a_key_is_shown_once_and_its_entry_is_taken() {
    let output = tidegate(&["key", "laptop"]);
    let (entry, told) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let key = told.trim().rsplit(' ').next().unwrap();
    assert!(key.starts_with("tg-") && key.len() == 46, "{key}");
    assert!(!entry.contains(key));
    assert_eq!(config::parse(&entry, None, &env).unwrap().config.keys[0].name, "laptop");
    assert_ne!(tidegate(&["key"]).stderr, told.into_bytes(), "keys differ");
}

#[test]
fn a_reader_that_leaves_is_no_failure_and_a_full_disk_is() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["config", "schema"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(Exit::Success.code().into()));
    if let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(["config", "schema"]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(Exit::Failure.code().into()));
        assert!(String::from_utf8(output.stderr).unwrap().contains("writing to standard output"));
    }
}

#[test]
fn the_file_is_that_of_the_option_then_that_of_the_environment() {
    let run = |args: &[&str], variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("TIDEGATE_CONFIG", variable);
        let output = command.args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    assert!(run(&["check"], "conf/tidegate.toml").starts_with("conf/tidegate.toml: good"));
    assert!(run(&["check"], "nowhere.toml").contains("nowhere.toml: cannot be read"));
    assert!(run(&["check", "conf/tidegate.toml"], "nowhere.toml").contains(": good"));
}

#[test]
fn install_puts_its_paths_in_and_keeps_a_configuration_that_exists() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let install = || {
        let output = Command::new("make")
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .arg("install")
            .arg(format!("DESTDIR={}", root.path().display()))
            .arg(format!("PROGRAM={}", env!("CARGO_BIN_EXE_tidegate")))
            .args(["PREFIX=/opt/tide", "SYSCONFDIR=/opt/etc"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    install();
    assert!(at("opt/tide/bin/tidegate").exists());
    let unit = fs::read_to_string(at("opt/tide/lib/systemd/system/tidegate.service")).unwrap();
    assert!(unit.contains(
        "\nExecStart=/opt/tide/bin/tidegate run --config /opt/etc/tidegate/tidegate.toml\n"
    ));
    assert!(at("opt/tide/share/man/man7/tidegate-runbook.7").exists());
    assert!(at("opt/tide/share/man/man7/tidegate-nodes.7").exists());
    let page = fs::read_to_string(at("opt/tide/share/man/man8/tidegate.8")).unwrap();
    assert!(page.contains("/opt/tide/share/doc/tidegate/tidegate.full.toml"));
    assert!(!at("opt/tide/share/man/man8/tidegate.8.orig").exists());
    let file = at("opt/etc/tidegate/tidegate.toml");
    assert_eq!(fs::read_to_string(&file).unwrap(), read("conf/tidegate.toml"));
    fs::write(&file, "# mine\n").unwrap();
    install();
    assert_eq!(fs::read_to_string(&file).unwrap(), "# mine\n");
}

#[test]
fn the_pages_render_without_a_warning() {
    if Command::new("groff").arg("--version").output().is_err() {
        eprintln!("groff is not installed: the pages are not judged");
        return;
    }
    let output = Command::new("make")
        .args(["-s", "-C", env!("CARGO_MANIFEST_DIR"), "man-check"])
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
    assert_eq!(String::from_utf8_lossy(&told), "");
}
