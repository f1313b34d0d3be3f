//! `tidegate top`.

use std::io::{self, IsTerminal};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::Ask;
use super::output::answer;
use crate::base::clock;
use crate::base::exit::Exit;

mod paint;
mod sample;
mod terminal;
mod view;

use sample::Sample;
use terminal::{Key, Screen};
use view::View;

/// Lines of a plain screen: all that there are.
const PLAIN_ROWS: usize = 200;
/// Columns of a plain screen.
const PLAIN_COLUMNS: usize = 120;
/// The daemon makes one document a second.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Watch a running daemon: traffic, latency, upstreams, limits, events
///
/// The screen is drawn anew at each interval; q ends it. Rates and latencies are those of the last
/// interval. Without a terminal, or with --once, one plain screen is printed.
#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    ask: Ask,
    /// Time between two screens, from 1s to 1m
    #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print one plain screen and end
    #[arg(long)]
    once: bool,
    /// End after so many screens, or lines of --json
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    match (INTERVAL_MIN..=INTERVAL_MAX).contains(&time) {
        true => Ok(time),
        false => Err("write a time from 1s to 1m".to_owned()),
    }
}

impl Top {
    pub(super) fn execute(self) -> Exit {
        if self.ask.json {
            return self.lines();
        }
        if self.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return self.plain();
        }
        match Screen::open() {
            // Whatever happens, the terminal is as it was before anybody reads of it.
            Ok(mut screen) => {
                let ended = catch_unwind(AssertUnwindSafe(|| self.live(&mut screen)));
                drop(screen);
                ended.unwrap_or_else(|panic| resume_unwind(panic))
            }
            Err(_) => self.plain(),
        }
    }

    fn sample(&self) -> Result<Sample, Exit> {
        self.ask.get("/live.json").map(|document| Sample::of(&document))
    }

    /// Two samples make a screen: rates need the time between them.
    fn plain(&self) -> Exit {
        let first = match self.sample() {
            Ok(first) => first,
            Err(exit) => return exit,
        };
        pause(self.interval);
        match self.sample() {
            Ok(second) => {
                let lines = paint::screen(&View::of(&first, &second), PLAIN_COLUMNS, PLAIN_ROWS);
                let text: Vec<String> = lines.iter().map(|line| line.plain()).collect();
                answer(&(text.join("\n") + "\n"))
            }
            Err(exit) => exit,
        }
    }

    /// A line of JSON for each interval.
    fn lines(&self) -> Exit {
        let mut before = match self.sample() {
            Ok(first) => first,
            Err(exit) => return exit,
        };
        let count = if self.once { Some(1) } else { self.count };
        let mut told = 0;
        while count.is_none_or(|count| told < count) {
            pause(self.interval);
            let sample = match self.sample() {
                Ok(sample) => sample,
                Err(exit) => return exit,
            };
            let line = serde_json::to_value(View::of(&before, &sample)).unwrap_or(Value::Null);
            match answer(&format!("{line}\n")) {
                Exit::Success => {}
                exit => return exit,
            }
            before = sample;
            told += 1;
        }
        Exit::Success
    }

    fn live(&self, screen: &mut Screen) -> Exit {
        let mut before: Option<Sample> = None;
        let mut view: Option<View> = None;
        let mut drawn = 0;
        loop {
            match self.sample() {
                Ok(sample) => {
                    view = Some(View::of(before.as_ref().unwrap_or(&sample), &sample));
                    before = Some(sample);
                }
                // It was never there, so that there is nothing to show.
                Err(exit) if before.is_none() => return exit,
                Err(_) => view.iter_mut().for_each(|view| view.lost = true),
            }
            drawn += 1;
            let until = clock::now() + self.interval;
            loop {
                let (columns, rows) = screen.size();
                let lines = view.as_ref().map(|view| paint::screen(view, columns, rows));
                if screen.draw(&lines.unwrap_or_default()).is_err() {
                    return Exit::Failure;
                }
                if self.count.is_some_and(|count| drawn >= count) {
                    return Exit::Success;
                }
                match screen.wait(until) {
                    Key::Quit => return Exit::Success,
                    Key::Redraw => {}
                    Key::Time => break,
                }
            }
        }
    }
}

fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_bounded() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert!(interval("1s").is_ok() && interval("1m").is_ok());
        assert!(interval("999ms").is_err() && interval("61s").is_err() && interval("x").is_err());
    }
}
