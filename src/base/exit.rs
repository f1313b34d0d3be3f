//! Exit codes. The one place that knows their numbers; tidegate(8) lists them and a test compares.

use std::process::ExitCode;

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Success,
    /// It could not, for a reason that another try may not meet (a port in use, no rights).
    Failure,
    /// The command line is wrong (`EX_USAGE`).
    Usage,
    /// The daemon refused what it was asked for, and will again (`EX_DATAERR`).
    Refused,
    /// No daemon answers (`EX_UNAVAILABLE`).
    Unavailable,
    /// It asks to be started again: something hangs that only a restart cures (`EX_SOFTWARE`).
    Restart,
    /// Not now: the daemon is busy or on its way out, or somebody else was faster (`EX_TEMPFAIL`).
    TryAgain,
    /// The daemon belongs to another user (`EX_NOPERM`).
    NotYours,
    /// The configuration is wrong (`EX_CONFIG`): starting again without a change is no use.
    Config,
}

impl Exit {
    /// All of them, in the order of their codes.
    pub const ALL: [Exit; 9] = [
        Exit::Success,
        Exit::Failure,
        Exit::Usage,
        Exit::Refused,
        Exit::Unavailable,
        Exit::Restart,
        Exit::TryAgain,
        Exit::NotYours,
        Exit::Config,
    ];

    /// The number that the parent process sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 64,
            Exit::Refused => 65,
            Exit::Unavailable => 69,
            Exit::Restart => 70,
            Exit::TryAgain => 75,
            Exit::NotYours => 77,
            Exit::Config => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_stay_what_they_are() {
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 64, 65, 69, 70, 75, 77, 78]);
    }
}
