#!/usr/bin/env python3
"""The dashboard in a real browser: tests/browser/run.py PROGRAM [--shots FOLDER]

Starts the program with upstreams that answer, fail and are away, opens its page in headless Chromium, and looks at what
a person would: figures, charts, colours, keys, names, small screens, a daemon that goes and comes back. With --shots it
also leaves pictures, for a person to look at."""

import argparse
import os
import socket
import sys
import tempfile
import threading
import time
import traceback

import week
from daemon import Daemon
from webdriver import Browser

# An alert that a test can raise and end: more live pages than one or two.
RULE = (
    '[alerts]\ninterval = "200ms"\ngroup_wait = "0s"\ngroup_interval = "0s"\n[[alert]]\nname = "crowded"\nmetric = "tidegate_limit_now{limit=\\"ops.live_max\\"}"\nthreshold = "3"\nclear = "3"\n'
    'severity = "critical"\nsummary = "many people look at <b>this</b> page"\n'
)

PATIENCE = float(os.environ.get("TIDEGATE_TEST_PATIENCE", "1"))
SHOTS = None
FIGURE = "const n = document.querySelector(`[data-figure='${arguments[0]}']`); return n && [n.dataset.value, n.textContent]"


def figure(browser, name):
    value, shown = browser.run(FIGURE, name)
    return float(value), shown


def loaded(browser):
    browser.wait(lambda: browser.run("return document.body.dataset.number && document.body.dataset.connection === 'live'"), "a live document", 15)


def page(browser, daemon):
    browser.open(daemon.base + "/")
    loaded(browser)


def no_errors(browser):
    told = [entry["message"] for entry in browser.console() if entry["level"] in ("SEVERE", "WARNING")]
    assert not told, told


def test_the_page_loads_and_says_nothing_on_the_console(browser, daemon):
    browser.console()
    for path in ("/", "/dashboard", "/dashboard/"):
        browser.open(daemon.base + path)
        loaded(browser)
        no_errors(browser)
    asked = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(asked) >= 8 and all(name.startswith(daemon.base) for name in asked), asked
    assert browser.run("return document.title") in ("Healthy · Tidegate", "Degraded · Tidegate")


def test_the_figures_are_those_of_metrics(browser, daemon):
    """Whatever is shown as an exact figure is what `/metrics` says at the same moment."""
    page(browser, daemon)
    for _ in range(7):
        daemon.ask("m")
        daemon.ask("m", stream=True)
    daemon.ask("far")
    daemon.ask("bad")
    limit = lambda metrics, name: metrics.sum("tidegate_limit_now", limit=name, owner="data")
    exact = {
        "requests_total": lambda m: m.sum("tidegate_http_requests_total"),
        "failed_total": lambda m: m.sum("tidegate_http_requests_total", status="5.."),
        "streams_total": lambda m: m.sum("tidegate_streams_total"),
        "streams_cut_total": lambda m: m.sum("tidegate_streams_cut_total"),
        "tokens_output_total": lambda m: m.sum("tidegate_tokens_total", direction="output"),
        "exchanges_now": lambda m: limit(m, "server.exchanges_max"),
        "waiting_now": lambda m: limit(m, "server.waiting_max"),
        "connections_now": lambda m: limit(m, "server.connections_max"),
        "max_fds": lambda m: m.sum("process_max_fds"),
    }
    same = lambda: all(figure(browser, name)[0] == of(daemon.metrics()) for name, of in exact.items())
    browser.wait(same, "all figures equal", 10)
    assert figure(browser, "requests_total")[0] >= 16 and figure(browser, "failed_total")[0] >= 1
    shown = {name: figure(browser, name)[1] for name in exact}
    assert shown["requests_total"].replace(",", "") == str(int(figure(browser, "requests_total")[0])), shown
    # What moves by itself, and by this very look: the asker's connection, a page of memory.
    near = {"open_fds": ("process_open_fds", 3), "threads": ("process_threads", 2), "resident_bytes": ("process_resident_memory_bytes", 2 << 20)}
    for name, (metric, distance) in near.items():
        browser.wait(lambda: abs(figure(browser, name)[0] - daemon.metrics().sum(metric)) <= distance, name, 10)
    no_errors(browser)


