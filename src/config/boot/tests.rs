//! Starts with whole, broken and rejected files.

use std::fs;

use super::*;
use crate::config::files::disk;

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new(text: &str) -> Self {
        let home = Home { dir: tempfile::tempdir().unwrap() };
        home.write(text);
        home
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("tidegate.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    fn read(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn start(&self) -> Result<Booted, Faults> {
        let state = self.dir.path().join("state").display().to_string();
        let env = move |name: &str| (name == "STATE_DIRECTORY").then(|| state.clone());
        boot_with(Some(&self.file()), disk(), &env)
    }

    /// A start that comes to its end by itself: what ran was good.
    fn good(&self) -> u64 {
        let booted = self.start().unwrap();
        assert!(booted.ledger.good(&booted.standing).is_empty());
        booted.standing.version.unwrap()
    }
}

#[test]
fn a_second_start_beside_a_running_daemon_counts_for_nothing_and_writes_nothing() {
    let home = Home::new("# one\n");
    home.good();
    home.write("# two\n");
    let running = home.start().unwrap();
    assert!(running.probation);
    let config = home.dir.path().join("state/config");
    let look = || {
        ["CURRENT", "LAST_GOOD", "PROBATION", "REJECTED"]
            .map(|note| fs::read_to_string(config.join(note)).ok())
    };
    let before = look();
    for _ in 0..3 {
        let mut second = home.start().unwrap();
        assert_eq!(kinds(&second), ["config_versions_taken"]);
        assert_eq!((&*second.standing.text, second.probation), ("# two\n", false));
        let base = Base::OrAside(second.standing.sha256.clone());
        let by = Signature::new("tidegate", "rollback");
        assert!(second.ledger.change("# three\n", &base, None, &by).is_err());
        second.ledger.good(&second.standing);
        second.ledger.reject(&second.standing, "a test");
        second.excuse().no_address();
        second.ledger.stopped();
        assert_eq!((home.read().as_str(), look()), ("# two\n", before.clone()));
    }
    // One that died is counted as ever.
    drop(running);
    assert_eq!(kinds(&home.start().unwrap()), ["config_rolled_back"]);
    assert_eq!(home.read(), "# one\n");
}

#[test]
fn versions_that_others_could_have_put_there_are_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new("# one\n");
    home.good();
    home.write("[");
    let mode = |folder: &str, mode: u32| {
        let path = home.dir.path().join("state").join(folder);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for folder in ["", "config", "config/versions"] {
        mode(folder, 0o777);
        assert!(home.start().is_err(), "{folder}: the broken file is refused as without versions");
        mode(folder, 0o700);
        assert_eq!(&*home.start().unwrap().standing.text, "# one\n");
    }
}

#[test]
fn a_state_directory_that_was_made_for_us_is_closed_before_anything_is_put_there() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new("# one\n");
    let state = home.dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(home.good(), 1);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
}

fn kinds(booted: &Booted) -> Vec<&'static str> {
    booted.news.iter().map(|news| news.kind).collect()
}

#[test]
fn a_first_start_has_version_one_on_probation_and_a_second_one_the_same() {
    let home = Home::new("# one\n");
    for _ in 0..4 {
        let booted = home.start().unwrap();
        assert_eq!((booted.standing.version, booted.probation), (Some(1), true));
        assert_eq!(booted.good, None, "nothing to go back to, so it is not given up");
    }
    assert_eq!(home.good(), 1);
    let booted = home.start().unwrap();
    assert_eq!((booted.standing.version, booted.probation), (Some(1), false));
    assert_eq!(kinds(&booted), [""; 0]);
}

