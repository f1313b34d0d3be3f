//! Many paired devices on WebSocket: what each costs in memory, how soon an event reaches all of them or
//! one of them, and whether ticks are on time.
//!
//! `TIDEGATE_NODES` makes it larger than the few that it has among the other tests; `make nodes` gives
//! it 2,000 and a release build, holds the figures against what was promised, and prints them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::support::ask;
use crate::support::daemon::Daemon;
use crate::support::fleet::{Came, Fleet, Greeting, What};
use crate::support::patience;
use crate::support::random::Random;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::Wire;
use crate::support::ws::room::{TOKEN, conf};
use crate::support::ws::{Hello, Keys};

/// Nodes in the full measure, from which on the promised figures are asserted.
const FULL: usize = 2000;

/// What one message of the memory measure holds.
const LARGE: usize = 8 << 20;

/// What was promised.
const MEMORY_KIB: f64 = 20.0;
const FAN_OUT: Duration = Duration::from_millis(250);
const PUSH_99: Duration = Duration::from_millis(5);
const TICK_LATE: Duration = Duration::from_secs(1);

fn nodes() -> usize {
    let text = std::env::var("TIDEGATE_NODES").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(40)
}

/// The daemon's memory in KiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    resident: u64,
    anonymous: u64,
}

impl Memory {
    fn of(daemon: &Daemon) -> Memory {
        let path = format!("/proc/{}/smaps_rollup", daemon.process().0);
        let text = std::fs::read_to_string(path).unwrap();
        let kib = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Memory { resident: kib("Rss:"), anonymous: kib("Anonymous:") }
    }

    /// What each of `count` has added since `before`: resident and anonymous, in KiB.
    fn each(self, before: Memory, count: usize) -> (f64, f64) {
        let each = |now: u64, then: u64| (now as f64 - then as f64) / count as f64;
        (each(self.resident, before.resident), each(self.anonymous, before.anonymous))
    }
}

/// The daemon, its nodes, and an operator, on one thread.
struct Rig {
    daemon: Daemon,
    fleet: Fleet,
    operator: usize,
    keys: Vec<String>,
    next: u64,
    /// Invocations on their way: when they were asked for.
    asked: BTreeMap<String, Instant>,
    /// From asking to the node's receipt, and to the answer.
    pushed: Vec<Duration>,
    returned: Vec<Duration>,
    /// When each connection had its last tick, and the longest time between two.
    ticked: Vec<Option<Instant>>,
    ticks: usize,
    tick_gap: Duration,
    /// When a broadcast reached each connection that it reached.
    heard: Vec<Instant>,
    /// The answers to the operator's other requests.
    answers: BTreeMap<String, Value>,
    /// Bytes of the payload that nodes answer with.
    payload: usize,
    /// While it is stopped: the codes of those that were closed.
    closes: Option<Vec<Option<u16>>>,
}

fn operator_greeting() -> Greeting {
    let hello = Hello::operator(&["operator.admin"]).token(TOKEN);
    Box::new(move |challenge| hello.request(challenge))
}

fn node_greeting(number: usize) -> Greeting {
    let keys = Keys::new(number as u64);
    Box::new(move |challenge| {
        Hello::node(&["camera.snap"]).token(TOKEN).keys(&keys).request(challenge)
    })
}

