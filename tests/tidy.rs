//! The house in order: layers, marks, lists, paths, and documents in step with what runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every file below a folder of the project, without what is built.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let built = matches!(
                name.as_str(),
                "target"
                    | ".git"
                    | ".venv"
                    | "__pycache__"
                    | "node_modules"
                    | "corpus"
                    | "artifacts"
            );
            if path.is_dir() && !built {
                folders.push(path);
            } else if path.is_file() && !built {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn rust(folder: &str) -> Vec<(String, String)> {
    let files =
        files(folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    files
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// A line without its comment; text in quotes may fool this, in the strict direction only.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

#[test]
fn a_module_uses_only_modules_below_it() {
    let lib = read("src/lib.rs");
    let order: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert!(order.len() >= 8, "{order:?}");
    let mut faults = Vec::new();
    for (name, text) in rust("src") {
        let module = name.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        let Some(own) = order.iter().position(|have| *have == module) else {
            assert!(matches!(module.as_str(), "lib" | "main"), "{name} is not in lib.rs");
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for used in code(line).split("crate::").skip(1) {
                let names: Vec<&str> = match used.strip_prefix('{') {
                    Some(list) => list
                        .split([',', '}'])
                        .map(|part| part.trim().split("::").next().unwrap())
                        .collect(),
                    None => vec![
                        used.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                            .next()
                            .unwrap(),
                    ],
                };
                for used in names {
                    if order
                        .iter()
                        .position(|have| *have == used)
                        .is_some_and(|position| position < own)
                    {
                        faults.push(format!(
                            "{name}:{}: {module} uses {used}, which is above it",
                            number + 1
                        ));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn sockets_stay_in_net() {
    let words = [
        "ureq::",
        "mio::",
        "socket2::",
        "rustls::",
        "tungstenite::",
        "tiny_http::",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
    ];
    let mut faults = Vec::new();
    for (name, text) in rust("src") {
        if name.starts_with("src/net/") || name == "src/net.rs" {
            continue;
        }
        // Tests may use sockets to look at what they test.
        let text = text.split("#[cfg(test)]").next().unwrap().to_owned();
        if name.ends_with("/tests.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| code(line).contains(**word)) {
                faults.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn sql_stays_in_store() {
    let faults: Vec<_> = rust("src")
        .into_iter()
        .filter(|(name, _)| !name.starts_with("src/store/") && name != "src/store.rs")
        .filter(|(_, text)| text.lines().any(|line| code(line).contains("rusqlite::")))
        .map(|(name, _)| name)
        .collect();
    assert!(faults.is_empty(), "{faults:?}");
}

/// What ARCHITECTURE.md says of it.
#[test]
fn unsafe_code_stays_where_the_allocator_is() {
    let faults: Vec<_> = rust("src")
        .into_iter()
        .filter(|(name, text)| name != "src/base/memory.rs" && text.contains("unsafe_code"))
        .map(|(name, _)| name)
        .collect();
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn no_marks_no_ignored_tests_no_odd_files() {
    // In pieces, so that this file does not find itself.
    let marks = [
        ["FIX", "ME"],
        ["XX", "X:"],
        ["TO", "DO"],
        ["to", "do!("],
        ["unimple", "mented!("],
        ["#[ig", "nore"],
        ["#[should", "_panic"],
        ["db", "g!("],
    ];
    let mut faults = Vec::new();
    for (name, text) in rust("src").into_iter().chain(rust("tests")) {
        for (number, line) in text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(&mark.concat())) {
                faults.push(format!("{name}:{}: {}", number + 1, mark.concat()));
            }
            if line.ends_with([' ', '\t']) {
                faults.push(format!("{name}:{}: a blank at the end", number + 1));
            }
        }
        if !text.ends_with('\n') || name.ends_with("/mod.rs") {
            faults.push(name);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_path_of_the_machine_that_built_it() {
    let paths = [["/wo", "rk/"], ["/tmp", "/wt"], ["/ro", "ot/"], ["/home", "/"], ["/Use", "rs/"]];
    let mut faults = Vec::new();
    for path in files("") {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(found) = paths.iter().find(|piece| line.contains(&piece.concat())) {
                faults.push(format!("{}:{}: {}", path.display(), number + 1, found.concat()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_test_file_is_listed_with_a_line_that_says_what_it_is() {
    let list = read("tests/tests.rs");
    let lines: Vec<&str> = list.lines().collect();
    for entry in std::fs::read_dir(root().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".rs") else {
            continue;
        };
        if name == "tests" {
            continue;
        }
        let at = lines.iter().position(|line| *line == format!("mod {name};"));
        let at = at.unwrap_or_else(|| panic!("tests/{name}.rs is not listed in tests.rs"));
        let above = lines[..at].iter().rev().find(|line| !line.starts_with("#["));
        assert!(
            above.is_some_and(|line| line.starts_with("// ")),
            "mod {name} has no line above it"
        );
    }
}

/// The rows of the Markdown table whose header starts with these cells.
fn table(text: &str, header: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim()
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect()
    };
    let mut lines = text.lines().skip_while(|line| {
        let cells = cells(line);
        cells.len() < header.len() || !header.iter().zip(&cells).all(|(a, b)| b.starts_with(a))
    });
    assert!(lines.next().is_some(), "no table with {header:?}");
    lines.skip(1).take_while(|line| line.trim_start().starts_with('|')).map(cells).collect()
}

/// Whether a thread's name is of this pattern: capitals (`N`, `NNN`) stand for a number, `NAME` for a word.
fn matches_pattern(name: &str, pattern: &str) -> bool {
    let fixed = pattern.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let Some(rest) = name.strip_prefix(fixed) else { return false };
    if fixed.len() == pattern.len() {
        return rest.is_empty();
    }
    !rest.is_empty() && (pattern.ends_with("NAME") || rest.chars().all(|c| c.is_ascii_digit()))
}

#[test]
fn the_threads_of_a_running_daemon_are_those_of_the_table() {
    let rows = table(&read("ARCHITECTURE.md"), &["name", "count"]);
    // A cell may name several patterns.
    let patterns: Vec<String> = rows
        .iter()
        .flat_map(|row| {
            row[0]
                .split([',', ' '])
                .map(|name| name.trim().trim_matches('`').to_owned())
                .collect::<Vec<_>>()
        })
        .filter(|name| !name.is_empty())
        .map(|name| name.split(" (").next().unwrap().to_owned())
        .collect();
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for _ in 0..20 {
        daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", true));
    }
    let threads = daemon.process().threads();
    for name in &threads {
        // The first thread has the name of the program.
        let known =
            name == "tidegate" || patterns.iter().any(|pattern| matches_pattern(name, pattern));
        assert!(known, "a thread {name:?} is not in the table: {patterns:?}");
        assert!(name.len() <= 15);
    }
    // What the table says there is exactly one of must be there.
    for row in rows.iter().filter(|row| row[1] == "1" && row[0] != "main") {
        let there = threads.iter().any(|name| matches_pattern(name, &row[0]));
        assert!(there, "the table has {:?}, the daemon has {threads:?}", row[0]);
    }
}

/// What holds many: the types of fields and statics that can grow.
const GROWING: [&str; 9] = [
    "HashMap<",
    "HashSet<",
    "BTreeMap<",
    "BTreeSet<",
    "VecDeque<",
    "LruCache<",
    "BinaryHeap<",
    "Slab<",
    "Locked<Vec<",
];

/// The containers in a file that are kept: fields and statics of growing types, and channels for more
/// than one message. Code, not what it means: a type of another name hides what is in it.
fn containers(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let visible = |text: &str| -> String {
        let Some(rest) = text.strip_prefix("pub") else { return text.to_owned() };
        let inner = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        inner.map_or(rest, |(_, rest)| rest).trim_start().to_owned()
    };
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let line = code(line).trim_end();
        let item = visible(line.trim_start());
        let kind = ["struct ", "enum ", "static "].iter().find_map(|kind| item.strip_prefix(kind));
        inside |= kind.is_some() && !line.starts_with(' ');
        if inside && GROWING.iter().any(|growing| line.contains(growing)) {
            found.push(word(kind.unwrap_or(&item)));
        }
        if line.starts_with('}') || (line.ends_with(';') && !line.starts_with(' ')) {
            inside = false;
        }
        if let Some((left, right)) = line.split_once("bounded(")
            && let Some((names, path)) = left.split_once(" = ")
            && matches!(path, "" | "crossbeam_channel::")
            && !right.starts_with("1)")
        {
            found.push(word(names.trim_start().trim_start_matches("let ").trim_start_matches('(')));
        }
    }
    found
}

/// The table of `ARCHITECTURE.md`: file, container, and the names of its limits.
pub fn growing() -> Vec<(String, String, Vec<String>)> {
    let rows = table(&read("ARCHITECTURE.md"), &["file", "container", "limit"]);
    let row = |row: Vec<String>| {
        let limits = row[2].split(',').map(|name| name.trim().trim_matches('`').to_owned());
        (row[0].clone(), row[1].clone(), limits.collect())
    };
    rows.into_iter().map(row).collect()
}

#[test]
fn every_container_that_is_kept_has_a_limit() {
    let listed: BTreeSet<(String, String)> =
        growing().into_iter().map(|(file, container, _)| (file, container)).collect();
    let mut found = BTreeSet::new();
    for (name, text) in rust("src") {
        let exempt = name.starts_with("src/base/bounded") || name.ends_with("/tests.rs");
        if exempt || name.contains("/tests/") || name.ends_with("/peer.rs") {
            continue;
        }
        found.extend(containers(&text).into_iter().map(|container| (name.clone(), container)));
    }
    let lacking: Vec<_> = found.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(
        lacking.is_empty(),
        "not in the table of ARCHITECTURE.md (\"What grows\"), and not of base::bounded: {lacking:?}"
    );
    assert!(gone.is_empty(), "in the table of ARCHITECTURE.md, but no more there: {gone:?}");
}

#[test]
fn the_search_for_containers_finds_them() {
    let source = "pub(super) struct A {\n    /// HashMap<u8> in words.\n    pub(super) all: \
                  Locked<HashMap<u8, u8>>,\n    one: u8,\n}\nstatic B: Locked<Vec<u8>> = x();\n\
                  fn f(a: HashMap<u8, u8>) {\n    let (s, r) = bounded(MAX);\n    let (s, r) = \
                  bounded(1);\n    let local: VecDeque<u8> = VecDeque::new();\n}\n\
                  pub enum C {\n    Many(BTreeSet<u8>),\n}\nstruct E(HashSet<u8>);\n#[cfg(test)]\nmod tests {\n    \
                  struct D {\n        x: HashMap<u8, u8>,\n    }\n}\n";
    assert_eq!(containers(source), ["all", "B", "s", "Many", "E"]);
}

#[test]
fn what_the_documents_name_exists() {
    let makefile = read("Makefile");
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = read(document);
        for target in text.split("`make ").skip(1) {
            let target = target.split(['`', ' ']).next().unwrap();
            assert!(
                makefile.lines().any(|line| line.starts_with(&format!("{target}:"))),
                "{document}: make {target}"
            );
        }
        for word in text.split(['`', '(', ')', ' ', '\n']) {
            let word = word.trim_end_matches(['.', ',', ':', ';']);
            let ours = ["src/", "tests/", "conf/", "man/", ".ci/"]
                .iter()
                .any(|folder| word.starts_with(folder));
            if ours && !word.contains(['*', '<', '…']) {
                assert!(root().join(word).exists(), "{document} names {word}, which is not there");
            }
        }
    }
    assert!(read("CHANGELOG.md").contains("Unreleased"));
    for file in
        ["LICENSE-MIT", "LICENSE-APACHE", "man/tidegate.8", "man/tidegate.toml.5", ".ci/run"]
    {
        assert!(root().join(file).exists(), "{file}");
    }
}
