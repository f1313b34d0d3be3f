//! A check that runs a program: no shell, no environment but what is written here, its output bounded,
//! and at the timeout it is killed with its whole process group.

use std::io::{self, PipeReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::base::heartbeat::{self, Doing};
use crate::base::{clock, lock};

/// Most bytes kept of what the program writes; the rest is read and thrown away.
const OUTPUT_BYTES_MAX: usize = 1024;

/// The path that it finds programs in.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most reads of what a program that has ended left behind: more than its pipe holds, and an end also
/// when a child of it writes on.
const LAST_READS_MAX: usize = 64;

/// How often it is looked at while it runs.
const LOOK: Duration = Duration::from_millis(20);

/// How long a killed program may take to be gone. One that hangs in the kernel is left behind.
const DEATH_MAX: Duration = Duration::from_secs(2);

/// Runs it to its end, or to the deadline.
///
/// # Errors
/// Why it did not go well, with the last line that it wrote.
pub(super) fn run(
    name: &str,
    words: &[String],
    deadline: Instant,
    stopping: &AtomicBool,
) -> Result<(), String> {
    lock::assert_none_held();
    let _waiting = heartbeat::waiting(Doing::Child, deadline + DEATH_MAX);
    let (program, arguments) = words.split_first().ok_or("no command")?;
    let (mut reader, child) = start(name, program, arguments)
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    let mut output = Output::default();
    let pid = Pid::from_child(&child);
    let over = || stopping.load(Relaxed) || clock::now() >= deadline;
    let ended = watch(pid, &mut reader, &mut output, &over);
    // Before it is waited for: until then nobody else can have this number. What it has started and
    // left behind goes with it.
    let _ = kill_process_group(pid, Signal::KILL);
    // What is there already. A child in a group of its own may still write.
    for _ in 0..LAST_READS_MAX {
        if read(&mut reader, &mut output, Duration::ZERO) != Some(true) {
            break;
        }
    }
    let status = reap(child, pid);
    let said = output.last_line().map_or_else(String::new, |line| format!(": {line}"));
    match (ended, status) {
        (_, None) => Err(format!("{program} was killed and does not end{said}")),
        (false, Some(_)) => Err(format!("{program} did not end in time and was killed{said}")),
        (true, Some(status)) if status.success() => Ok(()),
        (true, Some(status)) => Err(match (status.code(), status.signal()) {
            (Some(code), _) => format!("{program} ended with {code}{said}"),
            (None, Some(signal)) => format!("{program} was ended by signal {signal}{said}"),
            (None, None) => format!("{program} ended in an unknown way{said}"),
        }),
    }
}

fn start(name: &str, program: &str, arguments: &[String]) -> io::Result<(PipeReader, Child)> {
    let (reader, writer) = io::pipe()?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .env("TIDEGATE_CHECK", name)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    Ok((reader, child))
}

/// Waits for its end, without reaping it; false when its time was over first.
fn watch(pid: Pid, reader: &mut PipeReader, output: &mut Output, over: &dyn Fn() -> bool) -> bool {
    let mut open = true;
    loop {
        if has_ended(pid) {
            return true;
        }
        if over() {
            return false;
        }
        if open {
            open = read(reader, output, LOOK).is_some();
        } else {
            std::thread::sleep(LOOK);
        }
    }
}

fn has_ended(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error says that there is no such child: then it has ended as well.
    !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
}

/// Reads once; whether there was something. None: nobody will write any more.
fn read(reader: &mut PipeReader, output: &mut Output, wait: Duration) -> Option<bool> {
    let timeout = Timespec::try_from(wait).ok()?;
    let mut fds = [PollFd::new(&*reader, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Some(false),
        Ok(_) => {}
        Err(_) => return None,
    }
    let mut bytes = [0; 4096];
    match reader.read(&mut bytes) {
        Ok(0) | Err(_) => None,
        Ok(n) => {
            output.take(&bytes[..n]);
            Some(true)
        }
    }
}

/// Waits for the end of a program that has ended or was killed.
fn reap(mut child: Child, pid: Pid) -> Option<ExitStatus> {
    let until = clock::now() + DEATH_MAX;
    while !has_ended(pid) {
        if clock::now() >= until {
            return None;
        }
        std::thread::sleep(LOOK);
    }
    child.wait().ok()
}

/// The last bytes that a program wrote.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
}

impl Output {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let over = self.bytes.len().saturating_sub(OUTPUT_BYTES_MAX);
        self.bytes.drain(..over);
    }

    fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
        Some(line.chars().take(160).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<(), String> {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        run("test", &words, clock::now() + limit, &AtomicBool::new(false))
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn its_end_says_how_it_went_and_its_last_line_why() {
        assert_eq!(sh("exit 0", LONG), Ok(()));
        assert_eq!(
            sh("echo one; echo two >&2; exit 3", LONG).unwrap_err(),
            "/bin/sh ended with 3: two"
        );
        assert_eq!(sh("kill -TERM $$", LONG).unwrap_err(), "/bin/sh was ended by signal 15");
        let words = ["/no/such/program".to_owned()];
        let error = run("test", &words, clock::now() + LONG, &AtomicBool::new(false)).unwrap_err();
        assert!(error.starts_with("/no/such/program cannot be run"), "{error}");
    }

    #[test]
    fn it_gets_no_environment_but_ours_and_no_input() {
        let script = "test \"$TIDEGATE_CHECK\" = test && test -z \"$HOME$CARGO\" && ! read line \
                      && test \"$PWD\" = /";
        assert_eq!(sh(script, LONG), Ok(()));
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children_and_much_output_is_thrown_away() {
        let begun = clock::now();
        let hangs = "sleep 1000 & echo $! ; sleep 1000";
        let error = sh(hangs, Duration::from_millis(300)).unwrap_err();
        assert!(error.contains("did not end in time and was killed"), "{error}");
        assert!(clock::now() < begun + LONG);
        let child = error.rsplit(": ").next().unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
            // Nobody may have waited for it yet.
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        if cfg!(target_os = "linux") {
            let until = clock::now() + LONG;
            while !gone() {
                assert!(clock::now() < until, "{child} lives");
                std::thread::sleep(LOOK);
            }
        }
        // A child that keeps the output open does not keep the run from ending.
        assert_eq!(sh("sleep 1000 & exit 0", LONG), Ok(()));
        // Nor one that writes without end, also from a group of its own.
        assert_eq!(sh("yes & sleep 0.2; exit 0", LONG), Ok(()));
        let begun = clock::now();
        assert_eq!(sh("setsid timeout 30 yes & sleep 0.2; exit 0", LONG), Ok(()));
        assert!(clock::now() < begun + LONG, "the run ends with its program");
        let error = sh("yes | head -c 3000000; echo; echo last; exit 1", LONG).unwrap_err();
        assert_eq!(error, "/bin/sh ended with 1: last");
    }
}