impl Rig {
    fn start(sandbox: &Sandbox, count: usize, tick: Duration) -> Rig {
        let now = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }).unwrap();
        let room = count + 100;
        let lines = format!(
            "connections_max = {room}\nconnections_per_key_max = {room}\n\
             connections_per_address_max = {room}\ndevices_max = {room}\ntick_interval = \"{}ms\"",
            tick.as_millis()
        );
        let conf = conf(sandbox, &lines).server(&format!("connections_max = {}", 2 * room));
        let daemon = Daemon::start(sandbox, &conf);
        daemon.wait_for_the_store();
        let mut fleet = Fleet::new(daemon.addr);
        let operator = fleet.admit(1, 1, |_| operator_greeting()).start;
        Rig {
            daemon,
            fleet,
            operator,
            keys: (0..count).map(|number| Keys::new(number as u64).id()).collect(),
            next: 0,
            asked: BTreeMap::new(),
            pushed: Vec::new(),
            returned: Vec::new(),
            ticked: Vec::new(),
            ticks: 0,
            tick_gap: Duration::ZERO,
            heard: Vec::new(),
            answers: BTreeMap::new(),
            payload: 0,
            closes: None,
        }
    }

    /// Sends a request of the operator; gives its id.
    fn say(&mut self, method: &str, params: &Value) -> String {
        self.next += 1;
        let id = self.next.to_string();
        let frame = json!({"type": "req", "id": id, "method": method, "params": params});
        self.fleet.say(self.operator, &frame.to_string());
        id
    }

    /// Reads what comes for so long.
    fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.turn(left.min(Duration::from_millis(100)));
        }
    }

    fn turn(&mut self, wait: Duration) {
        for came in self.fleet.turn(wait) {
            match came.what {
                What::Text(ref text) => self.text(&came, text),
                What::Gone(code) => match &mut self.closes {
                    Some(closes) => closes.push(code),
                    None => panic!("connection {} ended: {code:?}", came.who),
                },
                other => panic!("connection {}: {other:?}", came.who),
            }
        }
    }

    fn text(&mut self, came: &Came, text: &str) {
        let head = &text[..text.len().min(64)];
        if head.contains("\"event\":\"tick\"") {
            self.tick(came.who, came.at);
        } else if head.contains("\"event\":\"node.invoke.request\"") {
            self.invoked(came, text);
        } else if head.starts_with("{\"type\":\"res\"") && came.who == self.operator {
            let answer: Value = serde_json::from_str(text).unwrap();
            let id = answer["id"].as_str().unwrap().to_owned();
            if let Some(asked) = self.asked.remove(&id) {
                assert_eq!(answer["ok"], true, "{answer}");
                self.returned.push(came.at - asked);
            } else {
                self.answers.insert(id, answer);
            }
        } else if head.contains("\"event\":\"shutdown\"")
            || head.contains("\"event\":\"chat\"") && text.contains("\"state\":\"final\"")
        {
            self.heard.push(came.at);
        }
    }

    fn tick(&mut self, who: usize, at: Instant) {
        if self.ticked.len() <= who {
            self.ticked.resize(who + 1, None);
        }
        if let Some(last) = self.ticked[who].replace(at) {
            self.tick_gap = self.tick_gap.max(at - last);
            self.ticks += 1;
        }
    }

    /// A node was asked: it notes when, and answers.
    fn invoked(&mut self, came: &Came, text: &str) {
        let frame: Value = serde_json::from_str(text).unwrap();
        let request = &frame["payload"];
        let id = request["idempotencyKey"].as_str().unwrap();
        self.pushed.push(came.at - self.asked[id]);
        let result = json!({"type": "req", "id": "r", "method": "node.invoke.result", "params": {
            "id": request["id"], "nodeId": request["nodeId"], "ok": true,
            "payload": {"data": "x".repeat(self.payload)},
        }});
        self.fleet.say(came.who, &result.to_string());
    }

    /// Asks a node to do something; its id is its idempotency key, too.
    fn invoke(&mut self, number: usize, data: &str) {
        let id = (self.next + 1).to_string();
        let params = json!({
            "nodeId": self.keys[number], "command": "camera.snap", "params": {"data": data},
            "timeoutMs": 60_000, "idempotencyKey": id,
        });
        // Its text is made before the clock is looked at.
        self.next += 1;
        let frame = json!({"type": "req", "id": id, "method": "node.invoke", "params": params});
        let frame = frame.to_string();
        self.asked.insert(id, Instant::now());
        self.fleet.say(self.operator, &frame);
    }

    /// Waits until all invocations are answered.
    fn settle(&mut self) {
        let end = Instant::now() + patience(Duration::from_secs(60));
        while !self.asked.is_empty() {
            assert!(Instant::now() < end, "{} invocations without an answer", self.asked.len());
            self.turn(Duration::from_millis(100));
        }
    }

    /// Pairs every device: asks, is refused, is approved.
    fn pair_all(&mut self) {
        for batch in (0..self.keys.len()).collect::<Vec<_>>().chunks(16) {
            for &number in batch {
                self.fleet.add(node_greeting(number));
            }
            let mut requests = Vec::new();
            let end = Instant::now() + patience(Duration::from_secs(30));
            while requests.len() < batch.len() {
                assert!(Instant::now() < end, "{} of {}", requests.len(), batch.len());
                for came in self.fleet.turn(Duration::from_millis(100)) {
                    if let What::Refused(error) = came.what {
                        let request = error["details"]["requestId"].clone();
                        assert!(request.is_string(), "{error}");
                        requests.push(request);
                    }
                }
            }
            for request in requests {
                let id = self.say("device.pair.approve", &json!({"requestId": request}));
                let end = Instant::now() + patience(Duration::from_secs(30));
                while !self.answers.contains_key(&id) {
                    assert!(Instant::now() < end, "not approved");
                    for came in self.fleet.turn(Duration::from_millis(100)) {
                        // Those that were refused are closed meanwhile.
                        if let What::Text(ref text) = came.what {
                            self.text(&came, text);
                        }
                    }
                }
                let answer = self.answers.remove(&id).unwrap();
                assert_eq!(answer["ok"], true, "{answer}");
            }
        }
    }

    fn connect_all(&mut self) {
        self.fleet.admit(self.keys.len(), 16, node_greeting);
    }

    /// The memory once it falls no more: what is free goes back some seconds later.
    fn memory(&mut self, patient: Duration) -> Memory {
        let mut best = Memory::of(&self.daemon);
        let mut since = Instant::now();
        while since.elapsed() < patient {
            self.listen(Duration::from_millis(500));
            let now = Memory::of(&self.daemon);
            if now.resident + 64 < best.resident {
                (best, since) = (now, Instant::now());
            }
        }
        Memory::of(&self.daemon)
    }

    /// From a request for a chat to the last receipt of its end, by all operators there are.
    fn fan_out(&mut self, all: usize) -> Duration {
        // What went before is over by then.
        self.listen(Duration::from_millis(700));
        self.heard.clear();
        let begun = Instant::now();
        let key = format!("round {}", self.next);
        self.say(
            "chat.send",
            &json!({
                "sessionKey": "main", "message": "a few words", "idempotencyKey": key,
            }),
        );
        self.wait_for_all(begun, all)
    }

    fn wait_for_all(&mut self, begun: Instant, all: usize) -> Duration {
        let end = begun + patience(Duration::from_secs(20));
        while self.heard.len() < all {
            assert!(Instant::now() < end, "{} of {all} heard of it", self.heard.len());
            self.turn(Duration::from_millis(100));
        }
        *self.heard.iter().max().unwrap() - begun
    }

    /// Tells the daemon to stop: how soon everybody has heard of it, and that each is closed with
    /// 1012, some before others.
    fn shut_down(&mut self, all: usize) -> Duration {
        self.heard.clear();
        self.closes = Some(Vec::new());
        let begun = Instant::now();
        self.daemon.signal(Signal::TERM);
        let told = self.wait_for_all(begun, all);
        let end = begun + patience(Duration::from_secs(60));
        while self.closes.as_ref().is_some_and(|closes| closes.len() < all) {
            assert!(Instant::now() < end, "not all of {all} are closed");
            self.turn(Duration::from_millis(100));
        }
        let closes = self.closes.take().unwrap();
        assert!(closes.iter().all(|code| *code == Some(1012)), "{closes:?}");
        assert_eq!(self.daemon.wait_exit(Duration::from_secs(20)).unwrap().code(), Some(0));
        told
    }

    /// Events to random nodes, a hundred a second.
    fn push(&mut self, time: Duration, random: &mut Random) {
        (self.pushed, self.returned) = (Vec::new(), Vec::new());
        let begun = Instant::now();
        let mut due = begun;
        while due < begun + time {
            let now = Instant::now();
            if now < due {
                self.turn(due - now);
                continue;
            }
            let number = random.below(self.keys.len() as u64) as usize;
            self.invoke(number, "");
            due += Duration::from_millis(10);
        }
        self.settle();
    }
}

