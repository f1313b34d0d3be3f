//! The cases of the Autobahn test suite, without those of compression, which is never agreed on: what
//! is sent, what must come back, and how it must end. The numbers are the suite's.

use crate::support::ws::{BINARY, CLOSE, CONTINUATION, Frame, Message, PING, PONG, TEXT};

/// A case.
pub struct Case {
    /// The suite's number.
    pub number: String,
    /// What is sent and what comes.
    pub steps: Vec<Step>,
    /// How it ends.
    pub end: End,
}

/// One step of a case.
pub enum Step {
    /// Sends this in one go.
    Send(Vec<u8>),
    /// Sends this in pieces of so many bytes.
    Chops(Vec<u8>, usize),
    /// This comes.
    Comes(Message),
    /// This comes, unless the fault behind it was seen first, which is not as strict.
    Should(Message),
}

/// How a case ends.
pub enum End {
    /// We close with 1000, and are answered with it.
    Ours,
    /// They close with one of these.
    Theirs(&'static [u16]),
    /// We have closed, and are answered with one of these.
    Answered(Vec<u16>),
    /// Somehow.
    Anyhow,
}

/// What came of a case, in the suite's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Ok,
    NonStrict,
    Informational,
    Failed(String),
}

use End::{Answered, Ours, Theirs};
use Step::{Chops, Comes, Send, Should};

const PROTOCOL: End = Theirs(&[1002]);
const NOT_TEXT: End = Theirs(&[1007]);

/// A small message.
const SMALL: &str = "a small message";

/// Text with characters of two and three bytes, in two halves.
const WIDE: [&str; 2] = ["naïve façade —", " κόσμε"];

/// The cases of what is right and what is wrong.
pub fn of_rules() -> Vec<Case> {
    let mut all = Cases(Vec::new());
    all.framing();
    all.pings();
    all.reserved_bits();
    all.opcodes();
    all.fragments();
    all.control_among_fragments();
    all.utf8_in_frames();
    all.utf8_fails_fast();
    all.utf8_sequences();
    all.closes();
    all.close_payloads();
    all.0
}

/// The cases of size and speed.
pub fn of_sizes() -> Vec<Case> {
    let mut all = Cases(Vec::new());
    all.sizes();
    all.pieces();
    all.round_trips();
    all.0
}

struct Cases(Vec<Case>);

fn frame(opcode: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    piece(opcode, payload.as_ref(), true)
}

fn part(opcode: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    piece(opcode, payload.as_ref(), false)
}

fn piece(opcode: u8, payload: &[u8], last: bool) -> Vec<u8> {
    let end = |frame: Frame| if last { frame } else { frame.more() };
    if payload.len() < 1024 {
        return end(Frame::new(opcode, payload)).bytes();
    }
    // Masking takes long in a debug build; the mask is tried by all the others.
    let head = Frame::new(opcode, "").mask(Some([0; 4])).announcing(payload.len() as u64);
    [&end(head).bytes(), payload].concat()
}

/// A message in frames of at most `size` bytes.
fn fragments(opcode: u8, payload: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let count = payload.len().div_ceil(size);
    for (number, piece) in payload.chunks(size).enumerate() {
        let opcode = if number == 0 { opcode } else { CONTINUATION };
        out.extend(self::piece(opcode, piece, number + 1 == count));
    }
    out
}

fn message(opcode: u8, payload: &[u8]) -> Message {
    match opcode {
        TEXT => Message::Text(String::from_utf8(payload.to_vec()).unwrap()),
        BINARY => Message::Binary(payload.to_vec()),
        _ => Message::Pong(payload.to_vec()),
    }
}

/// A message that is sent and comes back.
fn echoed(opcode: u8, payload: &[u8]) -> Vec<Step> {
    vec![Send(frame(opcode, payload)), Comes(message(opcode, payload))]
}

/// Frames in one go, one by one, or byte by byte: the suite does most things in these three ways.
fn three_ways(frames: &[Vec<u8>]) -> [Vec<Step>; 3] {
    let each = frames.iter().map(|frame| Send(frame.clone())).collect();
    [vec![Send(frames.concat())], each, vec![Chops(frames.concat(), 1)]]
}

impl Cases {
    fn case(&mut self, number: impl Into<String>, steps: Vec<Step>, end: End) {
        self.0.push(Case { number: number.into(), steps, end });
    }