#[test]
fn a_broken_or_missing_file_is_left_and_the_last_good_one_runs() {
    let home = Home::new("# one\n");
    home.good();
    for broken in ["[server", "server.nonsense = 1", "server.body_max = 0\nserver.x = 1\n"] {
        home.write(broken);
        let booted = home.start().unwrap();
        assert_eq!((&*booted.standing.text, booted.probation), ("# one\n", false));
        assert_eq!(home.read(), broken);
        assert_eq!(kinds(&booted), ["config_file_refused"]);
        let trouble = booted.trouble.unwrap();
        assert!(
            trouble.starts_with("version 1 runs: ") && trouble.contains("toml:1: "),
            "{trouble}"
        );
    }
    fs::remove_file(home.file()).unwrap();
    assert!(home.start().unwrap().trouble.unwrap().contains("no such file"));
    // Another file than that of the versions is refused as ever.
    let other = home.dir.path().join("other.toml");
    fs::write(&other, "[").unwrap();
    let state = home.dir.path().join("state").display().to_string();
    let env = move |name: &str| (name == "STATE_DIRECTORY").then(|| state.clone());
    assert!(boot_with(Some(&other), disk(), &env).is_err());
}

#[test]
fn without_a_good_one_a_broken_file_is_refused() {
    let home = Home::new("[server");
    assert!(home.start().is_err());
    // One that ran, but never for long enough, is better than none.
    home.write("# one\n");
    drop(home.start().unwrap());
    home.write("[server");
    assert_eq!(&*home.start().unwrap().standing.text, "# one\n");
}

#[test]
fn a_state_directory_is_found_in_a_file_with_faults() {
    let home = Home::new("");
    let text = format!("state.dir = \"{}\"\n", home.dir.path().join("elsewhere").display());
    home.write(&text);
    let no_env = |_: &str| None;
    let booted = boot_with(Some(&home.file()), disk(), &no_env).unwrap();
    booted.ledger.good(&booted.standing);
    drop(booted);
    home.write(&format!("{text}[server\nx = "));
    let booted = boot_with(Some(&home.file()), disk(), &no_env).unwrap();
    assert_eq!(&*booted.standing.text, text);
}

#[test]
fn what_brings_the_daemon_down_twice_is_put_back_and_not_taken_again() {
    let home = Home::new("# one\n");
    home.good();
    home.write("# two\n");
    let booted = home.start().unwrap();
    assert_eq!((booted.standing.version, booted.probation), (Some(2), true));
    drop(booted);
    let booted = home.start().unwrap();
    assert_eq!(booted.rolled_back, Some(Cause::Crashed { boots: 1 }));
    assert_eq!((&*booted.standing.text, booted.standing.version), ("# one\n", Some(3)));
    assert_eq!(kinds(&booted), ["config_rolled_back"]);
    assert_eq!(home.read(), "# one\n");
    let versions = booted.ledger.versions().unwrap().clone();
    assert_eq!(versions.read(2).unwrap().text, "# two\n", "it is kept");
    drop(booted);
    let booted = home.start().unwrap();
    assert_eq!((booted.standing.version, kinds(&booted)), (Some(3), vec![]));
    drop(booted);
    // The same content once more, by hand.
    home.write("# two\n");
    let booted = home.start().unwrap();
    assert_eq!(&*booted.standing.text, "# one\n");
    assert!(booted.trouble.unwrap().contains("was rolled back"), "told");
    assert_eq!(home.read(), "# two\n", "the file is left");
}

#[test]
fn a_stop_in_order_says_nothing_against_a_version() {
    let home = Home::new("# one\n");
    home.good();
    home.write("# two\n");
    for _ in 0..5 {
        let booted = home.start().unwrap();
        assert_eq!((booted.standing.version, booted.rolled_back), (Some(2), None));
        booted.ledger.stopped();
    }
}

#[test]
fn a_damaged_last_good_version_is_put_aside_and_told() {
    let home = Home::new("# one\n");
    home.good();
    let path = home.dir.path().join("state/config/versions/000001.toml");
    fs::write(&path, "nonsense").unwrap();
    let booted = home.start().unwrap();
    assert_eq!(kinds(&booted), ["config_version_damaged"]);
    assert_eq!((&*booted.standing.text, booted.standing.version), ("# one\n", Some(2)));
    assert!(path.with_extension("damaged").exists());
}
