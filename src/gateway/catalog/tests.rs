use crossbeam_channel::bounded;

use super::state::THREADS_MAX;
use super::*;
use crate::base::thread;
use crate::net::http_client::peer::{Act, Peer, Seen};

const SECOND: Duration = Duration::from_secs(1);

const TAGS: &str = r#"{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","size":1}]}"#;
const SHOW: &str = r#"{"parameters":"num_ctx 8192","model_info":{"general.architecture":"llama",
    "llama.context_length":131072},"capabilities":["completion"]}"#;

fn config(text: &str) -> Config {
    crate::config::parse(text, None, &|_| None).unwrap().config
}

fn upstream(name: &str, kind: &str, port: u16) -> String {
    let path = if kind == "openai" { "/v1" } else { "" };
    format!(
        "[[upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\nurl = \"http://127.0.0.1:{port}{path}\"\n"
    )
}

fn start(config: &Config) -> (Arc<Catalog>, Registry) {
    let registry = Registry::default();
    let resolver = Arc::new(Resolver::system(&registry));
    (Catalog::start(config, resolver, &registry, Arc::default()), registry)
}

/// An Ollama server with one model.
fn ollama() -> Peer {
    Peer::start(|seen: &Seen| match seen.path.as_str() {
        "/api/tags" => Act::Json(200, TAGS.to_owned()),
        "/api/show" if seen.body.contains("llama3.2") => Act::Json(200, SHOW.to_owned()),
        "/api/show" => Act::Json(404, r#"{"error":"model 'x' not found"}"#.to_owned()),
        _ => Act::Json(404, "{}".to_owned()),
    })
}

/// Waits for something that another thread does, for as long as a slow machine may need.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = clock::now() + SECOND * 20;
    while !holds() {
        assert!(clock::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn names(list: Option<&Arc<List>>) -> Vec<&str> {
    list.iter().flat_map(|list| &list.models).map(|listed| listed.model.as_str()).collect()
}

#[test]
fn lists_are_asked_for_at_the_start_and_kept() {
    let peer = ollama();
    let (catalog, registry) = start(&config(&upstream("local", "ollama", peer.port())));
    for _ in 0..3 {
        assert_eq!(names(catalog.lists(["local"])[0].as_ref()), ["llama3.2:latest"]);
    }
    assert_eq!(peer.calls("/api/tags"), 1);
    assert!(catalog.lists(["strange"])[0].is_none());
    let hits = registry.counter(
        "tidegate_catalog_lookups_total",
        "",
        &[("what", "list"), ("outcome", "hit")],
    );
    assert!(hits.value() >= 2);
    assert_eq!(catalog.stop(clock::now() + SECOND * 5), 0);
}

#[test]
fn an_upstream_that_hangs_delays_by_a_second_once_and_hides_nothing() {
    let hanging = Peer::start(|_: &Seen| Act::Hang);
    let well = ollama();
    let mut text = upstream("well", "ollama", well.port());
    let hung = ["h1", "h2", "h3"];
    for name in hung {
        text += &upstream(name, "openai", hanging.port());
    }
    let (catalog, _) = start(&config(&text));
    let begun = clock::now();
    let all = ["well", "h1", "h2", "h3"];
    let lists = catalog.lists(all);
    let took = clock::now() - begun;
    assert!(lists[0].is_some() && lists[1..].iter().all(Option::is_none));
    assert!(took <= WAIT_MAX + SECOND / 2, "{took:?}");
    // Whoever comes later does not wait at all.
    let begun = clock::now();
    for _ in 0..10 {
        assert!(catalog.lists(all)[0].is_some());
    }
    let took = clock::now() - begun;
    assert!(took < SECOND / 2, "{took:?}");
    assert!(matches!(catalog.why_no_list("h1").kind(), Kind::UpstreamTimeout(_)));
}

#[test]
fn a_hundred_threads_ask_once() {
    let (open, gate) = bounded::<()>(0);
    let peer = Peer::start(move |_: &Seen| {
        let _ = gate.recv();
        Act::Json(200, SHOW.to_owned())
    });
    let text = format!("[server]\nworkers = 400\n{}", upstream("local", "ollama", peer.port()));
    let (catalog, registry) = start(&config(&text));
    let (done, results) = bounded(100);
    let threads: Vec<_> = (0..100)
        .map(|_| {
            let (catalog, done) = (Arc::clone(&catalog), done.clone());
            thread::spawn("asks", move || {
                let shown = catalog.show("local", "m", false).map(|show| show.num_ctx);
                done.send(shown.ok()).unwrap();
            })
            .unwrap()
        })
        .collect();
    let waiting = registry.limit("catalog.waiting_max", "", 200, "");
    eventually("all wait", || waiting.now() == 100);
    drop(open);
    for thread in threads {
        thread.join();
    }
    assert_eq!(results.try_iter().filter(|num_ctx| *num_ctx == Some(Some(8192))).count(), 100);
    assert_eq!(peer.calls("/api/show"), 1);
    assert_eq!(waiting.now(), 0);
}

#[test]
fn those_who_wait_are_bounded() {
    let peer = Peer::start(|_: &Seen| Act::Hang);
    let text = format!("[server]\nworkers = 2\n{}", upstream("local", "ollama", peer.port()));
    let (catalog, registry) = start(&config(&text));
    let waiting = registry.limit("catalog.waiting_max", "", 1, "");
    let theirs = Arc::clone(&catalog);
    let first = thread::spawn("asks", move || drop(theirs.show("local", "m", false))).unwrap();
    eventually("the first waits", || waiting.now() == 1);
    let begun = clock::now();
    assert!(catalog.show("local", "m", false).is_err());
    assert!(clock::now() - begun < SECOND / 2, "the second does not");
    assert!(waiting.refused() > 0);
    first.join();
}

#[test]
fn every_fault_is_told_by_its_kind() {
    let peer = Peer::start(|seen: &Seen| match seen.path.as_str() {
        "/500/api/tags" => Act::Json(500, "{}".to_owned()),
        "/401/api/tags" => Act::Json(401, "{}".to_owned()),
        "/302/api/tags" => {
            Act::Raw(b"HTTP/1.1 302 X\r\nlocation: /\r\ncontent-length: 0\r\n\r\n".to_vec())
        }
        "/html/api/tags" => Act::Json(200, "<html>".to_owned()),
        "/cut/api/tags" => Act::Raw(b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{".to_vec()),
        _ => Act::Hang,
    });
    let check = |path: &str, expected: Kind| {
        let url = format!("http://127.0.0.1:{}/{path}", peer.port());
        let text = format!("[[upstream]]\nname = \"u\"\nkind = \"ollama\"\nurl = \"{url}\"\n");
        let (catalog, _) = start(&config(&text));
        assert!(catalog.lists(["u"])[0].is_none());
        eventually("it is told", || catalog.why_no_list("u").kind() == expected);
    };
    check("500", Kind::UpstreamStatus(500));
    check("401", Kind::UpstreamKeyRejected(401));
    check("302", Kind::UpstreamStatus(502));
    check("html", Kind::UpstreamMalformed);
    check("cut", Kind::UpstreamCut);
    let gone = config(&upstream("u", "ollama", Peer::nobody()));
    let (catalog, _) = start(&gone);
    eventually("refused", || catalog.why_no_list("u").kind() == Kind::UpstreamConnect);
    let key = Key { upstream: "u".into(), what: What::List };
    let fault = catalog.shared.state.with(|state| state.peek(&key, clock::now())).fault.unwrap();
    assert!(fault.causes().contains("refused"), "the log has the cause: {}", fault.causes());
    let begun = clock::now();
    assert!(catalog.lists(["u"])[0].is_none());
    assert!(clock::now() - begun < SECOND / 2, "nobody waits for one that was refused");
}

#[test]
fn a_huge_list_is_bounded() {
    let peer = Peer::start(|seen: &Seen| {
        let count = if seen.path.starts_with("/fat") { 200_000 } else { 100_000 };
        let entry = r#"{"id":"a-model-with-a-name-of-some-length"},"#;
        Act::Json(200, format!(r#"{{"data":[{}{{"id":"last"}}]}}"#, entry.repeat(count)))
    });
    let url = |path: &str| format!("http://127.0.0.1:{}/{path}", peer.port());
    let text = format!(
        "[[upstream]]\nname = \"long\"\nkind = \"openai\"\nurl = \"{}\"\n\
         [[upstream]]\nname = \"fat\"\nkind = \"openai\"\nurl = \"{}\"\n",
        url("long"),
        url("fat"),
    );
    let (catalog, _) = start(&config(&text));
    eventually("it is read", || catalog.known_lists(["long"])[0].is_some());
    let list = catalog.known_lists(["long"]).remove(0).unwrap();
    assert_eq!(
        (list.models.len(), list.left_out),
        (parse::MODELS_MAX, 100_001 - parse::MODELS_MAX)
    );
    eventually("it is refused", || catalog.why_no_list("fat").kind() == Kind::UpstreamMalformed);
}

#[test]
fn stopping_ends_questions_that_hang_and_those_who_wait_for_them() {
    let peer = Peer::start(|_: &Seen| Act::Hang);
    let mut text = "[server]\nworkers = 8\n".to_owned();
    for name in ["a", "b", "c", "d", "e", "f"] {
        text += &upstream(name, "ollama", peer.port());
    }
    let (catalog, registry) = start(&config(&text));
    eventually("all threads ask", || peer.calls("/api/tags") == THREADS_MAX);
    let waiting = registry.limit("catalog.waiting_max", "", 4, "");
    let theirs = Arc::clone(&catalog);
    let waits = thread::spawn("asks", move || drop(theirs.show("f", "m", false))).unwrap();
    eventually("somebody waits", || waiting.now() == 1);
    let begun = clock::now();
    assert_eq!(catalog.stop(begun + SECOND * 10), 0);
    waits.join();
    let took = clock::now() - begun;
    assert!(took < SECOND, "{took:?}");
    // Afterwards nothing is asked any more.
    let calls = peer.seen().len();
    assert!(catalog.show("a", "m", false).is_err());
    assert!(catalog.lists(["a"])[0].is_none());
    assert_eq!(catalog.stop(clock::now()), 0, "a second stop is harmless");
    assert_eq!(peer.seen().len(), calls);
}

#[test]
fn a_new_configuration_asks_the_new_and_forgets_the_old() {
    let (one, two) = (ollama(), ollama());
    let (catalog, _) = start(&config(&upstream("one", "ollama", one.port())));
    assert!(catalog.lists(["one"])[0].is_some());
    let both = upstream("one", "ollama", one.port()) + &upstream("two", "ollama", two.port());
    catalog.reconfigure(&config(&both));
    assert!(catalog.lists(["one", "two"]).iter().all(Option::is_some));
    assert_eq!((one.calls("/api/tags"), two.calls("/api/tags")), (1, 1), "what is known is kept");
    catalog.reconfigure(&config(&upstream("two", "ollama", two.port())));
    assert!(catalog.lists(["one"])[0].is_none());
    assert!(catalog.show("one", "llama3.2", false).is_err());
}

#[test]
fn the_context_is_what_the_first_of_them_says() {
    let peer = Peer::start(|seen: &Seen| {
        let body = &seen.body;
        if seen.path == "/v1/models" {
            let list = r#"{"data":[{"id":"gpt","context_length":200000},{"id":"plain"}]}"#;
            Act::Json(200, list.to_owned())
        } else if body.contains("both") {
            Act::Json(200, SHOW.to_owned())
        } else if body.contains("trained") {
            Act::Json(200, SHOW.replace("num_ctx", "top_k"))
        } else {
            Act::Json(200, "{}".to_owned())
        }
    });
    let port = peer.port();
    let text = upstream("fixed", "ollama", port)
        + "num_ctx = 4096\n"
        + &upstream("local", "ollama", port)
        + &upstream("cloud", "openai", port);
    let config = config(&text);
    let (catalog, _) = start(&config);
    let check = |name: &str, model: &str, requested, expected: Option<(u64, ContextSource)>| {
        let upstream = config.upstream(name).unwrap();
        let ask = || catalog.context(upstream, model, requested).map(|c| (c.tokens, c.source));
        ask();
        // It never waits: what it does not know yet it has asked for.
        eventually(&format!("{name}/{model}"), || {
            ask() == expected && catalog.shared.state.with(|state| state.sizes().0 == 0)
        });
    };
    check("fixed", "both", Some(1024), Some((1024, ContextSource::Request)));
    check("fixed", "both", None, Some((4096, ContextSource::Config)));
    check("local", "both", None, Some((8192, ContextSource::Modelfile)));
    check("local", "trained", None, Some((131_072, ContextSource::ModelInfo)));
    check("local", "silent", None, None);
    check("cloud", "gpt", None, Some((200_000, ContextSource::List)));
    check("cloud", "plain", None, None);
    check("echo", "echo", None, None);
}

#[test]
fn discovery_never_waits() {
    let peer = Peer::start(|_: &Seen| Act::Hang);
    let config = config(&upstream("local", "ollama", peer.port()));
    let (catalog, _) = start(&config);
    let begun = clock::now();
    for n in 0..200 {
        let model = format!("m{n}");
        assert!(catalog.context(config.upstream("local").unwrap(), &model, None).is_none());
    }
    assert!(clock::now() - begun < SECOND / 2);
    assert!(catalog.shared.counters.queue.refused() > 0, "questions are bounded");
}

#[test]
fn what_was_known_is_shown_while_its_upstream_is_away() {
    let ill = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&ill);
    let peer = Peer::start(move |_: &Seen| {
        if theirs.load(std::sync::atomic::Ordering::SeqCst) {
            Act::Hang
        } else {
            Act::Json(200, TAGS.to_owned())
        }
    });
    let text = upstream("local", "ollama", peer.port());
    let (catalog, _) = start(&config(&text));
    assert!(catalog.lists(["local"])[0].is_some());
    ill.store(true, std::sync::atomic::Ordering::SeqCst);
    // Another way to the same server makes the list old at once.
    catalog.reconfigure(&config(&format!("{text}connect_timeout = \"1s\"\n")));
    eventually("it is asked again", || peer.calls("/api/tags") == 2);
    let begun = clock::now();
    assert_eq!(names(catalog.lists(["local"])[0].as_ref()), ["llama3.2:latest"]);
    assert!(clock::now() - begun < SECOND / 2, "nobody waits for a newer one");
    eventually("it failed", || {
        matches!(catalog.why_no_list("local").kind(), Kind::UpstreamTimeout(Phase::Answer))
            && catalog.shared.state.with(|state| state.sizes().0 == 0)
    });
    assert_eq!(names(catalog.lists(["local"])[0].as_ref()), ["llama3.2:latest"]);
}

#[test]
fn stopping_leaves_a_connect_that_hangs_behind_at_its_deadline() {
    // A listener whose queue is full takes no further connection and refuses none.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let soon = Duration::from_millis(200);
    let full: Vec<_> =
        std::iter::from_fn(|| std::net::TcpStream::connect_timeout(&address, soon).ok()).collect();
    assert!(!full.is_empty());
    let text = upstream("u", "ollama", address.port()) + "connect_timeout = \"20s\"\n";
    let (catalog, _) = start(&config(&text));
    eventually("it is being asked", || catalog.shared.state.with(|state| state.running() == 1));
    // Its thread is in the connect by now, or just before it, and then it ends in time.
    let begun = clock::now();
    assert!(catalog.stop(begun + SECOND / 5) <= 1);
    let took = clock::now() - begun;
    assert!(took < SECOND, "{took:?}");
    let begun = clock::now();
    drop(catalog);
    assert!(clock::now() - begun < SECOND, "nor does dropping it wait");
}

#[test]
fn its_threads_beat_while_they_ask_and_rest_while_there_is_nothing_to_ask() {
    let hanging = Peer::start(|_: &Seen| Act::Hang);
    let registry = Registry::default();
    let heartbeats = Arc::<Heartbeats>::default();
    let pulse = || {
        let pulses = heartbeats.pulses(clock::now());
        pulses.into_iter().find(|pulse| pulse.name == "catalog-1")
    };
    let config = config(&upstream("local", "ollama", hanging.port()));
    let resolver = Arc::new(Resolver::system(&registry));
    let catalog = Catalog::start(&config, resolver, &registry, Arc::clone(&heartbeats));
    eventually("it asks", || pulse().is_some_and(|pulse| pulse.silence.is_some()));
    assert!(pulse().unwrap().silence_max > FETCH_TIMEOUT, "a question may take that long");
    eventually("it rests", || pulse().unwrap().silence.is_none());
    assert_eq!(catalog.stop(clock::now() + SECOND * 5), 0);
    assert_eq!(pulse(), None, "it ended, and nobody waits for its beat");
}
