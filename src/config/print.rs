//! `tidegate config print`: every setting as it is in force, and where each comes from.

use std::fmt::Write;

use serde_json::Value;

use super::Loaded;
use super::build::GUARD_KEYS;
use super::names::ECHO;
use super::raw::{Raw, RawKind, RawUpstream};
use super::report::join;
use super::schema::{Setting, Shape, tree};
use super::settings::{Config, UpstreamKind};
use super::unit::{Size, Span};

/// What stands for a secret.
const MASK: &str = "(secret)";

impl Loaded {
    /// The settings in force, as TOML with the origin of each as a comment. Without secrets, which
    /// also means that an entry of `[[key]]` cannot be read back.
    pub fn print(&self) -> String {
        let mut out = String::new();
        match &self.config.path {
            Some(path) => {
                push(&mut out, &format!("# {}", path.display().to_string().escape_debug()))
            }
            None => push(&mut out, "# built-in defaults"),
        }
        let Shape::Table(tables) = tree() else { return out };
        let filled = filled(&self.raw, &self.config);
        let mut values = serde_json::to_value(&filled).unwrap_or_default();
        without_meaningless(&mut values);
        for table in &tables {
            let value = values.get(&table.key).unwrap_or(&Value::Null);
            match (&table.shape, value) {
                (Shape::Table(settings), value) => {
                    push(&mut out, &format!("\n[{}]", table.key));
                    self.table(&mut out, settings, value, &table.key);
                }
                (Shape::List { item, .. }, Value::Array(entries)) => {
                    let Shape::Table(settings) = &**item else { continue };
                    for (index, entry) in entries.iter().enumerate() {
                        let place = join(&table.key, &index.to_string());
                        let note = match self.lines.get(&place) {
                            Some(_) => "",
                            None => " # built in",
                        };
                        push(&mut out, &format!("\n[[{}]]{note}", table.key));
                        self.table(&mut out, settings, entry, &place);
                    }
                }
                _ => {}
            }
        }
        out
    }

    fn table(&self, out: &mut String, settings: &[Setting], values: &Value, place: &str) {
        for setting in settings {
            let line = self.lines.get(&join(place, &setting.key));
            let origin = match line {
                Some(line) => format!("line {line}"),
                None => "default".to_owned(),
            };
            match values.get(&setting.key) {
                Some(_) if setting.secret => {
                    push(out, &format!("{} = \"{MASK}\" # {origin}", setting.key));
                }
                Some(value) => {
                    let value = written(value);
                    let key =
                        if setting.key.starts_with("api_key") || setting.key.starts_with("key_") {
                            format!("; the key: {MASK}")
                        } else {
                            String::new()
                        };
                    push(out, &format!("{} = {value} # {origin}{key}", setting.key));
                }
                None => {
                    let default = setting.default_text.as_deref().unwrap_or("none");
                    push(out, &format!("# {}: {default}", setting.key));
                }
            }
        }
    }
}

fn push(out: &mut String, line: &str) {
    let _ = writeln!(out, "{line}");
}

/// A value as TOML writes it, on one line.
pub(super) fn written(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}

/// The written settings with what was computed for those left out.
fn filled(raw: &Raw, config: &Config) -> Raw {
    let mut raw = raw.clone();
    raw.server.workers = Some(config.server.workers);
    raw.server.target_max = Size(config.server.target_max as u64);
    raw.server.body_max = Size(config.server.body_max as u64);
    let text = |path: &std::path::PathBuf| path.display().to_string();
    raw.log.dir = config.log.dir.as_ref().map(text);
    raw.state.dir = config.state_dir.as_ref().map(text);
    if !raw.upstream.iter().any(|upstream| upstream.name == ECHO) {
        let kind = Some(RawKind::Echo);
        raw.upstream.push(RawUpstream { name: ECHO.to_owned(), kind, ..RawUpstream::default() });
    }
    for (raw, upstream) in raw.upstream.iter_mut().zip(&config.upstreams) {
        raw.concurrency_max = Some(upstream.concurrency_max);
        if upstream.kind == UpstreamKind::Echo {
            raw.word_delay = Some(Span(upstream.word_delay));
        }
    }
    raw
}

/// Takes out the defaults of settings that an upstream of its kind must not have.
fn without_meaningless(values: &mut Value) {
    let Some(upstreams) = values.get_mut("upstream").and_then(Value::as_array_mut) else { return };
    for upstream in upstreams.iter_mut().filter_map(Value::as_object_mut) {
        if upstream.get("kind").and_then(Value::as_str) == Some("echo") {
            upstream.retain(|key, _| !GUARD_KEYS.contains(&key.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    const FILE: &str = r#"
[server]
workers = 3
body_max = "20MiB"
[[upstream]]
name = "cloud"
kind = "openai"
url = "https://api.example.com/v1"
api_key_env = "CLOUD_KEY"
[[model]]
name = "a \"b\""
primary = "cloud/x"
fallbacks = ["cloud/y", { model = "cloud/z", tools = false }]
"#;

    fn env(name: &str) -> Option<String> {
        (name == "CLOUD_KEY").then(|| "sk-hush".to_owned())
    }

    #[test]
    fn what_is_printed_is_the_same_configuration() {
        let loaded = parse(FILE, None, &env).unwrap();
        let printed = loaded.print();
        let again = parse(&printed, None, &env).unwrap_or_else(|f| panic!("{f}\n{printed}"));
        assert_eq!(format!("{:?}", loaded.config), format!("{:?}", again.config));
    }

    #[test]
    fn origins_are_told_and_secrets_are_not() {
        let text = format!("{FILE}[[key]]\nname = \"k\"\nsha256 = \"{}\"\n", "ab".repeat(32));
        let printed = parse(&text, None, &env).unwrap().print();
        for line in [
            "workers = 3 # line 3",
            "body_max = \"20MiB\" # line 4",
            "queue_max = 512 # default",
            "api_key_env = \"CLOUD_KEY\" # line 9; the key: (secret)",
            "sha256 = \"(secret)\" # line 16",
            "[[upstream]] # built in",
            "# total_timeout: server.request_timeout",
        ] {
            assert!(printed.lines().any(|l| l == line), "{line}\n{printed}");
        }
        assert!(!printed.contains("hush") && !printed.contains("abab"), "{printed}");
    }
}
