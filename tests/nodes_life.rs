//! WebSocket connections that end badly: peers that vanish, and peers that leave in the middle of
//! anything. What was theirs is gone in time, and nothing stays behind.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, Start};
use crate::support::patience;
use crate::support::process::Process;
use crate::support::random::Random;
use crate::support::sandbox::{Sandbox, free_port, loopback};
use crate::support::wire::Wire;
use crate::support::ws::room::{TOKEN, admin, conf, pair};
use crate::support::ws::{Client, Frame, Hello, Keys, Message, Ws};

/// What WebSocket connections hold of a daemon.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// Threads of connections.
    threads: usize,
    descriptors: usize,
    /// Rows of presence.
    presence: usize,
    /// Limits of the room that hold something.
    held: Vec<(String, u64)>,
}

impl State {
    /// As it is now; the operator's own connection counts.
    fn of(daemon: &Daemon, operator: &mut Client) -> State {
        let presence = presence(operator).len();
        let threads = daemon.process().threads();
        // What is kept on purpose: who was paired, and what may be asked for again.
        // Presence is counted by itself.
        let kept = ["devices", "idempotency", "sessions", "known", "threads", "presence"];
        let held = daemon.metrics().held().into_iter().filter(|(name, _)| {
            let room = ["nodes.", "server.connections"].iter().any(|room| name.starts_with(room));
            room && !name.ends_with(" ops") && !kept.iter().any(|kept| name.contains(kept))
        });
        State {
            threads: threads.iter().filter(|name| name.starts_with("ws-")).count(),
            descriptors: daemon.process().fds(),
            presence,
            held: held.collect(),
        }
    }
}

