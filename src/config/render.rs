//! The documents that are made from the schema: the full example file and the settings list of
//! tidegate.toml(5). A test rebuilds both and fails when the files in the tree differ.

use std::fmt::Write;

use super::print::written;
use super::schema::{Setting, Shape, tree};

/// Columns of a comment in the example file.
const COLUMNS: usize = 100;

/// `conf/tidegate.full.toml`: every setting, commented out at its default. What has none shows an
/// example.
pub fn full_example() -> String {
    let mut out = String::new();
    comment(
        &mut out,
        "Every setting of Tidegate, commented out at its default. Where there is no default, an \
         example stands in its place.",
    );
    comment(
        &mut out,
        "Made from the program's own schema; tidegate.toml(5) says the same at more length. \
         `tidegate check FILE` checks a file, `tidegate config print` shows what is in force.",
    );
    comment(
        &mut out,
        "Durations: \"250ms\", \"30s\", \"10m\", \"1h\". Sizes: \"16KiB\", \"20MiB\", \"1GB\", or a count of \
         bytes. A change takes effect on SIGHUP, unless its setting says that it needs a restart.",
    );
    let Shape::Table(tables) = tree() else { return out };
    for table in &tables {
        out.push('\n');
        out.push('\n');
        comment(&mut out, &table.description);
        let settings = match &table.shape {
            Shape::Table(settings) => {
                let _ = writeln!(out, "[{}]", table.key);
                settings
            }
            Shape::List { item, max } => {
                comment(&mut out, &format!("At most {max} of them."));
                let _ = writeln!(out, "#[[{}]]", table.key);
                match &**item {
                    Shape::Table(settings) => settings,
                    _ => continue,
                }
            }
            _ => continue,
        };
        for setting in settings {
            out.push('\n');
            comment(&mut out, &setting.description);
            if let Shape::Word(words) = &setting.shape {
                for word in words {
                    comment(&mut out, &format!("- \"{}\": {}", word.name, word.description));
                }
            }
            let facts = facts(setting);
            if !facts.is_empty() {
                comment(&mut out, &facts.join(" "));
            }
            let shown = setting.default.as_ref().or(setting.example.as_ref());
            let _ = writeln!(out, "#{} = {}", setting.key, shown.map(written).unwrap_or_default());
        }
    }
    out
}

/// Writes a comment, wrapped.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            let _ = writeln!(out, "{line}");
            line.clear();
            line.push('#');
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

/// Bounds, what happens at the limit, a computed default, and the reload class.
fn facts(setting: &Setting) -> Vec<String> {
    let mut facts = Vec::new();
    if setting.required {
        facts.push("Must be written.".to_owned());
    } else if let Some(default) = &setting.default_text {
        facts.push(format!("Default: {default}."));
    }
    facts.extend(bounds(&setting.shape));
    if let Some(at_limit) = &setting.at_limit {
        facts.push(format!("At the limit: {at_limit}."));
    }
    if setting.restart {
        facts.push("Needs a restart.".to_owned());
    }
    facts
}

fn bounds(shape: &Shape) -> Option<String> {
    let range = |min: &dyn std::fmt::Display, max: &dyn std::fmt::Display| {
        Some(format!("From {min} to {max}."))
    };
    match shape {
        Shape::Integer { min, max } => range(min, max),
        Shape::Duration { min, max } => range(min, max),
        Shape::Size { min, max } => range(min, max),
        Shape::Rate { min, max } => range(min, max),
        Shape::Price { max } => range(&0, max),
        Shape::List { max, .. } => Some(format!("At most {max} entries.")),
        Shape::Text { min, max } if min == max => Some(format!("Exactly {max} characters.")),
        Shape::Text { max, .. } if *max <= 512 => Some(format!("At most {max} characters.")),
        _ => None,
    }
}

/// The settings list of tidegate.toml(5), in mdoc.
pub fn man_settings() -> String {
    let mut out = String::new();
    let Shape::Table(tables) = tree() else { return out };
    for table in &tables {
        let (title, settings) = match &table.shape {
            Shape::Table(settings) => (format!("[{}]", table.key), settings),
            Shape::List { item, .. } => match &**item {
                Shape::Table(settings) => (format!("[[{}]]", table.key), settings),
                _ => continue,
            },
            _ => continue,
        };
        let _ = writeln!(out, ".Ss {title}");
        prose(&mut out, &table.description);
        if let Shape::List { max, .. } = &table.shape {
            let _ = writeln!(out, "At most {max} of them.");
        }
        let _ = writeln!(out, ".Bl -tag -width Ds");
        for setting in settings {
            let _ = writeln!(out, ".It Ic {} Pq {}", setting.key, kind(&setting.shape));
            prose(&mut out, &setting.description);
            if let Shape::Word(words) = &setting.shape {
                let _ = writeln!(out, ".Bl -tag -width Ds -compact");
                for word in words {
                    let _ = writeln!(out, ".It Cm {}", word.name);
                    prose(&mut out, &word.description);
                }
                let _ = writeln!(out, ".El");
            }
            if let Some(default) = &setting.default {
                let _ = writeln!(out, "Default: {}.", text(&format!("`{}`", written(default))));
            }
            for fact in facts(setting) {
                prose(&mut out, &fact);
            }
        }
        let _ = writeln!(out, ".El");
    }
    out
}