    fn framing(&mut self) {
        let sizes = [0, 125, 126, 127, 128, 65_535, 65_536];
        for (section, opcode) in [(1, TEXT), (2, BINARY)] {
            for (number, size) in (1..).zip(sizes) {
                let payload = vec![b'*'; size];
                self.case(format!("1.{section}.{number}"), echoed(opcode, &payload), Ours);
            }
            let payload = vec![b'*'; 65_536];
            let steps = vec![Chops(frame(opcode, &payload), 997), Comes(message(opcode, &payload))];
            self.case(format!("1.{section}.8"), steps, Ours);
        }
    }

    fn pings(&mut self) {
        let answered =
            |payload: &[u8]| vec![Send(frame(PING, payload)), Comes(message(PONG, payload))];
        self.case("2.1", answered(b""), Ours);
        self.case("2.2", answered(b"here I am"), Ours);
        self.case("2.3", answered(&[0, 255, 254, 253, 252, 251, 0, 255]), Ours);
        self.case("2.4", answered(&[254; 125]), Ours);
        self.case("2.5", vec![Send(frame(PING, [254; 126]))], PROTOCOL);
        let steps = vec![Chops(frame(PING, [254; 125]), 1), Comes(message(PONG, &[254; 125]))];
        self.case("2.6", steps, Ours);
        self.case("2.7", vec![Send(frame(PONG, ""))], Ours);
        self.case("2.8", vec![Send(frame(PONG, "nobody asked"))], Ours);
        let mut steps = vec![Send(frame(PONG, "nobody asked"))];
        steps.extend(answered(b"asked"));
        self.case("2.9", steps, Ours);
        let pings: Vec<_> = (0..10).map(|n| frame(PING, format!("ping {n}"))).collect();
        let pongs = || (0..10).map(|n| Comes(message(PONG, format!("ping {n}").as_bytes())));
        self.case("2.10", [Send(pings.concat())].into_iter().chain(pongs()).collect(), Ours);
        self.case("2.11", [Chops(pings.concat(), 1)].into_iter().chain(pongs()).collect(), Ours);
    }

    fn reserved_bits(&mut self) {
        let with = |bits, opcode, payload: &str| Frame::new(opcode, payload).rsv(bits).bytes();
        self.case("3.1", vec![Send(with(1, TEXT, SMALL))], PROTOCOL);
        for (bits, way) in [(2, 0), (3, 1), (4, 2)] {
            let frames = [frame(TEXT, SMALL), with(bits, TEXT, SMALL), frame(PING, "")];
            self.faulty(format!("3.{bits}"), &frames, way);
        }
        self.case("3.5", vec![Send(with(5, BINARY, "\0\u{1}"))], PROTOCOL);
        self.case("3.6", vec![Send(with(6, PING, "ping"))], PROTOCOL);
        let close = Frame::close(1000, "").rsv(7).bytes();
        self.case("3.7", vec![Send(close)], PROTOCOL);
    }

    /// A small message, a fault and a ping, in one of three ways: the message should come back, the
    /// pong must not.
    fn faulty(&mut self, number: String, frames: &[Vec<u8>], way: usize) {
        let [all, each, chops] = three_ways(frames);
        let mut steps = [all, each, chops].into_iter().nth(way).unwrap();
        steps.push(Should(Message::Text(SMALL.to_owned())));
        self.case(number, steps, PROTOCOL);
    }

    fn opcodes(&mut self) {
        for (section, first) in [(1, 3), (2, 11)] {
            self.case(format!("4.{section}.1"), vec![Send(frame(first, ""))], PROTOCOL);
            self.case(format!("4.{section}.2"), vec![Send(frame(first + 1, SMALL))], PROTOCOL);
            for (number, payload, way) in [(3, "", 0), (4, SMALL, 0), (5, SMALL, 2)] {
                let frames =
                    [frame(TEXT, SMALL), frame(first + number - 1, payload), frame(PING, "")];
                self.faulty(format!("4.{section}.{number}"), &frames, way);
            }
        }
    }

