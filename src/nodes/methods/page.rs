//! tidegate-nodes(7) lists every method with the right that it needs.

use std::fmt::Write;

use super::{Needs, all};

const PAGE: &str = include_str!("../../../man/tidegate-nodes.7");
const BEGIN: &str = ".\\\" begin of the methods, held against the program\n";
const END: &str = ".\\\" end of the methods\n";

fn table() -> String {
    let mut methods: Vec<_> = all().collect();
    methods.sort_by_key(|method| method.name);
    let mut out =
        ".Bl -column \"sessions.messages.unsubscribe\" \"operator.approvals\"\n".to_owned();
    for method in methods {
        let needs = match method.needs {
            Needs::Scope(scope) => scope.as_str(),
            Needs::Node => "nodes only",
            Needs::Nothing => "nothing",
        };
        let _ = writeln!(out, ".It Cm {} Ta {needs}", method.name);
    }
    out + ".El\n"
}

#[test]
fn the_page_lists_every_method_with_the_right_that_it_needs() {
    let (before, rest) = PAGE.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    let table = table();
    if std::env::var_os("TIDEGATE_WRITE_PAGE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/man/tidegate-nodes.7");
        std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(written, table, "TIDEGATE_WRITE_PAGE=1 cargo test --lib methods::page writes it");
}

#[test]
fn no_method_is_there_twice() {
    let mut names: Vec<_> = all().map(|method| method.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}
