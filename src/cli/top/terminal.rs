//! The terminal, while it shows a live screen: its own page, no echo, keys as they are pressed. It is
//! given back as it was when the [`Screen`] is dropped, which a panic does too; signals that end the
//! program are taken as the key that ends it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

use super::paint::Line;
use crate::base::clock;

/// What the other page of the terminal begins with: it, no cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[2J";
/// Colours off, the cursor, the page as it was.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";
/// How long a signal waits at most to be seen.
const LOOK: Duration = Duration::from_millis(250);
/// A terminal that does not know its size.
const SIZE_DEFAULT: (usize, usize) = (80, 24);
/// Largest size that is drawn, in columns and rows.
const SIZE_MAX: (usize, usize) = (500, 300);

/// Why waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// `q`, the end of the input, or a signal.
    Quit,
    /// Another size, or a key that asks for it.
    Redraw,
    /// It is time.
    Time,
}

/// The terminal in our hands.
pub(super) struct Screen {
    input: OwnedFd,
    output: File,
    before: Termios,
    end: Arc<AtomicBool>,
    resized: Arc<AtomicBool>,
    signals: Vec<signal_hook::SigId>,
    coloured: bool,
}

impl Screen {
    /// Takes the terminal of standard input and output.
    pub(super) fn open() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        Screen::on(input, io::stdout().as_fd().try_clone_to_owned()?.into())
    }

    fn on(input: OwnedFd, output: File) -> io::Result<Self> {
        let before = tcgetattr(&input)?;
        let (end, resized) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut signals = Vec::new();
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            signals.push(signal_hook::flag::register(signal, Arc::clone(&end))?);
        }
        signals.push(signal_hook::flag::register(SIGWINCH, Arc::clone(&resized))?);
        let coloured = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut screen = Screen { input, output, before, end, resized, signals, coloured };
        let mut mode = screen.before.clone();
        mode.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        mode.special_codes[SpecialCodeIndex::VMIN] = 1;
        mode.special_codes[SpecialCodeIndex::VTIME] = 0;
        // Stopped in the middle, it would leave the shell with our page: ^Z does nothing.
        mode.special_codes[SpecialCodeIndex::VSUSP] = 0;
        tcsetattr(&screen.input, OptionalActions::Flush, &mode)?;
        screen.output.write_all(ENTER)?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        let (columns, rows) = match tcgetwinsize(&self.output) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (usize::from(size.ws_col), usize::from(size.ws_row))
            }
            _ => SIZE_DEFAULT,
        };
        (columns.min(SIZE_MAX.0), rows.min(SIZE_MAX.1))
    }

    /// Draws all lines, in one write, so that nothing flickers.
    pub(super) fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut out = String::from("\x1b[H");
        for (row, line) in lines.iter().enumerate() {
            let text = if self.coloured { line.coloured() } else { line.plain() };
            let next = if row + 1 < lines.len() { "\r\n" } else { "" };
            out.push_str(&format!("\x1b[K{text}{next}"));
        }
        // Remarks of the next question land at the top, where the next screen is drawn over them.
        out.push_str("\x1b[J\x1b[H");
        self.output.write_all(out.as_bytes())
    }

    /// Waits for a key, a signal, or the time.
    pub(super) fn wait(&mut self, until: Instant) -> Key {
        loop {
            if self.end.load(Relaxed) {
                return Key::Quit;
            }
            if self.resized.swap(false, Relaxed) {
                return Key::Redraw;
            }
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Key::Time;
            }
            if let Some(key) = self.key(left.min(LOOK)) {
                return key;
            }
        }
    }

    /// A key that means something, if one comes in this time.
    fn key(&mut self, wait: Duration) -> Option<Key> {
        let timeout = Timespec::try_from(wait).ok()?;
        let mut descriptors = [PollFd::new(&self.input, PollFlags::IN)];
        // Interrupted by a signal: its flag is looked at next.
        let ready = poll(&mut descriptors, Some(&timeout)).ok()?;
        if ready == 0 {
            return None;
        }
        let mut keys = [0; 64];
        match rustix::io::read(&self.input, &mut keys) {
            Ok(0) => Some(Key::Quit),
            Ok(count) => {
                let keys = &keys[..count];
                let quit = keys.iter().any(|key| matches!(key, b'q' | b'Q' | 3 | 4));
                if quit { Some(Key::Quit) } else { keys.contains(&12).then_some(Key::Redraw) }
            }
            Err(rustix::io::Errno::INTR) => None,
            Err(_) => Some(Key::Quit),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to tell when this fails.
        let _ = self.output.write_all(LEAVE);
        let _ = tcsetattr(&self.input, OptionalActions::Flush, &self.before);
        for signal in self.signals.drain(..) {
            signal_hook::low_level::unregister(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// Both ends of a terminal.
    fn terminal() -> (OwnedFd, File) {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let mut options = File::options();
        let flags = i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).unwrap();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
        (ours, options.read(true).write(true).open(name).unwrap())
    }

    fn told(ours: &OwnedFd) -> String {
        let mut bytes = [0; 4096];
        let count = rustix::io::read(ours, &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn a_panic_gives_the_terminal_back_as_it_was() {
        let (ours, theirs) = terminal();
        let mode = || format!("{:?}", tcgetattr(&theirs).unwrap());
        let before = mode();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let screen =
                Screen::on(theirs.try_clone().unwrap().into(), theirs.try_clone().unwrap());
            let _screen = screen.unwrap();
            assert_ne!(mode(), before);
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(ended.is_err());
        assert_eq!(mode(), before);
        assert!(told(&ours).ends_with("\u{1b}[?25h\u{1b}[?1049l"));
    }

    #[test]
    fn keys_and_time_end_the_wait() {
        let (ours, theirs) = terminal();
        let mut screen = Screen::on(theirs.try_clone().unwrap().into(), theirs).unwrap();
        let soon = || clock::now() + Duration::from_secs(30);
        assert_eq!(screen.wait(clock::now()), Key::Time);
        let mut press = |key: &[u8]| {
            rustix::io::write(&ours, key).unwrap();
            screen.wait(soon())
        };
        assert_eq!(press(b"x\x0c"), Key::Redraw);
        assert_eq!(press(b"q"), Key::Quit);
        screen.resized.store(true, Relaxed);
        assert_eq!(screen.wait(soon()), Key::Redraw);
        screen.end.store(true, Relaxed);
        assert_eq!(screen.wait(soon()), Key::Quit);
    }
}
