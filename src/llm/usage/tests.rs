use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { rows: 64, days: 3, sessions: 2 };

fn charge(input: u64, output: u64, cost: Option<u128>) -> Charge {
    Charge { usage: Usage { input, output, ..Usage::default() }, cost }
}

fn entry(day: u64, key: &str, session: &str, model: &str) -> Entry {
    Entry {
        at: day * SECONDS_PER_DAY + 5,
        key: (!key.is_empty()).then(|| key.into()),
        session: (!session.is_empty()).then(|| session.into()),
        asked: model.into(),
        answered: Some(("local".into(), model.into())),
        charge: Some(charge(3, 4, Some(7))),
        ..Entry::default()
    }
}

fn rows(book: &Book) -> Vec<(Arc<Place>, Sums)> {
    let (mut rows, mut from) = (Vec::new(), 0);
    loop {
        let page = book.page(from);
        rows.extend(page.rows);
        match page.next {
            Some(next) => from = next,
            None => return rows,
        }
    }
}

fn summed<'a>(all: impl Iterator<Item = &'a Sums>) -> Sums {
    all.fold(Sums::default(), |mut sum, sums| {
        sum.add(sums);
        sum
    })
}

/// A row as a line: day, key, model, requests.
fn lines(book: &Book) -> Vec<String> {
    let line = |(place, sums): &(Arc<Place>, Sums)| {
        let day = place.day.map_or_else(|| "before".to_owned(), |day| day.to_string());
        let who = match &place.who {
            Who::Key(name) => name.to_string(),
            other => format!("{other:?}"),
        };
        let what = match &place.what {
            What::Model { asked, .. } => asked.to_string(),
            What::Others => "others".to_owned(),
        };
        format!("{day} {who} {what} {}", sums.requests)
    };
    rows(book).iter().map(line).collect()
}

#[test]
fn a_request_is_entered_by_day_key_model_and_session() {
    let mut book = Book::new(BOUNDS);
    book.enter(entry(10, "a", "s", "m"));
    book.enter(entry(10, "a", "s", "m"));
    book.enter(entry(10, "", "", "m"));
    book.enter(entry(11, "a", "s", "n"));
    assert_eq!(lines(&book), ["10 a m 2", "10 Nobody m 1", "11 a n 1"]);
    let sessions = book.sessions();
    let told: Vec<_> =
        sessions.iter().map(|row| (row.name.as_deref(), row.sums.requests, row.last)).collect();
    let last = |day: u64| day * SECONDS_PER_DAY + 5;
    assert_eq!(told, [(Some("s"), 3, last(11)), (None, 1, last(10))]);
    assert_eq!(
        book.total(),
        Sums { requests: 4, input: 12, output: 16, priced: 4, cost: 28, ..Sums::default() }
    );
}

#[test]
fn tokens_go_to_the_upstream_that_made_them_and_the_request_to_the_one_that_answered() {
    let mut book = Book::new(BOUNDS);
    let mut both = entry(1, "a", "", "m");
    both.spent = vec![(("first".into(), "x".into()), charge(9, 0, None))];
    book.enter(both);
    let told: Vec<_> = rows(&book)
        .iter()
        .map(|(place, sums)| {
            let What::Model { answered: Some((upstream, _)), .. } = &place.what else {
                panic!("{place:?}");
            };
            (upstream.to_string(), sums.requests, sums.input, sums.unpriced, sums.cost_micros())
        })
        .collect();
    assert_eq!(told, [("first".into(), 0, 9, 1, None), ("local".into(), 1, 3, 0, Some(0))]);
    assert_eq!(book.total().input, 12);
}

#[test]
fn what_is_not_known_is_not_nothing() {
    let unpriced = Sums::of(&Entry { charge: Some(charge(1, 1, None)), ..Entry::default() });
    assert_eq!((unpriced.unpriced, unpriced.cost_micros()), (1, None));
    let mut sums = Sums::of(&Entry { charge: Some(charge(1, 1, Some(0))), ..Entry::default() });
    assert_eq!(sums.cost_micros(), Some(0));
    sums.add(&unpriced);
    assert_eq!((sums.unpriced, sums.cost_micros()), (1, Some(0)));
    // Nothing was made, so nothing is missing.
    let none = Sums::of(&Entry { charge: Some(charge(0, 0, None)), ..Entry::default() });
    assert_eq!((none.unpriced, none.cost_micros()), (0, Some(0)));
}

