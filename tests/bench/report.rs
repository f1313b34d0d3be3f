//! The table for the README, and JSON.

use std::fmt::Write as _;

use serde_json::json;

use crate::account::Foreign;
use crate::fronts::Name;
use crate::place::Place::{self, Apart, Free, Together};
use crate::plan::{CONNECTIONS, Results, Row, STREAMS, Scale};
use crate::stats::median;
use crate::{Setup, version};

#[derive(Clone, Copy)]
enum Unit {
    Micros,
    Millis,
    Bytes,
    PerSecond,
    Count,
}

/// What a figure of ours may be at most.
#[derive(Clone, Copy)]
enum Budget {
    /// So many times nginx's.
    Ratio(f64),
    /// So much, in the unit of the row.
    Absolute(f64),
    None,
}

const MIB: f64 = 1024.0 * 1024.0;

/// The rows in their order, with the budget of each and its aim.
const ROWS: [(Row, Unit, Budget, Budget); 25] = [
    (Row::WholeBusyCpu, Unit::Micros, Budget::Ratio(2.0), Budget::Ratio(1.25)),
    (Row::WholeOneCpu(Together), Unit::Micros, Budget::Ratio(1.5), Budget::Ratio(1.25)),
    (Row::WholeOneAdded50(Together), Unit::Micros, Budget::Absolute(50.0), Budget::Absolute(25.0)),
    (Row::WholeOneAdded99(Together), Unit::Micros, Budget::None, Budget::None),
    (Row::WholeOneCpu(Apart), Unit::Micros, Budget::Ratio(1.5), Budget::Ratio(1.25)),
    (Row::WholeOneAdded50(Apart), Unit::Micros, Budget::Absolute(50.0), Budget::Absolute(25.0)),
    (Row::WholeOneAdded99(Apart), Unit::Micros, Budget::None, Budget::None),
    // Without a budget: the later a front, the more chunks it reads at once and the less it costs.
    (Row::StreamBusyCpu, Unit::Micros, Budget::None, Budget::None),
    (Row::StreamBusyReads, Unit::Count, Budget::None, Budget::None),
    (Row::StreamBriskCpu, Unit::Micros, Budget::Ratio(1.5), Budget::Ratio(1.0)),
    (Row::StreamBriskReads, Unit::Count, Budget::None, Budget::None),
    (
        Row::StreamOneFirst50(Together),
        Unit::Micros,
        Budget::Absolute(300.0),
        Budget::Absolute(150.0),
    ),
    (Row::StreamOneFirst50(Apart), Unit::Micros, Budget::Absolute(300.0), Budget::Absolute(150.0)),
    (Row::PacedCpu, Unit::Millis, Budget::Absolute(2_500.0), Budget::Absolute(1_700.0)),
    (Row::PacedResident, Unit::Bytes, Budget::Absolute(64.0 * MIB), Budget::Absolute(40.0 * MIB)),
    (Row::PacedProportional, Unit::Bytes, Budget::None, Budget::None),
    (Row::PacedThreads, Unit::Count, Budget::None, Budget::None),
    (Row::PacedGap99, Unit::Millis, Budget::None, Budget::None),
    (Row::ManyCpu, Unit::Millis, Budget::None, Budget::None),
    (Row::ManyResident, Unit::Bytes, Budget::None, Budget::Absolute(512.0 * MIB)),
    (Row::IdleResident, Unit::Bytes, Budget::Absolute(16.0 * MIB), Budget::Absolute(10.0 * MIB)),
    (Row::IdleProportional, Unit::Bytes, Budget::None, Budget::None),
    (Row::Start, Unit::Millis, Budget::Absolute(50_000.0), Budget::Absolute(15_000.0)),
    (Row::WholeBusyRate, Unit::PerSecond, Budget::None, Budget::None),
    (Row::StreamBusyRate, Unit::PerSecond, Budget::None, Budget::None),
];

fn at(place: Place) -> &'static str {
    match place {
        Free => "",
        Together => ", one core",
        Apart => ", across cores",
    }
}