/// Waits until a daemon is as it was.
fn assert_back(daemon: &Daemon, operator: &mut Client, before: &State) {
    let mut now = State::of(daemon, operator);
    let end = Instant::now() + patience(Duration::from_secs(10));
    while now != *before {
        assert!(Instant::now() < end, "it holds\n{now:?}\nand held\n{before:?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
        now = State::of(daemon, operator);
    }
}

fn presence(operator: &mut Client) -> Vec<Value> {
    if std::env::var("ADHOC").is_ok() {
        return Vec::new();
    }
    let list = operator.request("system-presence", json!({})).unwrap();
    list.as_array().unwrap().clone()
}

/// Whether a device is in presence.
fn present(operator: &mut Client, keys: &Keys) -> bool {
    presence(operator).iter().any(|entry| entry["deviceId"] == keys.id())
}

/// Settings with short pings, and a tick that is not the first to find out.
const SHORT: &str = "ping_interval = \"1s\"\npong_timeout = \"600ms\"\ntick_interval = \"30s\"";

/// When a peer that vanished has to be found dead: ping interval, pong timeout and a second.
const DEAD_WITHIN: Duration = Duration::from_millis(2600);

/// A process that holds a connection in another's place, frozen.
struct Frozen(Child);

impl Frozen {
    /// Takes a connection over: from here on nobody reads it, and its kernel acknowledges all.
    fn hold(client: &mut Client) -> Frozen {
        let socket = client.ws().socket().try_clone().unwrap();
        let mut command = Command::new("cat");
        command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        Process(child.id()).signal(Signal::STOP);
        Frozen(child)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A link to a network namespace of its own, which goes with it. The cable is between two ends of
/// a virtual Ethernet; once it is pulled packets are lost both ways, and nobody is told.
struct Cable {
    name: String,
    /// Our end's address.
    here: Ipv4Addr,
}

impl Cable {
    /// None where namespaces may not be made; says so.
    fn new() -> Option<Cable> {
        let id = std::process::id();
        let name = format!("tg{id}");
        let net = [10, 77, (id >> 6) as u8, (id << 2) as u8];
        let address = |host: u8| Ipv4Addr::new(net[0], net[1], net[2], net[3] + host);
        let cable = Cable { here: address(1), name };
        let (name, here, there) = (&cable.name, address(1), address(2));
        let made = ip(&format!("netns add {name}"))
            && ip(&format!("link add {name}a type veth peer name {name}b netns {name}"))
            && ip(&format!("addr add {here}/30 dev {name}a"))
            && ip(&format!("link set {name}a up"))
            && ip(&format!("-n {name} addr add {there}/30 dev {name}b"))
            && ip(&format!("-n {name} link set {name}b up"));
        if !made {
            eprintln!("no network namespaces here: only frozen peers are tested");
        }
        made.then_some(cable)
    }

    /// A connection from the other side.
    fn connect(&self, port: u16) -> Wire {
        let path = format!("/run/netns/{}", self.name);
        let to = SocketAddr::from((self.here, port));
        // A socket stays in the namespace that it was made in; its thread's is of no account then.
        let there = move || {
            let space = std::fs::File::open(path).unwrap();
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(space.as_fd(), network).unwrap();
            Wire::connect(to)
        };
        std::thread::spawn(there).join().unwrap()
    }

    fn pull(&self) {
        assert!(ip(&format!("-n {0} link set {0}b down", self.name)));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
        // Its end here goes with the other one, at its own time.
        ip(&format!("link del {}a", self.name));
    }
}

/// Runs `ip` with these words; whether it did it.
fn ip(words: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Two peers, a node with an invocation under way and an operator with subscriptions, vanish: both
/// are found dead in time, and what was theirs is gone. Those who answer their pings stay.
fn vanish_and_be_found<T>(
    daemon: &Daemon,
    connect: impl Fn() -> Wire,
    vanish: impl FnOnce(&mut [Client]) -> T,
) {
    let mut operator = admin(daemon);
    let (keys, other) = (Keys::new(1), Keys::new(2));
    drop(pair(daemon, &mut operator, &keys, &["camera.snap"]));
    let stays = pair(daemon, &mut operator, &other, &["camera.snap"]).idle();
    assert_eventually!(!present(&mut operator, &keys));
    // What is still under way from the beginning is nothing that would come back.
    daemon.wait_for_the_store();
    let quiet = |state: &State| {
        state.threads == 2 && !state.held.iter().any(|(name, _)| name.contains("messages"))
    };
    let end = Instant::now() + patience(Duration::from_secs(10));
    let before = loop {
        let now = State::of(daemon, &mut operator);
        if quiet(&now) {
            break now;
        }
        assert!(Instant::now() < end, "not quiet: {now:?}");
        std::thread::sleep(Duration::from_millis(20));
    };

    let enter = |hello: Hello<'_>| {
        let ws = Ws::upgrade(connect(), "/", "").unwrap_or_else(|answer| panic!("{answer:?}"));
        hello.token(TOKEN).say(ws).unwrap_or_else(|refused| panic!("{refused:?}"))
    };
    let node = enter(Hello::node(&["camera.snap"]).keys(&keys));
    let mut watcher = enter(Hello::operator(&["operator.admin"]));
    watcher.request("sessions.subscribe", json!({})).unwrap();
    let mut peers = [node, watcher];
    let params = json!({
        "nodeId": keys.id(), "command": "camera.snap", "timeoutMs": 60_000, "idempotencyKey": "a",
    });
    let call = operator.ask("node.invoke", params);
    peers[0].next_event("node.invoke.request");
    assert!(present(&mut operator, &keys));

    let begun = Instant::now();
    let held = vanish(&mut peers);
    let error = operator.answer(&call).unwrap_err();
    let took = begun.elapsed();
    assert!(error.to_string().contains("NOT_CONNECTED"), "{error}");
    assert!(took <= daemon.allow(DEAD_WITHIN), "found dead after {took:?}");
    // The other one is silent since the same moment.
    assert_eventually!(State::of(daemon, &mut operator).threads == before.threads);
    let took = begun.elapsed();
    assert!(took <= daemon.allow(DEAD_WITHIN), "the second was found dead after {took:?}");
    assert_back(daemon, &mut operator, &before);
    assert!(present(&mut operator, &other));
    stays.back();
    drop((held, peers));
}

#[test]
fn a_peer_whose_process_is_frozen_is_found_dead_and_what_was_its_own_is_gone() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &conf(&sandbox, SHORT));
    let freeze = |peers: &mut [Client]| peers.iter_mut().map(Frozen::hold).collect::<Vec<_>>();
    vanish_and_be_found(&daemon, || daemon.connect(), freeze);
}

#[test]
fn a_peer_whose_network_vanishes_without_a_word_is_found_dead() {
    let sandbox = Sandbox::new();
    let Some(cable) = Cable::new() else { return };
    let port = free_port();
    let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let ops = loopback(free_port());
    // Who listens to others than this machine has to ask for keys.
    let conf = conf(&sandbox, SHORT).text("[[key]]\nname = \"k\"\nsha256 = \"f3106e35ee6318cccddc094436e63f0dd1630bca741e03aefa6b867875723065\"");
    let file = sandbox.write("tidegate.toml", conf.render(listen, ops));
    let mut daemon = Daemon::spawn(&sandbox, &file, loopback(port), ops, &Start::default());
    daemon.wait_ready().unwrap();
    vanish_and_be_found(&daemon, || cable.connect(port), |_| cable.pull());
}

/// Ways in which a connection ends, each in another phase.
const PHASES: u64 = 14;

/// How often the churn connects; `TIDEGATE_CHURN` says otherwise.
fn cycles() -> usize {
    let text = std::env::var("TIDEGATE_CHURN").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(600)
}

/// One connection that ends at random: in any phase, by a FIN or a reset.
fn come_and_go(daemon: &Daemon, random: &mut Random, device: &Keys, node: &str) {
    let phase = random.below(PHASES);
    let reset = random.below(2) == 0;
    let mut wire = daemon.connect();
    let request = Ws::request("/", "c2l4dGVlbiBieXRlcyBvaw==", "");
    let end = |wire: Wire| if reset { wire.reset() } else { drop(wire) };
    match phase {
        // After the connection; in the middle of the head; before the 101 is read.
        0 => return end(wire),
        1 => {
            let half = random.below(request.len() as u64) as usize;
            wire.send(&request[..half]);
            return end(wire);
        }
        2 => {
            wire.send(&request);
            return end(wire);
        }
        _ => {}
    }
    let mut ws = Ws::upgrade(wire, "/", "").unwrap_or_else(|answer| panic!("{answer:?}"));
    let end = |ws: Ws| if reset { ws.reset() } else { drop(ws) };
    match phase {
        // After the 101; after the challenge; with half a `connect`; with one that nobody hears.
        3 => return end(ws),
        4 => {
            ws.message().unwrap();
            return end(ws);
        }
        5 | 6 => {
            let Ok(Message::Text(challenge)) = ws.message() else { panic!("no challenge") };
            let challenge: Value = serde_json::from_str(&challenge).unwrap();
            let hello = Hello::operator(&["operator.read"]).token(TOKEN);
            let frame = Frame::text(&hello.request(&challenge["payload"]).to_string()).bytes();
            let part =
                if phase == 5 { random.below(frame.len() as u64) as usize } else { frame.len() };
            ws.try_send(&frame[..part]).unwrap();
            return end(ws);
        }
        _ => {}
    }
    let hello = match phase {
        7 | 8 => Hello::node(&["camera.snap"]).keys(device),
        _ => Hello::operator(&["operator.read", "operator.write"]),
    };
    let mut client = hello.token(TOKEN).say(ws).unwrap_or_else(|refused| panic!("{refused:?}"));
    match phase {
        7 => {
            client.ask(
                "node.event",
                json!({"event": "chat.subscribe", "payload": {"sessionKey": "main"}}),
            );
        }
        // In the middle of a frame, of a message, of a close.
        9 => client.ws().try_send(&Frame::text("{}").announcing(1 << 20).bytes()).unwrap(),
        10 => client.ws().send(&Frame::text("{").more()),
        11 => client.ws().send(&Frame::close(1000, "")),
        // With subscriptions; with an invocation that nobody answers.
        12 => {
            client.ask("sessions.subscribe", json!({}));
            client.ask("sessions.messages.subscribe", json!({"key": "main"}));
        }
        13 => {
            let key = random.number().to_string();
            let params = json!({
                "nodeId": node, "command": "camera.snap", "timeoutMs": 2_000, "idempotencyKey": key,
            });
            client.ask("node.invoke", params);
        }
        _ => {}
    }
    if reset { client.reset() } else { drop(client) }
}

#[test]
fn connections_that_end_in_any_phase_leave_nothing_behind() {
    let sandbox = Sandbox::new();
    let lines = "connections_per_key_max = 1000\nconnections_per_address_max = 1000\ntick_interval = \"2s\"\nhandshake_timeout = \"2s\"";
    let daemon = Daemon::start(&sandbox, &conf(&sandbox, lines));
    let mut operator = admin(&daemon);
    // A node that answers nothing, so that invocations stay under way, and devices that come and go.
    let silent = Keys::new(0);
    let node = pair(&daemon, &mut operator, &silent, &["camera.snap"]).idle();
    let devices: Vec<Keys> = (1..=4).map(Keys::new).collect();
    for keys in &devices {
        drop(pair(&daemon, &mut operator, keys, &["camera.snap"]));
    }
    let operator = operator.idle();
    let churn = |seed: u64, cycles: usize| {
        let left = AtomicUsize::new(cycles);
        std::thread::scope(|scope| {
            for (number, keys) in (0..).zip(&devices) {
                let mut random = Random::new(seed + number);
                let (left, daemon, silent) = (&left, &daemon, silent.id());
                scope.spawn(move || {
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        come_and_go(daemon, &mut random, keys, &silent);
                    }
                });
            }
        });
    };
    // What is made once is made in the first rounds.
    churn(100, 150);
    let mut operator = operator.back();
    daemon.wait_for_the_store();
    assert_eventually!(State::of(&daemon, &mut operator).threads == 2);
    // Invocations that nobody waits for any more end with their time.
    let idle = |state: &State| !state.held.iter().any(|(name, _)| name.contains("pending"));
    assert_eventually!(idle(&State::of(&daemon, &mut operator)));
    let before = State::of(&daemon, &mut operator);
    let memory = daemon.process().rss_kib();
    let operator = operator.idle();
    let cycles = cycles();
    let begun = Instant::now();
    churn(200, cycles);
    let took = begun.elapsed();
    let mut operator = operator.back();
    assert_back(&daemon, &mut operator, &before);
    // What the allocator keeps goes back by and by.
    let grown = || daemon.process().rss_kib().saturating_sub(memory);
    let end = Instant::now() + patience(Duration::from_secs(60));
    while grown() > GROWTH_KIB && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!(
        "{cycles} connections in {took:.1?}: {before:?}, memory {memory} KiB and {} more",
        grown()
    );
    assert!(grown() <= GROWTH_KIB, "{} KiB more than {memory} KiB", grown());
    daemon.assert_well("after the churn");
    node.back();
}

/// Memory that may be more after a churn, however long it was.
const GROWTH_KIB: u64 = 3 * 1024;
