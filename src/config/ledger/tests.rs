//! Changes of a file and its versions, on disks that fail.

use std::collections::BTreeMap;

use super::super::boot::{Booted, boot_with};
use super::*;
use crate::config::files::disk;
use crate::config::files::faulty::{Fails, Faulty};

const OLD: &str = "# old\nserver.body_max = 1024\n";
const NEW: &str = "# new\nserver.body_max = 2048\n";

/// A home with a file, which was started with and found good.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let home = Home { dir: tempfile::tempdir().unwrap() };
        fs::write(home.file(), OLD).unwrap();
        let booted = home.boot();
        assert_eq!(booted.ledger.good(&booted.standing), [""; 0]);
        home
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("tidegate.toml")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn ledger(&self, disk: Arc<dyn Disk>) -> Ledger {
        Ledger::open(&self.file(), Some(&self.state()), disk)
    }

    fn boot(&self) -> Booted {
        let state = self.state().display().to_string();
        let env = move |name: &str| (name == "STATE_DIRECTORY").then(|| state.clone());
        boot_with(Some(&self.file()), disk(), &env).unwrap()
    }

    /// The names beside the file.
    fn beside(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.dir.path()).unwrap().flatten();
        let files = entries.filter(|entry| entry.path().is_file());
        let content = |entry: &fs::DirEntry| fs::read_to_string(entry.path()).unwrap();
        files.map(|e| (e.file_name().to_string_lossy().into_owned(), content(&e))).collect()
    }
}

fn by() -> Signature {
    Signature::new("ana", "to see")
}

/// What a daemon does at an apply.
fn apply(ledger: &mut Ledger) -> Result<Vec<String>, Error> {
    let changed = ledger.change(NEW, &Base::Is(digest(OLD)), Some(1), &by())?;
    let standing = Standing { version: changed.version, ..Standing::of(NEW) };
    let mut notes = changed.notes;
    notes.extend(ledger.in_force(&standing, Some(0)));
    Ok(notes)
}

/// What it does when a version is bad.
fn go_back(ledger: &mut Ledger) -> Result<Vec<String>, Error> {
    let bad = Standing { version: Some(2), ..Standing::of(NEW) };
    let mut notes = ledger.reject(&bad, "a test");
    let changed = ledger.change(OLD, &Base::OrAside(bad.sha256), Some(2), &by())?;
    let standing = Standing { version: changed.version, ..Standing::of(OLD) };
    notes.extend(changed.notes);
    notes.extend(ledger.in_force(&standing, None));
    notes.extend(ledger.good(&standing));
    Ok(notes)
}

/// Whatever happened: the next start has one of the two, whole, and every version is whole.
fn check(home: &Home, context: &str) -> String {
    let booted = home.boot();
    let text = booted.standing.text.to_string();
    assert!(text == OLD || text == NEW, "{context}: {text:?}");
    assert_eq!(fs::read_to_string(home.file()).unwrap(), text, "{context}");
    let versions = booted.ledger.versions().unwrap();
    for number in versions.numbers() {
        let version = versions.read(number).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(version.text == OLD || version.text == NEW, "{context}");
    }
    let current = versions.mark(Note::Current).unwrap();
    assert_eq!(current.sha256, digest(&text), "{context}");
    assert_eq!(versions.read(current.version).unwrap().text, text, "{context}");
    assert_eq!(versions.numbers()[0], 1, "{context}: the history is whole");
    assert_eq!(home.beside().len(), 1, "{context}: {:?}", home.beside());
    text
}

#[test]
fn every_operation_of_an_apply_that_fails_or_is_the_last_leaves_old_or_new_and_is_told() {
    let (mut refused, mut told) = (0, 0);
    for fails in [Fails::With(libc::EIO), Fails::With(libc::ENOSPC), Fails::Crash] {
        for at in 1.. {
            let home = Home::new();
            let disk = Arc::new(Faulty::new(at, fails));
            let mut ledger = home.ledger(Arc::clone(&disk) as Arc<dyn Disk>);
            let before = disk.operations();
            assert_eq!(before, 0, "opening writes nothing");
            let outcome = apply(&mut ledger);
            let context = format!("{at} {fails:?}: {outcome:?}");
            drop(ledger);
            if !disk.failed() {
                assert_eq!(outcome.unwrap(), [""; 0]);
                assert_eq!(check(&home, &context), NEW);
                break;
            }
            match outcome {
                Err(_) => {
                    refused += 1;
                    assert_eq!(check(&home, &context), OLD, "{context}");
                }
                Ok(notes) => {
                    // The last step of a note is its folder's sync: an old note is mended at a start.
                    told += usize::from(!notes.is_empty());
                    assert_eq!(check(&home, &context), NEW, "{context}");
                }
            }
        }
    }
    assert!(refused >= 30 && told >= 20, "{refused} refused, {told} told");
}