fn words(row: Row, setup: &Setup) -> String {
    match row {
        Row::WholeBusyCpu => format!("CPU per whole chat answer, {CONNECTIONS} connections"),
        Row::WholeOneCpu(place) => format!("CPU per whole chat answer, 1 connection{}", at(place)),
        Row::WholeOneAdded50(place) => format!("added latency p50, 1 connection{}", at(place)),
        Row::WholeOneAdded99(place) => format!("added latency p99, 1 connection{}", at(place)),
        Row::WholeOneP50(place) => format!("latency p50, 1 connection{}", at(place)),
        Row::WholeOneP99(place) => format!("latency p99, 1 connection{}", at(place)),
        Row::StreamBusyCpu => {
            format!("CPU per stream of 100 chunks, {CONNECTIONS} at once, flat out")
        }
        Row::StreamBusyReads => "the same: reads in which they reach the client".to_owned(),
        Row::StreamBriskCpu => {
            format!("CPU per stream of 100 chunks, {CONNECTIONS} at once, one every 2 ms")
        }
        Row::StreamBriskReads => "the same: reads in which they reach the client".to_owned(),
        Row::StreamOneFirst50(place) => format!("first chunk p50, 1 connection{}", at(place)),
        Row::PacedCpu => format!("{STREAMS} streams, a chunk every 50 ms: CPU each"),
        Row::PacedResident => "the same: RSS peak".to_owned(),
        Row::PacedProportional => "the same: PSS peak (shared pages once)".to_owned(),
        Row::PacedThreads => "the same: threads".to_owned(),
        Row::PacedGap99 => "the same: gap between chunks p99".to_owned(),
        Row::ManyCpu => {
            format!("{} streams, 20 chunks, one every 500 ms: CPU each", setup.streams_max)
        }
        Row::ManyResident => "the same: RSS peak".to_owned(),
        Row::IdleResident => "idle RSS".to_owned(),
        Row::IdleProportional => "idle PSS (shared pages once)".to_owned(),
        Row::Start => "start to first answer".to_owned(),
        Row::WholeBusyRate => format!("whole answers, {CONNECTIONS} connections, rig included"),
        Row::StreamBusyRate => format!("streams, {CONNECTIONS} at once, flat out, rig included"),
    }
}

