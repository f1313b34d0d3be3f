//! A part of the log for whoever follows it by asking again and again: what came since a place that an
//! earlier answer named, over rotations, and never more than was asked for.
//!
//! A place is one number, as the OpenClaw protocol wants it: an offset, and above it a mark of which
//! file it is an offset in. So a follower who comes back after a rotation is not shown the middle of
//! another file. A number without a mark is an offset in whatever file there is now.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::files::{CURRENT_NAME, rotated_number};
use super::tail::{Tail, TailLine};
use crate::base::clock;

/// Bits of an offset: files have at most 4 GiB, twice that when they cannot be rotated.
const OFFSET_BITS: u32 = 33;
/// Bits of a mark. Together they are what JavaScript holds exactly.
const MARK_BITS: u32 = 20;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// From where on; `None`: the last lines.
    pub cursor: Option<u64>,
    /// Most lines.
    pub lines: usize,
    /// Most bytes.
    pub bytes: u64,
}

/// Lines, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// To be asked for next.
    pub cursor: u64,
    /// How large the file is, in bytes.
    pub size: u64,
    /// The lines without their ends.
    pub lines: Vec<String>,
    /// There were more than these.
    pub truncated: bool,
    /// The place that was asked for is no more: the file was rotated, or too much came since.
    pub reset: bool,
    /// Bytes between the place that was asked for and these lines, as far as that is known.
    pub skipped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// 0: it does not say.
    mark: u64,
    offset: u64,
}

impl Place {
    fn of(cursor: u64) -> Place {
        let mark = (cursor >> OFFSET_BITS) & ((1 << MARK_BITS) - 1);
        Place { mark, offset: cursor & ((1 << OFFSET_BITS) - 1) }
    }

    fn cursor(mark: u64, offset: u64) -> u64 {
        (mark << OFFSET_BITS) | (offset & ((1 << OFFSET_BITS) - 1))
    }
}

/// A mark of something that has this number, never 0.
fn mark(number: u64) -> u64 {
    // Fibonacci hashing: the upper bits depend on all of them.
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - MARK_BITS)).max(1)
}

/// From the files in a folder.
///
/// # Errors
/// When a file cannot be read.
pub fn read(folder: &Path, ask: &Ask) -> io::Result<Slice> {
    let file = match File::open(folder.join(CURRENT_NAME)) {
        // In the middle of a rotation there is none: whoever asks comes again, with what he has.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Slice { cursor: ask.cursor.unwrap_or(0), ..Slice::default() });
        }
        file => file?,
    };
    let is = file.metadata()?;
    let (size, mark) = (is.len(), mark_of(&is));
    let place = ask.cursor.map(Place::of);
    let here = place.filter(|place| [0, mark].contains(&place.mark) && place.offset <= size);
    let mut slice = Slice { size, cursor: Place::cursor(mark, size), ..Slice::default() };
    let mut parts = Vec::new();
    if let (Some(place), None) = (place, here) {
        slice.reset = true;
        // What was written to other files since then comes first.
        parts = since(folder, place, mark);
    }
    parts.push(Part { file, from: here.map_or(0, |place| place.offset), to: size });
    // The last ones only.
    let all: u64 = parts.iter().map(|part| part.to - part.from).sum();
    let mut skip = all.saturating_sub(ask.bytes);
    if skip > 0 {
        slice.truncated = true;
        slice.reset |= place.is_some();
        slice.skipped = if place.is_some() { skip } else { 0 };
    }
    for mut part in parts {
        let less = skip.min(part.to - part.from);
        skip -= less;
        part.from += less;
        slice.lines.append(&mut part.lines()?);
    }
    cut(&mut slice, ask.lines);
    Ok(slice)
}

/// A part of a file.
struct Part {
    file: File,
    from: u64,
    to: u64,
}