fn percentile(values: &mut [Duration], share: f64) -> Duration {
    values.sort_unstable();
    let rank = (values.len() as f64 * share).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

/// Whole chats on four connections, as fast as they are answered, for as long as `during` takes; gives
/// how many there were, too.
fn beside_chats<T>(addr: SocketAddr, during: impl FnOnce() -> T) -> (T, usize) {
    let over = AtomicBool::new(false);
    let over = &over;
    std::thread::scope(|scope| {
        let chat = || {
            let mut wire = Wire::connect(addr);
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                let answer = wire.ask(ask::chat(Dialect::OpenAi, "echo", "a few words", false));
                assert_eq!(answer.status(), 200);
                count += 1;
            }
            count
        };
        let chats: Vec<_> = (0..4).map(|_| scope.spawn(chat)).collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        over.store(true, Ordering::Relaxed);
        let count = chats.into_iter().map(|chat| chat.join().unwrap()).sum();
        (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), count)
    })
}

/// What came of it all.
struct Figures {
    count: usize,
    paired: Duration,
    connected: Duration,
    /// Memory of each, resident and anonymous, in KiB: of a paired device, and on top of it of its
    /// connection, idle and after the large messages.
    kept: (f64, f64),
    idle: (f64, f64),
    after: (f64, f64),
    fan_out_50: Duration,
    fan_out_max: Duration,
    shutdown: Duration,
    push_50: Duration,
    push_99: Duration,
    round_50: Duration,
    round_99: Duration,
    chats: usize,
    busy_push_99: Duration,
    ticks: usize,
    tick_late: Duration,
}