def test_traffic_is_seen_within_moments(browser, daemon):
    page(browser, daemon)
    before = figure(browser, "requests_total")[0]
    number = lambda: int(browser.run("return document.body.dataset.number"))
    first = number()
    for _ in range(5):
        daemon.ask("m", stream=True)
    browser.wait(lambda: figure(browser, "requests_total")[0] >= before + 5, "the requests", 5)
    browser.wait(lambda: number() >= first + 3, "one document after another", 8)
    lines = "return [...document.querySelectorAll('[data-chart=Requests] path.line')].map((path) => path.getAttribute('d'))"
    browser.wait(lambda: "L" in browser.run(lines)[0], "a line of requests", 8)
    rows = "return [...document.querySelectorAll('#upstreams tbody tr')].map((row) => row.cells[0].textContent)"
    assert {"local", "away"} <= set(browser.run(rows)), browser.run(rows)
    assert browser.run("return document.querySelectorAll('#limits li').length") == 12
    assert browser.run("return document.querySelectorAll('#checks li').length") >= 1
    assert "config version 1" in browser.run("return document.getElementById('facts').innerText.replaceAll('\\n', ' ')")


def test_charts_are_read_with_the_pointer_and_with_the_keyboard(browser, daemon):
    page(browser, daemon)
    plot = "[data-chart=Memory] .plot"
    said = lambda: browser.run("return document.querySelector(arguments[0]).getAttribute('aria-valuetext')", plot)
    when = lambda: browser.run("return document.querySelector('[data-chart=Memory] .when').textContent")
    browser.wait(lambda: int(browser.run("return document.querySelector(arguments[0]).getAttribute('aria-valuemax')", plot)) >= 3, "four points", 10)
    assert when() == ""
    browser.hover(plot, 0.99)
    browser.wait(lambda: ":" in when(), "the moment under the pointer", 5)
    browser.hover("h1", 0.5)
    browser.wait(lambda: when() == "", "nothing after the pointer left", 5)
    browser.run("document.querySelector(arguments[0]).focus()", plot)
    browser.press("Home")
    first = said()
    browser.press("Right")
    second = said()
    assert first != second and "resident" in second and "MiB" in second, (first, second)
    browser.press("Left")
    assert said() == first, (said(), first)
    browser.press("Escape")
    assert when() == ""
    browser.run("document.querySelector('[data-chart=Memory] details').open = true")
    browser.wait(lambda: browser.run("return document.querySelectorAll('[data-chart=Memory] tbody tr').length") >= 3, "the table", 5)
    head = browser.run("return [...document.querySelectorAll('[data-chart=Memory] thead th')].map((cell) => cell.textContent)")
    assert head == ["Time", "resident", "heap and stacks"], head


def test_another_time_is_shown_when_it_is_chosen(browser, daemon):
    browser.wait(lambda: '"metrics":[]' not in daemon.get("/history"), "a first look of the history", 30)
    page(browser, daemon)
    browser.wait(lambda: browser.run("return document.querySelectorAll('#ranges input').length === 4"), "the choice of times", 40)
    words = lambda: browser.run("return [...document.querySelectorAll('[data-chart=Memory] .grid text')].map((node) => node.textContent)")
    for name in ("6h", "24h", "7d", "15m"):
        before = words()
        took = chosen(browser, name)
        assert took < 1500 * PATIENCE, (name, took)
        browser.wait(lambda: words() != before, f"another axis for {name}", 5)
    assert browser.run("return document.querySelector('[data-chart=Memory] path.line').getAttribute('d')")
    no_errors(browser)


def chosen(browser, name):
    """Milliseconds from the choice of a time until its charts are drawn."""
    return browser.call("POST", f"{browser.session}/execute/async", {"script": """
        const [name, done] = arguments;
        const begun = performance.now();
        document.getElementById(`range-${name}`).click();
        const look = () => document.body.dataset.range === name ? done(performance.now() - begun) : requestAnimationFrame(look);
        look();""", "args": [name]})


CONTRAST = """
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const light = (c) => { const l = c.slice(0, 3).map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * l[0] + .7152 * l[1] + .0722 * l[2]; };
const ground = (node) => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor); if (c[3] > .99) return c; } return [255, 255, 255, 1]; };
const faults = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest('.hidden, .quiet, legend, script, .skip, noscript')) continue;
  const style = getComputedStyle(node);
  const colour = parse(node instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(colour), light(ground(node))].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  if (ratio < 4.5) faults.push(`${walk.currentNode.data.trim()} ${ratio.toFixed(2)}`);
}
return faults;
"""


def test_dark_and_light_follow_the_system_and_the_switch(browser, daemon):
    ground = lambda: sum(map(int, browser.run("return getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")))
    for scheme, dark in (("dark", True), ("light", False)):
        browser.colours(scheme)
        page(browser, daemon)
        assert (ground() < 200) == dark, (scheme, ground())
        faults = browser.run(CONTRAST)
        assert not faults, (scheme, faults)
        # The switch wins, and is remembered.
        other = "light" if dark else "dark"
        browser.run("document.getElementById(`theme-${arguments[0]}`).click()", other)
        assert (ground() < 200) != dark, scheme
        page(browser, daemon)
        assert (ground() < 200) != dark, "remembered"
        assert not browser.run(CONTRAST), browser.run(CONTRAST)
        browser.run("document.getElementById('theme-auto').click()")
        assert (ground() < 200) == dark, scheme


