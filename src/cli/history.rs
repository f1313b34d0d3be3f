//! `tidegate history`.

use clap::Args;
use serde_json::Value;

use super::client::{Ask, table};
use crate::base::exit::Exit;
use crate::base::query::encoded;
use crate::base::time_format::rfc3339;
use crate::observe::history::question::Reduce;
use std::time::{Duration, UNIX_EPOCH};

/// Columns of a line of blocks.
const COLUMNS: usize = 60;

/// Blocks by height.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Show what a metric of a running daemon was, over time
///
/// Without a metric: which ones there are. Each series is a line of blocks from its least value to
/// its greatest; where it has a gap, nothing was seen.
#[derive(Debug, Args)]
pub(super) struct History {
    /// The metric, as the metrics page names it
    metric: Option<String>,
    /// How far back, such as 90s, 6h or 7d
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    since: String,
    /// What a point stands for, such as 10s or 5m [default: what gives about 180 points]
    #[arg(long, value_name = "SPAN")]
    step: Option<String>,
    /// What becomes of each step [default: rate, avg or p95, by what the metric is]
    #[arg(long = "fn", value_name = "FN", value_parser = Reduce::NAMES.map(|(name, _)| name))]
    reduce: Option<String>,
    /// Only series with this label, such as route=/v1/models; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Take together the series that do not differ in these labels, such as route,code; an empty
    /// list takes all together
    #[arg(long, value_name = "NAMES")]
    by: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

impl History {
    pub(super) fn execute(self) -> Exit {
        let Some(metric) = &self.metric else {
            return self.ask.show("/history", list);
        };
        let since = format!("-{}", self.since);
        let mut path = format!("/history?metric={}&from={}", encoded(metric), encoded(&since));
        let more = [("step", &self.step), ("fn", &self.reduce), ("by", &self.by)];
        let labels = self.label.iter().map(|label| ("label", label));
        let more = more.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?)));
        for (name, value) in more.chain(labels) {
            path.push_str(&format!("&{name}={}", encoded(value)));
        }
        self.ask.show(&path, series)
    }
}

/// Which metrics there are.
fn list(document: &Value) -> String {
    let rows = document["metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |row: &Value| {
        let labels = row["labels"].as_array().map(Vec::as_slice).unwrap_or_default();
        let labels: Vec<String> = labels.iter().map(word).collect();
        vec![word(&row["metric"]), word(&row["type"]), row["series"].to_string(), labels.join(",")]
    };
    table(&["METRIC", "TYPE", ">SERIES", "LABELS"], &rows.iter().map(row).collect::<Vec<_>>())
}

/// A metric: a line of blocks for each series.
fn series(document: &Value) -> String {
    let series = document["series"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<Vec<String>> = series.iter().map(row).collect();
    let header = ["SERIES", ">MIN", ">AVG", ">MAX", ">LAST", "OVER TIME"];
    let mut out = table(&header, &rows);
    let time = |key: &str| {
        let seconds = document[key].as_u64().unwrap_or_default();
        rfc3339(UNIX_EPOCH + Duration::from_secs(seconds), 0)
    };
    let word = |key: &str| document[key].as_str().unwrap_or_default();
    out.push_str(&format!(
        "\n{} of {}, {} to {}, every {} s\n",
        word("fn"),
        word("metric"),
        time("from"),
        time("to"),
        document["step"]
    ));
    for note in document["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.push_str(note);
        out.push('\n');
    }
    out
}

fn row(series: &Value) -> Vec<String> {
    let labels = series["labels"].as_object().into_iter().flatten();
    let labels: Vec<String> = labels
        .map(|(key, text)| format!("{key}={}", text.as_str().unwrap_or_default().escape_debug()))
        .collect();
    let values = series["values"].as_array().map(Vec::as_slice).unwrap_or_default();
    let values: Vec<Option<f64>> = values.iter().map(Value::as_f64).collect();
    let seen: Vec<f64> = values.iter().flatten().copied().collect();
    let least = seen.iter().copied().fold(f64::NAN, f64::min);
    let most = seen.iter().copied().fold(f64::NAN, f64::max);
    let avg = seen.iter().sum::<f64>() / seen.len() as f64;
    let name = if labels.is_empty() { "-".to_owned() } else { labels.join(" ") };
    let last = seen.last().copied().unwrap_or(f64::NAN);
    vec![name, figure(least), figure(avg), figure(most), figure(last), blocks(&values, least, most)]
}

/// A number in about four digits.
fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (scale, unit) =
        units.into_iter().find(|(unit, _)| value.abs() >= *unit * 10.0).unwrap_or((1.0, ""));
    let value = value / scale;
    let digits = match value.abs() {
        value if value >= 1000.0 || value.fract() == 0.0 => 0,
        value if value >= 100.0 => 1,
        value if value >= 1.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}{unit}")
}

/// Values as a line of at most [`COLUMNS`] blocks; each is the greatest of what falls into it.
fn blocks(values: &[Option<f64>], least: f64, most: f64) -> String {
    let width = values.len().clamp(1, COLUMNS);
    let line = (0..width).map(|column| {
        let part = &values[column * values.len() / width..(column + 1) * values.len() / width];
        let top = part.iter().flatten().copied().fold(f64::NAN, f64::max);
        if !top.is_finite() {
            return ' ';
        }
        let share = if most > least { (top - least) / (most - least) } else { 0.0 };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of at most 1, of 7"
        )]
        let height = (share.clamp(0.0, 1.0) * (BLOCKS.len() - 1) as f64).round() as usize;
        BLOCKS[height]
    });
    line.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_series_is_a_line_of_blocks_with_its_gaps() {
        let document = json!({
            "metric": "x_total", "type": "counter", "fn": "rate", "from": 1_800_000_000_u64,
            "to": 1_800_000_050_u64, "step": 10, "notes": ["a note"],
            "series": [
                {"labels": {"route": "/v1"}, "values": [0.0, 7.0, null, 3.5, 7.0]},
                {"labels": {}, "values": [null, null, null, null, null]},
            ],
        });
        let text = series(&document);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("route=/v1"), "{text}");
        assert!(lines[1].ends_with("▁█ ▅█"), "{text}");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>()[1..5], ["0", "4.38", "7", "7"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["-", "-", "-", "-", "-"]);
        assert_eq!(
            lines[4],
            "rate of x_total, 2027-01-15T08:00:00Z to 2027-01-15T08:00:50Z, every 10 s"
        );
        assert_eq!(lines[5], "a note");
    }

    #[test]
    fn long_series_are_drawn_in_few_columns_and_numbers_in_few_digits() {
        let values: Vec<Option<f64>> = (0..1000).map(|n| Some(f64::from(n))).collect();
        let line = blocks(&values, 0.0, 999.0);
        assert_eq!(line.chars().count(), COLUMNS);
        assert!(line.starts_with('▁') && line.ends_with('█'), "{line}");
        let figures = [0.0, 0.01234, 3.456789, 250.25, 9999.0, 123_456.0, 9.5e9].map(figure);
        assert_eq!(figures, ["0", "0.0123", "3.46", "250.2", "9999", "123.5k", "9500M"]);
    }

    #[test]
    fn metrics_are_listed_with_their_labels() {
        let document = json!({ "metrics": [
            {"metric": "x_total", "type": "counter", "series": 3, "labels": ["route", "code"]},
        ]});
        let text = list(&document);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["x_total", "counter", "3", "route,code"]);
    }
}
