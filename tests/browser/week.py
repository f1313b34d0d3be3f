"""A week of history in a store, as src/observe/history/code.rs writes it: hours and minutes of the metrics that the
dashboard's charts are made of, with a gap of a night in it."""

import math
import sqlite3
import struct
import time

HOUR, DAY = 3600, 86400
METRICS = (
    "tidegate_http_requests_total", "tidegate_http_request_seconds", "tidegate_first_token_seconds", "tidegate_limit_now", "tidegate_tokens_total",
    "tidegate_cache_requests_total", "process_resident_memory_bytes", "tidegate_process_anonymous_bytes", "process_open_fds", "process_threads",
)
# Two nights ago the daemon was away for eight hours.
GAP = (2 * DAY + 8 * HOUR, 2 * DAY)


def number(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def figure(value):
    return number(int(value) << 1) if value == int(value) else b"\x01" + struct.pack("<d", value)


def point(shape, looks, millis, level):
    """What `looks` looks saw when the level of things was `level`, of about 1."""
    head = b"\x00" + number(looks) + number(millis)
    if shape == "histogram":
        # Bounds 10 ms, 25 ms, 50 ms, 100 ms: buckets 6 to 9.
        counts = [(6, int(40 * level)), (7, int(50 * level)), (8, int(9 * level)), (9, 1)]
        out, after = number(len(counts)), 0
        for at, count in counts:
            out += number(at - after) + number(count)
            after = at + 1
        return head + figure(2.5 * level) + out
    each = int(1000 * level)
    if shape == "counter":
        return head + b"".join(map(figure, (each * looks, each, each, each)))
    return head + b"".join(map(figure, (each * looks, each - 9, each + 9, each)))


def part(shape, begin, slot, slots, looks, now):
    """One row: `slots` slots of `slot` seconds from `begin` on; none where nothing was seen."""
    out, after = bytearray(b"\x01"), 0
    for at in range(slots):
        when = begin + at * slot
        ago = now - when
        if ago < slot or ago > 7 * DAY or GAP[1] < ago <= GAP[0]:
            continue
        level = 1.2 + math.sin(when / DAY * 2 * math.pi) + 0.1 * math.sin(when / 977)
        out += number(at - after) + point(shape, looks, slot * 1000, level)
        after = at + 1
    return bytes(out) if after else None


def known(path):
    """How many series of these metrics the store knows; 0 when there is none yet."""
    try:
        store = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        marks = ",".join("?" * len(METRICS))
        return store.execute(f"SELECT count(*) FROM history_series WHERE name IN ({marks})", METRICS).fetchone()[0]
    except sqlite3.Error:
        return 0


def fill(path):
    """Fills the store of a daemon that has been stopped; gives the number of rows."""
    now = int(time.time())
    store = sqlite3.connect(path)
    marks = ",".join("?" * len(METRICS))
    series = store.execute(f"SELECT id, shape FROM history_series WHERE name IN ({marks})", METRICS).fetchall()
    assert len(series) >= 40, f"{len(series)} series"
    rows = []
    for identity, shape in series:
        for tier, slot, slots, looks in ((1, 60, 60, 6), (2, HOUR, 24, 360)):
            stretch = slot * slots
            begin = (now - 7 * DAY) // stretch * stretch
            while begin <= now:
                data = part(shape, begin, slot, slots, looks, now)
                if data:
                    rows.append((tier, identity, begin, data))
                begin += stretch
    store.executemany("INSERT OR REPLACE INTO history_parts (tier, series, start, data) VALUES (?, ?, ?, ?)", rows)
    store.execute("UPDATE history_bytes SET bytes = (SELECT coalesce(sum(length(data) + 48), 0) FROM history_parts WHERE history_parts.tier = history_bytes.tier)")
    store.execute("UPDATE history_series SET seen = ?", (now,))
    store.commit()
    store.close()
    return len(rows)
