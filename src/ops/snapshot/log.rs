//! The last lines of the log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use serde_json::{Value, json};

use super::Found;
use crate::observe::log::{LogHandle, Tail, TailLine};
use crate::ops::shown::Configured;

/// Most lines told.
const LINES_MAX: usize = 300;
/// Most bytes read from the end of the file.
const BYTES_MAX: u64 = 128 * 1024;

/// The last lines: those that the daemon remembers, and of the file that is written when it has none.
pub(super) fn tail(seen: &Configured, remembered: Option<&Tail>) -> Found {
    let recent = remembered.map(Tail::recent).unwrap_or_default();
    if !recent.is_empty() {
        let newest = recent.iter().skip(recent.len().saturating_sub(LINES_MAX));
        let text = |line: &TailLine| String::from_utf8_lossy(&line.bytes).trim_end().to_owned();
        let lines: Vec<Value> = newest.map(|line| text(line).into()).collect();
        return Ok(json!({ "file": seen.log_dir, "lines": lines }));
    }
    let Some(dir) = &seen.log_dir else {
        return Err("the log goes to standard error: ask whoever keeps it (journalctl)".to_owned());
    };
    let path = LogHandle::current_file(dir);
    let lines = lines(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(json!({ "file": path.display().to_string(), "lines": lines }))
}

fn lines(path: &std::path::Path) -> std::io::Result<Vec<Value>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let begin = size.saturating_sub(BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line is a part of one, unless the file begins with it.
    let lines: Vec<&str> = text.lines().skip(usize::from(begin > 0)).collect();
    Ok(lines
        .iter()
        .skip(lines.len().saturating_sub(LINES_MAX))
        .map(|line| (*line).into())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_lines_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let seen = Configured { log_dir: Some(folder.path().to_owned()), ..Configured::default() };
        assert!(tail(&seen, None).unwrap_err().contains("tidegate_rCURRENT.log: "));
        let path = LogHandle::current_file(folder.path());
        std::fs::write(&path, "a\nb\n").unwrap();
        assert_eq!(tail(&seen, None).unwrap()["lines"], json!(["a", "b"]));
        let long: String = (0..5000).map(|n| format!("{n:0>99}\n")).collect();
        std::fs::write(&path, long).unwrap();
        let told = tail(&seen, None).unwrap();
        let told = told["lines"].as_array().unwrap();
        assert_eq!(told.len(), LINES_MAX);
        assert!(told.last().unwrap().as_str().unwrap().ends_with("4999"));
        assert!(told.iter().all(|line| line.as_str().unwrap().len() == 99));
        assert!(tail(&Configured::default(), None).unwrap_err().contains("standard error"));
    }
}