#[test]
fn every_operation_of_a_rollback_that_fails_or_is_the_last_leaves_old_or_new() {
    for fails in [Fails::With(libc::EIO), Fails::With(libc::ENOSPC), Fails::Crash] {
        for at in 1.. {
            let home = Home::new();
            apply(&mut home.ledger(disk())).unwrap();
            let disk = Arc::new(Faulty::new(at, fails));
            let mut ledger = home.ledger(Arc::clone(&disk) as Arc<dyn Disk>);
            let outcome = go_back(&mut ledger);
            let context = format!("{at} {fails:?}: {outcome:?}");
            drop(ledger);
            if !disk.failed() {
                assert_eq!(outcome.unwrap(), [""; 0]);
                assert_eq!(check(&home, &context), OLD);
                break;
            }
            let file = fs::read_to_string(home.file()).unwrap();
            assert_eq!(outcome.is_ok(), file == OLD, "{context}");
            // A start with the file put back or not: what was rejected does not run.
            let booted = home.boot();
            let text = booted.standing.text.to_string();
            let rejected = booted.ledger.rejected(&digest(NEW)).is_some();
            assert_eq!(text == OLD, rejected || file == OLD, "{context}");
            assert_eq!(booted.trouble.is_some(), text != file, "{context}");
        }
    }
}

#[test]
fn a_change_of_a_file_that_moved_is_refused_and_a_rollback_keeps_it_aside() {
    let home = Home::new();
    let mut ledger = home.ledger(disk());
    for n in 0..ASIDE_MAX + 2 {
        let edit = format!("# edit {n}\n");
        fs::write(home.file(), &edit).unwrap();
        let error = apply(&mut ledger).unwrap_err();
        assert_eq!(error.kind(), Kind::ConfigMoved);
        assert_eq!(fs::read_to_string(home.file()).unwrap(), edit);
        let aside = ledger.change(OLD, &Base::OrAside(digest(NEW)), None, &by()).unwrap().aside;
        let aside = aside.unwrap();
        assert_eq!(fs::read_to_string(&aside).unwrap(), edit);
        assert!(aside.ends_with(format!("tidegate.toml.rejected-{}", n + 1)), "{aside:?}");
    }
    assert_eq!(home.beside().len(), 1 + ASIDE_MAX);
    assert_eq!(fs::read_to_string(home.file()).unwrap(), OLD);
}

#[test]
fn a_second_process_does_not_write_versions_of_the_first() {
    let home = Home::new();
    let first = home.ledger(disk());
    let mut second = home.ledger(disk());
    assert!(first.trouble().is_none() && second.trouble().unwrap().contains("somebody else"));
    let error = apply(&mut second).unwrap_err();
    assert_eq!(error.kind(), Kind::ConfigBusy);
    assert_eq!(fs::read_to_string(home.file()).unwrap(), OLD);
    drop(first);
    assert_eq!(apply(&mut second).unwrap(), [""; 0]);
}

#[test]
fn a_state_directory_that_went_away_is_made_again() {
    let home = Home::new();
    let mut ledger = home.ledger(disk());
    fs::remove_dir_all(home.state()).unwrap();
    assert_eq!(apply(&mut ledger).unwrap(), [""; 0]);
    assert_eq!(ledger.versions().unwrap().numbers().len(), 1);
}

#[test]
fn without_a_state_directory_the_file_is_changed_and_there_are_no_versions() {
    let home = Home::new();
    let mut ledger = Ledger::open(&home.file(), None, disk());
    let changed = ledger.change(NEW, &Base::Is(digest(OLD)), None, &by()).unwrap();
    assert_eq!(changed, Changed::default());
    assert_eq!(fs::read_to_string(home.file()).unwrap(), NEW);
    assert!(ledger.trouble().is_some());
}
