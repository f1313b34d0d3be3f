use super::*;
use crate::base::clock;

const LOOK: Duration = Duration::from_millis(250);
const CALM: Duration = Duration::from_secs(10);

fn sample(measure: Measure, value: f64) -> Sample {
    let mut sample = Sample::default();
    for (m, v) in MEASURES.iter().zip(&mut sample.values) {
        if *m == measure {
            *v = value;
        }
    }
    sample
}

/// A machine with its clock.
struct Simulated {
    machine: Machine,
    now: Instant,
}

impl Simulated {
    fn new() -> Self {
        Simulated { machine: Machine::new(CALM), now: clock::now() }
    }

    fn step(&mut self, sample: &Sample) -> Option<Change> {
        self.now += LOOK;
        self.machine.step(self.now, sample)
    }

    fn steps(&mut self, sample: &Sample, count: u32) -> Level {
        for _ in 0..count {
            self.step(sample);
        }
        self.machine.level()
    }
}

#[test]
fn every_measure_enters_each_of_its_levels_at_the_second_sample_and_leaves_it_after_the_calm() {
    for measure in MEASURES {
        for (index, threshold) in measure.enters().into_iter().enumerate() {
            if threshold == NEVER {
                continue;
            }
            let level = LEVELS[index + 1];
            let mut simulated = Simulated::new();
            let high = sample(measure, threshold);
            assert_eq!(simulated.step(&high), None, "one sample is none");
            let change = simulated.step(&high).unwrap();
            assert_eq!((change.from, change.to), (Level::Normal, level));
            assert_eq!(change.cause, Some((measure, threshold)));
            // Just what keeps it keeps it for ever.
            let kept = sample(measure, measure.keeps()[index]);
            assert_eq!(simulated.steps(&kept, 1000), level);
            // The first calm sample begins the calm, so the change comes with the one after it.
            let samples = u32::try_from(CALM.as_millis() / LOOK.as_millis()).unwrap();
            assert_eq!(simulated.steps(&Sample::default(), samples), level);
            let change = simulated.step(&Sample::default()).unwrap();
            assert_eq!((change.from, change.to, change.cause), (level, Level::Normal, None));
        }
    }
}

#[test]
fn one_sample_alone_changes_nothing_and_two_different_ones_give_the_lower() {
    let mut simulated = Simulated::new();
    let high = sample(Measure::Memory, 0.99);
    for _ in 0..100 {
        assert_eq!(simulated.step(&high), None);
        assert_eq!(simulated.step(&Sample::default()), None);
    }
    simulated.step(&high);
    let change = simulated.step(&sample(Measure::Descriptors, 0.80)).unwrap();
    assert_eq!(change.to, Level::Busy);
    assert_eq!(change.cause.map(|(measure, _)| measure), Some(Measure::Descriptors));
}

#[test]
fn on_the_way_down_the_level_is_what_was_kept_meanwhile() {
    let mut simulated = Simulated::new();
    assert_eq!(simulated.steps(&sample(Measure::Memory, 0.99), 2), Level::Critical);
    assert_eq!(simulated.steps(&sample(Measure::Memory, 0.78), 100), Level::Busy);
    assert_eq!(simulated.steps(&sample(Measure::Memory, 0.10), 100), Level::Normal);
    // One sample within the calm that keeps the level begins the calm anew.
    assert_eq!(simulated.steps(&sample(Measure::Memory, 0.99), 2), Level::Critical);
    assert_eq!(simulated.steps(&Sample::default(), 39), Level::Critical);
    assert_eq!(simulated.steps(&sample(Measure::Memory, 0.90), 1), Level::Critical);
    assert_eq!(simulated.steps(&Sample::default(), 40), Level::Critical);
    assert_eq!(simulated.steps(&Sample::default(), 1), Level::Normal);
}

#[test]
fn saturation_alone_refuses_nothing_since_its_limits_do() {
    let mut simulated = Simulated::new();
    assert_eq!(simulated.steps(&sample(Measure::Saturation, 1.0), 100), Level::Degraded);
}

#[test]
fn what_keeps_a_level_is_below_what_enters_it_and_thresholds_rise() {
    for measure in MEASURES {
        let (enters, keeps) = (measure.enters(), measure.keeps());
        assert!(enters.windows(2).all(|pair| pair[0] < pair[1]), "{measure:?}");
        assert!(keeps.windows(2).all(|pair| pair[0] < pair[1]), "{measure:?}");
        for (enter, keep) in enters.iter().zip(keeps) {
            assert!(keep < *enter || *enter == NEVER, "{measure:?}");
        }
    }
}

#[test]
fn the_notice_names_the_level_and_its_actions() {
    for level in LEVELS {
        let Some(notice) = level.notice() else {
            assert!(level < Level::Degraded);
            continue;
        };
        let (word, actions) = notice.split_once("; actions=\"").unwrap();
        assert_eq!(word, level.as_str());
        let due = ACTIONS.into_iter().filter(|action| action.from() <= level);
        let due: Vec<_> = due.map(Action::as_str).collect();
        assert_eq!(actions, format!("{}\"", due.join(" ")));
        assert!(notice.bytes().all(|b| (0x20..0x7f).contains(&b)));
    }
}

#[test]
fn an_action_is_done_from_its_level_on() {
    let overload = Overload::default();
    overload.set_calm(CALM);
    assert_eq!(overload.retry_after(), CALM);
    for level in LEVELS {
        overload.enter(level);
        assert_eq!(overload.level(), level);
        for action in ACTIONS {
            assert_eq!(overload.does(action), action.from() <= level);
        }
    }
}

proptest::proptest! {
    /// A day's random samples: no level is left sooner than its calm after it was entered or last
    /// kept, no rise comes from one sample, and whatever came before, calm ends in `normal`.
    #[test]
    fn it_never_flaps_and_always_comes_back(
        runs in proptest::collection::vec((0_usize..4, 0.0_f64..1.3, 1_u32..60), 1..300),
    ) {
        let mut simulated = Simulated::new();
        let mut changed: Option<Instant> = None;
        let mut before = Level::Normal;
        for (measure, value, count) in runs {
            let sample = sample(MEASURES[measure], value);
            let (asked, _) = sample.judge(Measure::enters);
            for _ in 0..count {
                if let Some(change) = simulated.step(&sample) {
                    proptest::prop_assert_ne!(change.from, change.to);
                    if change.to < change.from {
                        let since = changed.map(|at| simulated.now - at);
                        proptest::prop_assert!(since.is_none_or(|since| since >= CALM));
                        proptest::prop_assert!(asked < change.from);
                    } else {
                        proptest::prop_assert_eq!(change.to, asked.min(before));
                    }
                    changed = Some(simulated.now);
                }
                // Two samples that ask for a level have it.
                proptest::prop_assert!(simulated.machine.level() >= asked.min(before));
                before = asked;
            }
        }
        // Twice: a calm that had begun may end with a level that was kept meanwhile.
        proptest::prop_assert_eq!(simulated.steps(&Sample::default(), 83), Level::Normal);
    }
}
