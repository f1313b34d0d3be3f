"""The daemon under test, and upstreams that answer, fail, or are not there."""

import http.server
import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request

from webdriver import direct, free_port


class Upstream(http.server.ThreadingHTTPServer):
    """An OpenAI-compatible server; every answer whose model is named `bad` is a 500."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, content_type, body):
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send(200, "application/json", json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] == "bad":
            return self.send(500, "application/json", b'{"error":{"message":"out of order"}}')
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if asked.get("stream"):
            time.sleep(0.02)
            pieces = [{"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in ("one ", "two ", "three")]
            pieces += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
            lines = "".join(f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', 'model': 'm', **piece})}\n\n" for piece in pieces)
            return self.send(200, "text/event-stream", (lines + "data: [DONE]\n\n").encode())
        message = {"role": "assistant", "content": "one two three"}
        whole = {"id": "x", "object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        return self.send(200, "application/json", json.dumps(whole).encode())


class Daemon:
    """`tidegate run` in a folder of its own."""

    def __init__(self, program, folder, extra=""):
        self.program, self.folder = program, folder
        self.upstream = Upstream()
        self.opener = direct()
        self.data, self.ops = free_port(), free_port()
        self.base = f"http://127.0.0.1:{self.ops}"
        self.config = os.path.join(folder, "tidegate.toml")
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(
                f'server.listen = "127.0.0.1:{self.data}"\nops.listen = "127.0.0.1:{self.ops}"\n'
                f'[[upstream]]\nname = "local"\nkind = "openai"\nurl = "http://127.0.0.1:{self.upstream.server_address[1]}/v1"\nconcurrency_max = 8\n'
                f'[[upstream]]\nname = "away"\nkind = "ollama"\nurl = "http://127.0.0.1:{free_port()}"\n'
                '[[model]]\nname = "m"\nprimary = "local/m"\n[[model]]\nname = "far"\nprimary = "away/far"\nfallbacks = ["local/m"]\n'
                '[[model]]\nname = "bad"\nprimary = "local/bad"\n' + extra)
        self.store = os.path.join(folder, "state", "metrics.db")
        self.process = None
        self.start()

    def start(self):
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": self.folder, "STATE_DIRECTORY": os.path.join(self.folder, "state")}
        log = open(os.path.join(self.folder, "tidegate.log"), "ab")
        self.process = subprocess.Popen([self.program, "run", "--config", self.config], stdout=log, stderr=log, env=environment, cwd=self.folder)
        log.close()
        end = time.monotonic() + 60
        while True:
            try:
                if self.get("/readyz") == "ok":
                    return
            except OSError:
                pass
            assert time.monotonic() < end and self.process.poll() is None, "the daemon is not ready"
            time.sleep(0.05)

    def stop(self):
        self.process.kill()
        self.process.wait()

    def get(self, path):
        with self.opener.open(self.base + path, timeout=30) as answer:
            return answer.read().decode()

    def ask(self, model, stream=False):
        """One chat; its status."""
        body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "good morning"}]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.data}/v1/chat/completions", body, {"content-type": "application/json"})
        try:
            with self.opener.open(request, timeout=60) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            error.read()
            return error.code

    def metrics(self):
        return Metrics(self.get("/metrics"))


class Metrics:
    """A page of metrics."""

    def __init__(self, page):
        self.samples = []
        for line in page.splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found:
                labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""))
                self.samples.append((found[1], labels, float(found[3])))

    def sum(self, name, **labels):
        """The sum over the series with these labels; a value may be a pattern."""
        fits = lambda have: all(re.fullmatch(value, have.get(label, "")) for label, value in labels.items())
        return sum(value for have, all_labels, value in self.samples if have == name and fits(all_labels))
