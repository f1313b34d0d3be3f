//! A view as lines of a screen.

use bytesize::ByteSize;

use super::view::{LimitView, Quantiles, Share, UpstreamView, View};

/// How a piece of text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// Headers and names.
    Bold,
    /// Worth a look.
    Warn,
    /// Not as it should be.
    Bad,
}

/// One line, in pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Vec<(Style, String)>);

impl Line {
    fn new(style: Style, text: impl Into<String>) -> Self {
        Line(vec![(style, text.into())])
    }

    fn and(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    /// Cut to so many characters.
    fn cut(mut self, columns: usize) -> Self {
        let mut left = columns;
        for (_, text) in &mut self.0 {
            let length = text.chars().count();
            if length > left {
                *text = text.chars().take(left).collect();
            }
            left -= length.min(left);
        }
        self
    }

    /// Without colours.
    pub(super) fn plain(&self) -> String {
        let text: String = self.0.iter().map(|(_, text)| text.as_str()).collect();
        text.trim_end().to_owned()
    }

    /// With the sequences that a terminal takes.
    pub(super) fn coloured(&self) -> String {
        let piece = |(style, text): &(Style, String)| match style {
            Style::Plain => text.clone(),
            Style::Bold => format!("\x1b[1m{text}\x1b[0m"),
            Style::Warn => format!("\x1b[33m{text}\x1b[0m"),
            Style::Bad => format!("\x1b[1;31m{text}\x1b[0m"),
        };
        self.0.iter().map(piece).collect()
    }
}

/// The screen, at most so many lines of so many columns.
pub(super) fn screen(view: &View, columns: usize, rows: usize) -> Vec<Line> {
    let mut lines = head(view);
    let free = rows.saturating_sub(lines.len() + 3);
    // A third each, and what upstreams and limits leave goes to the events.
    let upstreams = table(
        &["UPSTREAM", "STATE", ">RUNNING", ">CALLS/S", ">FAILED", "LAST FAILURE"],
        &view.upstreams.iter().take((free / 3).max(1)).map(upstream).collect::<Vec<_>>(),
    );
    let limits = table(
        &["FULLEST LIMITS", "OWNER", ">NOW", ">MAX", ">SHARE", ">HIT"],
        &view.limits.iter().take((free / 3).clamp(1, 8)).map(limit).collect::<Vec<_>>(),
    );
    for part in [upstreams, limits] {
        lines.push(Line::default());
        lines.extend(part);
    }
    lines.push(Line::default());
    lines.push(Line::new(Style::Bold, "EVENTS"));
    for event in view.events.iter().take(rows.saturating_sub(lines.len())) {
        let style = match event.level.as_str() {
            "error" => Style::Bad,
            "warn" => Style::Warn,
            _ => Style::Plain,
        };
        // The time of day of `2026-11-22T12:34:56.789Z`.
        let time = event.at.get(11..19).unwrap_or_default();
        let line = Line::new(Style::Plain, format!("{time} "));
        let line = line.and(style, format!("{:<5} {}", event.level, event.kind));
        lines.push(line.and(Style::Plain, format!(" {} {}", event.subject, event.detail)));
    }
    lines.truncate(rows);
    lines.into_iter().map(|line| line.cut(columns)).collect()
}

fn head(view: &View) -> Vec<Line> {
    let title = Line::new(Style::Bold, format!("tidegate {}", view.version));
    let phase = if view.ready { Style::Plain } else { Style::Bad };
    let level = match view.level.as_str() {
        "normal" | "" => Style::Plain,
        "busy" => Style::Warn,
        _ => Style::Bad,
    };
    let mut title = title
        .and(Style::Plain, "  ")
        .and(phase, format!("{}{}", view.phase, if view.ready { "" } else { ", not ready" }))
        .and(Style::Plain, "  ")
        .and(if view.status == "healthy" { Style::Plain } else { Style::Bad }, view.status.clone())
        .and(Style::Plain, "  load ")
        .and(level, view.level.clone())
        .and(Style::Plain, format!("  up {}", time(view.uptime_seconds)));
    if view.lost {
        title = title.and(Style::Bad, "  NO ANSWER: trying again");
    }
    let bad = |value: f64| if value > 0.0 { Style::Bad } else { Style::Plain };
    let label = |text: &str| Line::new(Style::Bold, format!("{text:<12}"));
    let requests = label("REQUESTS")
        .and(Style::Plain, format!("{:.1}/s   ", view.requests_per_second))
        .and(bad(view.errors_per_second), format!("errors {:.1}/s", view.errors_per_second))
        .and(Style::Plain, "   ")
        .and(bad(view.refused_per_second), format!("refused {:.1}/s", view.refused_per_second))
        .and(Style::Plain, format!("   running {}", share(view.running)))
        .and(Style::Plain, format!("   waiting {}", share(view.waiting)))
        .and(Style::Plain, format!("   connections {}", share(view.connections)));
    let latency = label("LATENCY").and(Style::Plain, quantiles(view.latency_seconds));
    let first = label("FIRST TOKEN").and(Style::Plain, quantiles(view.first_token_seconds));
    let memory = ByteSize(view.resident_bytes).display().iec().to_string();
    let process = label("PROCESS").and(
        Style::Plain,
        format!(
            "cpu {:.1} %   memory {memory}   descriptors {}   threads {}",
            view.cpu_percent,
            share(view.descriptors),
            view.threads
        ),
    );
    let mut lines = vec![title, requests, latency, first, process];
    for check in view.checks.iter().take(4) {
        lines.push(label("CHECK").and(Style::Bad, format!("{}  {}", check.check, check.state)));
    }
    lines
}

fn upstream(upstream: &UpstreamView) -> Vec<(Style, String)> {
    let state = match upstream.next_try_seconds {
        Some(seconds) => format!("{} {}", upstream.state, time(seconds)),
        None => upstream.state.clone(),
    };
    let style = if upstream.state == "closed" { Style::Plain } else { Style::Bad };
    let failed = upstream.failed_percent.map_or("-".to_owned(), |share| format!("{share:.1} %"));
    let bad = if upstream.failed_percent > Some(0.0) { Style::Bad } else { Style::Plain };
    vec![
        (Style::Plain, upstream.upstream.clone()),
        (style, state),
        (Style::Plain, share(upstream.running)),
        (Style::Plain, format!("{:.1}", upstream.calls_per_second)),
        (bad, failed),
        (Style::Plain, upstream.last_failure.clone()),
    ]
}

fn limit(limit: &LimitView) -> Vec<(Style, String)> {
    let number = |n: u64| match limit.bytes {
        true => ByteSize(n).display().iec().to_string(),
        false => n.to_string(),
    };
    let style = match limit.percent {
        share if share >= 90.0 => Style::Bad,
        share if share >= 75.0 => Style::Warn,
        _ => Style::Plain,
    };
    vec![
        (Style::Plain, limit.limit.clone()),
        (Style::Plain, limit.owner.clone()),
        (Style::Plain, number(limit.now)),
        (Style::Plain, number(limit.max)),
        (style, format!("{:.0} %", limit.percent)),
        (if limit.hit > 0 { Style::Warn } else { Style::Plain }, limit.hit.to_string()),
    ]
}

/// Columns as wide as their longest cell; those that begin with `>` are set to the right.
fn table(header: &[&str], rows: &[Vec<(Style, String)>]) -> Vec<Line> {
    let titles: Vec<&str> = header.iter().map(|title| title.trim_start_matches('>')).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|(_, text)| text.chars().count()).chain([titles[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = (Style, String)>| {
        let mut line = Line::default();
        for ((style, text), (width, title)) in cells.zip(widths.iter().zip(header)) {
            let pad = " ".repeat(width.saturating_sub(text.chars().count()));
            let text = if title.starts_with('>') { pad + &text } else { text + &pad };
            line = line.and(style, text).and(Style::Plain, "  ");
        }
        line
    };
    let titles = line(&mut titles.iter().map(|title| (Style::Bold, (*title).to_owned())));
    std::iter::once(titles).chain(rows.iter().map(|row| line(&mut row.iter().cloned()))).collect()
}

fn share(share: Share) -> String {
    format!("{}/{}", share.now, share.max)
}

fn quantiles(q: Quantiles) -> String {
    let one = |value: Option<f64>| value.map_or("-".to_owned(), fine);
    format!("p50 {:<9} p95 {:<9} p99 {}", one(q.p50), one(q.p95), one(q.p99))
}

/// A short time.
fn fine(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// A long time, in its two largest units.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.0}s"),
        s if s < 3600.0 => format!("{:.0}m {:.0}s", (s / 60.0).floor(), (s % 60.0).floor()),
        s if s < 86_400.0 => {
            format!("{:.0}h {:.0}m", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor())
        }
        s => format!("{:.0}d {:.0}h", (s / 86_400.0).floor(), (s % 86_400.0 / 3600.0).floor()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::EventView;
    use super::*;

    fn view() -> View {
        let upstream = |n: usize| UpstreamView {
            upstream: format!("u{n}"),
            state: "open".into(),
            next_try_seconds: Some(27.0),
            running: Share { now: 1, max: 64 },
            calls_per_second: 1.25,
            failed_percent: Some(50.0),
            last_failure: "connect_failed 3s ago".into(),
        };
        let event = |n: usize| EventView {
            at: format!("2026-11-22T12:34:{n:02}.000Z"),
            level: "warn".into(),
            kind: "breaker_opened".into(),
            subject: "u1".into(),
            detail: "x".repeat(300),
        };
        View {
            phase: "ready".into(),
            ready: true,
            status: "healthy".into(),
            level: "normal".into(),
            uptime_seconds: 3700.0,
            upstreams: (0..30).map(upstream).collect(),
            events: (0..60).map(event).collect(),
            latency_seconds: Quantiles { p50: Some(0.0123), p95: Some(2.0), p99: None },
            ..View::default()
        }
    }

    #[test]
    fn a_screen_fits_whatever_its_size() {
        for (columns, rows) in [(0, 0), (1, 1), (20, 5), (80, 24), (300, 100)] {
            let lines = screen(&view(), columns, rows);
            assert!(lines.len() <= rows, "{columns}x{rows}: {}", lines.len());
            assert!(lines.iter().all(|line| line.plain().chars().count() <= columns));
        }
        let full = screen(&view(), 80, 24);
        assert_eq!(full.len(), 24, "events take what is left");
        let text: Vec<String> = full.iter().map(Line::plain).collect();
        assert!(text[0].contains("ready  healthy  load normal  up 1h 1m"), "{}", text[0]);
        assert!(text[2].contains("p50 12.3 ms   p95 2.0 s     p99 -"), "{}", text[2]);
        assert!(
            text.iter().any(|line| line.starts_with("u0        open 27s     1/64")),
            "{text:#?}"
        );
    }

    #[test]
    fn only_a_coloured_line_has_sequences() {
        let view = View { lost: true, ..view() };
        let lines = screen(&view, 80, 24);
        assert!(lines.iter().all(|line| !line.plain().contains('\x1b')));
        assert!(lines[0].coloured().contains("\x1b[1;31m  NO ANSWER"));
    }

    #[test]
    fn times_are_short() {
        let check = |seconds: f64, expected: &str| assert_eq!(time(seconds), expected);
        check(5.0, "5s");
        check(65.0, "1m 5s");
        check(7_260.0, "2h 1m");
        check(90_000.0, "1d 1h");
        assert_eq!(
            (fine(0.00005), fine(0.05), fine(5.0)),
            ("50 us".into(), "50.0 ms".into(), "5.0 s".into())
        );
    }
}
