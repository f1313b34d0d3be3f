//! `[[check]]` and `[recovery]`: what is looked at, and what is tried when something is wrong.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::unit::Span;

/// Most words of a command, and most statuses that are good.
const WORDS_MAX: usize = 64;

/// How something is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawCheckKind {
    /// A `GET` of `url`.
    #[default]
    Http,
    /// A connection to `address`, closed at once.
    Tcp,
    /// A program, `command`, which ends with 0 when all is well.
    Command,
    /// A look at the gateway itself, `probe`.
    Internal,
}

/// A look at the gateway itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawProbe {
    /// The data plane answers a request that comes through its port.
    DataPlane,
    /// At least one upstream beside `echo` is not given up by its breakers.
    Upstreams,
}

/// What it means that a check fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawAffects {
    /// The gateway is not ready: `/readyz` says 503.
    Readiness,
    /// The gateway is degraded, and ready.
    #[default]
    Degraded,
    /// It is shown.
    None,
}

/// `[[check]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "kind"]))]
pub struct RawCheck {
    /// Its name, shown as `check:NAME`: letters, digits, `-`, `_` and `.`.
    #[schemars(length(min = 1, max = 64), extend("x-example" = "search"))]
    pub name: String,

    /// How it looks.
    #[schemars(extend("x-example" = "http"))]
    pub kind: RawCheckKind,

    /// What a check of kind `http` asks for. Redirects are not followed.
    #[schemars(length(min = 1, max = 2048), extend("x-example" = "http://127.0.0.1:8080/healthz"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// Where a check of kind `tcp` connects to, as `host:port`.
    #[schemars(length(min = 1, max = 512), extend("x-example" = "127.0.0.1:5432"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,

    /// What a check of kind `command` runs: a program by its absolute path, and its arguments. There is no
    /// shell. It gets no environment but `PATH`, `LANG` and `TIDEGATE_CHECK`, its check's name; at the
    /// timeout it is killed with all processes of its group.
    #[schemars(length(max = WORDS_MAX), extend("x-example" = ["/usr/bin/test", "-d", "/srv/models"]))]
    pub command: Vec<String>,

    /// What a check of kind `internal` looks at.
    #[schemars(extend("x-example" = "data_plane"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<RawProbe>,

    /// The statuses that are good, for kind `http`; without any, 200 to 299.
    #[schemars(length(max = WORDS_MAX), inner(range(min = 100, max = 599)))]
    pub status: Vec<u16>,

    /// A text that the answer's body must hold, for kind `http`.
    #[schemars(length(min = 1, max = 256), extend("x-example" = "ok"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,

    /// From one run to the next, give or take a tenth.
    #[schemars(extend("x-min" = "1s", "x-max" = "1h"))]
    pub interval: Span,

    /// How long a run may take.
    #[schemars(extend("x-min" = "100ms", "x-max" = "60s", "x-at-limit" = "the run has failed"))]
    pub timeout: Span,

    /// Runs in a row that must go well before it is good again.
    #[schemars(range(min = 1, max = 100))]
    pub rise: u32,

    /// Runs in a row that must fail before it is bad.
    #[schemars(range(min = 1, max = 100))]
    pub fall: u32,

    /// What it means that it is bad.
    pub affects: RawAffects,
}

impl Default for RawCheck {
    fn default() -> Self {
        RawCheck {
            name: String::new(),
            kind: RawCheckKind::default(),
            url: None,
            address: None,
            command: Vec::new(),
            probe: None,
            status: Vec::new(),
            contains: None,
            interval: Span::seconds(10),
            timeout: Span::seconds(2),
            rise: 2,
            fall: 3,
            affects: RawAffects::default(),
        }
    }
}

/// `[recovery]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRecovery {
    /// Whether anything is tried at all. Stalls and checks are told of in any case.
    pub enabled: bool,

    /// How long something must have been wrong before the first step.
    #[schemars(extend("x-min" = "1s", "x-max" = "10m"))]
    pub after: Span,

    /// How long a step has to help before the next one.
    #[schemars(extend("x-min" = "1s", "x-max" = "10m"))]
    pub settle: Span,

    /// Steps within an hour.
    #[schemars(range(min = 1, max = 60), extend("x-at-limit" = "the operator is called instead"))]
    pub attempts_max: usize,

    /// How long all must have been well before the first step is the first one tried again.
    #[schemars(extend("x-min" = "1s", "x-max" = "24h"))]
    pub calm: Span,

    /// Whether the last step before the operator may be to drain and end with code 70, for whoever
    /// supervises the gateway to start it again. Never within ten minutes of its start.
    pub restart: bool,
}

impl Default for RawRecovery {
    fn default() -> Self {
        RawRecovery {
            enabled: true,
            after: Span::seconds(30),
            settle: Span::seconds(30),
            attempts_max: 6,
            calm: Span::seconds(600),
            restart: false,
        }
    }
}
