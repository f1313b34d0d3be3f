use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::client::Fault;
use super::*;

/// Tells what it was asked; a path `/lines` streams, `/panic` does.
struct Echo;

impl Service for Echo {
    fn answer(&self, call: &Call) -> Reply {
        assert_ne!(call.path, "/panic", "as asked");
        if call.path == "/lines" {
            return Reply::Stream(Box::new(Lines));
        }
        let Call { method, path, query, body, caller } = call;
        let text = format!("{} {path} {query} {} {caller}", method.as_str(), body.len());
        Reply::Whole(Response::text(200, text))
    }

    fn refuse(&self, status: u16, code: &'static str, _: &str) -> Response {
        Response::text(status, code)
    }
}

/// Counts for as long as somebody listens.
struct Lines;

impl Stream for Lines {
    fn run(self: Box<Self>, out: &mut Out<'_>) -> io::Result<()> {
        for number in 0.. {
            out.line(format!("{number}").as_bytes())?;
            if out.ended()? {
                break;
            }
        }
        Ok(())
    }
}

fn start() -> (tempfile::TempDir, Control, Registry) {
    let (state, registry) = (tempfile::tempdir().unwrap(), Registry::default());
    let place = Place::take(state.path()).unwrap();
    let beats = Heartbeats::new(&registry);
    let control = Control::start(place, Arc::new(Echo), &registry, &beats).unwrap();
    (state, control, registry)
}

fn soon() -> Instant {
    clock::now() + Duration::from_secs(20)
}

fn now_of(registry: &Registry, name: &str) -> u64 {
    let limits = registry.limits();
    limits.iter().find(|limit| limit.name == name).unwrap().limit.now()
}

#[test]
fn a_question_is_answered_and_says_who_asks() {
    let (_state, control, _) = start();
    let whole = client::ask(control.path(), "/a?b=c", None, soon()).unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let expected = format!("GET /a b=c 0 uid={uid} pid={}", std::process::id());
    assert_eq!((whole.status, String::from_utf8(whole.body).unwrap()), (200, expected));
    // Past every buffer on the way.
    let large = vec![b'x'; BODY_BYTES_MAX];
    let whole = client::ask(control.path(), "/a", Some(&large), soon()).unwrap();
    let text = String::from_utf8(whole.body).unwrap();
    assert!(text.starts_with(&format!("POST /a  {BODY_BYTES_MAX} ")), "{text}");
    let larger = vec![b'x'; BODY_BYTES_MAX + 1];
    let refused = client::ask(control.path(), "/a", Some(&larger), soon()).unwrap();
    assert_eq!((refused.status, refused.body), (413, b"body_too_large".to_vec()));
}

#[test]
fn a_panic_is_an_answer_and_the_next_question_is_answered() {
    let (_state, control, _) = start();
    for _ in 0..2 * HANDLERS {
        let broken = client::ask(control.path(), "/panic", None, soon()).unwrap();
        assert_eq!(broken.status, 500);
    }
    assert_eq!(client::ask(control.path(), "/a", None, soon()).unwrap().status, 200);
}

#[test]
fn a_stream_ends_with_its_reader_and_there_are_only_so_many() {
    let (_state, control, registry) = start();
    let mut readers = Vec::new();
    for _ in 0..STREAMS_MAX {
        let mut stream = UnixStream::connect(control.path()).unwrap();
        stream.write_all(b"GET /lines HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        readers.push(stream);
    }
    let refused = client::ask(control.path(), "/lines", None, soon()).unwrap();
    assert_eq!((refused.status, refused.body), (503, b"queue_full".to_vec()));
    // Readers who read nothing keep nobody else waiting.
    assert_eq!(client::ask(control.path(), "/a", None, soon()).unwrap().status, 200);
    drop(readers);
    let until = soon();
    while now_of(&registry, "control.streams_max") > 0 {
        assert!(clock::now() < until, "the streams did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut count = 0;
    let mut on = |line: &[u8]| {
        assert_eq!(line, count.to_string().as_bytes());
        count += 1;
        count < 10_000
    };
    assert!(client::follow(control.path(), "/lines", &mut on).unwrap().is_none());
    assert_eq!(count, 10_000);
}

#[test]
fn streams_that_begin_at_the_same_moment_take_a_place_each_and_keep_no_handler() {
    let (_state, control, _) = start();
    for _ in 0..100 {
        let begin = || {
            let mut stream = UnixStream::connect(control.path()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(b"GET /lines HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            stream
        };
        let mut both = [begin(), begin()];
        for stream in &mut both {
            stream.read_exact(&mut [0; 64]).unwrap();
        }
        // Neither reads any further; as many questions at once as there are handlers are answered.
        for _ in 0..2 * HANDLERS {
            assert_eq!(client::ask(control.path(), "/a", None, soon()).unwrap().status, 200);
        }
        drop(both);
    }
}

#[test]
fn a_stop_ends_streams_and_idle_connections_and_removes_every_file() {
    let (state, mut control, _) = start();
    let _idle = UnixStream::connect(control.path()).unwrap();
    let path = control.path().to_owned();
    let (begun, seen) = crossbeam_channel::bounded(1);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            client::follow(&path, "/lines", &mut |_| {
                let _ = begun.try_send(());
                true
            })
        });
        seen.recv().unwrap();
        assert_eq!(control.stop(soon()), 0, "threads were left behind");
        // The last chunk may or may not have left before the connection was closed.
        assert!(matches!(follower.join().unwrap(), Ok(None) | Err(Fault::Broken(_))));
    });
    let left: Vec<_> = std::fs::read_dir(state.path().join("control"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"]);
    assert!(matches!(client::ask(&path, "/a", None, soon()), Err(Fault::Absent)));
}
