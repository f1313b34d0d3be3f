//! `tidegate logs`.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::Ask;
use super::output::{answer, remark};
use crate::base::exit::Exit;
use crate::base::query::encoded;

/// Show the last lines of a running daemon's log, and follow it
///
/// They come from the daemon's memory, so also when it logs to standard error. Levels below
/// `log.level` are not written at all. When lines come faster than they are read, some are left
/// out, and a remark on standard error says how many.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Go on with lines as they come, until interrupted or the daemon ends
    #[arg(long, short)]
    follow: bool,
    /// How many lines from before, at most 1000
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u16).range(0..=1000))]
    lines: u16,
    /// Only lines of this level and graver ones
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// Only lines that hold this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

/// The levels of lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Logs {
    pub(super) fn execute(self) -> Exit {
        let mut query = format!("?n={}", self.lines);
        if let Some(level) = self.level {
            query.push_str(&format!("&level={}", format!("{level:?}").to_ascii_lowercase()));
        }
        if let Some(text) = &self.grep {
            query.push_str(&format!("&grep={}", encoded(text)));
        }
        if self.follow {
            let json = self.ask.json;
            return self.ask.follow(&format!("/logs/follow{query}"), &mut |line| {
                let Ok(line) = serde_json::from_slice::<Value>(line) else { return true };
                if let Some(dropped) = line["dropped"].as_u64() {
                    remark(&format!("tidegate: {dropped} lines were left out: they came too fast"));
                    return true;
                }
                answer_alive(&shown(&line, json))
            });
        }
        match self.ask.get_control(&format!("/logs{query}")) {
            Ok(document) => {
                let lines = document["lines"].as_array().map(Vec::as_slice).unwrap_or_default();
                answer(&lines.iter().map(|line| shown(line, self.ask.json)).collect::<String>())
            }
            Err(exit) => exit,
        }
    }
}

/// Writes; false when nobody reads any more.
fn answer_alive(text: &str) -> bool {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// A line as it was logged. With `json` each is an object: its own, where the log is JSON.
fn shown(line: &Value, json: bool) -> String {
    let text = line["line"].as_str().unwrap_or_default();
    if !json || text.starts_with('{') {
        return format!("{text}\n");
    }
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_as_it_was_logged_or_as_an_object() {
        let text = serde_json::json!({"level": "info", "line": "a b=c"});
        let object = serde_json::json!({"level": "info", "line": "{\"event\":\"a\"}"});
        assert_eq!(shown(&text, false), "a b=c\n");
        assert_eq!(shown(&text, true), "{\"level\":\"info\",\"line\":\"a b=c\"}\n");
        assert_eq!(shown(&object, true), "{\"event\":\"a\"}\n");
        assert_eq!(shown(&object, false), "{\"event\":\"a\"}\n");
    }
}
