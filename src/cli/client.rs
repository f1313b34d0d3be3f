//! Commands that ask a running daemon: over its control socket, or, for what is only shown, on its ops
//! plane. What comes is shown as a table or as JSON.

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
use crate::net::control::client::{self, Fault};
use crate::net::control::socket_in;
use crate::net::http_client::{Client, Site};
use crate::net::outbound::{Origin, Resolver};

/// How long connecting may take. The daemon is on this machine or near it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long what is only shown may take: past the ops plane's own bounds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an order may take: past the daemon's own deadlines.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);

/// Which daemon to ask, and how to show what it says. Flattened into the commands.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Ask {
    /// The daemon's configuration file, for its state directory and the address of its ops plane
    /// [default: as `tidegate run` finds it]
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The daemon's control socket [default: control/tidegate.sock in its state directory]
    #[arg(long, value_name = "PATH", conflicts_with = "config", global = true)]
    socket: Option<PathBuf>,
    /// The address of the ops plane, to ask that and not the socket
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["config", "socket"], global = true)]
    ops: Option<SocketAddr>,
    /// Print JSON, as the daemon answers it
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl Ask {
    /// Asks for a path, and prints the answer: as it is with `--json`, else as `text` writes it.
    pub(super) fn show(&self, path: &str, text: impl FnOnce(&Value) -> String) -> Exit {
        self.print(self.get(path), text)
    }

    /// Gives an order, and prints its outcome in the same way.
    pub(super) fn order(
        &self,
        path: &str,
        body: &Value,
        text: impl FnOnce(&Value) -> String,
    ) -> Exit {
        self.print(self.post(path, body), text)
    }

    /// Prints a document in the same way.
    pub(super) fn tell(&self, document: &Value, text: impl FnOnce(&Value) -> String) -> Exit {
        self.print(Ok(document.clone()), text)
    }

    /// Whether a daemon answers at the socket now. Says nothing when not.
    pub(super) fn answers(&self) -> bool {
        !matches!(self.ask("/livez", None), Err(Unasked::Fault(_, Fault::Absent)))
    }

    fn print(&self, got: Result<Value, Exit>, text: impl FnOnce(&Value) -> String) -> Exit {
        match got {
            Ok(value) if self.json => answer(&format!("{value:#}\n")),
            Ok(value) => answer(&text(&value)),
            Err(exit) => exit,
        }
    }

    /// Asks for a path that both the socket and the ops plane have: the socket when it is there, else
    /// the ops plane. What went wrong is said already when this fails.
    pub(super) fn get(&self, path: &str) -> Result<Value, Exit> {
        match self.ops {
            Some(address) => get_from(address, path),
            None => match self.ask(path, None) {
                // Not named: perhaps a daemon without a state directory, or somebody else's.
                Err(Unasked::Nowhere | Unasked::Fault(_, Fault::Absent | Fault::NotYours))
                    if self.socket.is_none() =>
                {
                    get_from(self.ops_listen()?, path)
                }
                got => judged(got),
            },
        }
    }

    /// Asks for a path that only the socket has.
    pub(super) fn get_control(&self, path: &str) -> Result<Value, Exit> {
        self.no_ops()?;
        judged(self.ask(path, None))
    }

    /// Gives an order over the socket. What went wrong is said already when this fails.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Exit> {
        self.no_ops()?;
        judged(self.ask(path, Some(&body.to_string())))
    }

    /// Asks for a path that only the socket has; none when no daemon answers there, which is for the
    /// caller to do without.
    pub(super) fn try_get(&self, path: &str) -> Result<Option<Value>, Exit> {
        self.attempt(path, None)
    }

    /// The same for an order.
    pub(super) fn try_post(&self, path: &str, body: &Value) -> Result<Option<Value>, Exit> {
        self.attempt(path, Some(&body.to_string()))
    }

    fn attempt(&self, path: &str, body: Option<&str>) -> Result<Option<Value>, Exit> {
        self.no_ops()?;
        match self.ask(path, body) {
            Err(Unasked::Nowhere | Unasked::Fault(_, Fault::Absent)) if self.socket.is_none() => {
                Ok(None)
            }
            got => judged(got).map(Some),
        }
    }

    /// The configuration file that was named.
    pub(super) fn config_path(&self) -> Option<PathBuf> {
        self.config.clone()
    }

    /// What a refusal means to a script.
    pub(super) fn exit_of(status: u16) -> Exit {
        exit_of(status)
    }

    /// Follows a stream of the socket, line by line, until `on` says no or the daemon ends.
    pub(super) fn follow(&self, path: &str, on: &mut dyn FnMut(&[u8]) -> bool) -> Exit {
        if let Err(exit) = self.no_ops() {
            return exit;
        }
        let followed = self.socket().and_then(|socket| match client::follow(&socket, path, on) {
            Ok(None) => Ok(None),
            Ok(Some(got)) => Ok(Some((socket, got))),
            Err(fault) => Err(Unasked::Fault(socket, fault)),
        });
        let judged = match followed {
            Ok(None) => return Exit::Success,
            Ok(Some(got)) => judged(Ok(got)),
            Err(unasked) => judged(Err(unasked)),
        };
        judged.err().unwrap_or(Exit::Success)
    }

    /// The socket: the one that is named, else the first one that is there, else the likeliest.
    fn socket(&self) -> Result<PathBuf, Unasked> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let dirs = config::state_dirs(self.config.clone()).map_err(|faults| {
            remark(&faults.to_string());
            Unasked::Said(Exit::Config)
        })?;
        let sockets: Vec<PathBuf> = dirs.iter().map(|dir| socket_in(dir)).collect();
        // One in a folder that we may not enter is there too, and somebody else's.
        let there = sockets.iter().find(|socket| match std::fs::symlink_metadata(socket) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
        });
        there.or(sockets.first()).cloned().ok_or(Unasked::Nowhere)
    }

    fn ask(&self, path: &str, body: Option<&str>) -> Result<(PathBuf, client::Answer), Unasked> {
        let socket = self.socket()?;
        let timeout = if body.is_some() { ORDER_TIMEOUT } else { ANSWER_TIMEOUT };
        match client::ask(&socket, path, body.map(str::as_bytes), clock::now() + timeout) {
            Ok(got) => Ok((socket, got)),
            Err(fault) => Err(Unasked::Fault(socket, fault)),
        }
    }

    fn ops_listen(&self) -> Result<SocketAddr, Exit> {
        config::ops_listen(self.config.clone()).map_err(|faults| {
            remark(&faults.to_string());
            Exit::Config
        })
    }

    fn no_ops(&self) -> Result<(), Exit> {
        if self.ops.is_none() {
            return Ok(());
        }
        remark("tidegate: this goes over the control socket only; leave --ops out");
        Err(Exit::Usage)
    }
}

