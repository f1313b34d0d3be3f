//! What is noted of one request while it runs, and told once when it ends: an access line and the
//! counters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Class, Error, Kind};
use crate::base::id::RequestId;
use crate::config::settings::Target;
use crate::llm::Usage;
use crate::llm::usage::{self as book, Charge, Entry, Maker};
use crate::net::http::{Head, Headers, Method, Request};
use crate::observe::access::{AccessLine, FailedAttempt, Outcome, Tokens};
use crate::upstream::link::Link;

use super::cached::Origin;
use super::gen_ai::{Call, Operation};
use super::metrics::Metrics;
use super::rates::Bill;
use super::routes::{self, Found};
use super::usage::Accounts;

/// What will be entered into the accounts.
struct Account {
    accounts: Arc<Accounts>,
    session: Option<Arc<str>>,
    charge: Option<Charge>,
    /// By upstreams that did not answer.
    spent: Vec<(Maker, Charge)>,
    replayed: bool,
}

/// What is noted of one request.
pub struct Record {
    id: RequestId,
    key: Option<Arc<str>>,
    peer: SocketAddr,
    method: Method,
    path: Box<str>,
    route: &'static str,
    started: Instant,
    bytes_in: u64,
    model: Option<Box<str>>,
    /// Of a model call.
    operation: Option<Operation>,
    stream: bool,
    /// Bounded by the chain's length.
    failed: Vec<(Box<str>, &'static str)>,
    answered_by: Option<Maker>,
    first_token: Option<Duration>,
    waited: Option<Duration>,
    tokens: Option<Tokens>,
    bill: Option<Bill>,
    account: Option<Account>,
    cached: Option<Origin>,
    code: &'static str,
    outcome: Outcome,
    metrics: Arc<Metrics>,
    done: bool,
}

impl Record {
    /// Of a request that is not whole; without a head, of one that is no HTTP.
    pub fn of_head(
        head: Option<&Head>,
        peer: SocketAddr,
        id: &RequestId,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (method, path, route) = match head {
            None => (Method::Other, "", "none"),
            Some(head) => match routes::find(head.method, head.path()) {
                Found::Row(row) => (head.method, head.path(), routes::pattern(row)),
                Found::OtherMethods(_) | Found::Nothing => (head.method, head.path(), "other"),
            },
        };
        Record {
            id: id.clone(),
            key: None,
            peer,
            method,
            path: path.into(),
            route,
            started: clock::now(),
            bytes_in: 0,
            model: None,
            operation: None,
            stream: false,
            failed: Vec::new(),
            answered_by: None,
            first_token: None,
            waited: None,
            tokens: None,
            bill: None,
            account: None,
            cached: None,
            code: "ok",
            outcome: Outcome::Ok,
            metrics: Arc::clone(metrics),
            done: false,
        }
    }

    /// Of a whole request.
    pub fn of_request(request: &Request, metrics: &Arc<Metrics>) -> Self {
        let mut record = Record::of_head(Some(&request.head), request.peer, &request.id, metrics);
        if request.head.method == Method::Options {
            record.route = "options";
        }
        record.started = request.started;
        record.key.clone_from(&request.key);
        record.bytes_in = request.body.len() as u64;
        record
    }

