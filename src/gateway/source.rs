//! Where an attempt's answer comes from: an upstream's connection, or the built-in echo.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::Result;
use crate::llm::echo::Echo;
use crate::net::http::ResponseHead;
use crate::net::outbound::{Control, Exchange, Watch, pause};
use crate::upstream::verdict;

const JSON: &str = "application/json";

/// What the head of an answer says.
#[derive(Clone, Copy, Debug)]
pub struct HeadSays {
    /// The status.
    pub status: u16,
    /// When the upstream wants to be asked again.
    pub retry_after: Option<Duration>,
    /// A whole JSON answer, although a stream may have been asked for.
    pub json: bool,
}

impl HeadSays {
    /// The head of an answer that needs none: what comes is what was asked for.
    pub fn ok() -> Self {
        HeadSays { status: 200, retry_after: None, json: false }
    }

    /// What this head says.
    pub fn of(head: &ResponseHead) -> Self {
        let field = |name| head.headers.get_str(name);
        let kind = field("content-type").unwrap_or_default().trim_ascii_start();
        let json = kind.get(..JSON.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(JSON));
        let retry_after = verdict::retry_after(field("retry-after"), field("retry-after-ms"));
        HeadSays { status: head.status, retry_after, json }
    }

    /// Whether an answer follows.
    pub fn success(self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Where an attempt's answer comes from.
pub enum Source {
    /// An upstream.
    Upstream(Box<Exchange>),
    /// Nobody else.
    Echo(Box<EchoSource>),
}

/// The built-in echo, word by word.
pub struct EchoSource {
    echo: Echo,
    control: Arc<Control>,
    buffer: Vec<u8>,
    delay: Duration,
    next_at: Instant,
    streams: bool,
    done: bool,
}

impl Source {
    /// The built-in echo.
    pub fn echo(echo: Echo, delay: Duration, streams: bool, control: &Arc<Control>) -> Source {
        Source::Echo(Box::new(EchoSource {
            echo,
            control: Arc::clone(control),
            buffer: Vec::new(),
            delay,
            next_at: clock::now() + delay,
            streams,
            done: false,
        }))
    }

    /// Waits for the head. After [`Kind::UpstreamTimeout`] it may be waited for again.
    ///
    /// # Errors
    /// As [`Exchange::head`].
    pub fn head(&mut self, watch: &Watch<'_>) -> Result<HeadSays> {
        match self {
            Source::Upstream(exchange) => Ok(HeadSays::of(exchange.head(watch)?)),
            Source::Echo(_) => Ok(HeadSays::ok()),
        }
    }

    /// Waits for the next bytes of the body; `None` is its end.
    ///
    /// # Errors
    /// As [`Exchange::piece`].
    pub fn piece(&mut self, watch: &Watch<'_>) -> Result<Option<&[u8]>> {
        match self {
            Source::Upstream(exchange) => exchange.piece(watch),
            Source::Echo(echo) => echo.piece(watch),
        }
    }

    /// The next bytes of the body, if they are here already.
    ///
    /// # Errors
    /// As [`Exchange::piece_here`].
    pub fn piece_here(&mut self) -> Result<Option<&[u8]>> {
        match self {
            Source::Upstream(exchange) => exchange.piece_here(),
            Source::Echo(_) => Ok(None),
        }
    }
}

impl EchoSource {
    fn piece(&mut self, watch: &Watch<'_>) -> Result<Option<&[u8]>> {
        if self.done {
            return Ok(None);
        }
        pause(self.next_at, watch, &self.control)?;
        self.buffer.clear();
        if self.streams {
            self.done = !self.echo.next(&mut self.buffer);
        } else {
            self.buffer = self.echo.whole();
            self.done = true;
        }
        self.next_at = clock::now() + self.delay;
        Ok((!self.buffer.is_empty()).then_some(&self.buffer[..]))
    }
}
