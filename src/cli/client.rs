//! Commands that ask a running daemon: one `GET` on its ops plane, shown as a table or as JSON.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::output::{answer, remark};
use crate::base::clock;
use crate::base::error::Kind;
use crate::base::exit::Exit;
use crate::base::metrics::Registry;
use crate::config;
use crate::net::http_client::{Client, Site};
use crate::net::outbound::{Origin, Resolver};

/// How long connecting may take. The daemon is on this machine or near it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the whole question may take: past the ops plane's own bounds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Which daemon to ask, and how to show what it says. Flattened into the commands.
#[derive(Debug, Args)]
pub(super) struct Ask {
    /// The daemon's configuration file, for the address of its ops plane [default: as `tidegate
    /// run` finds it]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address of the ops plane, instead of `ops.listen` of the configuration
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    ops: Option<SocketAddr>,
    /// Print JSON, as the ops plane answers it
    #[arg(long)]
    json: bool,
}

impl Ask {
    /// Asks for a path, and prints the answer: as it is with `--json`, else as `text` writes it.
    pub(super) fn show(&self, path: &str, text: impl FnOnce(&Value) -> String) -> Exit {
        match self.get(path) {
            Ok(value) if self.json => answer(&format!("{value:#}\n")),
            Ok(value) => answer(&text(&value)),
            Err(exit) => exit,
        }
    }

    /// Asks for a path of the ops plane. What went wrong is said already when this fails.
    pub(super) fn get(&self, path: &str) -> Result<Value, Exit> {
        let address = match self.ops {
            Some(address) => address,
            None => config::ops_listen(self.config.clone()).map_err(|faults| {
                remark(&faults.to_string());
                Exit::Config
            })?,
        };
        let address = reachable(address);
        let failed = |what: String| {
            remark(&format!("tidegate: {what}"));
            Exit::Failure
        };
        let registry = Registry::default();
        let client = Client::new(site(address), Arc::new(Resolver::system(&registry)));
        let got = client.get(path, clock::now() + ANSWER_TIMEOUT).map_err(|error| {
            failed(match error.kind() {
                Kind::UpstreamConnect => format!(
                    "nothing answers at {address}; start the daemon with tidegate run, or name its \
                     configuration with --config"
                ),
                _ => format!("no answer from the daemon at {address}: {error}"),
            })
        })?;
        let value = serde_json::from_slice::<Value>(&got.body);
        match (got.status, value) {
            (200, Ok(value)) => Ok(value),
            (status, Ok(value)) if value["detail"].is_string() => {
                let detail = value["detail"].as_str().unwrap_or_default();
                Err(failed(format!("the daemon at {address} answered {status}: {detail}")))
            }
            (status, _) => Err(failed(format!(
                "what listens at {address} answered {status} to {path}; is it tidegate's ops plane?"
            ))),
        }
    }
}

/// Where a client reaches a listener: `0.0.0.0` is no address to connect to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

fn site(address: SocketAddr) -> Site {
    Site {
        origin: Origin {
            name: "ops".to_owned(),
            tls: false,
            host: address.ip().to_string(),
            port: address.port(),
            ca_file: None,
            ca_digest: None,
            proxy: None,
            idle_max: 0,
        },
        prefix: String::new(),
        key: None,
        connect_timeout: CONNECT_TIMEOUT,
    }
}

/// Rows as text in columns, as wide as their longest cell. A column whose header begins with `>`
/// is a column of numbers, set to the right.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<&str> = header.iter().map(|cell| cell.trim_start_matches('>')).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count());
            cells.chain([head[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let start = out.len();
        for ((cell, width), title) in cells.zip(&widths).zip(header) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) = if title.starts_with('>') { (&*pad, "") } else { ("", &*pad) };
            out.push_str(before);
            out.push_str(cell);
            out.push_str(after);
            out.push_str("  ");
        }
        out.truncate(start + out[start..].trim_end().len());
        out.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http_client::peer::{Act, Peer, Seen};

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [vec!["a".into(), "1".into(), "x".into()], vec!["bé".into(), "23456".into()]];
        let text = table(&["NAME", ">NOW", "WHAT"], &rows);
        assert_eq!(text, "NAME    NOW  WHAT\na         1  x\nbé    23456\n");
    }

    #[test]
    fn any_address_is_asked_on_loopback() {
        let check = |listen: &str, asked: &str| {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        };
        check("0.0.0.0:7", "127.0.0.1:7");
        check("[::]:7", "[::1]:7");
        check("192.0.2.1:7", "192.0.2.1:7");
    }

    #[test]
    fn answers_that_are_none_are_told_apart() {
        let check = |act: fn(&Seen) -> Act, expected: Result<Value, Exit>| {
            let peer = Peer::start(act);
            let ops = Some(SocketAddr::from(([127, 0, 0, 1], peer.port())));
            assert_eq!(Ask { config: None, ops, json: false }.get("/x"), expected);
        };
        check(|_| Act::Json(200, "{\"a\":1}".into()), Ok(serde_json::json!({"a": 1})));
        check(|_| Act::Json(404, "{\"detail\":\"no\"}".into()), Err(Exit::Failure));
        check(|_| Act::Json(200, "<html>".into()), Err(Exit::Failure));
        check(|_| Act::Raw(b"nonsense".to_vec()), Err(Exit::Failure));
    }
}
