//! When a check is good and when it is bad: so many runs in a row, either way. Pure.

/// What a check has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Unknown,
    /// Good.
    Good,
    /// Bad.
    Bad,
}

/// The machine of one check.
#[derive(Clone, Debug)]
pub struct Machine {
    rise: u32,
    fall: u32,
    verdict: Verdict,
    /// Runs in a row that speak against the verdict.
    against: u32,
}

impl Machine {
    /// One that has seen nothing. `rise` and `fall` are at least 1.
    pub fn new(rise: u32, fall: u32) -> Self {
        Machine { rise, fall, verdict: Verdict::Unknown, against: 0 }
    }

    /// The verdict now.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes the outcome of a run; true when the verdict is another one now. The very first run that
    /// goes well is enough: a start need not wait for `rise` of them.
    pub fn run(&mut self, well: bool) -> bool {
        let (needed, turned) = match (self.verdict, well) {
            (Verdict::Good, true) | (Verdict::Bad, false) => {
                self.against = 0;
                return false;
            }
            (Verdict::Unknown, true) => (1, Verdict::Good),
            (Verdict::Bad, true) => (self.rise, Verdict::Good),
            (Verdict::Unknown | Verdict::Good, false) => (self.fall, Verdict::Bad),
        };
        self.against += 1;
        if self.against < needed {
            return false;
        }
        (self.verdict, self.against) = (turned, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdicts after each run: `+` went well, `-` failed.
    fn verdicts(rise: u32, fall: u32, runs: &str) -> String {
        let mut machine = Machine::new(rise, fall);
        let mut verdict = |run| {
            let before = machine.verdict();
            let turned = machine.run(run == '+');
            assert_eq!(turned, before != machine.verdict());
            match machine.verdict() {
                Verdict::Unknown => '?',
                Verdict::Good => 'G',
                Verdict::Bad => 'B',
            }
        };
        runs.chars().map(&mut verdict).collect()
    }

    #[test]
    fn a_verdict_turns_after_so_many_runs_in_a_row() {
        assert_eq!(verdicts(2, 3, "+--+---+-++-"), "GGGGGGBBBBGG");
        assert_eq!(verdicts(2, 3, "---++"), "??BBG");
        assert_eq!(verdicts(1, 1, "+-+-"), "GBGB");
        assert_eq!(verdicts(2, 3, "--+--"), "??GGG", "one good run is a start");
        // What trembles never turns.
        assert_eq!(verdicts(3, 3, &"+--".repeat(20)), "G".repeat(60));
    }
}
