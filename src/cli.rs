//! Command line: one file per command. Answers go to standard output, everything else to standard
//! error; exit codes stand in [`crate::base::exit`].

mod alerts;
mod breaker;
mod cache;
mod check;
mod client;
mod completions;
mod config;
mod devices;
mod drain;
mod events;
mod import;
mod history;
mod key;
mod limits;
mod logs;
mod nodes;
mod order;
mod output;
mod run;
mod snapshot;
mod status;
mod top;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::base::exit::Exit;

/// A gateway that stays up, between the programs that talk to language models and the services that
/// answer them.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, propagate_version = false, max_term_width = 100)]
#[command(after_help = "See tidegate(8) and tidegate.toml(5).")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Status(status::Status),
    Logs(logs::Logs),
    Devices(devices::Devices),
    Drain(drain::Drain),
    Limits(limits::Limits),
    Alerts(alerts::Alerts),
    Breaker(breaker::Breaker),
    Nodes(nodes::Nodes),
    Cache(cache::Cache),
    Usage(usage::Usage),
    Snapshot(snapshot::Snapshot),
    Top(top::Top),
    Events(events::Events),
    Reload(order::Reload),
    Reopen(order::Reopen),
    Stop(order::Stop),
    History(history::History),
    Config(config::Config),
    Key(key::Key),
    Import(import::Import),
    Completions(completions::Completions),
}

/// Runs the command line.
pub fn run() -> ExitCode {
    execute(std::env::args_os()).into()
}

fn execute(args: impl IntoIterator<Item = std::ffi::OsString>) -> Exit {
    match Cli::try_parse_from(args) {
        Ok(cli) => match cli.command {
            Command::Run(command) => command.execute(),
            Command::Check(command) => command.execute(),
            Command::Status(command) => command.execute(),
            Command::Logs(command) => command.execute(),
            Command::Devices(command) => command.execute(),
            Command::Drain(command) => command.execute(),
            Command::Limits(command) => command.execute(),
            Command::Alerts(command) => command.execute(),
            Command::Breaker(command) => command.execute(),
            Command::Nodes(command) => command.execute(),
            Command::Cache(command) => command.execute(),
            Command::Usage(command) => command.execute(),
            Command::Snapshot(command) => command.execute(),
            Command::Top(command) => command.execute(),
            Command::Events(command) => command.execute(),
            Command::Reload(command) => command.execute(),
            Command::Reopen(command) => command.execute(),
            Command::Stop(command) => command.execute(),
            Command::History(command) => command.execute(),
            Command::Config(command) => command.execute(),
            Command::Key(command) => command.execute(),
            Command::Import(command) => command.execute(),
            Command::Completions(command) => command.execute(),
        },
        Err(e) => {
            // Help and version come this way too. Whoever closed the pipe has seen enough.
            let _ = e.print();
            if e.use_stderr() { Exit::Usage } else { Exit::Success }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_told_from_help() {
        let check = |args: &[&str], expected: Exit| {
            let args = ["tidegate"].iter().chain(args).map(Into::into);
            assert_eq!(execute(args), expected);
        };
        check(&["--version"], Exit::Success);
        check(&["run", "--help"], Exit::Success);
        check(&[], Exit::Usage);
        check(&["rnu"], Exit::Usage);
        check(&["check", "--config", "a.toml", "b.toml"], Exit::Usage);
        check(&["check", "/nonexistent/tidegate.toml"], Exit::Config);
    }
}
