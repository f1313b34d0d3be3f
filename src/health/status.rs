//! The one word for how the process is, made of its phase and its checks. Pure.

use crate::base::health::{Look, Phase, State};

/// How the process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// All is well.
    #[default]
    Healthy,
    /// Requests are served, and something is worse than it should be.
    Degraded,
    /// Requests should go elsewhere.
    Unhealthy,
}

impl Status {
    /// The word in answers, logs and commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Healthy => "healthy",
            Status::Degraded => "degraded",
            Status::Unhealthy => "unhealthy",
        }
    }
}

/// The status, and what makes it so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How the process is.
    pub status: Status,
    /// Of each check that is not good and counts, `name: reason`; the gravest first.
    pub reasons: Vec<String>,
}

/// Judges: unhealthy while it is not ready, degraded while a check that counts is not good.
pub fn judge(phase: Phase, looks: &[Look]) -> Report {
    let mut found: Vec<(Status, String)> = Vec::new();
    if phase != Phase::Ready {
        found.push((Status::Unhealthy, format!("phase: {}", phase.as_str())));
    }
    for look in looks {
        match look.counts() {
            State::Ok => {}
            State::Pending => {
                found.push((Status::Unhealthy, format!("{}: not known yet", look.name)));
            }
            State::Degraded(why) => {
                found.push((Status::Degraded, format!("{}: {why}", look.name)));
            }
            State::Failed(why) => found.push((Status::Unhealthy, format!("{}: {why}", look.name))),
        }
    }
    // Stable: within a status they keep the order of the board.
    found.sort_by_key(|(status, _)| std::cmp::Reverse(*status));
    let status = found.first().map_or(Status::Healthy, |(status, _)| *status);
    Report { status, reasons: found.into_iter().map(|(_, reason)| reason).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::base::health::{Affects, Board};

    fn judged(board: &Board) -> Report {
        judge(board.phase(), &board.looks(clock::now()))
    }

    #[test]
    fn the_gravest_check_that_counts_makes_the_status() {
        let board = Board::default();
        assert_eq!(judged(&board).reasons, ["phase: starting"]);
        board.set_phase(Phase::Ready);
        assert_eq!(judged(&board), Report::default());
        let (disk, db) = (board.check("disk"), board.check("check:db"));
        disk.ok();
        db.ok();
        db.set_affects(Affects::Nothing);
        db.failed("refused");
        assert_eq!(judged(&board).status, Status::Healthy, "it does not count");
        db.set_affects(Affects::Degraded);
        let report = judged(&board);
        assert_eq!((report.status, &*report.reasons[0]), (Status::Degraded, "check:db: refused"));
        disk.failed("full");
        let report = judged(&board);
        assert_eq!(report.status, Status::Unhealthy);
        assert_eq!(report.reasons, ["disk: full", "check:db: refused"]);
        db.set_affects(Affects::Readiness);
        disk.degraded("nearly full");
        assert_eq!(judged(&board).reasons, ["check:db: refused", "disk: nearly full"]);
        board.set_phase(Phase::Draining);
        assert_eq!(judged(&board).reasons[0], "phase: draining");
    }
}