/// Why the socket gave no answer.
enum Unasked {
    /// Something before that, which is said already.
    Said(Exit),
    /// No state directory is known.
    Nowhere,
    /// The socket itself.
    Fault(PathBuf, Fault),
}

/// What an answer of the socket means.
fn judged(got: Result<(PathBuf, client::Answer), Unasked>) -> Result<Value, Exit> {
    let (socket, got) = got.map_err(|unasked| match unasked {
        Unasked::Said(exit) => exit,
        Unasked::Nowhere => {
            remark("tidegate: no state directory is known; name the socket with --socket");
            Exit::Unavailable
        }
        Unasked::Fault(socket, fault) => failed(&socket, &fault),
    })?;
    let value = serde_json::from_slice::<Value>(&got.body);
    let at = socket.display();
    match (got.status, value) {
        (200, Ok(value)) => Ok(value),
        (status, Ok(value)) if value["detail"].is_string() => {
            let detail = value["detail"].as_str().unwrap_or_default();
            remark(&format!("tidegate: refused: {detail}"));
            Err(exit_of(status))
        }
        (status, _) => {
            remark(&format!("tidegate: what listens at {at} answered {status}; is it tidegate?"));
            Err(Exit::Failure)
        }
    }
}

/// What a refusal means to a script.
fn exit_of(status: u16) -> Exit {
    match status {
        403 => Exit::NotYours,
        409 | 412 | 429 | 503 | 504 => Exit::TryAgain,
        400..=499 => Exit::Refused,
        _ => Exit::Failure,
    }
}

fn failed(socket: &std::path::Path, fault: &Fault) -> Exit {
    let at = socket.display();
    let (what, exit) = match fault {
        Fault::Absent => (
            "no daemon answers there; start it with tidegate run, or name its configuration with \
             --config or its socket with --socket"
                .to_owned(),
            Exit::Unavailable,
        ),
        Fault::NotYours => (
            "the daemon belongs to another user; run this as that user or as root".to_owned(),
            Exit::NotYours,
        ),
        Fault::Late => ("the daemon did not answer in time".to_owned(), Exit::TryAgain),
        Fault::Broken(_) => (fault.to_string(), Exit::Failure),
    };
    remark(&format!("tidegate: {at}: {what}"));
    exit
}

/// Asks an ops plane.
fn get_from(address: SocketAddr, path: &str) -> Result<Value, Exit> {
    let address = reachable(address);
    let failed = |exit, what: String| {
        remark(&format!("tidegate: {what}"));
        exit
    };
    let registry = Registry::default();
    let client = Client::new(site(address), Arc::new(Resolver::system(&registry)));
    let got =
        client.get(path, clock::now() + ANSWER_TIMEOUT).map_err(|error| match error.kind() {
            Kind::UpstreamConnect => failed(
                Exit::Unavailable,
                format!(
                    "nothing answers at {address}; start the daemon with tidegate run, or name its \
                     configuration with --config"
                ),
            ),
            _ => failed(Exit::Failure, format!("no answer from the daemon at {address}: {error}")),
        })?;
    let value = serde_json::from_slice::<Value>(&got.body);
    match (got.status, value) {
        (200, Ok(value)) => Ok(value),
        (status, Ok(value)) if value["detail"].is_string() => {
            let detail = value["detail"].as_str().unwrap_or_default();
            let what = format!("the daemon at {address} answered {status}: {detail}");
            Err(failed(exit_of(status), what))
        }
        (status, _) => Err(failed(
            Exit::Failure,
            format!(
                "what listens at {address} answered {status} to {path}; is it tidegate's ops plane?"
            ),
        )),
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
            assert_eq!(Ask { ops, ..Ask::default() }.get("/x"), expected);
        };
        check(|_| Act::Json(200, "{\"a\":1}".into()), Ok(serde_json::json!({"a": 1})));
        check(|_| Act::Json(404, "{\"detail\":\"no\"}".into()), Err(Exit::Refused));
        check(|_| Act::Json(503, "{\"detail\":\"no\"}".into()), Err(Exit::TryAgain));
        check(|_| Act::Json(200, "<html>".into()), Err(Exit::Failure));
        check(|_| Act::Raw(b"nonsense".to_vec()), Err(Exit::Failure));
    }
}
