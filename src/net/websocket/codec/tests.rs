use super::*;
use crate::base::clock;
use proptest::prelude::*;

const MAX: u64 = 4096;

/// A frame as a client sends it.
pub(in crate::net::websocket) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    frame_with(first, payload, [0x37, 0xfa, 0x21, 0x3d])
}

fn frame_with(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

fn decoder(max: u64, total: u64) -> (Decoder, Arc<Limit>) {
    let total = Limit::detached(total);
    (Decoder::new(max, Arc::clone(&total)), total)
}

/// What a step is, for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Saw {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(u16),
    NoRoom,
    Fault(u16),
}

/// Decodes pieces, each as a read would bring it, until the first fault or lack of room. With
/// `direct` the bytes of messages go straight into their memory where that is offered.
fn run(decoder: &mut Decoder, pieces: &[&[u8]], direct: bool) -> Vec<Saw> {
    let now = clock::now();
    let mut saw = Vec::new();
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() {
            let rest = &piece[at..];
            let space = if direct { decoder.space() } else { None };
            let step = if let Some(space) = space {
                let bytes = space.len().min(rest.len());
                space[..bytes].copy_from_slice(&rest[..bytes]);
                at += bytes;
                decoder.filled(bytes)
            } else {
                let (used, step) = decoder.decode(rest, now);
                assert!(used > 0 || !matches!(step, Ok(Step::More)), "it stands still");
                at += used;
                step
            };
            saw.push(match step {
                Ok(Step::More) => continue,
                Ok(Step::NoRoom) => {
                    saw.push(Saw::NoRoom);
                    return saw;
                }
                Ok(Step::Text(text, lease)) => {
                    assert!(lease.amount() >= text.len() as u64);
                    Saw::Text(text)
                }
                Ok(Step::Binary(bytes, lease)) => {
                    assert!(lease.amount() >= bytes.len() as u64);
                    Saw::Binary(bytes)
                }
                Ok(Step::Ping) => Saw::Ping(decoder.control().to_vec()),
                Ok(Step::Pong) => Saw::Pong,
                Ok(Step::Close(code)) => {
                    saw.push(Saw::Close(code));
                    return saw;
                }
                Err(Fault::Close(code, _)) => {
                    saw.push(Saw::Fault(code));
                    return saw;
                }
                Err(Fault::Gone(error)) => panic!("without I/O: {error}"),
            });
        }
    }
    saw
}

fn all(bytes: &[u8]) -> Vec<Saw> {
    let (mut decoder, total) = decoder(MAX, MAX * 4);
    let saw = run(&mut decoder, &[bytes], false);
    drop(decoder);
    assert_eq!(total.now(), 0, "a part of the sum is left behind");
    saw
}

fn text(text: &str) -> Saw {
    Saw::Text(text.to_owned())
}

#[test]
fn messages_come_whole_and_in_pieces_with_control_frames_in_their_middle() {
    assert_eq!(all(&frame(0x81, b"Hello")), [text("Hello")]);
    assert_eq!(all(&frame(0x82, &[0, 255])), [Saw::Binary(vec![0, 255])]);
    assert_eq!(all(&frame(0x81, b"")), [text("")]);
    let bytes = [
        frame(0x01, b"Hel"),
        frame(0x89, b"there?"),
        frame(0x00, b""),
        frame(0x8a, b""),
        frame(0x80, b"lo"),
        frame(0x88, &[3, 232]),
        b"whatever follows".to_vec(),
    ];
    let expected = [Saw::Ping(b"there?".to_vec()), Saw::Pong, text("Hello"), Saw::Close(1000)];
    assert_eq!(all(&bytes.concat()), expected);
    assert_eq!(all(&frame(0x88, b"")), [Saw::Close(NO_CODE)]);
}

#[test]
fn what_breaks_a_rule_ends_with_1002() {
    let wrong = [
        ("unmasked", vec![0x81, 0x00]),
        ("unmasked, with length", vec![0x81, 0x05, b'H']),
        ("first reserved bit", frame(0xc1, b"x")),
        ("second reserved bit", frame(0xa1, b"x")),
        ("third reserved bit", frame(0x91, b"x")),
        ("reserved bit of a ping", frame(0xc9, b"x")),
        ("reserved data opcode", frame(0x83, b"")),
        ("reserved control opcode", frame(0x8b, b"")),
        ("long ping", frame(0x89, &[0; 126])),
        ("ping in pieces", frame(0x09, b"")),
        ("close in pieces", frame(0x08, b"")),
        ("nothing to continue", frame(0x80, b"x")),
        ("two messages at once", [frame(0x01, b"x"), frame(0x81, b"x")].concat()),
        ("half a code", frame(0x88, &[3])),
        ("length of 5 in two bytes", vec![0x81, 0xfe, 0, 5, 0, 0, 0, 0]),
        ("length of 5 in eight", vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0]),
        ("length above 63 bits", vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0]),
    ];
    for (what, bytes) in wrong {
        assert_eq!(all(&bytes), [Saw::Fault(1002)], "{what}");
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535_u16] {
        assert_eq!(all(&frame(0x88, &code.to_be_bytes())), [Saw::Fault(1002)], "{code}");
    }
    for code in [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 4000, 4999_u16] {
        assert_eq!(all(&frame(0x88, &code.to_be_bytes())), [Saw::Close(code)], "{code}");
    }
}

