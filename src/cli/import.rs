//! `tidegate import`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::check::count;
use super::output::{answer, remark};
use crate::base::exit::Exit;
use crate::config::import::{self, INPUT_BYTES_MAX, Imported, Refusal, Source};

/// Turn the configuration of another gateway into one for tidegate
///
/// The configuration goes to standard output, or to the file of --output. What could not be carried
/// over goes to standard error, a line each: where it stood, and what to do. A key that stands in the
/// file is never repeated; the daemon takes it from a variable that is named.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// Whose file it is
    from: From,
    /// The file; - is standard input
    file: PathBuf,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output file when it exists
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// LiteLLM's config.yaml
    Litellm,
    /// OpenClaw's openclaw.json
    Openclaw,
}

impl Import {
    pub(super) fn execute(self) -> Exit {
        let source = match self.from {
            From::Litellm => Source::Litellm,
            From::Openclaw => Source::Openclaw,
        };
        let shown = self.file.display().to_string();
        let text = match read(&self.file) {
            Ok(text) => text,
            Err(e) => {
                remark(&format!("{shown}: cannot be read: {e}"));
                return Exit::Failure;
            }
        };
        let name = self.file.file_name().map_or("-".into(), |name| name.to_string_lossy());
        match import::import(source, &text, &name, &|name| std::env::var(name).ok()) {
            Ok(imported) => self.write(&shown, &imported),
            Err(refusal) => {
                let notes =
                    if let Refusal::Empty(notes) = &refusal { notes.as_slice() } else { &[] };
                notes.iter().for_each(|note| remark(&format!("{shown}: {note}")));
                remark(&format!("{shown}: {refusal}"));
                Exit::Config
            }
        }
    }

    fn write(&self, shown: &str, imported: &Imported) -> Exit {
        let written = match &self.output {
            None => answer(&imported.text),
            Some(path) => match put(path, &imported.text, self.force) {
                Ok(()) => Exit::Success,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let path = path.display();
                    remark(&format!("{path}: exists already; name another file, or say --force"));
                    return Exit::Failure;
                }
                Err(e) => {
                    remark(&format!("{}: cannot be written: {e}", path.display()));
                    return Exit::Failure;
                }
            },
        };
        for note in &imported.notes {
            remark(&format!("{shown}: {note}"));
        }
        for warning in &imported.warnings {
            remark(&format!("warning: {warning}"));
        }
        let [upstreams, models, keys] = imported.counts;
        remark(&format!(
            "{shown}: {}, {}, {}; {} above",
            count(upstreams, "upstream"),
            count(models, "model"),
            count(keys, "key"),
            count(imported.notes.len(), "remark"),
        ));
        written
    }
}

/// Reads at most one byte more than is taken, so that a file which is too long is found out.
fn read(path: &Path) -> io::Result<String> {
    let max = INPUT_BYTES_MAX as u64 + 1;
    let mut text = String::new();
    if path == Path::new("-") {
        io::stdin().lock().take(max).read_to_string(&mut text)?;
    } else {
        File::open(path)?.take(max).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// Writes a file whole or not at all; one that exists is replaced only when `force` says so.
fn put(path: &Path, text: &str, force: bool) -> io::Result<()> {
    if !force {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(path);
        }
        return written;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}