/// What stands in a setting's place, in a word or two.
fn kind(shape: &Shape) -> &'static str {
    match shape {
        Shape::Table(_) => "table",
        Shape::List { .. } => "list",
        Shape::Either(..) => "text or table",
        Shape::Text { .. } => "text",
        Shape::Word(_) => "word",
        Shape::Integer { .. } => "number",
        Shape::Bool => "true or false",
        Shape::Duration { .. } => "duration",
        Shape::Size { .. } => "size",
        Shape::Rate { .. } => "rate",
        Shape::Price { .. } => "price",
        Shape::Unknown => "value",
    }
}

/// Sentences, each on a line of its own as mdoc wants them.
fn prose(out: &mut String, words: &str) {
    let mut line = String::new();
    let mut words = words.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        let next_begins = words.peek().is_none_or(|next| next.starts_with(char::is_uppercase));
        if word.ends_with(['.', '!', '?']) && next_begins || words.peek().is_none() {
            let _ = writeln!(out, "{}", text(&line));
            line.clear();
        }
    }
}

/// A text line of mdoc: escaped, with `code` in bold.
fn text(line: &str) -> String {
    let mut out = String::new();
    for (index, part) in line.split('`').enumerate() {
        let escaped = part.replace('\\', "\\e").replace('"', "\\(dq").replace('…', "\\&...");
        if index % 2 == 1 {
            // Typewriter characters: no hyphen becomes a dash, no quote becomes a curly one.
            let code = escaped.replace('-', "\\-").replace('\'', "\\(aq");
            out.push_str(&format!("\\fB{code}\\fR"));
        } else {
            out.push_str(&escaped);
        }
    }
    if out.starts_with(['.', '\'']) { format!("\\&{out}") } else { out }
}

/// Puts the settings list between its two marker lines of the page. `None` when they are not there.
pub fn man_page(page: &str) -> Option<String> {
    let (before, rest) = page.split_once(MAN_BEGIN)?;
    let (_, after) = rest.split_once(MAN_END)?;
    Some(format!("{before}{MAN_BEGIN}{}{MAN_END}{after}", man_settings()))
}

/// Above the settings list of the page.
const MAN_BEGIN: &str = ".\\\" begin of the settings, made from the schema\n";
/// Below it.
const MAN_END: &str = ".\\\" end of the settings\n";

#[cfg(test)]
mod tests {
    use super::super::report::Report;
    use super::super::walk::walk;
    use super::super::{parse, raw::Raw};
    use super::*;
    use serde::Deserialize;

    /// The example file with every setting switched on.
    fn full_example_switched_on() -> String {
        let on = |line: &str| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => {
                setting.to_owned()
            }
            _ => line.to_owned(),
        };
        full_example().lines().map(|line| on(line) + "\n").collect()
    }

    #[test]
    fn the_full_example_changes_nothing_and_each_of_its_settings_is_valid() {
        let example = parse(&full_example(), None, &|_| None).unwrap_or_else(|f| panic!("{f}"));
        let defaults = parse("", None, &|_| None).unwrap();
        assert_eq!(format!("{:?}", example.config), format!("{:?}", defaults.config));
        // All switched on, the examples contradict each other, but each fits the schema.
        let mut report = Report::default();
        let text = full_example_switched_on();
        let tree = walk(&text, &tree(), &mut report).expect("is TOML");
        assert!(!report.failed(), "{}", report.into_faults(None));
        let raw = Raw::deserialize(tree).unwrap();
        assert_eq!(raw.server.body_max, Raw::default().server.body_max);
        assert_eq!(raw.server.workers, Some(8));
        assert_eq!((raw.upstream.len(), raw.key.len(), raw.model.len()), (1, 1, 1));
        let mut settings = 0;
        let Shape::Table(tables) = super::tree() else { panic!("not a table") };
        for table in tables {
            settings += match table.shape {
                Shape::Table(inner) => inner.len(),
                Shape::List { item, .. } => match *item {
                    Shape::Table(inner) => inner.len(),
                    _ => 0,
                },
                _ => 0,
            };
        }
        let lines = full_example()
            .lines()
            .filter(|l| l.starts_with('#') && l.contains(" = "))
            .filter(|l| l[1..].starts_with(|c: char| c.is_ascii_lowercase()))
            .count();
        assert_eq!(lines, settings, "every setting stands there once");
    }

    #[test]
    fn mdoc_is_escaped() {
        assert_eq!(text("a \\ `x-y` \"z\""), "a \\e \\fBx\\-y\\fR \\(dqz\\(dq");
        assert_eq!(text(".Sh no"), "\\&.Sh no");
        let mut out = String::new();
        prose(&mut out, "One. Two, e.g. this.\n Three");
        assert_eq!(out, "One.\nTwo, e.g. this.\nThree\n");
    }
}
