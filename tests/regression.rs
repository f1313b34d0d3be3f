//! Defects that were found by reading, one test for each.

use std::time::{Duration, Instant};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};

/// Many events at once: more than the gateway reads in one go, so that there is always more to read.
fn flood(call: &crate::support::peers::upstream::Call) -> Step {
    let event = answers::text(call, " x").repeat(1000);
    Step::Repeat(answers::chunk(&event), Duration::ZERO)
}

/// A deadline was only looked at when there was nothing to read.
#[test]
fn an_upstream_that_never_pauses_is_late_all_the_same() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        vec![Step::Send(answers::stream_head(call.dialect)), flood(call)]
    });
    let conf =
        Conf::new().fake("fast", &upstream, "total_timeout = \"500ms\"").model("m", "fast/m", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let began = Instant::now();
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", "hello", true));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let stream = Stream::of(Dialect::OpenAi, &answer);
    assert_eq!(stream.errors().len(), 1);
    assert_eq!(stream.terminators(), 0);
}

/// The message of an error was waited for until the first token's deadline.
#[test]
fn an_error_whose_body_does_not_come_moves_on_at_once() {
    let sandbox = Sandbox::new();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
                content-length: 1000\r\n\r\n{";
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |_| {
        vec![Step::Send(head.as_bytes().to_vec()), Step::Silence]
    });
    let conf = Conf::new().fake("mute", &upstream, "").model("m", "mute/m", &["echo/echo"]);
    let daemon = Daemon::start(&sandbox, &conf);
    for stream in [true, false] {
        let began = Instant::now();
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", "hello", stream));
        assert_eq!(answer.status(), 200);
        assert!(answer.text().contains("hello"), "{}", answer.text());
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}