/// From what is kept in memory of a log that is written elsewhere.
pub fn recent(tail: &Tail, ask: &Ask) -> Slice {
    let (kept, total) = tail.recent_of();
    let held: u64 = kept.iter().map(|line| line.bytes.len() as u64).sum();
    // Another process counts from 0 again.
    static STARTED: OnceLock<u64> = OnceLock::new();
    let started = || {
        let now = clock::unix();
        now.as_secs() ^ u64::from(now.subsec_nanos()).rotate_left(32)
    };
    let mark = mark(*STARTED.get_or_init(started));
    let place = ask.cursor.map(Place::of);
    let first = total - held;
    let here = place.filter(|place| [0, mark].contains(&place.mark) && place.offset <= total);
    let from = here.map_or(first, |place| place.offset);
    let begin = from.max(first).max(total.saturating_sub(ask.bytes));
    let mut slice = Slice { size: total, cursor: Place::cursor(mark, total), ..Slice::default() };
    slice.reset = place.is_some() && (here.is_none() || begin > from);
    slice.truncated = begin > from || (place.is_none() && first > 0);
    slice.skipped = if here.is_some() { begin - from } else { 0 };
    let mut at = first;
    for line in kept {
        if at >= begin {
            slice.lines.push(text(&line));
        }
        at += line.bytes.len() as u64;
    }
    cut(&mut slice, ask.lines);
    slice
}

fn text(line: &TailLine) -> String {
    String::from_utf8_lossy(&line.bytes).trim_end_matches('\n').to_owned()
}

/// The last ones only.
fn cut(slice: &mut Slice, most: usize) {
    let excess = slice.lines.len().saturating_sub(most);
    slice.truncated |= excess > 0;
    slice.lines.drain(..excess);
}

fn mark_of(is: &fs::Metadata) -> u64 {
    mark(is.ino() ^ is.dev().rotate_left(32))
}

/// What was written to rotated files since a place in one of them, up to the file of the mark `end`,
/// which may have been rotated just now. Nothing when the place is in none of them.
fn since(folder: &Path, place: Place, end: u64) -> Vec<Part> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let number = |path: &Path| rotated_number(&path.file_name()?.to_string_lossy());
    let rotated = entries.flatten().map(|entry| entry.path());
    let mut rotated: Vec<(u64, PathBuf)> =
        rotated.filter_map(|path| Some((number(&path)?, path))).collect();
    rotated.sort_unstable();
    let mut parts = Vec::new();
    for (_, path) in rotated {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let Ok((is, file)) = opened else { continue };
        let mark = mark_of(&is);
        if mark == end {
            break;
        }
        if mark == place.mark {
            parts = vec![Part { file, from: place.offset.min(is.len()), to: is.len() }];
        } else if !parts.is_empty() {
            parts.push(Part { file, from: 0, to: is.len() });
        }
    }
    parts
}

