//! The streaming core: an upstream's stream in, the client's stream out.
//!
//! One [`Stream`] is one attempt. Until the first real content it writes nothing, so that the next
//! upstream can take over unseen; the events that came are held. From then on each whole event goes
//! out as it comes, after a look at it. It never writes a terminator that the upstream did not send.
//!
//! Invariants, held by property tests:
//! - however the same bytes are cut into pieces, the same bytes come out and the same fault;
//! - what goes out is whole events, also when the last thing that came is bad;
//! - there is a terminator in the output only when there is one in the input.

use super::calls::Fragments;
use super::frames::{BYTE_ORDER_MARK, Event, Search};
use super::kept::{Keeping, Kept};
use super::seen::{self, Seen};
use super::write::{Content, DONE, End};
use super::{Ask, Dialect, Fault, Reply, Usage, answer};

/// What one call of [`Stream::feed`] brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feed {
    /// Events with data that were completed: they reset the idle deadline. Comments, blank lines
    /// and halves do not count.
    pub events: u32,
    /// Some of them carried content.
    pub content: bool,
}

/// One attempt's stream.
#[derive(Debug)]
pub struct Stream {
    upstream: Dialect,
    /// Client and upstream speak alike: events are forwarded as they come.
    same: bool,
    line_max: usize,
    /// The beginning of an event whose end has not come. At most `line_max`, beyond one piece.
    pending: Vec<u8>,
    search: Search,
    /// Nothing came yet: a byte order mark may.
    fresh: bool,
    /// Events without content, before the commit. At most `line_max`.
    held: Vec<u8>,
    committed: bool,
    done: bool,
    failed: bool,
    usage: Option<Usage>,
    content_bytes: u64,
    prompt_bytes: u64,
    strip_usage: bool,
    /// The reason why the answer ended, as a JSON string.
    finish: Option<String>,
    /// Bytes of the longest event so far.
    longest: usize,
    called: bool,
    fragments: Fragments,
    /// What is collected for a cache, when it is wanted.
    keeping: Option<Keeping>,
}

impl Stream {
    /// A new attempt. `line_max` bounds one event, and the events held before the commit, in
    /// bytes (`upstream.stream_line_max`).
    pub fn new(reply: &Reply, ask: &Ask, upstream: Dialect, line_max: usize) -> Stream {
        Stream {
            upstream,
            same: ask.route().dialect() == upstream,
            line_max,
            pending: Vec::new(),
            search: Search::default(),
            fresh: true,
            held: Vec::new(),
            committed: false,
            done: false,
            failed: false,
            usage: None,
            content_bytes: 0,
            prompt_bytes: ask.prompt_bytes(),
            strip_usage: !reply.usage,
            finish: None,
            longest: 0,
            called: false,
            fragments: Fragments::default(),
            keeping: None,
        }
    }

    /// Collects the answer as it goes by, as long as it is not larger than this many bytes. To be
    /// called before the first bytes come.
    pub fn keep(&mut self, bytes_max: usize) {
        self.keeping = Some(Keeping::new(bytes_max));
    }

    /// The answer that was collected, when the stream has come to its good end and the answer can
    /// be given again.
    pub fn kept(&mut self) -> Option<Kept> {
        let keeping = self.keeping.take().filter(|_| self.done && !self.called)?;
        keeping.finish(self.finish.as_deref(), self.usage)
    }

