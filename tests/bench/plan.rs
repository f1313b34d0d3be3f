//! What is measured, in which order, and for how long.
//!
//! Rounds interleave: direct, nginx, tidegate, and again, each round starting with the next one, so
//! that a change of the machine's speed meets all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tidegate::base::clock;

use crate::account::{Foreign, Machine};
use crate::chat::Kind;
use crate::fronts::{self, Front, Name};
use crate::load::Load;
use crate::place::Place;
use crate::stats::{nanos, percentile};
use crate::{Outcome, Setup, Watch, note};

/// Connections of the busy measurements.
pub const CONNECTIONS: usize = 64;

/// Paced streams at once.
pub const STREAMS: usize = 1_000;

/// Slow streams at once, when asked for and as far as the limit of open files allows.
pub const STREAMS_MANY: usize = 10_000;

/// Open files that a front may need beside two for each stream.
const FILES_RESERVE: u64 = 1_024;

/// How many slow streams the limit of open files allows: each takes two of a front's.
pub fn streams_many(files: u64) -> usize {
    let allowed = usize::try_from(files.saturating_sub(FILES_RESERVE) / 2).unwrap_or(usize::MAX);
    // In round figures.
    STREAMS_MANY.min(allowed / 100 * 100)
}

/// Share of the machine that other processes may take in a round before it is done again.
const QUIET: f64 = 0.03;

/// How long an idle front is left alone before its memory is read.
const IDLE: Duration = Duration::from_millis(300);

/// A figure, and a row of the table; `report.rs` has the words for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    WholeBusyCpu,
    WholeBusyRate,
    WholeOneCpu(Place),
    WholeOneAdded50(Place),
    WholeOneAdded99(Place),
    WholeOneP50(Place),
    WholeOneP99(Place),
    StreamBusyCpu,
    StreamBusyRate,
    StreamBusyReads,
    StreamBriskCpu,
    StreamBriskReads,
    StreamOneFirst50(Place),
    PacedCpu,
    PacedResident,
    PacedProportional,
    PacedThreads,
    PacedGap99,
    ManyCpu,
    ManyResident,
    IdleResident,
    IdleProportional,
    Start,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Rounds of the closed-loop measurements.
    pub rounds: usize,
    /// Not counted, before each round: connections are opened, pools filled.
    pub warm: Duration,
    /// Counted time of each round.
    pub time: Duration,
    /// Rounds of the paced streams.
    pub rounds_paced: usize,
    /// Rounds of start and idle.
    pub rounds_start: usize,
    /// Rounds of one measurement that may be done again for noise.
    pub repeats: usize,
    /// Whether 10,000 streams are measured too.
    pub many: bool,
}

impl Scale {
    /// The usual scale, or a short one.
    pub fn new(quick: bool, rounds: Option<usize>, many: bool) -> Scale {
        let rounds = rounds.map(|rounds| rounds.clamp(1, 20));
        let ms = Duration::from_millis;
        if quick {
            Scale {
                rounds: rounds.unwrap_or(3),
                warm: ms(150),
                time: ms(500),
                rounds_paced: 1,
                rounds_start: 3,
                repeats: 0,
                many,
            }
        } else {
            Scale {
                rounds: rounds.unwrap_or(7),
                warm: ms(200),
                time: ms(1200),
                rounds_paced: rounds.unwrap_or(3),
                rounds_start: 10,
                repeats: 2,
                many,
            }
        }
    }
}

/// All figures of a run.
#[derive(Debug)]
pub struct Results {
    /// Each round's figure: microseconds, bytes, counts or rates, as the row says.
    pub figures: BTreeMap<(Row, Name), Vec<f64>>,
    /// Fronts that could not be measured, and why.
    pub left_out: Vec<(Name, String)>,
    /// What else is missing, and why.
    pub skipped: Vec<String>,
    /// Rounds done again because the machine was not quiet.
    pub repeated: usize,
    /// Right answers counted, over all fronts and rounds.
    pub answers: u64,
    /// What other processes took meanwhile.
    pub foreign: Foreign,
    /// How long it took.
    pub elapsed: Duration,
}

impl Results {
    fn add(&mut self, row: Row, name: Name, figure: f64) {
        self.figures.entry((row, name)).or_default().push(figure);
    }

    fn add_some(&mut self, row: Row, name: Name, figure: Option<f64>) {
        if let Some(figure) = figure {
            self.add(row, name, figure);
        }
    }
}

/// What a closed-loop run asks, and from where.
#[derive(Clone, Copy, Debug)]
struct Course {
    kind: Kind,
    connections: usize,
    place: Place,
}

/// What a closed-loop run gave. Times in microseconds.
#[derive(Debug)]
struct Run {
    /// CPU of the front for each answer; none for the direct way.
    cpu: Option<f64>,
    /// Answers per second.
    rate: f64,
    /// Reads of the client for each answer.
    reads: f64,
    whole50: f64,
    whole99: f64,
    first50: f64,
    added50: Option<f64>,
    added99: Option<f64>,
}

