//! One run of one check.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Tools, command};
use crate::base::clock;
use crate::config::settings::{CheckSpec, What};
use crate::net::http_client::{Client, Site};
use crate::net::outbound::{Origin, reach};

/// Most bytes of an answer that are read. Past it the run has failed.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// Runs it.
///
/// # Errors
/// Why it did not go well, in words.
pub(super) fn run(spec: &CheckSpec, tools: &Tools, stopping: &AtomicBool) -> Result<(), String> {
    let deadline = clock::now() + spec.timeout;
    let origin = |tls: bool, host: &str, port: u16| Origin {
        name: format!("check:{}", spec.name),
        tls,
        host: host.to_owned(),
        port,
        ca_file: None,
        ca_digest: None,
        proxy: None,
        idle_max: 0,
    };
    match &spec.what {
        What::Http { site, target, status, contains } => {
            let site = Site {
                origin: origin(site.tls, &site.host, site.port),
                prefix: String::new(),
                key: None,
                connect_timeout: spec.timeout,
            };
            let client = Client::new(site, Arc::clone(&tools.resolver));
            let answer = client.get_up_to(target, ANSWER_BYTES_MAX, deadline);
            let answer = answer.map_err(|error| error.to_string())?;
            let good = match status.is_empty() {
                true => (200..300).contains(&answer.status),
                false => status.contains(&answer.status),
            };
            if !good {
                return Err(format!("the answer's status is {}", answer.status));
            }
            match contains {
                Some(text) if !holds(&answer.body, text.as_bytes()) => {
                    Err(format!("the answer does not hold {text:?}"))
                }
                _ => Ok(()),
            }
        }
        What::Tcp { host, port } => reach(&origin(false, host, *port), &tools.resolver, deadline)
            .map_err(|error| error.to_string()),
        What::Command(words) => command::run(&spec.name, words, deadline, stopping),
        What::Internal(probe) => (tools.inside)(*probe, deadline),
    }
}

fn holds(body: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(body, text).is_some()
}
