//! Config files for tests.

use std::fmt::Write;
use std::net::SocketAddr;

use super::peers::FakeUpstream;

/// Breakers that watch and never open, for tests that make upstreams fail for something else.
const PATIENT: &str =
    "breaker_calls_min = 100000\nbreaker_failures_max = 100000\ncooldown_max = \"0s\"\n";

/// A config file in the making. Listen addresses are the [`super::daemon::Daemon`]'s to fill in.
#[derive(Clone, Default)]
pub struct Conf {
    server: String,
    ops: String,
    log: String,
    tail: String,
}

impl Conf {
    pub fn new() -> Self {
        Conf::default()
    }

    /// Lines of `[server]`.
    pub fn server(mut self, lines: &str) -> Self {
        writeln!(self.server, "{lines}").unwrap();
        self
    }

    /// Lines of `[ops]`.
    pub fn ops(mut self, lines: &str) -> Self {
        writeln!(self.ops, "{lines}").unwrap();
        self
    }

    /// Lines of `[log]`.
    pub fn log(mut self, lines: &str) -> Self {
        writeln!(self.log, "{lines}").unwrap();
        self
    }

    /// An upstream, with further lines. Without lines of its own about breakers it has patient ones.
    pub fn upstream(mut self, name: &str, kind: &str, url: &str, lines: &str) -> Self {
        let url = if url.is_empty() { String::new() } else { format!("url = \"{url}\"\n") };
        let patient = if kind == "echo" || lines.contains("breaker") { "" } else { PATIENT };
        writeln!(
            self.tail,
            "[[upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\n{url}{patient}{lines}"
        )
        .unwrap();
        self
    }

    /// A fake upstream, by its dialect's own URL.
    pub fn fake(self, name: &str, upstream: &FakeUpstream, lines: &str) -> Self {
        let kind = upstream.kind();
        self.upstream(name, kind, &upstream.url(), lines)
    }

    /// A model.
    pub fn model(mut self, name: &str, primary: &str, fallbacks: &[&str]) -> Self {
        writeln!(self.tail, "[[model]]\nname = \"{name}\"\nprimary = \"{primary}\"").unwrap();
        if !fallbacks.is_empty() {
            writeln!(self.tail, "fallbacks = {fallbacks:?}").unwrap();
        }
        self
    }

    /// Any further text at the end.
    pub fn text(mut self, text: &str) -> Self {
        writeln!(self.tail, "{text}").unwrap();
        self
    }

    /// The file.
    pub fn render(&self, listen: SocketAddr, ops: SocketAddr) -> String {
        let Conf { server, ops: ops_lines, log, tail } = self;
        format!(
            "[server]\nlisten = \"{listen}\"\n{server}\n[ops]\nlisten = \"{ops}\"\n{ops_lines}\n[log]\n{log}\n{tail}"
        )
    }
}