#[test]
fn text_that_is_none_ends_with_1007_at_its_first_wrong_byte() {
    // U+110000 in the beginning: its second byte is wrong already.
    let (mut decoder, _) = decoder(MAX, MAX);
    let bytes = frame(0x01, b"\xce\xba\xf4\x90\x80\x80 and much more that nobody sends");
    let head = 6;
    assert_eq!(run(&mut decoder, &[&bytes[..head + 3]], false), []);
    assert_eq!(run(&mut decoder, &[&bytes[head + 3..head + 4]], false), [Saw::Fault(1007)]);
    assert_eq!(all(&frame(0x81, b"\xce")), [Saw::Fault(1007)], "an end within a character");
    assert_eq!(all(&frame(0x88, b"\x03\xe8\xff")), [Saw::Fault(1007)], "a reason");
    let split = [frame(0x01, b"\xce"), frame(0x80, b"\xba")].concat();
    assert_eq!(all(&split), [text("κ")], "a character in two frames");
    assert_eq!(all(&frame(0x82, b"\xff")), [Saw::Binary(vec![255])], "bytes are bytes");
}

#[test]
fn a_message_that_is_too_large_is_refused_by_its_header_and_can_be_passed_over() {
    let (mut decoder, total) = decoder(100, 1 << 20);
    let whole = frame(0x81, &[b'x'; 101]);
    assert_eq!(run(&mut decoder, &[&whole[..5]], false), [], "the header is not whole");
    let (used, step) = decoder.decode(&whole[5..8], clock::now());
    assert_eq!(used, 1);
    assert!(matches!(step, Err(Fault::Close(1009, _))));
    assert_eq!(total.high_water(), 0);
    decoder.discard();
    let rest = [&whole[6..], &frame(0x81, b"\xff"), &frame(0x88, &[3, 241])].concat();
    assert_eq!(run(&mut decoder, &[&rest], false), [Saw::Close(1009)]);
    assert!(decoder.over());
    // In pieces, the piece that passes the bound.
    let (mut decoder, total) = self::decoder(100, 1 << 20);
    let bytes = [frame(0x01, &[b'x'; 60]), frame(0x00, &[b'x'; 41])].concat();
    assert_eq!(run(&mut decoder, &[&bytes], false), [Saw::Fault(1009)]);
    assert_eq!(total.now(), 0, "what had come is given back");
}

#[test]
fn a_message_takes_of_the_sum_what_has_come_of_it_and_waits_when_there_is_no_more() {
    let (mut decoder, total) = decoder(25 << 20, 10_000);
    let bytes = frame(0x82, &[7; 20_000]);
    assert_eq!(run(&mut decoder, &[&bytes[..9]], false), []);
    assert!(total.now() <= 512, "announced is not come: {}", total.now());
    let saw = run(&mut decoder, &[&bytes[9..]], false);
    assert_eq!(saw, [Saw::NoRoom]);
    assert!(total.now() <= 10_000);
    assert!(decoder.starved() && decoder.space().is_none());
    let came = decoder.message.as_ref().unwrap().bytes.len();
    total.set_max(20_000);
    let saw = run(&mut decoder, &[&bytes[8 + came..]], true);
    assert!(saw == [Saw::Binary(vec![7; 20_000])]);
    assert_eq!(total.now(), 0);
}

#[test]
fn a_message_is_late_by_its_bytes_and_its_grace() {
    let (mut decoder, _) = decoder(MAX, MAX);
    let (grace, begun) = (Duration::from_secs(5), clock::now());
    assert_eq!(decoder.late_at(10, grace), None);
    let bytes = frame(0x81, &[b'x'; 100]);
    decoder.decode(&bytes[..6], begun).1.unwrap();
    assert_eq!(decoder.late_at(10, grace), Some(begun + grace));
    decoder.decode(&bytes[6..56], begun + grace).1.unwrap();
    assert_eq!(decoder.late_at(10, grace), Some(begun + grace * 2));
    assert_eq!(decoder.late_at(0, grace), None);
    // Endless frames without a byte bring nothing.
    let (mut decoder, _) = self::decoder(MAX, MAX);
    decoder.decode(&frame(0x01, b""), begun).1.unwrap();
    run(&mut decoder, &[&frame(0x00, b"").repeat(1000)], false);
    assert_eq!(decoder.late_at(10, grace), Some(begun + grace));
    decoder.decode(&frame(0x80, b""), begun + grace).1.unwrap();
    assert_eq!(decoder.late_at(10, grace), None);
}