struct Bench<'a> {
    setup: &'a Setup,
    scale: &'a Scale,
    watch: &'a Watch,
    mock: SocketAddr,
    names: Vec<Name>,
    results: Results,
}

/// Measures everything.
///
/// # Errors
/// At the first wrong answer, and when a deadline passes.
pub fn run(
    setup: &Setup,
    wanted: &[Name],
    scale: &Scale,
    only: Option<&str>,
    watch: &Watch,
) -> Outcome<Results> {
    let started = clock::now();
    let chosen = |name: &str| only.is_none_or(|only| name.contains(only));
    let (_mock, mock) = fronts::start_mock()?;
    let results = Results {
        figures: BTreeMap::new(),
        left_out: Vec::new(),
        skipped: Vec::new(),
        repeated: 0,
        answers: 0,
        foreign: Foreign::default(),
        elapsed: Duration::ZERO,
    };
    let mut bench = Bench { setup, scale, watch, mock, names: Vec::new(), results };
    let mut all = Vec::new();
    for &name in wanted {
        match Front::start(name, mock, setup) {
            Ok(front) => {
                bench.names.push(name);
                all.push(front);
            }
            Err(err) => {
                note(&format!("bench: {} IS LEFT OUT: {err}", name.as_str()));
                bench.results.left_out.push((name, err.to_string()));
            }
        }
    }
    let machine = Machine::now()?;
    if chosen("whole") {
        bench.whole(&all)?;
    }
    if chosen("stream") {
        bench.streams(&all)?;
    }
    drop(all);
    if chosen("paced") {
        bench.paced(Kind::Paced, STREAMS, scale.rounds_paced, Duration::from_secs(1))?;
    }
    if chosen("start") {
        bench.starts()?;
    }
    if scale.many {
        let count = setup.streams_max;
        if count < STREAMS_MANY {
            let text = format!("{STREAMS_MANY} streams; the limit of open files allows {count}");
            bench.results.skipped.push(text);
        }
        bench.paced(Kind::Slow, count, 1, Duration::from_secs(4))?;
    }
    bench.results.foreign = Machine::now()?.foreign_since(&machine);
    bench.results.elapsed = started.elapsed();
    Ok(bench.results)
}

