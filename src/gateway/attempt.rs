//! One attempt: one upstream asked once, and what came of it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Error, Kind, Phase, Result, Retry};
use crate::config::settings::{Target, UpstreamKind};
use crate::llm::echo::Echo;
use crate::llm::{self, Ask, Dialect, Fault, Kept, Reply, Stream, Usage};
use crate::net::http::Method;
use crate::net::outbound::{self, Begin, Control, Outgoing, Watch};
use crate::net::turn::ClientStream;
use crate::upstream::breakers::Pass;
use crate::upstream::deadlines::{Deadlines, Timeouts};
use crate::upstream::link::Link;
use crate::upstream::rate::Charge;
use crate::upstream::verdict::{self, Verdict};

use super::cached::Part;
use super::flow::Parts;
use super::record::Record;
use super::source::{HeadSays, Source};

/// Most bytes of an error's body that are read for its message.
pub(super) const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// How long they are waited for: the status alone decides what comes next.
pub(super) const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// Events of one read are gathered up to this many bytes before they are sent.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// A stream that ends this soon after its first content ends on its worker, which then stays with
/// the connection; any other flows on without a thread.
const HERE_MAX: Duration = Duration::from_millis(1);

/// After the terminator: how long to wait for the end of the message, so that the connection can
/// be used again. The client has its answer already.
const TAIL_TIMEOUT: Duration = Duration::from_millis(50);

/// How an attempt ended.
pub enum End {
    /// The whole answer went to the client as a stream; the connection may go on or not.
    Streamed {
        /// It may.
        keep_alive: bool,
    },
    /// The first content is out; the rest flows on without this thread.
    Flowing(Box<Parts>),
    /// The request for a whole answer is out; the rest is waited for without this thread.
    Asked(Box<Asked>),
    /// It cannot be asked here without blocking.
    Defer,
    /// The whole answer, for a client that wants it whole.
    Whole(Vec<u8>),
    /// Nothing was committed: the next link may answer.
    MoveOn(Error),
    /// Nothing was committed, and no link will do better.
    Final(Error),
    /// Content was sent already, so the stream ends with this error.
    Cut(Error),
}

/// What an attempt leaves behind that is waited for without its thread.
pub struct Asked {
    /// The upstream's answer, of which nothing was read.
    pub upstream: Box<outbound::Exchange>,
    /// The attempt's deadlines.
    pub deadlines: Deadlines,
}

/// Where an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a worker of an engine without pumps: all of it.
    Worker,
    /// On a worker, which is free again once a whole answer was asked for.
    Asking,
    /// On a pump, which must not block.
    Pump,
}

/// What an attempt works with.
pub struct Attempt<'a> {
    /// The client's request.
    pub ask: &'a Ask,
    /// The client's answer, over all attempts.
    pub reply: &'a mut Reply,
    /// Whom to ask.
    pub link: &'a Link,
    /// For which model.
    pub target: &'a Target,
    /// The request's end.
    pub request_deadline: Instant,
    /// Links of the chain that are left, this one among them.
    pub links_left: usize,
    /// Longest silence towards the client.
    pub early_head: Duration,
    /// Ends the attempt from elsewhere.
    pub control: &'a Arc<Control>,
    /// What was charged to the upstream's tokens a minute.
    pub charge: &'a mut Option<Charge>,
    /// The breakers' word for it.
    pub pass: &'a mut Option<Pass>,
    /// What is noted of the request.
    pub record: &'a mut Record,
    /// Further fields of the answer's head (CORS).
    pub fields: &'a [(&'static str, String)],
    /// When something was last sent to the client.
    pub last_sent: &'a mut Instant,
    /// What the cache is to have of it.
    pub cached: &'a mut Part,
    /// This is the first link of the chain.
    pub first: bool,
    /// Content was sent: nobody else answers any more.
    pub committed: bool,
    /// Where it is made.
    pub place: Place,
    /// Only a fresh connection will do.
    pub fresh: bool,
}

