//! How much room the disk of the state directory has, and what follows from it. No I/O here: the
//! thread looks and asks.

use crate::base::folder::Space;
use crate::config::settings::Store as Settings;

/// A mark that was met is left again only with this much more room, in percent of it.
const LEAVE_PERCENT: u64 = 110;

/// How it stands with the room, from good to bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    /// Enough.
    #[default]
    Plenty,
    /// Below `store.free_warn`: told.
    Low,
    /// Below `store.free_shed`: no more history is written.
    Shed,
    /// Below `store.free_refuse`: nothing is written, and the ballast goes.
    Refuse,
}

impl Room {
    /// What follows from this much space, after `before`.
    pub(super) fn of(space: Space, before: Room, settings: &Settings) -> Room {
        let marks = [
            (Room::Refuse, settings.free_refuse),
            (Room::Shed, settings.free_shed),
            (Room::Low, settings.free_warn),
        ];
        let counted = u128::from(space.total.min(settings.disk_counted));
        let below = |(room, percent): &(Room, u64)| {
            let mark = counted * u128::from(*percent) / 100;
            let held = before >= *room;
            let mark = if held { mark * u128::from(LEAVE_PERCENT) / 100 } else { mark };
            u128::from(space.free) < mark
        };
        marks.iter().find(|mark| below(mark)).map_or(Room::Plenty, |(room, _)| *room)
    }
}

/// In a sentence.
pub(super) fn told(space: Space) -> String {
    let percent = space.free.saturating_mul(100).checked_div(space.total).unwrap_or_default();
    let size = |bytes| bytesize::ByteSize(bytes).display().iec().to_string();
    format!("{} of {} ({percent} %) are free", size(space.free), size(space.total))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn settings() -> Settings {
        Settings { disk_counted: 1000 * MIB, ..Settings::default() }
    }

    fn room(free: u64, before: Room) -> Room {
        Room::of(Space { free: free * MIB, total: 1000 * MIB }, before, &settings())
    }

    #[test]
    fn each_mark_has_its_consequence_and_is_left_with_some_more_room() {
        use Room::{Low, Plenty, Refuse, Shed};
        let falling = [(100, Plenty), (99, Low), (50, Low), (49, Shed), (20, Shed), (19, Refuse)];
        for (free, expected) in falling {
            assert_eq!(room(free, Plenty), expected, "{free}");
        }
        let rising = [
            (21, Refuse, Refuse),
            (22, Refuse, Shed),
            (54, Shed, Shed),
            (55, Shed, Low),
            (109, Low, Low),
            (110, Low, Plenty),
            (1000, Refuse, Plenty),
        ];
        for (free, before, expected) in rising {
            assert_eq!(room(free, before), expected, "{free}");
        }
    }

    #[test]
    fn a_large_disk_counts_as_a_smaller_one_and_none_as_full() {
        let large = Space { free: 100 * MIB, total: 1_000_000 * MIB };
        assert_eq!(Room::of(large, Room::Plenty, &settings()), Room::Plenty);
        let none = Space { free: 0, total: 0 };
        assert_eq!(Room::of(none, Room::Plenty, &settings()), Room::Plenty, "it says nothing");
        let all = Settings { free_refuse: 100, free_shed: 100, free_warn: 100, ..settings() };
        let half = Space { free: 500 * MIB, total: 1000 * MIB };
        assert_eq!(Room::of(half, Room::Plenty, &all), Room::Refuse);
        let text = told(Space { free: 3 * MIB, total: 12 * MIB });
        assert_eq!(text, "3.0 MiB of 12.0 MiB (25 %) are free");
    }
}
