//! The program's own words: answers on standard output, remarks on standard error. Neither panics
//! when nobody reads, as `println!` would.

use std::io::{ErrorKind, Write};

use crate::base::exit::Exit;

/// Writes an answer. A reader that left (`tidegate config schema | head`) is no failure; a full disk
/// behind a redirection is.
pub(super) fn answer(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Success,
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Exit::Success,
        Err(e) => {
            remark(&format!("tidegate: writing to standard output: {e}"));
            Exit::Failure
        }
    }
}

/// Writes a line to standard error. When that fails there is nobody left to tell.
pub(super) fn remark(line: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