#[test]
fn many_small_costs_do_not_all_round_to_nothing() {
    let mut sums = Sums::default();
    for _ in 0..1000 {
        sums.charge(&charge(1, 0, Some(200_000)));
    }
    assert_eq!(sums.cost_micros(), Some(200));
    assert_eq!(Sums { priced: 1, cost: 499_999, ..sums }.cost_micros(), Some(0));
    assert_eq!(Sums { priced: 1, cost: 500_000, ..sums }.cost_micros(), Some(1));
}

#[test]
fn a_day_that_is_too_old_becomes_part_of_what_was_before() {
    let mut book = Book::new(BOUNDS);
    for day in 1..=4 {
        book.enter(entry(day, "a", "", "m"));
    }
    assert_eq!(lines(&book), ["before a m 1", "2 a m 1", "3 a m 1", "4 a m 1"]);
    let generation = book.page(0).generation;
    book.enter(entry(5, "a", "", "m"));
    // A clock that was set back.
    book.enter(entry(1, "a", "", "m"));
    assert_eq!(lines(&book), ["before a m 3", "3 a m 1", "4 a m 1", "5 a m 1"]);
    assert!(book.page(0).generation > generation);
    assert_eq!(book.sizes().days, 3);
}

#[test]
fn a_key_that_makes_models_up_leaves_room_for_others() {
    let mut book = Book::new(BOUNDS);
    for n in 0..100 {
        book.enter(entry(1, "loud", "", &format!("m{n}")));
    }
    for n in 0..10 {
        book.enter(entry(1, "quiet", "", &format!("q{n}")));
    }
    // Half of three quarters of 64.
    assert_eq!(lines(&book).iter().filter(|line| line.contains("loud m")).count(), 24);
    assert_eq!(lines(&book).iter().filter(|line| line.contains("quiet q")).count(), 10);
    assert!(lines(&book).contains(&"1 loud others 76".to_owned()), "{:?}", lines(&book));
    assert_eq!(book.sizes().merged, 76);
}

#[test]
fn rows_are_at_their_limit_and_never_past_it() {
    let mut book = Book::new(BOUNDS);
    for n in 0..200 {
        book.enter(entry(1, &format!("k{n}"), "", "m"));
    }
    // 48 models, then the others of 12 keys, then everybody's; three rows are for other days.
    assert_eq!(book.sizes().rows, 61);
    for day in 2..9 {
        for n in 0..200 {
            book.enter(entry(day, &format!("k{n}"), "", "m"));
            assert!(book.sizes().rows <= BOUNDS.rows);
        }
    }
    assert_eq!(summed(rows(&book).iter().map(|row| &row.1)), book.total());
}

#[test]
fn a_session_that_is_forgotten_stays_in_the_sums_of_its_key() {
    let mut book = Book::new(BOUNDS);
    for (key, session) in [("a", "1"), ("a", "2"), ("b", "3"), ("a", "2"), ("a", "4")] {
        book.enter(entry(1, key, session, "m"));
    }
    let told: Vec<_> = book
        .sessions()
        .into_iter()
        .map(|row| (row.who, row.name, row.others, row.sums.requests))
        .collect();
    let who = |name: &str| Who::Key(name.into());
    assert_eq!(
        told[..2],
        [(who("a"), Some("4".into()), false, 1), (who("a"), Some("2".into()), false, 2)]
    );
    for forgotten in [(who("a"), None, true, 1), (who("b"), None, true, 1)] {
        assert!(told[2..].contains(&forgotten), "{told:?}");
    }
    assert_eq!((told.len(), book.sizes().forgotten), (4, 2));
}

#[test]
fn keys_beyond_their_number_are_told_together() {
    let mut book = Book::new(BOUNDS);
    for n in 0..KEYS_MAX + 10 {
        book.enter(entry(1, &format!("k{n}"), "", "m"));
    }
    assert_eq!(book.sizes().keys, KEYS_MAX);
    let others = book.sessions().into_iter().find(|row| row.who == Who::Others).unwrap();
    assert_eq!(others.sums.requests, 11);
}

#[derive(Clone, Debug)]
enum Act {
    Enter { day: u64, key: u8, session: u8, model: u8, cost: Option<u16>, spent: bool },
    Resize { rows: usize, days: usize, sessions: usize },
}