def test_nothing_is_wider_than_a_phone_or_a_wall(browser, daemon):
    for width, mobile in ((360, True), (412, True), (768, False), (1280, False), (1600, False), (2560, False)):
        browser.size(width, 800, mobile=mobile)
        page(browser, daemon)
        browser.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
        browser.run("document.getElementById('limits-more').click(); document.getElementById('events-more').click()")
        wide = browser.run("return [document.documentElement.scrollWidth, [...document.querySelectorAll('main *')].filter((node) => node.checkVisibility()"
                           " && !node.closest('.scroll') && node.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map((node) => node.outerHTML.slice(0, 120))]")
        assert wide[0] <= width and not wide[1], (width, wide)
        cut = browser.run("return [...document.querySelectorAll('.tiles .figure')].filter((node) => node.scrollWidth > node.clientWidth + 1).map((node) => node.textContent)")
        assert not cut, (width, cut)
    browser.size(1280, 900)


def test_everything_is_reached_by_the_keyboard_and_seen_to_be(browser, daemon):
    page(browser, daemon)
    browser.run("document.activeElement.blur(); scrollTo(0, 0)")
    seen = []
    for _ in range(80):
        browser.press("Tab")
        found = browser.run(
            "const n = document.activeElement; if (n === document.body) return null; const s = getComputedStyle(n.matches('input') ? n.nextElementSibling : n);"
            "return [n.tagName, n.id || n.getAttribute('aria-label') || n.textContent.trim().slice(0, 40), s.outlineStyle, parseFloat(s.outlineWidth)]")
        if found is None:
            break
        seen.append(found)
    names = [name for _, name, _, _ in seen]
    assert names[0].startswith("Skip") and "limits-more" in names and any(name.startswith("theme-") for name in names), names
    assert sum(name.endswith("one moment after another") for name in names) == 8, names
    hidden = [found for found in seen if found[2] == "none" or found[3] < 1.5]
    assert not hidden, hidden
    browser.run("document.getElementById('limits-more').focus()")
    before = browser.run("return document.querySelectorAll('#limits li').length")
    browser.press("Enter")
    browser.wait(lambda: browser.run("return document.querySelectorAll('#limits li').length") > before, "all limits", 5)
    assert browser.run("return document.getElementById('limits-more').getAttribute('aria-expanded')") == "true"
    browser.run("document.getElementById('theme-auto').focus()")
    browser.press("Right")
    assert browser.run("return document.documentElement.dataset.theme") == "light"
    browser.press("Left")
    assert browser.run("return document.documentElement.dataset.theme ?? 'auto'") == "auto"


