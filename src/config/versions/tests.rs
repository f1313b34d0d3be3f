//! Versions on a disk of their own.

use super::*;
use crate::config::files::disk;

fn version(text: &str) -> Version {
    let header = Header {
        version: 0,
        parent: None,
        sha256: String::new(),
        author: "ana".into(),
        reason: "a \"reason\"\nof two lines".into(),
        time: "2026-11-22T10:00:00Z".into(),
        file: "/etc/tidegate/tidegate.toml".into(),
    };
    Version { header, text: text.into() }
}

fn versions() -> (tempfile::TempDir, Versions) {
    let home = tempfile::tempdir().unwrap();
    let versions = Versions::new(home.path(), disk());
    (home, versions)
}

#[test]
fn a_version_is_read_as_it_was_written_and_numbers_go_on() {
    let (_home, versions) = versions();
    for (number, text) in (1..).zip(["", "a = 1", "# only\r\n\n", "ü"]) {
        let header = versions.add(version(text)).unwrap();
        assert_eq!(header.version, number);
        let read = versions.read(number).unwrap();
        assert_eq!((read.text.as_str(), &read.header), (text, &header));
        assert_eq!(header.sha256, digest(text));
    }
    assert_eq!(versions.read(9), Err(Unread::Missing(9)));
    assert!(!versions.put(&versions.read(2).unwrap()).unwrap(), "there is one of that number");
}

#[test]
fn a_changed_byte_anywhere_is_found_and_put_aside() {
    let (_home, versions) = versions();
    versions.add(version("a = 1\n")).unwrap();
    let path = versions.path(1);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed).unwrap();
        assert_eq!(versions.read(1), Err(Unread::Damaged(1)), "byte {at}");
        fs::write(&path, &whole[..at]).unwrap();
        assert_eq!(versions.read(1), Err(Unread::Damaged(1)), "cut at {at}");
    }
    versions.quarantine(1);
    assert_eq!(versions.numbers(), [0; 0]);
    assert_eq!(versions.add(version("b")).unwrap().version, 2, "the number is not given again");
}

#[test]
fn damaged_ones_rejected_ones_and_old_ones_are_bounded() {
    let (_home, versions) = versions();
    for n in 0..DAMAGED_MAX + 3 {
        let number = versions.add(version(&n.to_string())).unwrap().version;
        versions.quarantine(number);
    }
    assert_eq!(versions.numbers_with(".damaged").len(), DAMAGED_MAX);
    for n in 0..REJECTED_MAX as u64 + 3 {
        let mark = Mark { version: n, sha256: n.to_string() };
        versions.reject(Rejected { mark, reason: "x".into(), time: "y".into() }).unwrap();
    }
    let rejected = versions.rejected();
    assert_eq!((rejected.len(), rejected[0].mark.version), (REJECTED_MAX, 3));
    versions.pardon("9").unwrap();
    assert!(versions.rejected().iter().all(|known| known.mark.sha256 != "9"));
    let first = DAMAGED_MAX as u64 + 4;
    for n in 0..6 {
        versions.add(version(&format!("n{n}"))).unwrap();
    }
    versions.prune(3, &[first, first + 1]);
    assert_eq!(versions.numbers(), [first, first + 1, first + 5]);
}

#[test]
fn notes_are_kept_and_a_broken_one_is_none() {
    let (_home, versions) = versions();
    assert_eq!(versions.mark(Note::Current), None);
    let mark = Mark { version: 7, sha256: "ab".into() };
    versions.set(Note::Current, &mark).unwrap();
    versions.set(Note::Probation, &Trial { mark: mark.clone(), boots: 1 }).unwrap();
    assert_eq!(versions.mark(Note::Current), Some(mark.clone()));
    assert_eq!(versions.trial(), Some(Trial { mark, boots: 1 }));
    fs::write(versions.folder().join("CURRENT"), "{\"version\":7").unwrap();
    assert_eq!(versions.mark(Note::Current), None);
    versions.clear(Note::Probation).unwrap();
    versions.clear(Note::Probation).unwrap();
    assert_eq!(versions.trial(), None);
}