impl Attempt<'_> {
    /// Asks, and brings the answer to the client.
    pub fn run(mut self, client: &mut ClientStream<'_>) -> End {
        let now = clock::now();
        let settings = &self.link.settings;
        let timeouts = Timeouts {
            connect: settings.connect_timeout,
            first_token: settings.first_token_timeout,
            answer: settings.answer_timeout,
            idle: settings.idle_timeout,
            total: settings.total_timeout,
        };
        let deadlines = Deadlines::new(
            timeouts,
            self.ask.stream(),
            now,
            self.request_deadline,
            self.links_left,
        );
        let answer_is_data = !self.ask.stream() && settings.kind != UpstreamKind::Echo;
        if self.place == Place::Pump && !(answer_is_data && self.link.has_idle()) {
            return End::Defer;
        }
        if self.place != Place::Worker && answer_is_data {
            return self.only_ask(client, deadlines).unwrap_or_else(|end| end);
        }
        let (mut source, says) = match self.open(client, &deadlines) {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        if let Err(end) = self.judge(&mut source, says, client, &deadlines) {
            return end;
        }
        if self.ask.stream() && !says.json {
            self.stream(source, client, deadlines)
        } else {
            self.whole(&mut source, client, &deadlines)
        }
    }

    fn dialect(&self) -> Dialect {
        dialect(self.link, self.ask)
    }

    /// Sends the request and waits for the head. A pooled connection that turns out to be stale, or a
    /// fresh one that fails, is replaced once, within the retry budget.
    fn open(
        &mut self,
        client: &mut ClientStream<'_>,
        deadlines: &Deadlines,
    ) -> std::result::Result<(Source, HeadSays), End> {
        let settings = &self.link.settings;
        if settings.kind == UpstreamKind::Echo {
            let echo = Echo::at(self.ask, self.reply.id(), clock::wall());
            let source = Source::echo(echo, settings.word_delay, self.ask.stream(), self.control);
            return Ok((source, HeadSays::ok()));
        }
        let outgoing = self
            .ask
            .outgoing(self.dialect(), &self.target.model, settings.num_ctx)
            .map_err(End::MoveOn)?;
        self.link.count_request();
        let mut fresh = self.fresh;
        loop {
            let sent = self.send(client, deadlines, &outgoing, fresh).map(Source::Upstream);
            let error = match sent.map(|source| self.head(source, client, deadlines)) {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => {
                    self.left(&error);
                    error
                }
                Err(error) => error,
            };
            if fresh || !self.again(&error) {
                return Err(before_commit(error));
            }
            fresh = true;
        }
    }

    /// Whether the request may be sent once more on a fresh connection.
    fn again(&self, error: &Error) -> bool {
        // A probe costs its upstream one call and no more.
        let probe = self.pass.as_ref().is_some_and(Pass::is_probe);
        let unconnected = error.kind() == Kind::UpstreamConnect && !probe;
        let again = error.retry() == Retry::FreshConnection || unconnected;
        again && self.link.may_retry()
    }

    /// Sends the request, and leaves it there.
    fn only_ask(
        &mut self,
        client: &ClientStream<'_>,
        deadlines: Deadlines,
    ) -> std::result::Result<End, End> {
        let outgoing = self
            .ask
            .outgoing(self.dialect(), &self.target.model, self.link.settings.num_ctx)
            .map_err(End::MoveOn)?;
        // A pump counts what it sent; what one has sent before is the same request again.
        if self.place != Place::Pump && !self.fresh {
            self.link.count_request();
        }
        let mut fresh = self.fresh;
        let upstream = loop {
            let error = match self.send(client, &deadlines, &outgoing, fresh) {
                Ok(upstream) => break upstream,
                // Nothing was sent as a whole: a worker may send it all again.
                Err(_) if self.place == Place::Pump => return Err(End::Defer),
                Err(error) => error,
            };
            if fresh || !self.again(&error) {
                return Err(before_commit(error));
            }
            fresh = true;
        };
        if self.place == Place::Pump {
            self.link.count_request();
        }
        Ok(End::Asked(Box::new(Asked { upstream, deadlines })))
    }

    fn send(
        &mut self,
        client: &ClientStream<'_>,
        deadlines: &Deadlines,
        outgoing: &llm::Outgoing,
        fresh: bool,
    ) -> Result<Box<outbound::Exchange>> {
        let (Some(pool), Some(url)) = (&self.link.pool, &self.link.settings.url) else {
            return Err(Error::new(Kind::Internal, "an upstream without an address"));
        };
        let target = format!("{}{}", url.path, outgoing.path);
        let fields: [(&str, &[u8]); 3] = [
            ("content-type", b"application/json"),
            ("accept", b"*/*"),
            (
                "authorization",
                self.link.authorization.as_ref().map_or(b"", |a| a.expose().as_bytes()),
            ),
        ];
        let used = if self.link.authorization.is_some() { 3 } else { 2 };
        let request = Outgoing {
            method: Method::Post,
            target: &target,
            fields: &fields[..used],
            body: &outgoing.body,
        };
        let (connect, send) = (deadlines.connect(), deadlines.next());
        let mut until = Begin { client: Some(client.as_fd()), connect: connect.0, send: send.0 };
        if self.place == Place::Pump {
            // Any wait ends at once.
            let now = clock::now();
            until = Begin { client: None, connect: now, send: now };
        }
        let begun = if fresh {
            pool.begin_fresh(&request, &until, self.control)
        } else {
            pool.begin(&request, &until, self.control)
        };
        // Time that was the request's own ran out: that says less about the upstream.
        let own = |phase| matches!(phase, Phase::Attempt | Phase::Request);
        let exchange = begun.map_err(|error| {
            let ended = match error.kind() {
                Kind::UpstreamTimeout(Phase::Resolve | Phase::Connect) => connect.1,
                Kind::UpstreamTimeout(Phase::Send) => send.1,
                _ => return error,
            };
            if own(ended) { late(ended, &self.link.settings.name) } else { error }
        })?;
        if let Some(pass) = self.pass.as_mut().filter(|_| !exchange.reused()) {
            pass.connected(clock::now());
        }
        Ok(Box::new(exchange))
    }

    fn head(
        &mut self,
        mut source: Source,
        client: &mut ClientStream<'_>,
        deadlines: &Deadlines,
    ) -> Result<(Source, HeadSays)> {
        loop {
            let deadline = deadlines.next();
            match source.head(&self.watch(client, deadline)) {
                Ok(says) => return Ok((source, says)),
                Err(error) => self.tick(error, deadline, client)?,
            }
        }
    }

    /// What ends the next wait: the deadline, or that something should be sent to the client.
    fn watch<'c>(&self, client: &'c ClientStream<'_>, deadline: (Instant, Phase)) -> Watch<'c> {
        let (mut until, phase) = deadline;
        if self.ask.stream() {
            until = until.min(*self.last_sent + self.early_head);
        }
        Watch { client: Some(client.as_fd()), deadline: until, phase }
    }

    /// A wait ended with an error. When that was only because the client has heard nothing for
    /// `early_head`, it hears something, and the wait goes on.
    fn tick(
        &mut self,
        error: Error,
        deadline: (Instant, Phase),
        client: &mut ClientStream<'_>,
    ) -> Result<()> {
        let now = clock::now();
        let timeout = matches!(error.kind(), Kind::UpstreamTimeout(_));
        if !timeout || now >= deadline.0 || !self.ask.stream() {
            return Err(error);
        }
        if !client.started() {
            self.start(client, false);
        }
        let mut event = Vec::new();
        self.reply.keep_alive(&mut event);
        self.record.metrics().keep_alives.inc();
        client.send(&event)?;
        *self.last_sent = now;
        Ok(())
    }

    /// Judges the status.
    fn judge(
        &self,
        source: &mut Source,
        says: HeadSays,
        client: &ClientStream<'_>,
        deadlines: &Deadlines,
    ) -> std::result::Result<(), End> {
        if says.success() {
            return Ok(());
        }
        // The message helps, but is not worth waiting for long.
        let (until, phase) = deadlines.next();
        let deadline = until.min(clock::now() + ERROR_BODY_TIMEOUT);
        let watch = Watch { client: Some(client.as_fd()), deadline, phase };
        let mut body = Vec::new();
        while body.len() < ERROR_BODY_BYTES_MAX {
            match source.piece(&watch) {
                Ok(Some(piece)) => body.extend_from_slice(piece),
                Err(error) if error.kind() == Kind::ClientGone => return Err(End::Final(error)),
                Ok(None) | Err(_) => break,
            }
        }
        Err(refused(says, &body, &self.link.settings.name))
    }

    /// A whole answer: read to its end, then translated. For a client that wants a stream it is
    /// sent as one.
    fn whole(
        &mut self,
        source: &mut Source,
        client: &mut ClientStream<'_>,
        deadlines: &Deadlines,
    ) -> End {
        let max = self.link.settings.answer_max;
        let upstream_body = match self.read_whole(source, client, deadlines, max) {
            Ok(body) => body,
            Err(error) => {
                self.left(&error);
                return before_commit(error);
            }
        };
        let dialect = self.dialect();
        let translated = if self.ask.stream() {
            llm::whole_as_stream(self.reply, self.ask, dialect, &upstream_body)
        } else {
            llm::whole(self.reply, self.ask, dialect, &upstream_body)
        };
        let (body, usage) = match translated {
            Ok(translated) => translated,
            Err(fault) => return End::MoveOn(fault_error(&fault, &self.link.settings.name)),
        };
        self.record.answered_by(&self.link.settings.name, &self.target.model);
        let (ask, from) = (self.ask, (&*self.link.settings.name, &*self.target.model));
        // Those who wait for it are not to wait until this client has taken it.
        self.cached.answered(|| Kept::of_whole(ask, dialect, &upstream_body), from, self.first);
        self.usage(usage);
        if !self.ask.stream() {
            return End::Whole(body);
        }
        self.record.first_token();
        self.start(client, true);
        match client.finish(&body) {
            Ok(keep_alive) => End::Streamed { keep_alive },
            Err(error) => End::Cut(error),
        }
    }

    fn read_whole(
        &mut self,
        source: &mut Source,
        client: &mut ClientStream<'_>,
        deadlines: &Deadlines,
        max: usize,
    ) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let deadline = deadlines.next();
            let error = match source.piece(&self.watch(client, deadline)) {
                Ok(None) => {
                    self.link.counts.answer(body.len());
                    return Ok(body);
                }
                Ok(Some(piece)) if body.len() + piece.len() > max => {
                    self.link.counts.answer_too_large();
                    return Err(too_large(max));
                }
                Ok(Some(piece)) => {
                    body.extend_from_slice(piece);
                    continue;
                }
                Err(error) => error,
            };
            self.tick(error, deadline, client)?;
        }
    }

    /// A stream: each event goes to the client when it is read.
    fn stream(
        &mut self,
        mut source: Source,
        client: &mut ClientStream<'_>,
        mut deadlines: Deadlines,
    ) -> End {
        let line_max = self.link.settings.stream_line_max;
        let mut core = Stream::new(self.reply, self.ask, self.dialect(), line_max);
        if let Some(bytes_max) = self.cached.collects() {
            core.keep(bytes_max);
        }
        let mut out = Vec::new();
        // Until then a committed stream may end here, where it began.
        let mut here: Option<Instant> = None;
        let error = loop {
            let now = clock::now();
            if here.is_some_and(|here| now >= here) {
                source = match source {
                    Source::Upstream(upstream) => {
                        return End::Flowing(Box::new(Parts { upstream, core, deadlines }));
                    }
                    // Nothing to watch: it ends here in any case.
                    echo @ Source::Echo(_) => echo,
                };
                here = None;
            }
            let mut ended = false;
            let deadline = deadlines.next();
            let mut watch = self.watch(client, deadline);
            watch.deadline = here.map_or(watch.deadline, |here| watch.deadline.min(here));
            let mut fed = match source.piece(&watch) {
                Ok(Some(bytes)) => core.feed(self.reply, bytes, &mut out).map(|feed| feed.events),
                Ok(None) => {
                    ended = true;
                    core.end(self.reply, &mut out).map(|()| 0)
                }
                Err(error) if here.is_some() && is_early(&error, deadline.0) => {
                    here = Some(now);
                    continue;
                }
                Err(error) => match self.tick(error, deadline, client) {
                    Ok(()) => continue,
                    Err(error) => break error,
                },
            };
            // What came in the same read leaves in the same write.
            let mut broken = None;
            while let Ok(events) = fed
                && !core.done()
                && out.len() < OUT_BYTES_MAX
            {
                match source.piece_here() {
                    Ok(Some(bytes)) => {
                        let more = core.feed(self.reply, bytes, &mut out);
                        fed = more.map(|feed| feed.events + events);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            let now = clock::now();
            if core.committed() && !self.committed {
                self.commit(client, &mut deadlines, now);
                here = Some(now + HERE_MAX);
            }
            if matches!(fed, Ok(events) if events > 0) {
                deadlines.event(now);
            }
            if core.done() || (ended && fed.is_ok()) {
                return self.finish(&mut core, &mut source, client, &out);
            }
            if !out.is_empty() {
                if let Err(error) = client.send(&out) {
                    break error;
                }
                *self.last_sent = now;
                out.clear();
            }
            if let Err(fault) = fed {
                break fault_error(&fault, &self.link.settings.name);
            }
            if let Some(error) = broken {
                break error;
            }
            // Waits end at the deadline; with an upstream that never pauses there are none.
            let (until, phase) = deadlines.next();
            if now >= until {
                break late(phase, &self.link.settings.name);
            }
        };
        if core.committed() {
            self.link.counts.line(core.longest());
            self.usage(core.tokens());
            End::Cut(error)
        } else {
            match core.usage() {
                Some(_) => self.usage(core.tokens()),
                None => self.left(&error),
            }
            before_commit(error)
        }
    }

    fn usage(&mut self, usage: Usage) {
        if let Some(charge) = self.charge {
            charge.settle(usage.input.saturating_add(usage.output));
        }
        self.record.usage(self.link, self.target, usage);
    }

    /// The client left while the upstream was at work on its prompt, which is paid for all the
    /// same. An upstream that failed by itself made nothing that anybody knows of.
    fn left(&mut self, error: &Error) {
        if matches!(error.kind(), Kind::ClientGone | Kind::ClientStalled) {
            self.usage(self.ask.prompt_tokens());
        }
    }

    /// The first content: from here on nobody else answers.
    fn commit(&mut self, client: &mut ClientStream<'_>, deadlines: &mut Deadlines, now: Instant) {
        self.committed = true;
        deadlines.committed(now);
        self.record.answered_by(&self.link.settings.name, &self.target.model);
        self.record.first_token();
        self.start(client, true);
    }

    /// The status and the fields of a stream.
    fn start(&self, client: &mut ClientStream<'_>, answered: bool) {
        let mut fields: Vec<(&str, &str)> = vec![
            ("content-type", self.reply.content_type()),
            ("cache-control", "no-cache"),
            // nginx in front would collect events otherwise.
            ("x-accel-buffering", "no"),
        ];
        if answered {
            fields.push(("x-tidegate-upstream", &self.link.settings.name));
            fields.push(("x-tidegate-model", &self.target.model));
        }
        fields.extend(self.fields.iter().map(|(name, value)| (*name, value.as_str())));
        client.start(200, &fields);
    }

    fn finish(
        &mut self,
        core: &mut Stream,
        source: &mut Source,
        client: &mut ClientStream<'_>,
        out: &[u8],
    ) -> End {
        self.link.counts.line(core.longest());
        self.usage(core.tokens());
        let from = (&*self.link.settings.name, &*self.target.model);
        self.cached.answered(|| core.kept(), from, self.first);
        let sent = client.finish(out);
        // The client has everything. What is left of the message is only its end.
        let deadline = clock::now() + TAIL_TIMEOUT;
        let tail = Watch { client: None, deadline, phase: Phase::Idle };
        while clock::now() < deadline && matches!(source.piece(&tail), Ok(Some(_))) {}
        match sent {
            Ok(keep_alive) => End::Streamed { keep_alive },
            Err(error) => End::Cut(error),
        }
    }
}

/// A wait that ended before its real deadline.
fn is_early(error: &Error, deadline: Instant) -> bool {
    matches!(error.kind(), Kind::UpstreamTimeout(_)) && clock::now() < deadline
}

/// What an upstream speaks; `echo` speaks as it is spoken to.
pub(super) fn dialect(link: &Link, ask: &Ask) -> Dialect {
    match link.settings.kind {
        UpstreamKind::Ollama => Dialect::Ollama,
        UpstreamKind::OpenAi => Dialect::OpenAi,
        UpstreamKind::Echo => ask.route().dialect(),
    }
}

/// What a status other than success means for the chain.
pub(super) fn refused(says: HeadSays, body: &[u8], upstream: &str) -> End {
    let message = llm::upstream_message(body);
    match verdict::judge(says.status, says.retry_after, &message, upstream) {
        Verdict::MoveOn(error) => End::MoveOn(error),
        Verdict::Final(error) => End::Final(error),
        Verdict::Answer => End::Final(Error::new(Kind::Internal, "an answer taken for a refusal")),
    }
}

/// The error of an answer that is larger than the upstream's may be.
pub(super) fn too_large(max: usize) -> Error {
    let context = format!("the answer is larger than {max} bytes (answer_max)");
    Error::new(Kind::UpstreamAnswerTooLarge, context)
}

/// An error before anything was committed: does it end the chain?
pub(super) fn before_commit(error: Error) -> End {
    match error.kind() {
        Kind::ClientGone | Kind::ClientStalled | Kind::Draining | Kind::Internal => {
            End::Final(error)
        }
        Kind::UpstreamTimeout(Phase::Request) => End::Final(out_of_time(&error)),
        _ => End::MoveOn(error),
    }
}

/// The request's own time is over: there is none left for another link.
fn out_of_time(error: &Error) -> Error {
    Error::new(Kind::RequestTotalTimeout, format!("the request's time is over: {error}"))
}

fn late(phase: Phase, upstream: &str) -> Error {
    let what = format!("upstream {upstream} did not end within {}", phase.as_str());
    Error::new(Kind::UpstreamTimeout(phase), what)
}

pub(super) fn fault_error(fault: &Fault, upstream: &str) -> Error {
    Error::new(fault.kind(), format!("upstream {upstream}: {fault}"))
}
