//! `[[check]]` and `[recovery]`, from what people write to what the program holds.

use std::path::Path;
use std::time::Duration;

use crate::base::health::Affects;

use super::build::{plain_name, unique};
use super::fault::shown;
use super::raw::{Raw, RawAffects, RawCheck, RawCheckKind, RawProbe};
use super::report::{Report, join};
use super::settings::BaseUrl;
use super::url;

/// `[[check]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckSpec {
    /// Its name.
    pub name: String,
    /// What is looked at.
    pub what: What,
    /// From one run to the next.
    pub interval: Duration,
    /// How long a run may take, at most [`CheckSpec::interval`] three times over.
    pub timeout: Duration,
    /// Runs in a row that make it good again.
    pub rise: u32,
    /// Runs in a row that make it bad.
    pub fall: u32,
    /// What it means when it is bad.
    pub affects: Affects,
}

/// What a check looks at.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// An answer over HTTP.
    Http {
        /// Where, without the path.
        site: BaseUrl,
        /// Path and query.
        target: String,
        /// The statuses that are good; none: 200 to 299.
        status: Vec<u16>,
        /// A text that the body must hold.
        contains: Option<String>,
    },
    /// A connection.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A program by its absolute path, and its arguments.
    Command(Vec<String>),
    /// The gateway itself.
    Internal(Probe),
}

/// A look at the gateway itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The data plane answers through its port.
    DataPlane,
    /// Not every upstream is given up.
    Upstreams,
}

/// `[recovery]`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is documented where people write it: config/raw/health.rs")]
pub struct Recovery {
    pub enabled: bool,
    pub after: Duration,
    pub settle: Duration,
    pub attempts_max: usize,
    pub calm: Duration,
    pub restart: bool,
}

/// `[recovery]` of a file.
pub(super) fn recovery(raw: &Raw) -> Recovery {
    let r = &raw.recovery;
    Recovery {
        enabled: r.enabled,
        after: r.after.0,
        settle: r.settle.0,
        attempts_max: r.attempts_max,
        calm: r.calm.0,
        restart: r.restart,
    }
}

/// Every `[[check]]` of a file.
pub(super) fn checks(raw: &Raw, report: &mut Report) -> Vec<CheckSpec> {
    unique("check", "name", raw.check.iter().map(|check| check.name.as_str()), report);
    let check = |(index, raw): (usize, &RawCheck)| {
        let place = format!("check.{index}");
        plain_name(&raw.name, &join(&place, "name"), report);
        fits(raw, &place, report);
        if raw.timeout.0 > raw.interval.0 * 3 {
            let text =
                format!("{} is more than three times interval ({})", raw.timeout, raw.interval);
            let remedy =
                "a check that is not renewed for three intervals counts as failed: lower it";
            report.fault(&join(&place, "timeout"), text, remedy);
        }
        Some(CheckSpec {
            name: raw.name.clone(),
            what: what(raw, &place, report)?,
            interval: raw.interval.0,
            timeout: raw.timeout.0,
            rise: raw.rise,
            fall: raw.fall,
            affects: match raw.affects {
                RawAffects::Readiness => Affects::Readiness,
                RawAffects::Degraded => Affects::Degraded,
                RawAffects::None => Affects::Nothing,
            },
        })
    };
    raw.check.iter().enumerate().filter_map(check).collect()
}

/// A setting that would silently do nothing for this kind is refused.
fn fits(raw: &RawCheck, place: &str, report: &mut Report) {
    let of = [
        ("url", RawCheckKind::Http, raw.url.is_some()),
        ("status", RawCheckKind::Http, !raw.status.is_empty()),
        ("contains", RawCheckKind::Http, raw.contains.is_some()),
        ("address", RawCheckKind::Tcp, raw.address.is_some()),
        ("command", RawCheckKind::Command, !raw.command.is_empty()),
        ("probe", RawCheckKind::Internal, raw.probe.is_some()),
    ];
    for (key, kind, written) in of {
        if written && kind != raw.kind {
            let text = format!("has no meaning for kind = \"{}\"", word(raw.kind));
            let remedy = format!("take it out; it is for kind = \"{}\" only", word(kind));
            report.fault(&join(place, key), text, remedy);
        }
    }
}

fn word(kind: RawCheckKind) -> &'static str {
    match kind {
        RawCheckKind::Http => "http",
        RawCheckKind::Tcp => "tcp",
        RawCheckKind::Command => "command",
        RawCheckKind::Internal => "internal",
    }
}