fn act() -> impl Strategy<Value = Act> {
    let enter = (0_u64..12, 0_u8..4, 0_u8..6, 0_u8..8, any::<Option<u16>>(), any::<bool>());
    prop_oneof![
        20 => enter.prop_map(|(day, key, session, model, cost, spent)| Act::Enter {
            day, key, session, model, cost, spent
        }),
        1 => (2_usize..80, 1_usize..5, 1_usize..6)
            .prop_map(|(rows, days, sessions)| Act::Resize { rows, days, sessions }),
    ]
}

proptest! {
    #[test]
    fn rows_and_sessions_add_up_to_all_that_was_entered(
        acts in prop::collection::vec(act(), 1..100),
    ) {
        let mut book = Book::new(BOUNDS);
        let mut bounds = BOUNDS;
        let mut expected = Sums::default();
        let mut keys: BTreeMap<String, Sums> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Enter { day, key, session, model, cost, spent } => {
                    let name = if key == 0 { String::new() } else { format!("k{key}") };
                    let session = if session == 0 { String::new() } else { format!("s{session}") };
                    let mut entry = entry(day, &name, &session, &format!("m{model}"));
                    entry.charge = Some(charge(1, u64::from(model), cost.map(u128::from)));
                    let mut sums = Sums::of(&entry);
                    if spent {
                        let more = charge(2, 0, None);
                        sums.charge(&more);
                        entry.spent = vec![(("u".into(), "v".into()), more)];
                    }
                    expected.add(&sums);
                    keys.entry(name).or_default().add(&sums);
                    book.enter(entry);
                }
                Act::Resize { rows, days, sessions } => {
                    bounds = Bounds { rows: rows + days + 1, days, sessions };
                    book.resize(bounds);
                }
            }
            let rows = rows(&book);
            prop_assert_eq!(summed(rows.iter().map(|row| &row.1)), expected);
            prop_assert_eq!(book.total(), expected);
            let sessions = book.sessions();
            prop_assert_eq!(summed(sessions.iter().map(|row| &row.sums)), expected);
            let sizes = book.sizes();
            prop_assert!(sizes.rows <= bounds.rows && sizes.days <= bounds.days);
            prop_assert!(sizes.sessions <= bounds.sessions);
            // The sessions of each key add up to what it asked for.
            for (name, sums) in &keys {
                let own = |who: &Who| match who {
                    Who::Key(key) => **key == **name,
                    Who::Nobody => name.is_empty(),
                    Who::Others => false,
                };
                let own = sessions.iter().filter(|row| own(&row.who));
                prop_assert_eq!(summed(own.map(|row| &row.sums)), *sums);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is saved and added to a book of any bounds is neither lost nor counted twice.
    #[test]
    fn books_of_two_lives_sum_to_both(
        before in prop::collection::vec((0_u64..6, 0_usize..3, 0_usize..4, 0_usize..9), 0..60),
        after in prop::collection::vec((0_u64..6, 0_usize..3, 0_usize..4, 0_usize..9), 0..60),
        rows in 16_usize..64,
        sessions in 1_usize..4,
    ) {
        let names = ["", "a", "b", "c", "d", "e", "f", "g", "h"];
        let fill = |book: &mut Book, entries: &[(u64, usize, usize, usize)]| {
            for (day, key, session, model) in entries {
                book.enter(entry(100 + day, names[*key], names[*session], names[*model]));
            }
        };
        let mut first = Book::new(BOUNDS);
        fill(&mut first, &before);
        let saved: Vec<_> = all_rows(&first)
            .into_iter()
            .map(|(place, sums)| (Arc::unwrap_or_clone(place), sums))
            .collect();
        let mut second = Book::new(Bounds { rows, days: 3, sessions });
        fill(&mut second, &after);
        second.restore(saved, first.sessions());
        let mut both = first.total();
        both.add(&second_of(&after, &fill));
        prop_assert_eq!(second.total(), both);
        let all = all_rows(&second);
        prop_assert_eq!(summed(all.iter().map(|(_, sums)| sums)), both);
        let sessions_sum = second.sessions();
        prop_assert_eq!(summed(sessions_sum.iter().map(|row| &row.sums)), both);
        prop_assert!(second.sizes().sessions <= sessions);
    }
}

/// What those entries come to by themselves.
fn second_of(
    entries: &[(u64, usize, usize, usize)],
    fill: &impl Fn(&mut Book, &[(u64, usize, usize, usize)]),
) -> Sums {
    let mut book = Book::new(BOUNDS);
    fill(&mut book, entries);
    book.total()
}

/// Under a name that a test's own variable does not hide.
fn all_rows(book: &Book) -> Vec<(Arc<Place>, Sums)> {
    rows(book)
}
