//! Collects faults and warnings while a file is read, and knows on which line each setting stands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::fault::{FAULTS_MAX, Fault, Faults, Warning};

/// A setting's place in the file: keys and indexes joined by dots, such as `upstream.0.url`.
pub(super) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// What is known about the file so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Line of each setting that is written, by its place.
    lines: BTreeMap<String, usize>,
    /// Names of list entries, by their place: `upstream.0` is `upstream[local]`.
    names: BTreeMap<String, String>,
    faults: Vec<Fault>,
    omitted: usize,
    warnings: Vec<Warning>,
}

impl Report {
    /// Notes that a setting is written on this line.
    pub(super) fn note(&mut self, place: &str, line: usize) {
        self.lines.insert(place.to_owned(), line);
    }

    /// Notes what a list entry is called.
    pub(super) fn name(&mut self, place: &str, name: String) {
        self.names.insert(place.to_owned(), name);
    }

    /// Whether the file itself says this.
    pub(super) fn written(&self, place: &str) -> bool {
        self.lines.contains_key(place)
    }

    /// The line of a setting, else that of the nearest table around it.
    pub(super) fn line(&self, place: &str) -> Option<usize> {
        let mut place = place;
        loop {
            if let Some(line) = self.lines.get(place) {
                return Some(*line);
            }
            place = place.rsplit_once('.')?.0;
        }
    }

    /// Whether anything is wrong so far.
    pub(super) fn failed(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Something is wrong with the setting at this place.
    pub(super) fn fault(
        &mut self,
        place: &str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let fault = self.make(place, text.into(), remedy.into());
        self.push(fault);
    }

    /// Something is doubtful about the setting at this place.
    pub(super) fn warn(&mut self, place: &str, text: impl Into<String>, remedy: impl Into<String>) {
        let warning = self.make(place, text.into(), remedy.into());
        if self.warnings.len() < FAULTS_MAX {
            self.warnings.push(warning);
        }
    }

    /// Adds a fault that names its own line and key.
    pub(super) fn push(&mut self, fault: Fault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        } else {
            self.omitted += 1;
        }
    }

    /// The setting as people call it: `upstream[local].url`.
    pub(super) fn label(&self, place: &str) -> String {
        let mut label = String::new();
        let mut walked = String::new();
        for segment in place.split('.') {
            walked = join(&walked, segment);
            if let Some(name) = self.names.get(&walked) {
                label.clone_from(name);
            } else if segment.parse::<usize>().is_err() {
                label = join(&label, segment);
            }
        }
        label
    }

    /// Line of each setting that is written.
    pub(super) fn into_parts(mut self) -> (Vec<Warning>, BTreeMap<String, usize>) {
        self.warnings.sort_by_key(|w| w.line);
        (self.warnings, self.lines)
    }

    /// Everything that is wrong, by line.
    pub(super) fn into_faults(mut self, path: Option<PathBuf>) -> Faults {
        self.faults.sort_by_key(|f| f.line);
        Faults { path, faults: self.faults, omitted: self.omitted }
    }

    fn make(&self, place: &str, text: String, remedy: String) -> Fault {
        Fault { line: self.line(place), key: self.label(place), text, remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_by_the_names_that_people_gave() {
        let mut report = Report::default();
        report.note("upstream.1", 7);
        report.note("upstream.1.url", 9);
        report.name("upstream.1", "upstream[local]".into());
        assert_eq!(report.label("upstream.1.url"), "upstream[local].url");
        assert_eq!(report.label("server.allowed_hosts.3"), "server.allowed_hosts");
        assert_eq!(report.line("upstream.1.url"), Some(9));
        assert_eq!(report.line("upstream.1.kind"), Some(7));
        assert_eq!(report.line("model.0.name"), None);
        assert!(report.written("upstream.1.url") && !report.written("upstream.1.kind"));
    }

    #[test]
    fn faults_are_bounded_and_those_left_out_are_counted() {
        let mut report = Report::default();
        for _ in 0..FAULTS_MAX + 5 {
            report.fault("a", "b", "c");
            report.warn("a", "b", "c");
        }
        let faults = report.into_faults(None);
        assert_eq!((faults.faults.len(), faults.omitted), (FAULTS_MAX, 5));
    }
}