fn what(raw: &RawCheck, place: &str, report: &mut Report) -> Option<What> {
    let mut missing = |key: &str, remedy: &str| {
        report.fault(&join(place, key), "is missing", remedy);
        None
    };
    match raw.kind {
        RawCheckKind::Http => {
            let Some(text) = &raw.url else {
                return missing("url", "write url = \"http://127.0.0.1:8080/healthz\" or the like");
            };
            let (url, query) = text.split_once('?').unwrap_or((text, ""));
            let mut site = match BaseUrl::parse(url) {
                Ok(site) if query.bytes().all(|b| b.is_ascii_graphic() && b != b'#') => site,
                Ok(_) => {
                    let remedy = "write it percent-encoded";
                    report.fault(&join(place, "url"), "has a query with other characters", remedy);
                    return None;
                }
                Err((why, remedy)) => {
                    report.fault(&join(place, "url"), why, remedy);
                    return None;
                }
            };
            // Without what `BaseUrl` does to a slash at the end.
            let path =
                url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
            let mut target = path.unwrap_or("/").to_owned();
            if text.contains('?') {
                target.push('?');
                target.push_str(query);
            }
            site.path.clear();
            let (status, contains) = (raw.status.clone(), raw.contains.clone());
            Some(What::Http { site, target, status, contains })
        }
        RawCheckKind::Tcp => {
            let Some(text) = &raw.address else {
                return missing("address", "write address = \"127.0.0.1:5432\" or the like");
            };
            match url::host_and_port(text) {
                Ok((host, Some(port))) => Some(What::Tcp { host, port }),
                Ok((_, None)) => {
                    let remedy = "write host:port";
                    report.fault(&join(place, "address"), "has no port", remedy);
                    None
                }
                Err((why, remedy)) => {
                    report.fault(&join(place, "address"), why, remedy);
                    None
                }
            }
        }
        RawCheckKind::Command => {
            let Some(program) = raw.command.first() else {
                return missing("command", "write command = [\"/path/of/program\", \"argument\"]");
            };
            if !Path::new(program).is_absolute() {
                let text = format!("{} is no absolute path", shown(program));
                report.fault(
                    &join(place, "command"),
                    text,
                    "write the program with its whole path",
                );
            }
            Some(What::Command(raw.command.clone()))
        }
        RawCheckKind::Internal => match raw.probe {
            Some(RawProbe::DataPlane) => Some(What::Internal(Probe::DataPlane)),
            Some(RawProbe::Upstreams) => Some(What::Internal(Probe::Upstreams)),
            None => missing("probe", "write probe = \"data_plane\" or \"upstreams\""),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn faults(text: &str) -> String {
        parse(text, None, &|_| None).map(|_| String::new()).unwrap_or_else(|f| f.to_string())
    }

    #[test]
    fn each_kind_of_check_is_taken_with_what_it_needs() {
        let text = "[[check]]\nname = \"a\"\nkind = \"http\"\nurl = \"https://[::1]/x/?q=1\"\nstatus = [204]\n\
                    [[check]]\nname = \"b\"\nkind = \"tcp\"\naddress = \"[::1]:5\"\naffects = \"readiness\"\n\
                    [[check]]\nname = \"c\"\nkind = \"command\"\ncommand = [\"/bin/true\"]\naffects = \"none\"\n\
                    [[check]]\nname = \"d\"\nkind = \"internal\"\nprobe = \"data_plane\"\n\
                    [recovery]\nrestart = true\nattempts_max = 3\n";
        let config = parse(text, None, &|_| None).unwrap().config;
        let [a, b, c, d] = &config.checks[..] else { panic!("four") };
        let What::Http { site, target, status, contains } = &a.what else { panic!("{a:?}") };
        assert_eq!((&*site.host, site.port, &**target), ("::1", 443, "/x/?q=1"));
        assert_eq!((&status[..], contains), (&[204][..], &None));
        assert_eq!((a.rise, a.fall, a.affects), (2, 3, Affects::Degraded));
        assert_eq!(b.what, What::Tcp { host: "::1".into(), port: 5 });
        assert_eq!((b.affects, c.affects), (Affects::Readiness, Affects::Nothing));
        assert_eq!(d.what, What::Internal(Probe::DataPlane));
        assert!(config.recovery.restart && config.recovery.enabled);
        assert_eq!(config.recovery.attempts_max, 3);
    }

    #[test]
    fn what_a_check_lacks_or_cannot_use_is_told_with_its_remedy() {
        let check = |lines: &str, expected: &str| {
            let told = faults(&format!("[[check]]\nname = \"a\"\n{lines}\n"));
            assert!(told.contains(expected), "{lines}: {told}");
        };
        check("kind = \"http\"", "check[a].url");
        check("kind = \"tcp\"", "check[a].address");
        check("kind = \"tcp\"\naddress = \"localhost\"", "has no port");
        check("kind = \"command\"", "check[a].command");
        check("kind = \"command\"\ncommand = [\"true\"]", "is no absolute path");
        check("kind = \"internal\"", "check[a].probe");
        check("kind = \"http\"\nurl = \"ftp://x\"", "unknown scheme");
        check("kind = \"tcp\"\naddress = \"x:1\"\nstatus = [200]", "for kind = \"http\" only");
        check(
            "kind = \"tcp\"\naddress = \"x:1\"\ntimeout = \"10s\"\ninterval = \"2s\"",
            "three times",
        );
        check("kind = \"tcp\"\naddress = \"x:1\"\nfall = 0", "check[a].fall");
        check("kind = \"http\"\nurl = \"http://x\"\nstatus = [99]", "check[a].status");
        let twice = "[[check]]\nname = \"a\"\nkind = \"tcp\"\naddress = \"x:1\"\n".repeat(2);
        assert!(faults(&twice).contains("stands already"), "{}", faults(&twice));
    }
}
