"""A small WebDriver client over urllib: Chromium and chromedriver as Debian packages them, nothing else."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Space": " ", "Left": "\ue012", "Right": "\ue014", "Home": "\ue011", "End": "\ue010", "Escape": "\ue00c"}
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage", "--mute-audio",
    "--no-proxy-server", "--hide-scrollbars", "--lang=en",
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def direct():
    """Loopback needs no proxy, whatever the environment says."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """One headless Chromium with a profile of its own."""

    def __init__(self, folder, patience=1.0):
        driver = shutil.which("chromedriver")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        if not driver or not chromium:
            raise SystemExit("chromium and chromedriver are needed (Debian: chromium, chromium-driver)")
        self.patience = patience
        self.opener = direct()
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        profile = os.path.join(folder, "profile")
        os.makedirs(profile)
        environment = {**os.environ, "HOME": folder, "TZ": "UTC"}
        log = open(os.path.join(folder, "chromedriver.log"), "wb")
        self.process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log, env=environment)
        log.close()
        self.wait(lambda: self.call("GET", "/status")["ready"], "chromedriver", 30)
        options = {"binary": chromium, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{session['sessionId']}"

    def call(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.base + path, data, {"content-type": "application/json"}, method=method)
        try:
            with self.opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.read().decode(errors='replace')[:600]}") from None

    def wait(self, ready, what, seconds=10):
        """Waits until `ready` gives something true, and gives that; an error of it means not yet."""
        end = time.monotonic() + seconds * self.patience
        last = None
        while time.monotonic() < end:
            try:
                found = ready()
                if found:
                    return found
            except (OSError, RuntimeError, KeyError) as error:
                last = error
            time.sleep(0.05)
        raise AssertionError(f"not in {seconds} s: {what} ({last})")

    def open(self, url):
        self.call("POST", f"{self.session}/url", {"url": url})

    def run(self, script, *arguments):
        """The value of a function body in the page."""
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def cdp(self, command, **parameters):
        return self.call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def press(self, *names, shift=False):
        actions = [{"type": "keyDown", "value": "\ue008"}] if shift else []
        for name in names:
            key = KEYS[name]
            actions += [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        if shift:
            actions.append({"type": "keyUp", "value": "\ue008"})
        self.call("POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def hover(self, selector, x):
        """Moves the pointer over an element, `x` of its width from the left."""
        box = self.run("const r = document.querySelector(arguments[0]); r.scrollIntoView({block: 'center'});"
                       "const b = r.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]", selector)
        move = {"type": "pointerMove", "duration": 0, "x": int(box[0] + box[2] * x), "y": int(box[1] + box[3] / 2)}
        self.call("POST", f"{self.session}/actions", {"actions": [{"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}]})

    def size(self, width, height, scale=1, mobile=False):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def colours(self, scheme, reduced=False):
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def shot(self, path, top=0, height=None):
        """The page as PNG, whole or a part of it."""
        size = self.run("return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": top, "width": size[0], "height": height or size[1] - top, "scale": 1}
        picture = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture["data"]))

    def console(self):
        """What the console was told since the last look."""
        return self.call("POST", f"{self.session}/se/log", {"type": "browser"})

    def close(self):
        try:
            self.call("DELETE", self.session)
        except (OSError, RuntimeError, AttributeError):
            pass
        self.process.terminate()
        self.process.wait(20)