    fn fragments(&mut self) {
        let (one, two) = ("fragment one,", "fragment two");
        let rest = frame(CONTINUATION, two);
        for (number, opcode) in [("5.1", PING), ("5.2", PONG)] {
            self.case(number, vec![Send([part(opcode, one), rest.clone()].concat())], PROTOCOL);
        }
        let whole = format!("{one}{two}");
        let ping = frame(PING, "in between");
        let pong = || Comes(message(PONG, b"in between"));
        for (number, mut steps) in (3..).zip(three_ways(&[part(TEXT, one), rest.clone()])) {
            steps.push(Comes(Message::Text(whole.clone())));
            self.case(format!("5.{number}"), steps, Ours);
        }
        let frames = [part(TEXT, one), ping.clone(), rest.clone()];
        for (number, mut steps) in (6..).zip(three_ways(&frames)) {
            steps.extend([pong(), Comes(Message::Text(whole.clone()))]);
            self.case(format!("5.{number}"), steps, Ours);
        }
        // Nothing to continue, whole and not.
        for (first, stray) in [(9, rest.clone()), (12, part(CONTINUATION, two))] {
            let frames = [stray, frame(TEXT, SMALL)];
            for (number, steps) in (first..).zip(three_ways(&frames)) {
                self.case(format!("5.{number}"), steps, PROTOCOL);
            }
        }
        let frames = [part(TEXT, one), rest.clone(), part(CONTINUATION, one), frame(TEXT, two)];
        let steps = vec![Send(frames.concat()), Should(Message::Text(whole.clone()))];
        self.case("5.15", steps, PROTOCOL);
        for (number, stray) in [("5.16", part(CONTINUATION, one)), ("5.17", rest.clone())] {
            let frames = [stray, part(TEXT, one), rest.clone()].concat();
            self.case(number, vec![Send(frames.repeat(2))], PROTOCOL);
        }
        self.case("5.18", vec![Send([part(TEXT, one), frame(TEXT, two)].concat())], PROTOCOL);
    }

    fn control_among_fragments(&mut self) {
        for (number, one_by_one) in [("5.19", false), ("5.20", true)] {
            let begin = [part(TEXT, "1"), part(CONTINUATION, "2"), frame(PING, "first")];
            let end = [
                part(CONTINUATION, "3"),
                part(CONTINUATION, "4"),
                frame(PING, "second"),
                frame(CONTINUATION, "5"),
            ];
            let mut steps = Vec::new();
            for (frames, pong) in [(&begin[..], "first"), (&end[..], "second")] {
                let [all, each, _] = three_ways(frames);
                steps.extend(if one_by_one { each } else { all });
                // It comes before the rest of the message is sent.
                steps.push(Comes(message(PONG, pong.as_bytes())));
            }
            steps.push(Comes(Message::Text("12345".to_owned())));
            self.case(number, steps, Ours);
        }
    }

    fn utf8_in_frames(&mut self) {
        self.case("6.1.1", echoed(TEXT, b""), Ours);
        for (number, middle) in [("6.1.2", ""), ("6.1.3", "the middle")] {
            let parts = [part(TEXT, ""), part(CONTINUATION, middle), frame(CONTINUATION, "")];
            let steps = vec![Send(parts.concat()), Comes(Message::Text(middle.to_owned()))];
            self.case(number, steps, Ours);
        }
        let wide = WIDE.concat();
        let text = || Comes(Message::Text(wide.clone()));
        self.case("6.2.1", vec![Send(frame(TEXT, &wide)), text()], Ours);
        let halves = [part(TEXT, WIDE[0]), frame(CONTINUATION, WIDE[1])].concat();
        self.case("6.2.2", vec![Send(halves), text()], Ours);
        self.case("6.2.3", vec![Send(fragments(TEXT, wide.as_bytes(), 1)), text()], Ours);
        let greek = "κόσμε";
        let pieces = fragments(TEXT, greek.as_bytes(), 1);
        self.case("6.2.4", vec![Send(pieces), Comes(Message::Text(greek.to_owned()))], Ours);
        let surrogate = b"fine \xed\xa0\x80 and fine again";
        self.case("6.3.1", vec![Send(frame(TEXT, surrogate))], NOT_TEXT);
        self.case("6.3.2", vec![Send(fragments(TEXT, surrogate, 1))], NOT_TEXT);
    }

    /// Text that goes wrong in its middle is refused there, though it has not ended. A ping shows
    /// that it was fine up to there.
    fn utf8_fails_fast(&mut self) {
        let fine = "κόσμε".as_bytes();
        // U+110000: wrong at its second byte.
        for (number, first, second) in [
            ("6.4.1", fine.to_vec(), &b"\xf4\x90\x80\x80"[..]),
            ("6.4.2", [fine, b"\xf4"].concat(), b"\x90"),
        ] {
            let steps = vec![
                Send(part(TEXT, first)),
                Send(frame(PING, "still")),
                Comes(message(PONG, b"still")),
                Send(part(CONTINUATION, second)),
            ];
            self.case(number, steps, NOT_TEXT);
        }
        let whole = frame(TEXT, [fine, b"\xf4\x90\x80\x80 and the rest"].concat());
        let head = whole.len() - fine.len() - 17;
        for (number, sent) in [("6.4.3", fine.len() + 4), ("6.4.4", fine.len() + 2)] {
            self.case(number, vec![Chops(whole[..head + sent].to_vec(), 11)], NOT_TEXT);
        }
    }

