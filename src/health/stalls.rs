//! Threads that hang: who has been late for so long that it is no accident, and who goes on again.
//! Pure; whoever looks each second brings the threads that are late.
//!
//! It counts looks, not seconds: a machine that slept, or a process that was stopped, has threads that
//! are all late at once, and every one of them goes on before as many looks have passed.

use std::time::Duration;

use crate::base::heartbeat::Pulse;

/// Looks at which a thread must be late, and not have gone on in between, to be taken for one that
/// hangs.
pub const LOOKS_MIN: u32 = 5;

/// A thread that was late at the last look.
#[derive(Clone, Debug)]
struct Late {
    pulse: Pulse,
    looks: u32,
    told: bool,
}

/// What changed at a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It hangs.
    Stalled(Pulse),
    /// It goes on, or has ended.
    WentOn {
        /// The thread's name.
        name: String,
        /// How long it had been silent when it was last seen.
        silence: Duration,
    },
}

/// The search for stalls. Holds one entry for each thread that is late: as many as have beats at most.
#[derive(Debug, Default)]
pub struct Stalls {
    late: Vec<Late>,
}

impl Stalls {
    /// Takes the threads that are late now.
    pub fn look(&mut self, late: Vec<Pulse>) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = std::mem::take(&mut self.late);
        // A thread that went on and is late again has been silent for less long than before.
        let goes_on = |old: &Late| {
            let same = late.iter().find(|pulse| pulse.name == old.pulse.name);
            same.is_none_or(|pulse| pulse.silence < old.pulse.silence)
        };
        for old in before.iter().filter(|old| old.told && goes_on(old)) {
            let silence = old.pulse.silence.unwrap_or_default();
            changes.push(Change::WentOn { name: old.pulse.name.clone(), silence });
        }
        for pulse in late {
            let old = before.iter().find(|old| old.pulse.name == pulse.name);
            let old = old.filter(|old| pulse.silence >= old.pulse.silence);
            let looks = old.map_or(0, |old| old.looks).saturating_add(1);
            let told_before = old.is_some_and(|old| old.told);
            let told = looks >= LOOKS_MIN;
            if told && !told_before {
                changes.push(Change::Stalled(pulse.clone()));
            }
            self.late.push(Late { pulse, looks, told });
        }
        changes
    }

    /// The threads that hang.
    pub fn stalled(&self) -> impl Iterator<Item = &Pulse> {
        self.late.iter().filter(|late| late.told).map(|late| &late.pulse)
    }
}

/// The thread in a sentence: what it is busy with and for how long.
pub fn told(pulse: &Pulse) -> String {
    let seconds = pulse.silence.unwrap_or_default().as_secs();
    let allowed = pulse.silence_max.as_secs();
    format!("{} is blocked on {} for {seconds} s (at most {allowed} s)", pulse.name, pulse.doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::heartbeat::Doing;
    use crate::base::lock::Rank;

    fn late(name: &str, seconds: u64) -> Pulse {
        Pulse {
            name: name.to_owned(),
            essential: false,
            doing: Doing::Lock(Rank::Pool),
            silence: Some(Duration::from_secs(seconds)),
            silence_max: Duration::from_secs(10),
            number: None,
        }
    }

    #[test]
    fn a_thread_that_stays_late_is_told_once_and_again_when_it_goes_on() {
        let mut stalls = Stalls::default();
        for second in 11..15 {
            assert!(stalls.look(vec![late("data-1", second)]).is_empty());
        }
        assert_eq!(stalls.look(vec![late("data-1", 15)]), [Change::Stalled(late("data-1", 15))]);
        assert_eq!(
            told(stalls.stalled().next().unwrap()),
            "data-1 is blocked on a lock of rank Pool for 15 s (at most 10 s)"
        );
        for second in 16..100 {
            assert!(stalls.look(vec![late("data-1", second)]).is_empty());
        }
        let went_on = Change::WentOn { name: "data-1".into(), silence: Duration::from_secs(99) };
        assert_eq!(stalls.look(Vec::new()), [went_on]);
        assert_eq!(stalls.stalled().count(), 0);
    }

    #[test]
    fn a_machine_that_slept_has_no_stalls() {
        let mut stalls = Stalls::default();
        let all = || (0..20).map(|n| late(&n.to_string(), 3600)).collect::<Vec<_>>();
        for _ in 0..LOOKS_MIN - 1 {
            assert!(stalls.look(all()).is_empty());
        }
        assert!(stalls.look(Vec::new()).is_empty());
        // Being late now and then is no stall either, however often.
        for round in 0..100 {
            assert!(stalls.look(vec![late("park", 11 + round % 3)]).is_empty());
        }
    }

    #[test]
    fn one_that_goes_on_and_hangs_again_is_told_again() {
        let mut stalls = Stalls::default();
        let mut told = Vec::new();
        for second in (11..20).chain(11..20) {
            told.extend(stalls.look(vec![late("data-1", second)]));
        }
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(matches!(&told[1], Change::WentOn { silence, .. } if silence.as_secs() == 19));
    }
}