    /// With the key that was shown.
    #[must_use]
    pub fn of_key(mut self, key: Option<Arc<str>>) -> Self {
        self.key = key;
        self
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The model that was asked for, and whether a stream was.
    pub fn asked(&mut self, model: &str, stream: bool) {
        self.model = Some(model.into());
        self.operation = Some(Operation::of(self.route));
        self.stream = stream;
    }

    /// An attempt failed. The access line has its code; why is told beside it, where the words are
    /// all ours. An upstream's own may repeat what was asked, and stay out of the log above `debug`.
    pub fn attempt_failed(&mut self, upstream: &str, error: &Error) {
        let row = error.row();
        self.failed.push((upstream.into(), row.code));
        let level = match error.kind() {
            Kind::UpstreamConnect | Kind::UpstreamTimeout(_) | Kind::UpstreamCut => row.level,
            _ => log::Level::Debug,
        };
        crate::log_limited!(
            level, "attempt_failed", id = self.id.as_str(), upstream, code = row.code, error:% = error
        );
    }

    /// A link of the chain was not tried.
    pub fn skipped(&mut self, upstream: &str, why: &'static str) {
        self.failed.push((upstream.into(), why));
    }

    /// It waited as data: for room, or for a moment.
    pub fn waited(&mut self, time: Duration) {
        *self.waited.get_or_insert_default() += time;
    }

    /// This upstream and model is what the client hears.
    pub fn answered_by(&mut self, upstream: &str, model: &str) {
        if !self.failed.is_empty() {
            self.metrics.fallbacks.inc();
        }
        self.answered_by = Some((upstream.into(), model.into()));
    }

    /// The first content was sent.
    pub fn first_token(&mut self) {
        let after = self.elapsed();
        self.first_token = Some(after);
        self.metrics.first_token(after);
    }

    /// An upstream will be asked: this request will stand in the accounts. One that is refused
    /// before that used nothing.
    pub fn account(&mut self, accounts: &Arc<Accounts>, headers: &Headers) {
        self.account = Some(Account {
            accounts: Arc::clone(accounts),
            session: accounts.session(headers),
            charge: None,
            spent: Vec::new(),
            replayed: false,
        });
    }

    /// Tokens that an upstream made, as it told them or by estimate. Once for each attempt.
    pub fn usage(&mut self, link: &Link, target: &Target, usage: Usage) {
        let Usage { input, output, cached, estimated } = usage;
        self.settle(input.saturating_add(output));
        self.tokens = Some(Tokens { input, output, estimated });
        link.counts.tokens(input, output, estimated);
        let cost = target.rates.map(|rates| rates.cost(input, output, cached));
        if input > 0 || output > 0 {
            link.counts.cost(cost);
        }
        let Some(account) = &mut self.account else { return };
        let charge = Charge { usage, cost };
        let (upstream, model) = (link.settings.name.as_str(), target.model.as_str());
        let answers = |(by, known): &Maker| **by == *upstream && **known == *model;
        if account.charge.is_none() && self.answered_by.as_ref().is_some_and(answers) {
            account.charge = Some(charge);
        } else {
            account.spent.push(((upstream.into(), model.into()), charge));
        }
    }

    /// Tokens were charged by estimate; they are settled with the end of the request.
    pub fn charged(&mut self, bill: Option<Bill>) {
        self.bill = bill;
    }

    /// An upstream is asked: unless it says otherwise, or fails, it reads the prompt.
    pub fn asking(&mut self, prompt_tokens: u64) {
        self.settle(prompt_tokens);
    }

    fn settle(&mut self, tokens: u64) {
        if let Some(bill) = &mut self.bill {
            bill.used(tokens);
        }
    }

    /// Where the answer comes from, for a request in which the cache has a part.
    pub fn cached(&mut self, origin: Origin) {
        self.cached = Some(origin);
    }

    /// It is answered with what was made for another request: its tokens, if they are known, were
    /// paid for already.
    pub fn replayed(&mut self, origin: Origin, usage: Option<Usage>) {
        self.cached = Some(origin);
        if self.tokens.is_none() {
            self.settle(0);
        }
        if let Some(Usage { input, output, estimated, .. }) = usage {
            self.tokens = Some(Tokens { input, output, estimated });
        }
        if let Some(account) = &mut self.account {
            account.replayed = true;
        }
    }

    /// The request failed with this error.
    pub fn failed(&mut self, error: &Error) {
        let row = error.row();
        // A client that leaves has used the prompt that it sent.
        if self.tokens.is_none() && !matches!(error.kind(), Kind::ClientGone | Kind::ClientStalled)
        {
            self.settle(0);
        }
        self.code = row.code;
        self.outcome = match (error.kind(), row.class) {
            (Kind::ClientGone | Kind::ClientStalled, _) => Outcome::ClientGone,
            (Kind::RateLimited, _) | (_, Class::Validation | Class::Auth | Class::Overload) => {
                Outcome::Refused(row.code)
            }
            _ => Outcome::Error(row.code),
        };
        if row.level <= log::Level::Error {
            crate::log_limited!(
                log::Level::Error,
                "request_failed",
                id = self.id.as_str(),
                code = row.code,
                error = error.context()
            );
        }
    }

    /// Time since the request's first byte.
    pub fn elapsed(&self) -> Duration {
        clock::now().saturating_duration_since(self.started)
    }

    /// The request ended.
    pub fn finish(&mut self, status: u16, bytes_out: u64) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.bill = None;
        let total = self.elapsed();
        self.metrics.request(self.route, status, self.code, total);
        self.measure(total);
        let failed: Vec<_> =
            self.failed.iter().map(|(upstream, code)| FailedAttempt { upstream, code }).collect();
        let line = AccessLine {
            id: &self.id,
            key: self.key.as_deref(),
            peer: self.peer,
            method: self.method,
            path: &self.path,
            status,
            model: self.model.as_deref(),
            answered_by: self.answered_by.as_ref().map(|(upstream, model)| (&**upstream, &**model)),
            failed: &failed,
            first_token: self.first_token,
            waited: self.waited,
            total,
            bytes_in: self.bytes_in,
            bytes_out,
            outcome: self.outcome,
            stream: self.stream,
            tokens: self.tokens,
            cache: self.cached.map(Origin::as_str),
        };
        line.log();
        if let Some(account) = self.account.take() {
            self.enter(account);
        }
    }

    /// Counts a model call. What was answered for another request says nothing of the upstream, and
    /// what was refused before one was asked nothing of any.
    fn measure(&self, took: Duration) {
        let made = self.cached.is_none_or(|origin| origin == Origin::Miss);
        let Some(operation) = self.operation.filter(|_| made) else { return };
        let answered = self.answered_by.as_ref().map(|(by, model)| (&**by, Some(&**model)));
        let last = self.failed.last().map(|(upstream, _)| (&**upstream, None));
        let Some((upstream, model)) = answered.or(last) else { return };
        let tokens = self.tokens.filter(|tokens| !tokens.estimated);
        self.metrics.calls.count(&Call {
            operation,
            upstream,
            model,
            took,
            first_token: self.first_token,
            tokens: tokens.map(|tokens| (tokens.input, tokens.output)),
            stream: self.stream,
            error: (self.code != "ok").then_some(self.code),
        });
    }

    /// Enters the request. Nothing else needs its names any more.
    fn enter(&mut self, account: Account) {
        let outcome = match self.outcome {
            Outcome::Ok => book::Outcome::Answered,
            Outcome::ClientGone => book::Outcome::Cancelled,
            Outcome::Error(_) if self.answered_by.is_some() => book::Outcome::Cut,
            Outcome::Error(_) | Outcome::Refused(_) => book::Outcome::Failed,
        };
        account.accounts.enter(Entry {
            at: clock::unix().as_secs(),
            key: self.key.take(),
            session: account.session,
            asked: self.model.take().unwrap_or_default(),
            answered: self.answered_by.take(),
            charge: account.charge,
            spent: account.spent,
            outcome,
            replayed: account.replayed,
        });
    }
}

impl Drop for Record {
    /// A request that ended by a panic is told too.
    fn drop(&mut self) {
        if !self.done {
            self.failed(&Error::new(Kind::Internal, "a bug in the gateway ended this request"));
            self.finish(500, 0);
        }
    }
}