    /// Sequences by kind: those of Markus Kuhn's stress test, and what is valid beside them.
    fn utf8_sequences(&mut self) {
        for (section, (valid, sequences)) in (5..).zip(sequences()) {
            for (number, sequence) in (1..).zip(sequences) {
                let valid = valid.unwrap_or_else(|| std::str::from_utf8(&sequence).is_ok());
                let number = format!("6.{section}.{number}");
                if valid {
                    self.case(number, echoed(TEXT, &sequence), Ours);
                } else {
                    self.case(number, vec![Send(frame(TEXT, &sequence))], NOT_TEXT);
                }
            }
        }
    }

    fn closes(&mut self) {
        let close = Frame::close(1000, "").bytes();
        let ends = || Answered(vec![1000]);
        let mut steps = echoed(TEXT, SMALL.as_bytes());
        steps.push(Send(close.clone()));
        self.case("7.1.1", steps, ends());
        self.case("7.1.2", vec![Send(close.repeat(2))], ends());
        self.case("7.1.3", vec![Send([close.clone(), frame(PING, "")].concat())], ends());
        self.case("7.1.4", vec![Send([close.clone(), frame(TEXT, SMALL)].concat())], ends());
        let frames = [part(TEXT, "one"), close.clone(), frame(CONTINUATION, "two")];
        self.case("7.1.5", vec![Send(frames.concat())], ends());
        let frames =
            [frame(TEXT, vec![b'*'; 256 * 1024]), frame(TEXT, SMALL), close, frame(PING, "")];
        self.case("7.1.6", vec![Send(frames.concat())], End::Anyhow);
    }

    fn close_payloads(&mut self) {
        let close = |payload: &[u8]| vec![Send(frame(CLOSE, payload))];
        let code = |code: u16| close(&code.to_be_bytes());
        self.case("7.3.1", close(b""), Answered(vec![1000, 1005]));
        self.case("7.3.2", close(b"a"), PROTOCOL);
        self.case("7.3.3", code(1000), Answered(vec![1000]));
        let reason = |length| [&b"\x03\xe8"[..], &vec![b'*'; length]].concat();
        self.case("7.3.4", close(&reason(12)), Answered(vec![1000]));
        self.case("7.3.5", close(&reason(123)), Answered(vec![1000]));
        self.case("7.3.6", close(&reason(124)), PROTOCOL);
        self.case("7.5.1", close(b"\x03\xe8fine \xed\xa0\x80"), Theirs(&[1002, 1007]));
        let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
        for (number, valid) in (1..).zip(valid) {
            self.case(format!("7.7.{number}"), code(valid), Answered(vec![1000, valid]));
        }
        let invalid = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999];
        for (number, invalid) in (1..).zip(invalid) {
            self.case(format!("7.9.{number}"), code(invalid), PROTOCOL);
        }
        self.case("7.13.1", code(5000), End::Anyhow);
        self.case("7.13.2", code(65_535), End::Anyhow);
    }

    fn sizes(&mut self) {
        for (section, opcode) in [(1, TEXT), (2, BINARY)] {
            for (number, kib) in (1..).zip([64, 256, 1024, 4096, 8192, 16_384]) {
                let steps = echoed(opcode, &vec![b'*'; kib * 1024]);
                self.case(format!("9.{section}.{number}"), steps, Ours);
            }
        }
        let payload = vec![b'*'; 65_536];
        let steps = vec![Send(fragments(TEXT, &payload, 1300)), Comes(message(TEXT, &payload))];
        self.case("10.1.1", steps, Ours);
    }

    /// Large messages in fragments, and in writes, of all sizes.
    fn pieces(&mut self) {
        for (section, opcode) in [(3, TEXT), (4, BINARY)] {
            let payload = vec![b'*'; 4 << 20];
            for number in 1..=9 {
                let frames = fragments(opcode, &payload, 64 << (2 * (number - 1)));
                let steps = vec![Send(frames), Comes(message(opcode, &payload))];
                self.case(format!("9.{section}.{number}"), steps, Ours);
            }
        }
        for (section, opcode) in [(5, TEXT), (6, BINARY)] {
            let payload = vec![b'*'; 1 << 20];
            for number in 1..=6 {
                let chops = Chops(frame(opcode, &payload), 64 << (number - 1));
                let steps = vec![chops, Comes(message(opcode, &payload))];
                self.case(format!("9.{section}.{number}"), steps, Ours);
            }
        }
    }

    /// A thousand messages, each sent when the one before came back.
    fn round_trips(&mut self) {
        for (section, opcode) in [(7, TEXT), (8, BINARY)] {
            for (number, size) in (1..).zip([0, 16, 64, 256, 1024, 4096]) {
                let one = || echoed(opcode, &vec![b'*'; size]);
                let steps = (0..1000).flat_map(|_| one()).collect();
                self.case(format!("9.{section}.{number}"), steps, Ours);
            }
        }
    }
}