#[test]
fn heads_of_our_frames_are_those_of_the_standard() {
    let check = |length, expected: &[u8]| {
        let (bytes, used) = head(OpCode::Data(Data::Text), length);
        assert_eq!(&bytes[..used], expected, "{length}");
    };
    check(5, &[0x81, 5]);
    check(125, &[0x81, 125]);
    check(126, &[0x81, 126, 0, 126]);
    check(65_535, &[0x81, 126, 255, 255]);
    check(65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
}

/// A sequence of messages and control frames, as bytes and as what comes of it.
fn valid() -> impl Strategy<Value = (Vec<u8>, Vec<Saw>)> {
    let mask = any::<[u8; 4]>();
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    let message = prop_oneof![
        ("\\PC{0,100}", prop::collection::vec(0..300_usize, 0..4))
            .prop_map(|(text, cuts)| { (1, text.clone().into_bytes(), cuts, Saw::Text(text)) }),
        (payload, prop::collection::vec(0..300_usize, 0..4)).prop_map(|(bytes, cuts)| (
            2,
            bytes.clone(),
            cuts,
            Saw::Binary(bytes)
        )),
    ];
    let control = prop::option::of(prop::collection::vec(any::<u8>(), 0..126));
    prop::collection::vec((message, control, mask), 0..6).prop_map(|all| {
        let (mut bytes, mut saw) = (Vec::new(), Vec::new());
        for ((opcode, payload, mut cuts, whole), control, mask) in all {
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(payload.len()));
            cuts.sort_unstable();
            let mut start = 0;
            for (number, end) in cuts.iter().copied().chain([payload.len()]).enumerate() {
                let last = number == cuts.len();
                let opcode = if number == 0 { opcode } else { 0 };
                let first = opcode | if last { 0x80 } else { 0 };
                bytes.extend(frame_with(first, &payload[start..end], mask));
                start = end;
                if number == 0
                    && !last
                    && let Some(ping) = &control
                {
                    bytes.extend(frame_with(0x89, ping, mask));
                    saw.push(Saw::Ping(ping.clone()));
                }
            }
            saw.push(whole);
        }
        (bytes, saw)
    })
}

proptest! {
    #[test]
    fn any_split_of_a_valid_sequence_gives_the_same_messages(
        (bytes, expected) in valid(),
        cuts in prop::collection::vec(0..4000_usize, 0..12),
        direct in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
        let (mut decoder, total) = decoder(MAX, 1 << 20);
        prop_assert!(run(&mut decoder, &pieces, direct) == expected);
        prop_assert_eq!(total.now(), 0);
    }

    #[test]
    fn a_valid_sequence_byte_by_byte_gives_the_same_messages((bytes, expected) in valid()) {
        let (mut decoder, _) = decoder(MAX, 1 << 20);
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert!(run(&mut decoder, &pieces, false) == expected);
    }

    #[test]
    fn any_bytes_stay_within_the_bounds(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        direct in any::<bool>(),
        discards in any::<bool>(),
    ) {
        let (mut decoder, total) = decoder(1000, 1500);
        if discards {
            decoder.discard();
        }
        run(&mut decoder, &[&bytes], direct);
        prop_assert!(total.high_water() <= 1500);
    }

    #[test]
    fn one_wrong_byte_in_a_valid_sequence_stays_within_the_bounds(
        (mut bytes, _) in valid(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        direct in any::<bool>(),
    ) {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let (mut decoder, total) = decoder(MAX, 1 << 16);
        run(&mut decoder, &[&bytes], direct);
        prop_assert!(total.high_water() <= 1 << 16);
    }

    #[test]
    fn the_mask_comes_off_wherever_the_payload_is_cut(
        bytes in prop::collection::vec(any::<u8>(), 0..100),
        mask in any::<[u8; 4]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut masked: Vec<u8> =
            bytes.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let cut = cut.index(bytes.len() + 1);
        let (first, second) = masked.split_at_mut(cut);
        header::unmask(first, mask, 0);
        header::unmask(second, mask, cut as u64);
        prop_assert_eq!(masked, bytes);
    }
}