impl Part {
    /// The whole lines in it. The part of a line at the beginning is left out.
    fn lines(&mut self) -> io::Result<Vec<String>> {
        if self.from >= self.to {
            return Ok(Vec::new());
        }
        let begin = self.from.saturating_sub(1);
        self.file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        (&mut self.file).take(self.to - begin).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<&str> = text.split('\n').collect();
        if self.from > 0 {
            lines.remove(0);
        }
        if lines.last() == Some(&"") {
            lines.pop();
        }
        Ok(lines.into_iter().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use log::Level;

    use super::*;
    use crate::base::metrics::Registry;

    const ALL: Ask = Ask { cursor: None, lines: 5000, bytes: 1_000_000 };

    fn ask(cursor: u64) -> Ask {
        Ask { cursor: Some(cursor), ..ALL }
    }

    #[test]
    fn a_follower_sees_each_line_once_also_over_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let none = read(folder.path(), &ALL).unwrap();
        assert_eq!(none, Slice::default());
        let between = read(folder.path(), &ask(77)).unwrap();
        assert_eq!((between.cursor, between.reset), (77, false), "in the middle of a rotation");
        fs::write(at(CURRENT_NAME), "a\nb\n").unwrap();
        let first = read(folder.path(), &ALL).unwrap();
        assert_eq!((first.lines.join(","), first.size, first.reset), ("a,b".into(), 4, false));
        fs::write(at(CURRENT_NAME), "a\nb\nc\n").unwrap();
        let next = read(folder.path(), &ask(first.cursor)).unwrap();
        assert_eq!((next.lines.join(","), next.reset, next.truncated), ("c".into(), false, false));
        let again = read(folder.path(), &ask(next.cursor)).unwrap();
        assert!(again.lines.is_empty() && again.cursor == next.cursor);
        // Two more lines, of which one was written before the rotation; the new file is longer.
        fs::write(at(CURRENT_NAME), "a\nb\nc\nd\n").unwrap();
        fs::rename(at(CURRENT_NAME), at("tidegate_r00001.log")).unwrap();
        fs::write(at("tidegate_r00000.log"), "long ago\n").unwrap();
        fs::write(at("tidegate_r00002.log"), "between\n").unwrap();
        fs::write(at(CURRENT_NAME), "e and a longer line than all of the old file\n").unwrap();
        let over = read(folder.path(), &ask(next.cursor)).unwrap();
        assert_eq!(over.lines[..2], ["d", "between"]);
        assert!(over.lines[2].starts_with("e and") && over.reset && !over.truncated, "{over:?}");
        let few = read(folder.path(), &Ask { bytes: 53, ..ask(next.cursor) }).unwrap();
        assert_eq!((few.lines.len(), few.truncated, few.skipped), (2, true, 2), "{few:?}");
        fs::remove_file(at("tidegate_r00001.log")).unwrap();
        let lost = read(folder.path(), &ask(next.cursor)).unwrap();
        assert!(lost.lines.len() == 1 && lost.reset, "{lost:?}");
        assert_eq!(read(folder.path(), &ask(over.cursor)).unwrap().lines, [""; 0]);
        // A client that counts by itself.
        assert_eq!(read(folder.path(), &ask(0)).unwrap().lines.len(), 1);
        assert!(read(folder.path(), &ask(1000)).unwrap().reset);
    }

    #[test]
    fn an_answer_is_bounded_and_begins_with_a_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for n in 0..1000 {
            writeln!(text, "line {n:04}").unwrap();
        }
        fs::write(folder.path().join(CURRENT_NAME), &text).unwrap();
        let few = read(folder.path(), &Ask { lines: 3, ..ALL }).unwrap();
        assert_eq!((few.lines.len(), few.truncated, few.reset), (3, true, false));
        assert_eq!(few.lines[2], "line 0999");
        let small = read(folder.path(), &Ask { bytes: 25, ..ALL }).unwrap();
        assert_eq!(small.lines, ["line 0998", "line 0999"]);
        let cursor = read(folder.path(), &ask(100)).unwrap();
        assert_eq!((cursor.lines.len(), &*cursor.lines[0]), (990, "line 0010"));
        let late = read(folder.path(), &Ask { bytes: 1000, ..ask(100) }).unwrap();
        assert_eq!(
            (late.lines.len(), late.reset, late.truncated, late.skipped),
            (100, true, true, 8900)
        );
        fs::write(folder.path().join(CURRENT_NAME), b"\xff\xfe\nhalf").unwrap();
        let odd = read(folder.path(), &ALL).unwrap();
        assert_eq!((odd.lines.len(), &*odd.lines[1]), (2, "half"));
    }

    #[test]
    fn what_is_in_memory_is_followed_likewise() {
        let tail = Tail::new(&Registry::default());
        let push = |text: &str| tail.push(Level::Info, format!("{text}\n").as_bytes());
        push("a");
        let first = recent(&tail, &ALL);
        assert_eq!((first.lines.join(","), first.truncated), ("a".into(), false));
        push("b");
        push("c");
        let next = recent(&tail, &ask(first.cursor));
        assert_eq!((next.lines.join(","), next.reset), ("b,c".into(), false));
        for n in 0..super::super::tail::RECENT_MAX {
            push(&n.to_string());
        }
        let late = recent(&tail, &ask(first.cursor));
        assert!(late.reset && late.truncated && late.skipped == 4, "{late:?}");
        let other = recent(&tail, &ask(Place::cursor(Place::of(first.cursor).mark ^ 1, 2)));
        assert!(other.reset && other.lines.len() == super::super::tail::RECENT_MAX, "{other:?}");
        assert!(first.cursor < 1 << 53);
    }
}
