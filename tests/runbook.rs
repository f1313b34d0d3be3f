//! tidegate-runbook(7): every command in it is run against a daemon, in its order, and what it says
//! must be what the page promises.

use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use serde_json::json;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command, program};
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::{patience, wire};

const PAGE: &str = "man/tidegate-runbook.7";

/// A command of the page.
struct Step {
    line: usize,
    command: String,
    expect: Option<String>,
    exit: i32,
}

fn page() -> String {
    std::fs::read_to_string(format!("{}/{PAGE}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn steps(page: &str) -> Vec<Step> {
    let (mut expect, mut exit) = (None, 0);
    let mut steps = Vec::new();
    for (number, line) in page.lines().enumerate() {
        if let Some(words) = line.strip_prefix(".\\\" expect: ") {
            expect = Some(words.to_owned());
        } else if let Some(code) = line.strip_prefix(".\\\" exit: ") {
            exit = code.parse().unwrap();
        } else if let Some(command) = line.strip_prefix(".Dl $ ") {
            let command = command.replace("\\-", "-").replace("\\(dq", "\"");
            steps.push(Step { line: number + 1, command, expect: expect.take(), exit });
            exit = 0;
        }
    }
    assert!(expect.is_none(), "an expectation without a command");
    steps
}

fn shell(sandbox: &Sandbox, daemon: &Daemon, line: &str) -> Output {
    // The environment that `command` gives, with the program in its path.
    let like = command(sandbox);
    let mut shell = Command::new("/bin/sh");
    shell.env_clear().current_dir(sandbox.dir());
    for (key, value) in like.get_envs() {
        shell.env(key, value.unwrap_or_default());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    shell.env("PATH", format!("{}:{path}", sandbox.path("bin").display()));
    shell.env("TIDEGATE_CONFIG", &daemon.config).arg("-c").arg(line);
    shell.output().unwrap()
}

#[test]
fn every_command_of_the_runbook_does_what_it_says() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("bin")).unwrap();
    symlink(program(), sandbox.path("bin/tidegate")).unwrap();
    let upstreams = [Dialect::Ollama, Dialect::OpenAi]
        .map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "hello there")));
    let hook = FakeUpstream::start(Dialect::Ollama, |_| answers::json_answer(200, &json!({})));
    let conf = Conf::new()
        .fake("local", &upstreams[0], "")
        .fake("cloud", &upstreams[1], "")
        .model("default", "local/llama3.2", &["cloud/gpt-4o-mini"])
        .text(&format!(
            "[[notify]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"http://{}\"\n",
            hook.addr()
        ));
    let mut daemon = Daemon::start(&sandbox, &conf);
    for _ in 0..3 {
        daemon.ask(ask::chat(Dialect::OpenAi, "default", "hello", true));
        daemon.ask(ask::chat(Dialect::Ollama, "cloud/gpt-4o-mini", "hello", false));
    }
    // The history looks every ten seconds, and knows a metric from its first look on.
    let begun = std::time::Instant::now();
    let known = || {
        let path = "/history?metric=tidegate_first_token_seconds&fn=p95";
        wire::ask(daemon.ops, ask::get(path)).status() == 200
    };
    while !known() && begun.elapsed() < patience(std::time::Duration::from_secs(30)) {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let steps = steps(&page());
    assert!(steps.len() > 20, "{}", steps.len());
    for step in &steps {
        let output = shell(&sandbox, &daemon, &step.command);
        let told =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        let place = format!("{PAGE}:{}: {}\n{}\n{}", step.line, step.command, told[0], told[1]);
        assert_eq!(output.status.code(), Some(step.exit), "{place}");
        if let Some(words) = &step.expect {
            assert!(told.concat().contains(words.as_str()), "no {words:?}: {place}");
        }
    }
    assert!(steps.last().unwrap().command == "tidegate stop", "the last one ends it");
    let ended = daemon.wait_exit(std::time::Duration::from_secs(40));
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}

#[test]
fn the_runbook_names_only_settings_and_codes_that_exist() {
    let page = page();
    let schema = tidegate::config::schema::json().to_string();
    let mut settings = 0;
    for word in page.lines().filter_map(|line| line.strip_prefix(".Ic ")) {
        for word in word.split([' ', ',']).filter(|word| !word.is_empty()) {
            let key = word.trim_matches(['[', ']', '.', ';']).rsplit('.').next().unwrap();
            let unit = word.ends_with('=');
            let known = schema.contains(&format!("\"{key}\""));
            assert!(
                known || unit || word.chars().any(char::is_uppercase) || word.len() < 4,
                "{word}"
            );
            settings += usize::from(known);
        }
    }
    assert!(settings > 20, "{settings}");
}