    /// Takes bytes from the upstream and appends what the client is to get.
    ///
    /// # Errors
    /// What is wrong with the stream. The whole good events before it are in `out` if the stream
    /// is committed; nothing is if it is not. After an error the stream is at its end.
    pub fn feed(
        &mut self,
        reply: &mut Reply,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Feed, Fault> {
        let mut feed = Feed::default();
        if self.done {
            return Ok(feed);
        }
        if self.failed {
            return Err(Fault::Cut);
        }
        let result = self.events(reply, bytes, out, &mut feed);
        self.failed = result.is_err();
        result.map(|()| feed)
    }

    /// The upstream closed the connection, or ended its answer.
    ///
    /// # Errors
    /// [`Fault::Cut`] unless its terminator was seen.
    pub fn end(&mut self, reply: &mut Reply, out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.done {
            return Ok(());
        }
        let mut last = std::mem::take(&mut self.pending);
        if std::mem::replace(&mut self.failed, true) || last.is_empty() {
            return Err(Fault::Cut);
        }
        // A terminator or an error is complete without the line end that should follow it. Anything
        // else in this place is half of something.
        last.extend_from_slice(match self.upstream {
            Dialect::OpenAi => b"\n\n",
            Dialect::Ollama => b"\n",
        });
        let event = self.parse(&last).map_err(|_| Fault::Cut)?;
        match judge(self.upstream, &event) {
            Ok(Judged::Done(seen)) => self.finish(reply, &event, seen, out),
            Err(fault @ Fault::InBand { .. }) => Err(fault),
            _ => Err(Fault::Cut),
        }
    }

    /// Content was seen: the model stays. Until then the client has got nothing of this attempt.
    pub fn committed(&self) -> bool {
        self.committed
    }

    /// The terminator was seen and written; the caller may stop reading.
    pub fn done(&self) -> bool {
        self.done
    }

    /// Bytes of the longest event so far.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The tokens, as the upstream told them.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// The tokens so far: as the upstream told them, and what it did not tell by estimate. A stream
    /// that was cut seldom comes to tell any.
    pub fn tokens(&self) -> Usage {
        Usage::or_estimate(self.usage, self.prompt_bytes, self.content_bytes)
    }

    /// Takes the whole events out of what is pending and what came.
    fn events(
        &mut self,
        reply: &mut Reply,
        bytes: &[u8],
        out: &mut Vec<u8>,
        feed: &mut Feed,
    ) -> Result<(), Fault> {
        if self.pending.is_empty() {
            // The usual case: events are read where they are.
            let used = self.whole_events(reply, bytes, out, feed)?;
            self.pending.extend_from_slice(&bytes[used..]);
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(bytes);
            let used = self.whole_events(reply, &pending, out, feed)?;
            pending.drain(..used);
            self.pending = pending;
        }
        if self.pending.len() > self.line_max {
            return Err(Fault::LineTooLong);
        }
        Ok(())
    }

    /// Gives the number of bytes used. The search stands relative to what is left.
    fn whole_events(
        &mut self,
        reply: &mut Reply,
        bytes: &[u8],
        out: &mut Vec<u8>,
        feed: &mut Feed,
    ) -> Result<usize, Fault> {
        let mut start = 0;
        let mut search = self.search;
        if self.fresh {
            if bytes.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(bytes) {
                return Ok(0);
            }
            self.fresh = false;
            if bytes.starts_with(BYTE_ORDER_MARK) {
                start = BYTE_ORDER_MARK.len();
                search = Search::from(start);
            }
        }
        loop {
            let end = match self.upstream {
                Dialect::OpenAi => search.sse_end(bytes),
                Dialect::Ollama => search.line_end(bytes),
            };
            let Some(end) = end else {
                self.search = search.moved_back(start);
                return Ok(start);
            };
            if end - start > self.line_max {
                return Err(Fault::LineTooLong);
            }
            self.longest = self.longest.max(end - start);
            self.event(reply, &bytes[start..end], out, feed)?;
            start = end;
            if self.done {
                // Nothing that follows a terminator is looked at.
                return Ok(bytes.len());
            }
        }
    }

    /// One whole event.
    fn event(
        &mut self,
        reply: &mut Reply,
        raw: &[u8],
        out: &mut Vec<u8>,
        feed: &mut Feed,
    ) -> Result<(), Fault> {
        let event = self.parse(raw)?;
        match judge(self.upstream, &event)? {
            Judged::Nothing => Ok(()),
            Judged::Comment => {
                // Before the commit it told something about waiting that we tell ourselves.
                if self.committed && self.same {
                    out.extend_from_slice(event.raw.as_bytes());
                }
                Ok(())
            }
            Judged::Chunk(seen) => {
                feed.events += 1;
                feed.content |= seen.weight > 0;
                self.chunk(reply, &event, &seen, out)
            }
            Judged::Done(seen) => {
                feed.events += 1;
                feed.content |= seen.as_ref().is_some_and(|seen| seen.weight > 0);
                self.finish(reply, &event, seen, out)
            }
        }
    }

    fn parse<'a>(&self, raw: &'a [u8]) -> Result<Event<'a>, Fault> {
        match self.upstream {
            Dialect::OpenAi => Event::parse(raw),
            Dialect::Ollama => Event::line(raw),
        }
    }

    /// Keeps what an event tells about the answer as a whole.
    fn note(&mut self, seen: &Seen<'_>) {
        self.content_bytes = self.content_bytes.saturating_add(seen.weight);
        if let Some(keeping) = &mut self.keeping {
            keeping.add(seen);
        }
        self.usage = seen.usage.or(self.usage);
        if let Some(reason) = seen.finish {
            self.finish = Some(reason.to_owned());
        }
    }

    /// An event that is not the last.
    fn chunk(
        &mut self,
        reply: &mut Reply,
        event: &Event<'_>,
        seen: &Seen<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        self.note(seen);
        let usage_only = seen.choices == 0 && seen.usage.is_some();
        if self.upstream == Dialect::OpenAi && usage_only && (self.strip_usage || !self.same) {
            return Ok(());
        }
        let content = seen.weight > 0;
        if !self.same {
            if content {
                self.translate(reply, seen, out)?;
                self.committed = true;
            }
            return Ok(());
        }
        if !self.committed && !content {
            if self.held.len() + event.raw.len() > self.line_max {
                return Err(Fault::LineTooLong);
            }
            let mut held = std::mem::take(&mut self.held);
            event.forward(seen.model.as_ref(), &reply.model, &mut held);
            self.held = held;
            return Ok(());
        }
        self.commit(out);
        event.forward(seen.model.as_ref(), &reply.model, out);
        Ok(())
    }

    /// The terminator.
    fn finish(
        &mut self,
        reply: &mut Reply,
        event: &Event<'_>,
        seen: Option<Seen<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match &seen {
            // An Ollama line with `done: true`. It may have content of its own.
            Some(seen) => {
                self.note(seen);
                if !self.committed && !seen.answers {
                    return Err(Fault::Malformed("done without an answer".to_owned()));
                }
            }
            None if !self.committed && self.finish.is_none() => {
                let what = "[DONE] without content and without finish_reason";
                return Err(Fault::Malformed(what.to_owned()));
            }
            None => {}
        }
        if self.same {
            self.commit(out);
            match &seen {
                Some(seen) => event.forward(seen.model.as_ref(), &reply.model, out),
                None => out.extend_from_slice(DONE),
            }
        } else {
            // Before anything is written, so that a bad call leaves no half an answer.
            let calls = self.fragments.finish()?;
            if let Some(seen) = seen.filter(|seen| seen.weight > 0) {
                self.translate(reply, &seen, out)?;
            }
            if !calls.is_empty() {
                self.called = true;
                reply.write_chunk(&Content { calls, ..Content::default() }, out);
            }
            let reason = self.finish.as_deref();
            let end = End { reason, called: self.called, usage: self.usage };
            reply.write_end(&end, out);
            self.committed = true;
        }
        self.failed = false;
        self.done = true;
        Ok(())
    }

    /// Writes content in the client's dialect.
    fn translate(
        &mut self,
        reply: &mut Reply,
        seen: &Seen<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let mut piece = seen.piece;
        if self.upstream == Dialect::OpenAi
            && let Some(fragments) = piece.calls.take()
        {
            self.fragments.add(fragments, self.line_max)?;
        }
        let content = answer::content(self.upstream, &piece)?;
        self.called |= !content.calls.is_empty();
        reply.write_chunk(&content, out);
        Ok(())
    }

    fn commit(&mut self, out: &mut Vec<u8>) {
        if !self.committed {
            self.committed = true;
            out.append(&mut self.held);
        }
    }
}

/// What an event turned out to be.
enum Judged<'a> {
    /// Nothing to forward. An event without data crashes clients that read its data as JSON.
    Nothing,
    /// Comments only.
    Comment,
    /// A chunk.
    Chunk(Seen<'a>),
    /// The terminator: `[DONE]`, or an Ollama line with `done: true`, which may have content.
    Done(Option<Seen<'a>>),
}

/// Looks at an event.
fn judge<'a>(upstream: Dialect, event: &'a Event<'_>) -> Result<Judged<'a>, Fault> {
    let data = event.data.trim_ascii();
    if event.error {
        return Err(seen::in_band(&answer::upstream_message(data.as_bytes()), None));
    }
    if data.is_empty() {
        return Ok(if event.comment { Judged::Comment } else { Judged::Nothing });
    }
    if upstream == Dialect::OpenAi && data == "[DONE]" {
        return Ok(Judged::Done(None));
    }
    let mut seen = seen::look(upstream, &event.data)?;
    if let Some(error) = seen.error.take() {
        return Err(error);
    }
    Ok(if seen.done { Judged::Done(Some(seen)) } else { Judged::Chunk(seen) })
}

#[cfg(test)]
mod tests;
