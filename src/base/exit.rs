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
    /// The configuration is wrong (`EX_CONFIG`): starting again without a change is no use.
    Config,
}

impl Exit {
    /// All of them, in the order of their codes.
    pub const ALL: [Exit; 4] = [Exit::Success, Exit::Failure, Exit::Usage, Exit::Config];

    /// The number that the parent process sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 64,
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
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 64, 78]);
    }
}