def test_a_screen_reader_finds_names_and_landmarks(browser, daemon):
    page(browser, daemon)
    tree = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    nodes = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node.get("ignored")]
    need = {"button", "link", "slider", "meter", "radio", "table", "region", "heading", "image", "DisclosureTriangle", "columnheader"}
    nameless = [node for node in nodes if node[0] in need and not node[1].strip()]
    assert not nameless, nameless
    roles = [role for role, _ in nodes]
    for role, least in (("banner", 1), ("main", 1), ("contentinfo", 1), ("slider", 8), ("meter", 12), ("table", 1), ("region", 6), ("heading", 12)):
        assert roles.count(role) >= least, (role, roles.count(role))
    aloud = browser.run("return [...document.querySelectorAll('[aria-live]')].map((node) => node.id)")
    assert sorted(aloud) == ["alerts", "banner"], aloud
    levels = browser.run("return [...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:])), levels


def test_with_reduced_motion_nothing_moves(browser, daemon):
    moving = "return [...document.querySelectorAll('*')].filter((node) => parseFloat(getComputedStyle(node).transitionDuration) > 0).length"
    page(browser, daemon)
    assert browser.run(moving) > 0
    browser.colours("light", reduced=True)
    page(browser, daemon)
    assert browser.run(moving) == 0
    browser.colours("light")


def test_without_a_place_the_page_asks_now_and_then(browser, daemon):
    browser.open("about:blank")
    held = lambda: daemon.metrics().sum("tidegate_limit_now", limit="ops.live_max")
    browser.wait(lambda: held() == 0, "no viewer", 10)
    viewers = []
    for _ in range(16):
        viewer = socket.create_connection(("127.0.0.1", daemon.ops))
        viewer.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        viewers.append(viewer)
        assert b" 200 " in viewer.recv(100)
    reader = threading.Thread(target=swallow, args=(viewers,), daemon=True)
    reader.start()
    browser.open(daemon.base + "/")
    browser.wait(lambda: browser.run("return document.body.dataset.connection === 'polling'"), "polling", 10)
    assert "taken" in browser.run("return document.getElementById('banner').textContent")
    assert not browser.run("return document.body.hasAttribute('data-stale')")
    number = int(browser.run("return document.body.dataset.number"))
    browser.wait(lambda: int(browser.run("return document.body.dataset.number")) > number, "another document", 15)
    for viewer in viewers:
        viewer.shutdown(socket.SHUT_RDWR)
    browser.console()


def test_an_alert_appears_and_goes(browser, daemon):
    page(browser, daemon)
    lines = lambda: browser.run("return [...document.querySelectorAll('#alerts li')].map((line) => line.innerText)")
    mine = lambda: [line for line in lines() if "crowded" in line]
    hidden = lambda: browser.run("return document.getElementById('alerts-section').hidden")
    firing = lambda: browser.run("return document.getElementById('alerts-section').dataset.firing")
    browser.wait(lambda: not mine(), "no alert of this rule", 15)
    before = int(firing() or 0)
    title = browser.run("return document.title")
    viewers = []
    for _ in range(5):
        viewer = socket.create_connection(("127.0.0.1", daemon.ops))
        viewer.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        viewers.append(viewer)
    reader = threading.Thread(target=swallow, args=(viewers,), daemon=True)
    reader.start()
    browser.wait(mine, "the alert", 15)
    assert not hidden() and int(firing()) == before + 1, (hidden(), firing())
    shown = mine()[0]
    assert "critical" in shown.lower() and "<b>this</b>" in shown, shown
    assert browser.run("return document.querySelectorAll('#alerts b').length") == 0, "its words are text"
    if SHOTS:
        browser.shot(os.path.join(SHOTS, "alert.png"))
    for viewer in viewers:
        viewer.shutdown(socket.SHUT_RDWR)
    browser.wait(lambda: not mine(), "its end", 15)
    assert int(firing() or 0) == before, firing()
    browser.wait(lambda: browser.run("return document.title") == title, "the title of before", 10)
    no_errors(browser)


def swallow(viewers):
    """Reads what live pages would, so that none is let go."""
    while any(viewer.fileno() >= 0 for viewer in viewers):
        for viewer in viewers:
            try:
                viewer.setblocking(False)
                if viewer.recv(1 << 20) == b"":
                    viewer.close()
            except BlockingIOError:
                pass
            except OSError:
                viewer.close()
        time.sleep(0.1)


def test_connections_on_websocket_are_seen(browser, daemon):
    """The panel of nodes is there once somebody was; it counts them, and what `/metrics` says is the same."""
    page(browser, daemon)
    shown = "const s = document.getElementById('nodes').closest('section'); return !s.hidden && s.checkVisibility()"
    held = lambda: daemon.metrics().sum("tidegate_limit_now", limit="nodes.connections_max")
    browser.wait(lambda: held() == 0, "nobody on WebSocket", 20)
    asked = ("GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\n\r\n").encode()
    sockets = []
    for _ in range(2):
        sockets.append(socket.create_connection(("127.0.0.1", daemon.data)))
        sockets[-1].sendall(asked)
        assert sockets[-1].recv(64).startswith(b"HTTP/1.1 101"), "no upgrade"
    browser.wait(lambda: browser.run(shown) and figure(browser, "nodes_connections_now") == (2.0, "2"), "two connections", 8)
    rows = browser.run("return [...document.querySelectorAll('#nodes tbody tr')].map((row) => row.innerText)")
    assert len(rows) == 5 and "of 1,024" in rows[0], rows
    assert "0 commands without an answer" in browser.run("return document.getElementById('nodes-told').textContent")
    assert not browser.run(CONTRAST), browser.run(CONTRAST)
    if SHOTS:
        browser.shot(os.path.join(SHOTS, "nodes.png"))
    for each in sockets:
        each.close()
    browser.wait(lambda: figure(browser, "nodes_connections_now")[0] == held() == 0, "nobody any more", 20)
    assert browser.run(shown), "what was there is still told"
    no_errors(browser)


def test_a_week_is_there_within_a_moment(browser, daemon):
    """A store with a week of history in it: drawn within 300 ms of being asked for, with its gap."""
    browser.open("about:blank")
    browser.wait(lambda: week.known(daemon.store) >= 40, "series in the store", 60)
    daemon.stop()
    rows = week.fill(daemon.store)
    daemon.start()
    browser.wait(lambda: '"metrics":[]' not in daemon.get("/history"), "a first look of the history", 30)
    page(browser, daemon)
    browser.wait(lambda: browser.run("return document.querySelectorAll('#ranges input').length === 4"), "the choice of times", 40)
    best = {}
    for name in ("7d", "24h", "6h", "7d", "24h", "6h", "7d"):
        best[name] = min(best.get(name, 1e9), chosen(browser, name))
    print("        " + ", ".join(f"{name} in {took:.0f} ms" for name, took in best.items()) + f", of {rows} rows", flush=True)
    assert best["7d"] < 300 * PATIENCE, best
    chart = "document.querySelector('[data-chart=Requests]')"
    drawn = browser.run(f"return {chart}.querySelector('path.line').getAttribute('d')")
    assert drawn.count("M") == 2 and drawn.count("L") > 140, "two stretches, with a gap between them"
    browser.run(f"{chart}.querySelector('.plot').focus()")
    browser.press("Home")
    first = browser.run(f"return {chart}.querySelector('.plot').getAttribute('aria-valuetext')")
    assert "answered" in first and "/s" in first and "–" not in first, first
    no_errors(browser)


def test_a_lost_daemon_is_told_and_found_again(browser, daemon):
    page(browser, daemon)
    daemon.stop()
    browser.wait(lambda: browser.run("return document.body.hasAttribute('data-stale')"), "the loss", 15)
    banner = browser.run("return document.getElementById('banner').textContent")
    assert "No connection since" in banner and "Try now" in banner, banner
    assert browser.run("return getComputedStyle(document.querySelector('main')).filter") != "none"
    daemon.start()
    browser.run("document.getElementById('retry').click()")
    loaded(browser)
    assert not browser.run("return document.body.hasAttribute('data-stale')")
    assert browser.run("return document.getElementById('banner').hidden")
    # Counts begin again; nothing is taken for a rate below nothing.
    browser.wait(lambda: figure(browser, "requests_total")[0] == daemon.metrics().sum("tidegate_http_requests_total"), "the new counts", 10)
    browser.console()


def shots(browser, daemon, folder):
    """Pictures under traffic: phone, desktop and wall, light and dark."""
    os.makedirs(folder, exist_ok=True)
    over = threading.Event()

    def traffic(model, pause):
        while not over.wait(pause):
            daemon.ask(model, stream=model != "bad")

    for model, pause in (("m", 0.05), ("m", 0.11), ("far", 0.4), ("bad", 2.1), ("echo", 0.2)):
        threading.Thread(target=traffic, args=(model, pause), daemon=True).start()
    page(browser, daemon)
    time.sleep(40)
    for name, width, height, mobile in (("desktop", 1280, 900, False), ("wall", 1600, 1000, False), ("phone", 360, 740, True)):
        for scheme in ("light", "dark"):
            browser.size(width, height, scale=2 if mobile else 1, mobile=mobile)
            browser.colours(scheme)
            time.sleep(1.5)
            if mobile:
                for part in range(4):
                    browser.shot(os.path.join(folder, f"{name}-{scheme}-{part + 1}.png"), part * 1250, 1250)
            else:
                browser.shot(os.path.join(folder, f"{name}-{scheme}.png"))
    over.set()


def main():
    options = argparse.ArgumentParser()
    options.add_argument("program")
    options.add_argument("--shots")
    options.add_argument("--only", default="")
    options = options.parse_args()
    globals()["SHOTS"] = options.shots
    if options.shots:
        os.makedirs(options.shots, exist_ok=True)
    tests = [(name, run) for name, run in globals().items() if name.startswith("test_") and options.only in name]
    failed = []
    with tempfile.TemporaryDirectory(prefix="tidegate-browser-") as folder:
        daemon = Daemon(os.path.abspath(options.program), folder, RULE)
        browser = Browser(folder, PATIENCE)
        try:
            for name, run in tests:
                begun = time.monotonic()
                try:
                    browser.size(1280, 900)
                    browser.colours("light")
                    run(browser, daemon)
                    print(f"ok      {name[5:].replace('_', ' ')} ({time.monotonic() - begun:.1f} s)", flush=True)
                except Exception:  # each is told, and the next one runs
                    failed.append(name)
                    print(f"FAILED  {name[5:].replace('_', ' ')}\n{traceback.format_exc()}", flush=True)
            if options.shots:
                shots(browser, daemon, options.shots)
        finally:
            browser.close()
            daemon.stop()
    print(f"{len(tests) - len(failed)} of {len(tests)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
