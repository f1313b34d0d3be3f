//! Questions about models, and their answers.

use std::sync::Arc;
use std::time::Duration;

use super::parse::{List, Ps, Show};
use crate::base::error::{Causes, Error, Kind};

/// How long a list is fresh.
pub const LIST_FRESH_FOR: Duration = Duration::from_secs(30);
/// How long an answer of `/api/ps` is fresh: it is about what happens now.
pub const PS_FRESH_FOR: Duration = Duration::from_secs(5);
/// How long an old answer of `/api/ps` is shown. After it nothing is known: what an upstream that is
/// away had loaded says nothing.
pub const PS_STALE_FOR: Duration = Duration::from_secs(30);
/// How long a description is fresh.
pub const SHOW_FRESH_FOR: Duration = Duration::from_secs(300);
/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// The list of models.
    List,
    /// What is in memory.
    Ps,
    /// The description of a model.
    Show {
        /// The model as the upstream knows it.
        model: Arc<str>,
        /// With its vocabulary and all tensors.
        verbose: bool,
    },
}

impl What {
    /// The word in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            What::List => "list",
            What::Ps => "ps",
            What::Show { .. } => "show",
        }
    }

    /// How long an answer is fresh.
    pub(super) fn fresh_for(&self) -> Duration {
        match self {
            What::List => LIST_FRESH_FOR,
            What::Ps => PS_FRESH_FOR,
            What::Show { .. } => SHOW_FRESH_FOR,
        }
    }

    /// How long an old answer is shown; `None`: for as long as there is no newer one.
    pub(super) fn stale_for(&self) -> Option<Duration> {
        matches!(self, What::Ps).then_some(PS_STALE_FOR)
    }
}

/// Who is asked what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// What is asked.
    pub what: What,
}

/// An answer.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in What")]
pub enum Known {
    List(Arc<List>),
    Ps(Arc<Ps>),
    Show(Arc<Show>),
}

/// Why there is no answer: an error that many callers can get.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Kind,
    text: Arc<str>,
    /// The text with its causes, for the log.
    causes: Arc<str>,
}

impl Fault {
    /// From the error of one question.
    pub fn of(error: &Error) -> Self {
        let causes = Causes(error).to_string().into();
        Fault { kind: error.kind(), text: error.context().into(), causes }
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What went wrong, with its causes.
    pub fn causes(&self) -> &str {
        &self.causes
    }

    /// As an error, for clients.
    pub fn error(&self) -> Error {
        Error::new(self.kind, self.text.to_string())
    }

    /// Whether the upstream is away, whatever it is asked.
    pub(super) fn away(&self) -> bool {
        matches!(self.kind, Kind::UpstreamConnect | Kind::UpstreamTimeout(_))
    }
}

/// The end of a question.
pub type Outcome = Result<Known, Fault>;