impl Figures {
    fn print(&self) {
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
        let kib = |(resident, anonymous): (f64, f64)| {
            format!("{resident:.1} KiB resident, {anonymous:.1} KiB of it anonymous")
        };
        let rows = [
            ("memory of each paired device", kib(self.kept)),
            ("memory of each connection on top, idle", kib(self.idle)),
            ("the same after 8 MiB to and from each tenth", kib(self.after)),
            (
                "a chat's end to as many operators, p50 and slowest",
                pair(ms(self.fan_out_50), ms(self.fan_out_max)),
            ),
            ("the end of the gateway, told to all", ms(self.shutdown)),
            (
                "an event to one, 100 a second, p50 and p99",
                pair(ms(self.push_50), ms(self.push_99)),
            ),
            ("its answer to the operator, p50 and p99", pair(ms(self.round_50), ms(self.round_99))),
            ("the same beside chats, p99", ms(self.busy_push_99)),
            ("latest tick beside chats", format!("{} of {} ticks", ms(self.tick_late), self.ticks)),
        ];
        eprintln!("| {} nodes on WebSocket | |\n| --- | --- |", self.count);
        for (name, value) in rows {
            eprintln!("| {name} | {value} |");
        }
        let Figures { paired, connected, chats, .. } = self;
        eprintln!(
            "paired in {paired:.1?}, connected in {connected:.1?}, {chats} chats beside the ticks"
        );
    }
}

fn pair(one: String, other: String) -> String {
    format!("{one}, {other}")
}