impl Bench<'_> {
    /// Whole answers at many connections and at one.
    fn whole(&mut self, fronts: &[Front]) -> Outcome<()> {
        note(&format!("bench: whole answers, {CONNECTIONS} connections"));
        let busy = Course { kind: Kind::Whole, connections: CONNECTIONS, place: self.setup.place };
        self.rounds(fronts, busy, |results, name, run| {
            results.add_some(Row::WholeBusyCpu, name, run.cpu);
            results.add(Row::WholeBusyRate, name, run.rate);
        })?;
        for place in [Place::Together, Place::Apart] {
            note(&format!("bench: whole answers, 1 connection, {place:?}"));
            let one = Course { kind: Kind::Whole, connections: 1, place };
            self.rounds(fronts, one, |results, name, run| {
                results.add_some(Row::WholeOneCpu(place), name, run.cpu);
                results.add(Row::WholeOneP50(place), name, run.whole50);
                results.add(Row::WholeOneP99(place), name, run.whole99);
                results.add_some(Row::WholeOneAdded50(place), name, run.added50);
                results.add_some(Row::WholeOneAdded99(place), name, run.added99);
            })?;
        }
        Ok(())
    }

    /// Streams at many connections and at one.
    fn streams(&mut self, fronts: &[Front]) -> Outcome<()> {
        note(&format!("bench: streams, {CONNECTIONS} at once, flat out"));
        let mut busy =
            Course { kind: Kind::Burst, connections: CONNECTIONS, place: self.setup.place };
        self.rounds(fronts, busy, |results, name, run| {
            results.add_some(Row::StreamBusyCpu, name, run.cpu);
            results.add(Row::StreamBusyRate, name, run.rate);
            results.add(Row::StreamBusyReads, name, run.reads);
        })?;
        note(&format!("bench: streams, {CONNECTIONS} at once, a chunk every 2 ms"));
        busy.kind = Kind::Brisk;
        self.rounds(fronts, busy, |results, name, run| {
            results.add_some(Row::StreamBriskCpu, name, run.cpu);
            results.add(Row::StreamBriskReads, name, run.reads);
        })?;
        for place in [Place::Together, Place::Apart] {
            note(&format!("bench: streams, 1 connection, {place:?}"));
            let one = Course { kind: Kind::Burst, connections: 1, place };
            self.rounds(fronts, one, |results, name, run| {
                results.add(Row::StreamOneFirst50(place), name, run.first50);
            })?;
        }
        Ok(())
    }

    /// Closed-loop rounds; `take` notes what each run gave. A round in which other processes were
    /// busy is done again, within bounds.
    fn rounds(
        &mut self,
        fronts: &[Front],
        course: Course,
        take: impl Fn(&mut Results, Name, &Run),
    ) -> Outcome<()> {
        self.setup.cores.place(course.place, fronts);
        let mut repeats = self.scale.repeats;
        let mut round = 0;
        while round < self.scale.rounds {
            let machine = Machine::now()?;
            let mut runs = Vec::new();
            for turn in 0..fronts.len() {
                let front = &fronts[(round + turn) % fronts.len()];
                runs.push((front.name, self.closed(front, course)?));
            }
            let foreign = Machine::now()?.foreign_since(&machine);
            if repeats > 0 && foreign.others + foreign.stolen > QUIET {
                repeats -= 1;
                self.results.repeated += 1;
                continue;
            }
            round += 1;
            let direct = runs.iter().find(|(name, _)| *name == Name::Direct).map(|(_, run)| run);
            let direct = direct.map(|run| (run.whole50, run.whole99));
            for (name, run) in &mut runs {
                if let (Some((direct50, direct99)), true) = (direct, *name != Name::Direct) {
                    run.added50 = Some(run.whole50 - direct50);
                    run.added99 = Some(run.whole99 - direct99);
                }
                take(&mut self.results, *name, run);
            }
        }
        self.setup.cores.place(Place::Free, fronts);
        Ok(())
    }

    /// One run of one front.
    fn closed(&mut self, front: &Front, course: Course) -> Outcome<Run> {
        let time = if course.connections == 1 { self.scale.time / 2 } else { self.scale.time };
        let mut load = Load::new(course.kind, front.address)?;
        load.connect(course.connections)?;
        load.run(self.scale.warm, self.watch)?;
        let before = front.cpu();
        let mut sample = load.run(time, self.watch)?;
        let cpu = front.cpu().zip(before).map(|(after, before)| after.since(&before));
        let answers = sample.answers.max(1) as f64;
        self.results.answers += sample.answers;
        Ok(Run {
            cpu: cpu.map(|cpu| micros(nanos(cpu)) / answers),
            rate: answers / sample.elapsed.as_secs_f64().max(1e-9),
            reads: sample.reads as f64 / answers,
            whole50: micros(percentile(&mut sample.whole, 0.50)),
            whole99: micros(percentile(&mut sample.whole, 0.99)),
            first50: micros(percentile(&mut sample.first, 0.50)),
            added50: None,
            added99: None,
        })
    }

    /// Many streams at their own pace, each on a connection of its own, before fresh fronts.
    fn paced(&mut self, kind: Kind, count: usize, rounds: usize, ramp: Duration) -> Outcome<()> {
        for round in 0..rounds {
            note(&format!("bench: {count} paced streams, round {} of {rounds}", round + 1));
            for turn in 0..self.names.len() {
                let name = self.names[(round + turn) % self.names.len()];
                // The direct way shows the floor of the rig; once is enough.
                if name == Name::Direct && round > 0 {
                    continue;
                }
                let front = Front::start(name, self.mock, self.setup)?;
                self.setup.cores.place(self.setup.place, std::slice::from_ref(&front));
                let mut peak = front.memory();
                let before = front.cpu();
                let mut load = Load::new(kind, front.address)?;
                let mut sample = load.once_each(count, ramp, self.watch, || {
                    let memory = front.memory();
                    peak.proportional = peak.proportional.max(memory.proportional);
                    peak.threads = peak.threads.max(memory.threads);
                })?;
                let cpu = front.cpu().zip(before).map(|(after, before)| after.since(&before));
                let resident = front.memory().resident_peak as f64;
                self.results.answers += sample.answers;
                let cpu = cpu.map(|cpu| micros(nanos(cpu)) / count as f64);
                if kind == Kind::Paced {
                    let gap = micros(percentile(&mut sample.gaps, 0.99));
                    self.results.add(Row::PacedGap99, name, gap);
                }
                let Some(cpu) = cpu else { continue };
                if kind == Kind::Paced {
                    self.results.add(Row::PacedCpu, name, cpu);
                    self.results.add(Row::PacedResident, name, resident);
                    self.results.add(Row::PacedProportional, name, peak.proportional as f64);
                    self.results.add(Row::PacedThreads, name, peak.threads as f64);
                } else {
                    self.results.add(Row::ManyCpu, name, cpu);
                    self.results.add(Row::ManyResident, name, resident);
                }
            }
        }
        Ok(())
    }

    /// Start to first answer, and memory after it.
    fn starts(&mut self) -> Outcome<()> {
        note("bench: start and idle");
        self.setup.cores.place(Place::Free, &[]);
        for round in 0..self.scale.rounds_start {
            for turn in 0..self.names.len() {
                let name = self.names[(round + turn) % self.names.len()];
                if name == Name::Direct {
                    continue;
                }
                self.watch.check()?;
                let front = Front::start(name, self.mock, self.setup)?;
                std::thread::sleep(IDLE);
                let memory = front.memory();
                self.results.answers += 1;
                self.results.add(Row::Start, name, micros(nanos(front.start)));
                self.results.add(Row::IdleResident, name, memory.resident as f64);
                self.results.add(Row::IdleProportional, name, memory.proportional as f64);
            }
        }
        Ok(())
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}
