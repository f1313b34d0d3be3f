//! `tidegate import`: files as people have them, what becomes of them, and what is told.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tidegate::base::exit::Exit;

use crate::support::daemon::command;
use crate::support::sandbox::Sandbox;

fn tree(name: &str) -> String {
    format!("{}/tests/import/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Compares with a file of the tree; rewrites it when `UPDATE_GOLDEN=1`.
fn golden(name: &str, text: &str) {
    let path = tree(name);
    if std::env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1") {
        std::fs::write(&path, text).unwrap();
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(stands, text, "{name} is not in step; UPDATE_GOLDEN=1 cargo test rewrites it");
}

fn run(sandbox: &Sandbox, args: &[&str]) -> Output {
    let mut command = command(sandbox);
    command.env("HOME_SERVER", "nas.example").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Imports a file, holds both outputs against the tree, and has the result checked.
fn imports(from: &str, file: &str) -> String {
    let sandbox = Sandbox::new();
    let content = std::fs::read_to_string(tree(file)).unwrap();
    sandbox.write(file, &content);
    let output = run(&sandbox, &["import", from, file]);
    let (config, told) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{told}");
    for all in [&config, &told] {
        assert!(!all.contains("not-be-shown"), "a secret of the file is shown: {all}");
    }
    golden(&format!("{from}.toml"), &config);
    golden(&format!("{from}.told"), &told);

    // What is printed passes our own check, once its keys are there.
    sandbox.write("tidegate.toml", &config);
    let mut check = command(&sandbox);
    for variable in config.lines().filter_map(|line| line.strip_prefix("api_key_env = ")) {
        check.env(variable.trim_matches('"'), "sk-test");
    }
    let checked = check.args(["check", "tidegate.toml"]).output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    config
}

#[test]
fn a_litellm_file_becomes_a_configuration_that_passes_the_check() {
    let config = imports("litellm", "litellm.yaml");
    // The digest of the master key, as sha256sum gives it.
    assert!(
        config.contains(
            "sha256 = \"118e8a11399c59902af3c1d327ecb1c3b2509fd70bb98730ba3f3f6b20726db8\""
        ),
        "{config}"
    );
}

#[test]
fn an_openclaw_file_becomes_a_configuration_that_passes_the_check() {
    imports("openclaw", "openclaw.json5");
}

#[test]
fn a_file_is_written_whole_and_never_over_another_one_unasked() {
    let sandbox = Sandbox::new();
    sandbox.write("a.yaml", "model_list: [{model_name: a, litellm_params: {model: ollama/x}}]\n");
    let import = |more: &[&str]| {
        let output = run(&sandbox, &[&["import", "litellm", "a.yaml"], more].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, printed, _) = import(&[]);
    assert_eq!(code, Some(0));
    let (code, nothing, _) = import(&["--output", "b.toml"]);
    let written = || std::fs::read_to_string(sandbox.path("b.toml")).unwrap();
    assert_eq!((code, nothing, written()), (Some(0), String::new(), printed.clone()));

    sandbox.write("b.toml", "# mine\n");
    let (code, _, told) = import(&["--output", "b.toml"]);
    assert_eq!(code, Some(1));
    assert!(told.contains("b.toml: exists already") && told.contains("--force"), "{told}");
    assert_eq!(written(), "# mine\n");
    let (code, ..) = import(&["--output", "b.toml", "--force"]);
    assert_eq!((code, written()), (Some(0), printed.clone()));
    assert_eq!(import(&["--output", "nowhere/b.toml"]).0, Some(1));
    assert_eq!(import(&["--force"]).0, Some(i32::from(Exit::Usage.code())));
    let left: Vec<_> = std::fs::read_dir(sandbox.dir()).unwrap().flatten().collect();
    assert!(!left.iter().any(|e| Path::new(&e.path()).extension().is_some_and(|e| e == "new")));

    // From standard input too, and the daemon takes it.
    let mut piped = command(&sandbox);
    let file = std::fs::File::open(sandbox.path("a.yaml")).unwrap();
    let output = piped.args(["import", "litellm", "-"]).stdin(Stdio::from(file)).output().unwrap();
    assert!(text(&output.stdout).ends_with(printed.split_once('\n').unwrap().1));
}

#[test]
fn files_that_are_something_else_are_refused_without_showing_them() {
    let sandbox = Sandbox::new();
    let check = |from: &str, content: &[u8], code: Exit, why: &str| {
        sandbox.write("file", content);
        let output = run(&sandbox, &["import", from, "file"]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code.code().into()), "{told}");
        assert!(told.contains(why) && !told.contains("hush"), "{told}");
        assert!(output.stdout.is_empty());
    };
    check("litellm", b"model_list: [hush", Exit::Config, "file: is no YAML (line ");
    check("litellm", b"hush: 1", Exit::Config, "has no model_list");
    check("litellm", b"model_list: []", Exit::Config, "holds no model");
    check("openclaw", b"{hush", Exit::Config, "file: is no JSON5");
    check("openclaw", b"{hush: 1}", Exit::Config, "has neither models nor agents");
    check("openclaw", &[b'['; 500_000], Exit::Config, "nested too deeply");
    check("litellm", &vec![b' '; 1024 * 1024 + 1], Exit::Config, "larger than 1024 KiB");
    check("litellm", b"\xff\xfe", Exit::Failure, "file: cannot be read");
    let missing = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["import", "litellm", "/nonexistent/file"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1));
}
