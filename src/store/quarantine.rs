//! Broken files are set aside and not deleted: somebody may want to save what is in them.

use std::fs;
use std::io;
use std::path::Path;

use super::file::with_companions;
use crate::base::clock;
use crate::base::time_format::rfc3339;

/// Broken files that are kept of each. Past it: the oldest is deleted.
pub const QUARANTINED_MAX: usize = 3;

/// Moves a file, and what SQLite keeps beside it, out of the way; gives its new name, and how
/// many are kept with it.
pub(super) fn set_aside(path: &Path) -> io::Result<(String, usize)> {
    // Without the marks between its parts, so that it is one word for every shell.
    let date: String =
        rfc3339(clock::wall(), 3).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mark = format!("{name}.corrupt-");
    let aside = path.with_file_name(format!("{mark}{date}"));
    let (from, to) = (with_companions(path), with_companions(&aside));
    for (from, to) in from.iter().zip(&to) {
        match fs::rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let fresh = format!("{mark}{date}");
    let kept = sweep(path.parent().unwrap_or(Path::new(".")), &mark, &fresh);
    Ok((fresh, kept))
}

/// Deletes the oldest of those that are too many, but not the one that was set aside just now: the clock
/// may have been put back since the others. How many are left.
fn sweep(folder: &Path, mark: &str, fresh: &str) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let mut kept: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(mark) && !name.ends_with("-wal") && !name.ends_with("-shm"))
        .collect();
    // Dates of one form sort by time.
    kept.sort_unstable_by_key(|name| (name == fresh, name.clone()));
    let many = kept.len().saturating_sub(QUARANTINED_MAX);
    for name in &kept[..many] {
        for file in with_companions(&folder.join(name)) {
            let _ = fs::remove_file(file);
        }
    }
    kept.len() - many
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_clock_was_put_back_the_one_just_set_aside_is_kept() {
        let sandbox = tempfile::tempdir().unwrap();
        let path = sandbox.path().join("durable.db");
        for n in 0..QUARANTINED_MAX {
            fs::write(sandbox.path().join(format!("durable.db.corrupt-2999010{n}")), "").unwrap();
        }
        fs::write(&path, "now").unwrap();
        let (name, kept) = set_aside(&path).unwrap();
        assert_eq!(fs::read_to_string(sandbox.path().join(&name)).unwrap(), "now");
        assert_eq!(kept, QUARANTINED_MAX);
    }

    #[test]
    fn a_file_is_set_aside_with_its_companions_and_the_oldest_of_many_goes() {
        let sandbox = tempfile::tempdir().unwrap();
        let path = sandbox.path().join("durable.db");
        let mut names = Vec::new();
        for n in 0..QUARANTINED_MAX + 2 {
            for file in with_companions(&path) {
                fs::write(file, n.to_string()).unwrap();
            }
            let (name, kept) = set_aside(&path).unwrap();
            assert_eq!(kept, (n + 1).min(QUARANTINED_MAX));
            names.push(name);
            assert!(with_companions(&path).iter().all(|file| !file.exists()));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        for (n, name) in names.iter().enumerate() {
            for file in with_companions(&sandbox.path().join(name)) {
                let content = fs::read_to_string(file).ok();
                assert_eq!(content, (n >= 2).then(|| n.to_string()), "{name}");
            }
        }
        assert!(names[0].starts_with("durable.db.corrupt-20"), "{}", names[0]);
    }
}