/// Kinds of sequences of bytes, and whether all of a kind are UTF-8; when it is not said, some are.
fn sequences() -> Vec<(Option<bool>, Vec<Vec<u8>>)> {
    let of = |valid, all: &[&[u8]]| (Some(valid), all.iter().map(|one| one.to_vec()).collect());
    // With the accent that takes three bytes.
    let greek = "κ\u{1f79}σμε".as_bytes();
    let runs = [0xC0..0xDF, 0xE0..0xEF, 0xF0..0xF7, 0xF8..0xFB, 0xFC..0xFD_u8];
    let lonely = runs.map(|run| run.flat_map(|byte| [byte, b' ']).collect());
    let cut: [&[u8]; 10] = [
        b"\xc0",
        b"\xe0\x80",
        b"\xf0\x80\x80",
        b"\xf8\x80\x80\x80",
        b"\xfc\x80\x80\x80\x80",
        b"\xdf",
        b"\xef\xbf",
        b"\xf7\xbf\xbf",
        b"\xfb\xbf\xbf\xbf",
        b"\xfd\xbf\xbf\xbf\xbf",
    ];
    let continuations = (0..6).map(|n| [0x80, 0xBF].into_iter().cycle().take(n + 1).collect());
    let continuations = continuations.collect::<Vec<Vec<u8>>>();
    let mut unexpected = vec![vec![0x80], vec![0xBF]];
    unexpected.extend(continuations.into_iter().skip(1));
    unexpected.push((0x80..0xBF).collect());
    let high = ["\u{d7ff}", "\u{e000}", "\u{fffd}", "\u{10ffff}"].map(str::as_bytes);
    let pair = |high: &[u8], low: &[u8]| [high, low].concat();
    let lows: [&[u8]; 2] = [b"\xed\xb0\x80", b"\xed\xbf\xbf"];
    let highs: [&[u8]; 4] = [b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf"];
    let pairs = highs.iter().flat_map(|high| lows.map(|low| pair(high, low))).collect();
    // U+FFFE, U+FFFF, and the same of each plane above.
    let nonchars = (0..=16_u32).flat_map(|plane| [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF]);
    let text = |c: u32| char::from_u32(c).unwrap().to_string().into_bytes();
    vec![
        of(
            true,
            &[
                "dollar $".as_bytes(),
                "cent ¢".as_bytes(),
                "euro €".as_bytes(),
                "han 𤭢".as_bytes(),
                greek,
            ],
        ),
        (None, (1..=greek.len()).map(|end| greek[..end].to_vec()).collect()),
        of(true, &[b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
        of(false, &[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
        of(true, &[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
        of(false, &[b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
        (None, high.into_iter().chain([&b"\xf4\x90\x80\x80"[..]]).map(<[u8]>::to_vec).collect()),
        (Some(false), unexpected),
        (Some(false), lonely.to_vec()),
        of(false, &cut),
        (Some(false), vec![cut.concat()]),
        of(false, &[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
        of(
            false,
            &[
                b"\xc0\xaf",
                b"\xe0\x80\xaf",
                b"\xf0\x80\x80\xaf",
                b"\xf8\x80\x80\x80\xaf",
                b"\xfc\x80\x80\x80\x80\xaf",
            ],
        ),
        of(
            false,
            &[
                b"\xc1\xbf",
                b"\xe0\x9f\xbf",
                b"\xf0\x8f\xbf\xbf",
                b"\xf8\x87\xbf\xbf\xbf",
                b"\xfc\x83\xbf\xbf\xbf\xbf",
            ],
        ),
        of(
            false,
            &[
                b"\xc0\x80",
                b"\xe0\x80\x80",
                b"\xf0\x80\x80\x80",
                b"\xf8\x80\x80\x80\x80",
                b"\xfc\x80\x80\x80\x80\x80",
            ],
        ),
        of(false, &[highs[0], highs[1], highs[2], highs[3], lows[0], b"\xed\xbe\x80", lows[1]]),
        (Some(false), pairs),
        (Some(true), nonchars.map(text).collect()),
        (Some(true), (0xFFF9..=0xFFFF).map(text).collect()),
    ]
}