fn figure(value: f64, unit: Unit) -> String {
    let digits = |value: f64| match value.abs() {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    match unit {
        Unit::Micros => format!("{} µs", digits(value)),
        Unit::Millis => format!("{} ms", digits(value / 1000.0)),
        Unit::Bytes => format!("{} MiB", digits(value / MIB)),
        Unit::PerSecond => format!("{value:.0}/s"),
        Unit::Count => digits(value),
    }
}

fn budget_words(budget: Budget, unit: Unit) -> String {
    match budget {
        Budget::Ratio(ratio) => format!("{ratio} x"),
        Budget::Absolute(value) => {
            // A bound is a round number.
            figure(value, unit).replace(".00", "").replace(".0 ", " ")
        }
        Budget::None => String::new(),
    }
}

fn within(budget: Budget, ours: f64, ratio: Option<f64>) -> Option<bool> {
    match budget {
        Budget::Ratio(bound) => ratio.map(|ratio| ratio <= bound),
        Budget::Absolute(bound) => Some(ours <= bound),
        Budget::None => None,
    }
}

fn middle(results: &Results, row: Row, name: Name) -> Option<f64> {
    results.figures.get(&(row, name)).and_then(|figures| median(figures))
}

fn cell(results: &Results, row: Row, name: Name, unit: Unit) -> String {
    let Some(figures) = results.figures.get(&(row, name)) else { return "-".to_owned() };
    let Some(value) = median(figures) else { return "-".to_owned() };
    figure(value, unit)
}

/// The widest spread of the rounds of each front's CPU figures, as a share of their median.
fn spread(results: &Results) -> f64 {
    let rows = [
        Row::WholeBusyCpu,
        Row::WholeOneCpu(Together),
        Row::WholeOneCpu(Apart),
        Row::StreamBusyCpu,
        Row::StreamBriskCpu,
        Row::PacedCpu,
    ];
    let mut widest = 0.0_f64;
    for ((row, _), figures) in &results.figures {
        let Some(middle) = median(figures) else { continue };
        if rows.contains(row) && middle > 0.0 {
            let most = figures.iter().copied().fold(f64::MIN, f64::max);
            let least = figures.iter().copied().fold(f64::MAX, f64::min);
            widest = widest.max((most - least) / middle);
        }
    }
    widest
}

/// The Markdown table with its conditions.
pub fn table(results: &Results, scale: &Scale, setup: &Setup) -> String {
    let mut text = String::new();
    for (name, reason) in &results.left_out {
        let _ = writeln!(text, "**{} was left out: {reason}**\n", name.as_str());
    }
    for reason in &results.skipped {
        let _ = writeln!(text, "**Not measured: {reason}**\n");
    }
    text.push_str("| what | direct | nginx | tidegate | tidegate / nginx | budget | aim |\n");
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (row, unit, budget, aim) in ROWS {
        if !Name::ALL.iter().any(|name| results.figures.contains_key(&(row, *name))) {
            continue;
        }
        let ours = middle(results, row, Name::Tidegate);
        let ratio = ours
            .zip(middle(results, row, Name::Nginx))
            .filter(|(_, nginx)| *nginx > 0.0)
            .map(|(ours, nginx)| ours / nginx);
        let judged = |bound: Budget| {
            let verdict = match ours.and_then(|ours| within(bound, ours, ratio)) {
                Some(true) => " ✓",
                Some(false) => " ✗",
                None => "",
            };
            format!("{}{verdict}", budget_words(bound, unit))
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            words(row, setup),
            cell(results, row, Name::Direct, unit),
            cell(results, row, Name::Nginx, unit),
            cell(results, row, Name::Tidegate, unit),
            ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            judged(budget),
            judged(aim),
        );
    }
    let _ = writeln!(text, "\n{}", conditions(results, scale, setup).join("\n"));
    text
}

fn conditions(results: &Results, scale: &Scale, setup: &Setup) -> Vec<String> {
    let log = if setup.access_log {
        "an access log of each to a file"
    } else {
        "no access log on either side"
    };
    let place = if setup.place == Apart {
        "the front on the first half of the cores, load and mock on the rest"
    } else {
        "cores as the scheduler likes, but where the table says: \"one core\" has front, load and mock on \
         one, \"across cores\" the front on the first half and the others on the rest"
    };
    let Foreign { others, stolen } = percent(results);
    let mut lines = vec![
        format!(
            "Conditions: {}, {} cores, Linux {}; {place}.",
            cpu_model(),
            setup.cores.count(),
            kernel()
        ),
        format!(
            "{}, {} worker, plain reverse proxy, upstream keep-alive, `proxy_buffering off`; {}; {log}.",
            version("nginx", "-v").replace("nginx version: ", ""),
            setup.nginx_workers,
            tidegate_version(results, setup),
        ),
        format!(
            "All on loopback. Medians of {} interleaved rounds of {:.1} s (half that at 1 connection; {} of the paced streams, {} \
             of start and idle; {} done again because the machine was busy); {} answers, each compared with what was sent, byte by byte. Widest \
             spread of a CPU figure over its rounds: {:.0} %. Other processes took {others:.1} % of \
             the machine meanwhile, the hypervisor {stolen:.1} %. The run took {:.0} s.",
            scale.rounds,
            scale.time.as_secs_f64(),
            scale.rounds_paced,
            scale.rounds_start,
            results.repeated,
            results.answers,
            spread(results) * 100.0,
            results.elapsed.as_secs_f64(),
        ),
        "CPU is user and system time of the front's processes and threads, from `/proc`; load and \
         mock are processes of their own and are not counted. On loopback the kernel's work on a \
         packet is charged to whoever sends it. Added latency is the percentile through the front \
         less the same percentile direct. Memory is summed over a front's processes."
            .to_owned(),
    ];
    if others > 5.0 || stolen > 5.0 {
        lines.push("**The machine was not quiet: do not quote these figures.**".to_owned());
    }
    lines
}

fn percent(results: &Results) -> Foreign {
    Foreign { others: results.foreign.others * 100.0, stolen: results.foreign.stolen * 100.0 }
}

fn tidegate_version(results: &Results, setup: &Setup) -> String {
    if results.left_out.iter().any(|(name, _)| *name == Name::Tidegate) {
        return "tidegate left out".to_owned();
    }
    version(&setup.tidegate, "--version")
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or("unknown processor".to_owned(), |(_, model)| model.trim().to_owned())
}

fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Everything, every round included. Microseconds, bytes, counts, per second.
pub fn json(results: &Results, scale: &Scale, setup: &Setup) -> String {
    let mut rows = serde_json::Map::new();
    for ((row, name), figures) in &results.figures {
        let entry = rows
            .entry(format!("{row:?}"))
            .or_insert_with(|| json!({ "what": words(*row, setup), "fronts": {} }));
        entry["fronts"][name.as_str()] = json!({ "median": median(figures), "rounds": figures });
    }
    let mut verdicts = serde_json::Map::new();
    for (row, _, budget, aim) in ROWS {
        let Some(ours) = middle(results, row, Name::Tidegate) else { continue };
        let ratio = middle(results, row, Name::Nginx).map(|nginx| ours / nginx);
        let verdict = json!({
            "ratio": ratio,
            "within_budget": within(budget, ours, ratio),
            "within_aim": within(aim, ours, ratio),
        });
        verdicts.insert(format!("{row:?}"), verdict);
    }
    let left_out: Vec<_> = results
        .left_out
        .iter()
        .map(|(name, reason)| json!({ "front": name.as_str(), "reason": reason }))
        .collect();
    let value = json!({
        "conditions": {
            "cores": setup.cores.count(),
            "processor": cpu_model(),
            "kernel": kernel(),
            "nginx": version("nginx", "-v"),
            "nginx_workers": setup.nginx_workers,
            "tidegate": tidegate_version(results, setup),
            "access_log": setup.access_log,
            "apart": setup.place == Apart,
            "rounds_repeated": results.repeated,
            "rounds": scale.rounds,
            "seconds": scale.time.as_secs_f64(),
            "rounds_paced": scale.rounds_paced,
            "rounds_start": scale.rounds_start,
            "answers": results.answers,
            "foreign_cpu_share": results.foreign.others,
            "stolen_cpu_share": results.foreign.stolen,
            "elapsed_seconds": results.elapsed.as_secs_f64(),
        },
        "left_out": left_out,
        "skipped": results.skipped,
        "figures": rows,
        "verdicts": verdicts,
    });
    format!("{value:#}\n")
}
