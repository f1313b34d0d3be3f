//! `make bench`: Tidegate beside nginx, on this machine, in one run.
//!
//! One program starts a mock model server (itself, once more), nginx and `tidegate run` in front of
//! it, asks all of them the same in turn, checks every byte that comes back, and prints what each
//! cost: CPU, added latency, memory. The load and the mock are processes of their own and are not
//! counted. `direct` is the load on the mock with nothing in between: the floor of the rig.

mod account;
mod answer;
mod chat;
mod fronts;
mod load;
mod mock;
mod place;
mod plan;
mod report;
mod stats;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidegate::base::clock;

use fronts::Name;
use place::{Cores, Place};

/// A result whose error is for people to read.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// An error of this text.
///
/// # Errors
/// Always.
pub fn fail<T>(text: impl Into<String>) -> Outcome<T> {
    Err(text.into().into())
}

/// Longest run of the whole program. Past it the run fails.
const TIME_MAX: Duration = Duration::from_secs(480);

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures tidegate beside nginx, both before the same mock")]
struct Arguments {
    /// Short rounds, under a minute in all: for trying, not for quoting
    #[arg(long)]
    quick: bool,
    /// Print JSON, every round included, in place of the table
    #[arg(long)]
    json: bool,
    /// Fronts to measure
    #[arg(long, value_delimiter = ',', default_value = "nginx,tidegate")]
    fronts: Vec<String>,
    /// Rounds of each measurement, 1 to 20; the median is reported
    #[arg(long)]
    rounds: Option<usize>,
    /// Only the measurements whose name holds this text: whole, stream, paced, start
    #[arg(long)]
    only: Option<String>,
    /// Add 10,000 streams at once, or as many as the limit of open files allows
    #[arg(long)]
    many: bool,
    /// Worker processes of nginx
    #[arg(long, default_value_t = 1)]
    nginx_workers: usize,
    /// Let both fronts write an access log to a file
    #[arg(long)]
    access_log: bool,
    /// Keep the fronts on the first half of the cores, load and mock on the rest, in all rows
    #[arg(long)]
    apart: bool,
    /// The tidegate program to measure; the one just built unless given
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tidegate"))]
    tidegate: String,
    /// Given by cargo
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// What holds for the whole run.
#[derive(Debug)]
pub struct Setup {
    /// Worker processes of nginx.
    pub nginx_workers: usize,
    /// Whether fronts write an access log to a file.
    pub access_log: bool,
    /// The placement of the busy measurements.
    pub place: Place,
    /// Path of the tidegate program.
    pub tidegate: String,
    /// The cores that the bench was given.
    pub cores: Cores,
    /// Most streams at once, for which fronts are given room.
    pub streams_max: usize,
    root: PathBuf,
}

impl Setup {
    /// An empty folder for a process.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Outcome<PathBuf> {
        let folder = self.root.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

/// Ends the run when it takes too long or a signal came.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    end: Instant,
}

impl Watch {
    /// # Errors
    /// When the run must end.
    pub fn check(&self) -> Outcome<()> {
        if self.stop.load(Ordering::Relaxed) {
            return fail("stopped by a signal");
        }
        if clock::now() > self.end {
            return fail(format!("the run took longer than {TIME_MAX:?}"));
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let role = arguments.get(1).map(String::as_str);
    let result = match role {
        Some("mock") => fronts::run_mock(&arguments[2..]).map(|()| true),
        Some("bound") => fronts::run_bound(&arguments[2..]).map(|()| true),
        // Without the flag that `cargo bench` gives, nothing is measured: `cargo test` passes by,
        // whatever it was given for the tests.
        _ if !arguments
            .iter()
            .any(|argument| ["--bench", "--help", "-h"].contains(&argument.as_str())) =>
        {
            note("bench: nothing measured; run `make bench`, or `cargo bench --bench proxy`");
            Ok(true)
        }
        _ => run(&Arguments::parse()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(err) => {
            note(&format!("bench: {err}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the whole bench; false when a front had to be left out.
fn run(arguments: &Arguments) -> Outcome<bool> {
    if let Some(name) =
        arguments.fronts.iter().find(|name| !["nginx", "tidegate"].contains(&name.as_str()))
    {
        return fail(format!("no front is called {name:?}: nginx, tidegate"));
    }
    let cores = Cores::given();
    if cores.count() < 2 {
        return fail("two cores are needed: one for the front, one for load and mock");
    }
    answer::self_check()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let watch = Watch { stop, end: clock::now() + TIME_MAX };
    let root = tempfile::Builder::new().prefix("tidegate-bench-").tempdir()?;
    let files = raise_files(4 * plan::STREAMS_MANY as u64);
    let streams_max = if arguments.many { plan::streams_many(files) } else { plan::STREAMS };
    let setup = Setup {
        nginx_workers: arguments.nginx_workers.clamp(1, 64),
        access_log: arguments.access_log,
        place: if arguments.apart { Place::Apart } else { Place::Free },
        tidegate: arguments.tidegate.clone(),
        cores,
        streams_max,
        root: root.path().to_owned(),
    };
    let wanted: Vec<Name> = Name::ALL
        .into_iter()
        .filter(|name| {
            *name == Name::Direct || arguments.fronts.iter().any(|front| front == name.as_str())
        })
        .collect();
    let scale = plan::Scale::new(arguments.quick, arguments.rounds, arguments.many);
    let results = plan::run(&setup, &wanted, &scale, arguments.only.as_deref(), &watch)?;
    let text = if arguments.json {
        report::json(&results, &scale, &setup)
    } else {
        report::table(&results, &scale, &setup)
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(results.left_out.is_empty())
}

/// Tells how it goes, on standard error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Raises the limit of open files, of us and, by inheritance, for all fronts; gives what it is.
fn raise_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = wanted.max(limit.current.unwrap_or(u64::MAX));
    // Only root may go past the hard limit; without that right the hard limit must do.
    for (current, maximum) in [(wanted, hard.max(wanted)), (hard, hard)] {
        let new = Rlimit { current: Some(current), maximum: Some(maximum) };
        if setrlimit(Resource::Nofile, new).is_ok() {
            return current;
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

/// The version that a program prints about itself.
pub fn version(program: &str, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return format!("{} (no version)", Path::new(program).display());
    };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
