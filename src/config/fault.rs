//! What is wrong with a configuration: where, what, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// Most faults that one load reports; the rest are counted. A file with more of them was not meant
/// to be one of ours.
pub const FAULTS_MAX: usize = 100;

/// Longest piece of a value that a message repeats, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// One thing that is wrong, or doubtful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, counted from 1; `None` when no line of the file is to blame.
    pub line: Option<usize>,
    /// The setting, such as `server.workers` or `upstream[local].url`; empty for bad syntax.
    pub key: String,
    /// What is wrong, with the value and its bound. Never holds a secret.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// Something doubtful in a configuration that runs nevertheless.
pub type Warning = Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl Fault {
    /// One line as compilers write them: `file:line: key: text; remedy`.
    pub fn at(&self, path: Option<&std::path::Path>) -> String {
        let file = path.map_or_else(|| "built-in defaults".to_owned(), |p| p.display().to_string());
        match self.line {
            Some(line) => format!("{file}:{line}: {self}"),
            None => format!("{file}: {self}"),
        }
    }
}

/// Everything that is wrong with one configuration, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The file; `None` for text that came from none.
    pub path: Option<PathBuf>,
    /// The faults, at most [`FAULTS_MAX`], never empty.
    pub faults: Vec<Fault>,
    /// How many more there were.
    pub omitted: usize,
}

impl Faults {
    /// A single fault of the file as a whole.
    pub(super) fn of_file(path: Option<PathBuf>, text: String, remedy: &str) -> Self {
        let fault = Fault { line: None, key: String::new(), text, remedy: remedy.to_owned() };
        Faults { path, faults: vec![fault], omitted: 0 }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}", fault.at(self.path.as_deref()))?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A value as a message repeats it: quoted, on one line, cut.
pub(super) fn shown(value: &str) -> String {
    if value.chars().nth(SHOWN_CHARS_MAX).is_none() {
        return format!("{value:?}");
    }
    let cut: String = value.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{cut:?}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_as_compilers_write_them() {
        let fault = Fault {
            line: Some(3),
            key: "server.workers".into(),
            text: "0 is below 1".into(),
            remedy: "set 1 or more".into(),
        };
        let path = PathBuf::from("a.toml");
        assert_eq!(fault.at(Some(&path)), "a.toml:3: server.workers: 0 is below 1; set 1 or more");
        let faults = Faults { path: Some(path), faults: vec![fault.clone(), fault], omitted: 2 };
        assert_eq!(faults.to_string().lines().count(), 3);
        assert!(faults.to_string().ends_with("\nand 2 more"));
    }

    #[test]
    fn a_long_or_binary_value_is_cut_and_escaped() {
        assert_eq!(shown("a\nb"), "\"a\\nb\"");
        assert_eq!(shown(&"é".repeat(61)), format!("\"{}\"…", "é".repeat(60)));
        assert_eq!(shown(&"é".repeat(60)), format!("\"{}\"", "é".repeat(60)));
    }
}
