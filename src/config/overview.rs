//! What anybody may know of the configuration in force: numbers and names, never its text. The main
//! loop keeps it up to date; whoever shows it reads it here.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::base::lock::{Locked, Rank};

use super::versions::Versions;

/// The standing of the configuration.
#[derive(Debug)]
pub struct Overview {
    document: Locked<Value>,
    versions: Option<Versions>,
}

impl Overview {
    /// With these versions behind it.
    pub fn new(versions: Option<Versions>) -> Arc<Self> {
        Arc::new(Overview { document: Locked::new(Rank::Leaf, json!({})), versions })
    }

    /// The document of `GET /config`.
    pub fn document(&self) -> Value {
        self.document.with(|document| document.clone())
    }

    /// SHA-256 of the configuration in force; empty before there is one.
    pub fn sha256(&self) -> String {
        self.document.with(|document| document["sha256"].as_str().unwrap_or_default().to_owned())
    }

    /// The line of `/readyz?verbose`.
    pub fn line(&self) -> String {
        let document = self.document();
        let version = match document["version"].as_u64() {
            Some(version) => format!("version {version}"),
            None => "no version".to_owned(),
        };
        match document["probation_seconds"].as_u64() {
            Some(seconds) => format!("config {version}, on probation for {seconds} s more"),
            None => format!("config {version}"),
        }
    }

    /// Puts another one in its place.
    pub fn set(&self, document: Value) {
        let old = self.document.with(|kept| std::mem::replace(kept, document));
        drop(old);
    }

    /// The versions, to look at; none without a state directory.
    pub fn versions(&self) -> Option<&Versions> {
        self.versions.as_ref()
    }
}
