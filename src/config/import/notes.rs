//! What could not be carried over: where it stood, what is so, and what to do.

/// Most lines about one file. Past it: the rest is counted in one more line.
pub const NOTES_MAX: usize = 200;
/// Most characters of a path that a line shows.
const PATH_CHARS_MAX: usize = 160;

/// One thing, or the same thing at several entries of a list.
#[derive(Clone, Debug)]
struct Note {
    /// Where, with `[*]` for any entry of a list.
    general: String,
    /// Where it was first.
    path: String,
    text: String,
    count: usize,
}

/// All of them, in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Notes {
    rows: Vec<Note>,
    more: usize,
}

impl Notes {
    /// Adds one. Neither text may hold anything that could be a secret.
    pub(super) fn add(&mut self, path: &str, text: impl Into<String>) {
        let (general, text) = (general(path), text.into());
        let same = |note: &&mut Note| note.general == general && note.text == text;
        if let Some(note) = self.rows.iter_mut().find(same) {
            note.count += 1;
        } else if self.rows.len() < NOTES_MAX {
            self.rows.push(Note { general, path: shown(path), text, count: 1 });
        } else {
            self.more += 1;
        }
    }

    /// One line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |note: &Note| match note.count {
            1 => format!("{}: {}", note.path, note.text),
            count => format!("{} ({count} times): {}", shown(&note.general), note.text),
        };
        let mut lines: Vec<String> = self.rows.iter().map(line).collect();
        if self.more > 0 {
            lines.push(format!("and {} more", self.more));
        }
        lines
    }
}

/// A path with `*` for the numbers of list entries.
fn general(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('[') {
        out.push_str(before);
        match after.split_once(']') {
            Some((number, after)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                out.push_str("[*]");
                rest = after;
            }
            _ => {
                out.push('[');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// A path on one line, cut.
fn shown(path: &str) -> String {
    let escaped: String = path.escape_debug().collect();
    match escaped.char_indices().nth(PATH_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &escaped[..end]),
        None => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_at_many_entries_is_one_line_and_many_things_are_counted() {
        let mut notes = Notes::default();
        notes.add("a[0].b", "x");
        notes.add("a[1].b", "x");
        notes.add("a[1].b", "y");
        notes.add("a\n[x", "z");
        assert_eq!(notes.lines(), ["a[*].b (2 times): x", "a[1].b: y", "a\\n[x: z"]);
        for n in 0..NOTES_MAX {
            notes.add(&format!("k{n}"), "x");
        }
        assert_eq!(notes.lines().len(), NOTES_MAX + 1);
        assert_eq!(notes.lines().last().unwrap(), "and 3 more");
    }
}
