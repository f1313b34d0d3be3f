use super::*;
use crate::base::clock;
use crate::base::metrics::Registry;
use crate::net::http1::HeadLimits;
use crate::net::service::Step;
use crate::net::turn::Turn;

const MIB: u64 = 1 << 20;

struct Takes;

impl Service for Takes {
    fn admit(&self, _: &Head, _: &SocketAddr, _: &RequestId) -> Result<Admission, Box<Response>> {
        Ok(Admission { body_max: 32 * MIB, ..Admission::default() })
    }

    fn start(&self, _: Request, _: &mut Turn<'_>) -> Step {
        Step::Respond(Response::empty(204))
    }

    fn refuse(&self, error: &Error, _: Option<&Head>, _: &SocketAddr, _: &RequestId) -> Response {
        Response::text(error.row().status, error.row().code)
    }

    fn broken(&self, error: &Error, _: u16) -> Response {
        Response::text(error.row().status, error.row().code)
    }
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        head: HeadLimits { head_max: 16 << 10, headers_max: 100, target_max: 8 << 10 },
        head_timeout: second,
        body_rate_min: 1024,
        body_timeout: second * 60,
        keepalive_timeout: second,
        write_timeout: second,
        queue_timeout: second,
        waiting_timeout: second,
        connections_max: 8,
        connections_per_address_max: 0,
        trusted_proxies: Vec::new(),
        body_max: 32 * MIB,
        bodies_total_max: MIB,
        answers_total_max: MIB,
        request_timeout: second,
        exchanges_max: 4,
        waiting_max: 4,
    }
}

/// An intake with what it needs.
struct Bench {
    settings: Settings,
    bodies: Arc<Limit>,
    sizes: Sizes,
    intake: Intake,
    input: InputBuffer,
    now: Instant,
}

impl Bench {
    fn new(bodies_max: u64) -> Self {
        Bench {
            settings: settings(),
            sizes: Sizes::new(&Registry::default(), "data", &settings()),
            bodies: Limit::detached(bodies_max),
            intake: Intake::default(),
            input: InputBuffer::default(),
            now: clock::now(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Advance {
        self.input.space().extend_from_slice(bytes);
        let Bench { settings, bodies, sizes, intake, input, now } = self;
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let env = Env { settings, service: &Takes, bodies, sizes, peer };
        intake.advance(input, &env, *now)
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }
}

fn announce(length: u64) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n").into_bytes()
}

#[test]
fn what_a_body_takes_of_the_budget_follows_what_has_come_of_it() {
    let mut bench = Bench::new(64 * MIB);
    assert!(matches!(bench.feed(&announce(32 * MIB)), Advance::More));
    assert_eq!(bench.bodies.now(), BODY_STEP, "not what it announces");
    let mut came = 0;
    let piece = vec![b'x'; 50_000];
    while came + (piece.len() as u64) < 32 * MIB {
        assert!(matches!(bench.feed(&piece), Advance::More));
        came += piece.len() as u64;
        let held = bench.bodies.now();
        assert!(held > came && held <= (2 * came).max(BODY_STEP), "{held} for {came}");
        let (body, room) = bench.intake.body_space().unwrap();
        assert_eq!((body.len() + room) as u64, held, "a read goes no further than the budget");
        assert!(body.capacity() as u64 <= held.max(2 * BODY_STEP), "{}", body.capacity());
    }
    let rest = vec![b'x'; usize::try_from(32 * MIB - came).unwrap()];
    let Advance::Ready(request) = bench.feed(&rest) else { panic!("not complete") };
    assert_eq!((request.body.len() as u64, bench.bodies.now()), (32 * MIB, 32 * MIB));
    drop(request);
    assert_eq!(bench.bodies.now(), 0);
}

#[test]
fn without_room_nothing_is_lost_and_it_goes_on_when_there_is_some() {
    let body: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let chunks: Vec<u8> = body
        .chunks(7_000)
        .flat_map(|c| [format!("{:x}\r\n", c.len()).as_bytes(), c, b"\r\n"].concat())
        .chain(*b"0\r\n\r\n")
        .collect();
    let chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for (head, wire) in [(announce(200_000), body.clone()), (chunked, chunks)] {
        let mut bench = Bench::new(100);
        assert!(matches!(bench.feed(&head), Advance::NoRoom));
        let mut refused = 0;
        let mut ready = None;
        for piece in wire.chunks(9_999) {
            let mut advance = bench.feed(piece);
            while matches!(advance, Advance::NoRoom) {
                refused += 1;
                // The room grows a little each time, as if others had gone.
                bench.bodies.set_max(bench.bodies.max() + 30_000);
                advance = bench.feed(b"");
            }
            if let Advance::Ready(request) = advance {
                ready = Some(request);
            }
        }
        assert!(refused > 3);
        assert!(ready.unwrap().body == body, "the body was changed on its way");
    }
}

#[test]
fn a_client_is_told_to_continue_only_when_there_is_room() {
    let head = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    let mut bench = Bench::new(0);
    assert!(matches!(bench.feed(head), Advance::NoRoom));
    bench.bodies.set_max(9);
    assert!(matches!(bench.feed(b""), Advance::Continue));
    assert!(matches!(bench.feed(b""), Advance::More), "once");
    assert!(matches!(bench.feed(b"123456789"), Advance::Ready(_)));
}

#[test]
fn requests_without_a_body_need_no_budget() {
    let mut bench = Bench::new(10);
    let _held = bench.bodies.try_take(10);
    // A reload made it smaller than what is held.
    bench.bodies.set_max(5);
    assert!(matches!(bench.feed(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), Advance::Ready(_)));
    assert!(matches!(bench.feed(&announce(0)), Advance::Ready(_)));
}

#[test]
fn a_body_is_slow_by_what_came_lately_and_not_at_its_beginning() {
    let mut bench = Bench::new(64 * MIB);
    assert_eq!(bench.intake.slow_rate(bench.now), None, "no body");
    bench.feed(&announce(32 * MIB));
    bench.pass(1.9);
    assert_eq!(bench.intake.slow_rate(bench.now), None, "too young to be judged");
    bench.pass(0.2);
    assert_eq!(bench.intake.slow_rate(bench.now), Some(0.0), "nothing came");
    // Half of it at once: fast for as long as that is lately, and then no longer.
    bench.feed(&vec![b'x'; 16 << 20]);
    assert_eq!(bench.intake.slow_rate(bench.now), None);
    for _ in 0..50 {
        bench.pass(0.1);
        bench.feed(b"x");
    }
    let rate = bench.intake.slow_rate(bench.now).expect("a trickle");
    assert!(rate > 5.0 && rate < 20.0, "{rate}");
    // Steady at a megabyte a second: never slow.
    for _ in 0..50 {
        bench.pass(0.1);
        bench.feed(&[b'x'; 100_000]);
    }
    for _ in 0..50 {
        bench.pass(0.1);
        bench.feed(&[b'x'; 100_000]);
        assert_eq!(bench.intake.slow_rate(bench.now), None);
    }
}