fn measure(rig: &mut Rig, full: bool, tick: Duration) -> Figures {
    let count = rig.keys.len();
    let mut random = Random::new(5);
    let short = Duration::from_millis(500);
    let settle = if full { Duration::from_secs(12) } else { short };
    let before = rig.memory(settle);
    let begun = Instant::now();
    rig.pair_all();
    let paired = begun.elapsed();
    // Devices are kept whether they are there or not: connections come on top of them.
    let base = rig.memory(settle);
    let kept = base.each(before, count);
    let begun = Instant::now();
    rig.connect_all();
    let connected = begun.elapsed();
    let idle = rig.memory(settle).each(base, count);

    rig.push(Duration::from_secs(if full { 20 } else { 2 }), &mut random);
    let (push_50, push_99) = (percentile(&mut rig.pushed, 0.5), percentile(&mut rig.pushed, 0.99));
    let round = [0.5, 0.99].map(|share| percentile(&mut rig.returned, share));
    let [round_50, round_99] = round;

    // Ticks and events beside other work: chats as fast as they go.
    (rig.ticks, rig.tick_gap, rig.ticked) = (0, Duration::ZERO, Vec::new());
    let time = tick * if full { 6 } else { 2 } + tick / 5;
    let ((), chats) = beside_chats(rig.daemon.addr, || rig.push(time, &mut random));
    let busy_push_99 = percentile(&mut rig.pushed, 0.99);
    let (ticks, tick_late) = (rig.ticks, rig.tick_gap.saturating_sub(tick));

    // One large message to each tenth node, and one from it.
    rig.payload = if full { LARGE } else { LARGE / 16 };
    let data = "x".repeat(rig.payload);
    for number in (0..count).step_by(10) {
        rig.invoke(number, &data);
        rig.settle();
    }
    let settle = if full { Duration::from_secs(45) } else { short };
    let after = rig.memory(settle).each(base, count);

    // As many operators: each hears of every chat.
    rig.fleet.drop_all();
    let threads = |rig: &Rig| {
        let names = rig.daemon.process().threads();
        names.iter().filter(|name| name.starts_with("ws-")).count()
    };
    assert_eventually!(threads(rig) == 0, "{} threads", threads(rig));
    let operators = rig.fleet.admit(count, 16, |_| operator_greeting());
    rig.operator = operators.start;
    let rounds = if full { 11 } else { 3 };
    let mut fan_outs: Vec<Duration> = (0..rounds).map(|_| rig.fan_out(count)).collect();
    let fan_out_max = *fan_outs.iter().max().unwrap();
    let fan_out_50 = percentile(&mut fan_outs, 0.5);
    rig.daemon.assert_well("after many nodes");
    let shutdown = rig.shut_down(count);
    Figures {
        count,
        paired,
        connected,
        kept,
        idle,
        after,
        fan_out_50,
        fan_out_max,
        shutdown,
        push_50,
        push_99,
        round_50,
        round_99,
        chats,
        busy_push_99,
        ticks,
        tick_late,
    }
}

#[test]
fn many_nodes_cost_little_and_hear_everything_in_time() {
    let count = nodes();
    let full = count >= FULL;
    let sandbox = Sandbox::alone();
    let tick = Duration::from_secs(if full { 5 } else { 1 });
    let mut rig = Rig::start(&sandbox, count, tick);
    let figures = measure(&mut rig, full, tick);
    figures.print();
    // Each had a tick in each interval, and none was left out.
    assert!(figures.ticks >= count, "{} ticks", figures.ticks);
    if full {
        assert!(figures.idle.0 < MEMORY_KIB && figures.after.0 < MEMORY_KIB);
        assert!(
            figures.fan_out_max < FAN_OUT
                && figures.shutdown < FAN_OUT
                && figures.push_99 < PUSH_99
        );
        assert!(figures.tick_late < TICK_LATE);
    }
}
