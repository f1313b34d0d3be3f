"""The clients that people use, unchanged, against the running gateway.

Starts two llama.cpp servers with a tiny model (one for text, one for embeddings), an upstream that
breaks off, and `tidegate run` in front of them; then talks to it with the `openai` and `ollama`
packages. Everything is on loopback and in a temporary folder, and is gone at the end.

usage: run.py PATH-OF-TIDEGATE
"""

import asyncio
import contextlib
import http.server
import json
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request

import ollama
import openai

REAL = pathlib.Path(__file__).resolve().parent.parent / "real"
PATIENCE = 60.0
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(what, condition, patience=10.0):
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {what}")
        time.sleep(0.02)


class Broken(http.server.BaseHTTPRequestHandler):
    """An upstream of the OpenAI API that fails as the model's name says, and counts."""

    protocol_version = "HTTP/1.1"
    asked = {}

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.whole(200, {"object": "list", "data": []})

    def whole(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = body["model"]
        Broken.asked[model] = Broken.asked.get(model, 0) + 1
        if model.startswith("busy"):
            self.whole(503, {"error": {"message": "busy", "type": "server_error", "param": None, "code": None}})
            return
        # "cut": three words, then the connection ends.
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for delta in [{"role": "assistant", "content": ""}] + [{"content": w} for w in ("one", " two", " three")]:
            event = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model,
                     "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            data = f"data: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
        self.close_connection = True


class House:
    """The gateway and what stands behind it."""

    def __init__(self, program, folder, stack):
        self.stack = stack
        self.folder = folder
        model = folder / "tiny.gguf"
        subprocess.run([sys.executable, REAL / "make_tiny_model.py", model], check=True, stdout=subprocess.DEVNULL)
        self.text, self.vectors = free_port(), free_port()
        self.start([sys.executable, REAL / "serve_tiny_model.py", model, self.text], "text.log")
        self.start([sys.executable, REAL / "serve_tiny_model.py", model, self.vectors, "embed"], "vectors.log")
        broken = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        stack.callback(broken.shutdown)
        for port in (self.text, self.vectors):
            self.wait(f"http://127.0.0.1:{port}/health")
        self.port, self.ops = free_port(), free_port()
        dead = free_port()
        config = folder / "tidegate.toml"
        config.write_text(f"""
[server]
listen = "127.0.0.1:{self.port}"
[ops]
listen = "127.0.0.1:{self.ops}"
[[upstream]]
name = "llama"
kind = "openai"
url = "http://127.0.0.1:{self.text}/v1"
[[upstream]]
name = "vectors"
kind = "openai"
url = "http://127.0.0.1:{self.vectors}/v1"
[[upstream]]
name = "broken"
kind = "openai"
url = "http://127.0.0.1:{broken.server_address[1]}/v1"
[[upstream]]
name = "dead"
kind = "ollama"
url = "http://127.0.0.1:{dead}"
[[upstream]]
name = "slow"
kind = "echo"
word_delay = "50ms"
[[model]]
name = "tiny"
primary = "llama/tiny"
[[model]]
name = "tiny-embed"
primary = "vectors/tiny"
[[model]]
name = "rescued"
primary = "dead/tiny"
fallbacks = ["broken/busy-first", "llama/tiny"]
[[model]]
name = "lost"
primary = "broken/busy-lost"
[[model]]
name = "cut"
primary = "broken/cut"
""")
        self.start([program, "run", "--config", config], "tidegate.log")
        self.wait(f"http://127.0.0.1:{self.ops}/readyz")
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, command, log):
        output = open(self.folder / log, "wb")
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)

        def stop():
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            output.close()

        self.stack.callback(stop)
        return process

    def wait(self, url):
        def ready():
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(url, timeout=2).status == 200
            return False

        eventually(url, ready, PATIENCE)

    def openai(self, **options):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=PATIENCE, **options)

    def direct(self):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.text}/v1", api_key="none", timeout=PATIENCE)

    def ollama(self):
        return ollama.Client(host=self.url, timeout=PATIENCE)

    def running(self):
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.ops}/metrics", timeout=5).read().decode()
        pattern = r'tidegate_limit_now\{(?=[^}]*limit="server\.exchanges_max")(?=[^}]*owner="data")[^}]*\} (\d+)'
        return int(re.search(pattern, page).group(1))


PROMPT = "tell me of the sea"
MESSAGES = [{"role": "user", "content": PROMPT}]
# Greedy, so that the tiny model says the same through the gateway as without it.
GREEDY = {"max_tokens": 24, "temperature": 0, "seed": 1}


# === openai ===


@check
def openai_chat_whole(house):
    answer = house.openai().chat.completions.create(model="echo", messages=MESSAGES)
    assert answer.choices[0].message.content == PROMPT, answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "echo" and answer.usage.completion_tokens == 5, answer
    assert answer._request_id
    answer = house.openai().chat.completions.create(model="tiny", messages=MESSAGES, **GREEDY)
    direct = house.direct().chat.completions.create(model="tiny", messages=MESSAGES, **GREEDY)
    assert answer.choices[0].message.content == direct.choices[0].message.content, (answer, direct)
    assert answer.model == "tiny", "the name that was asked for"
    assert answer.usage.completion_tokens == direct.usage.completion_tokens


@check
def openai_chat_streamed(house):
    for model in ("echo", "tiny"):
        options = GREEDY if model == "tiny" else {}
        stream = house.openai().chat.completions.create(
            model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **options)
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        expected = PROMPT
        if model == "tiny":
            whole = house.direct().chat.completions.create(model=model, messages=MESSAGES, **GREEDY)
            expected = whole.choices[0].message.content
        assert text == expected, (model, text, expected)
        assert len({c.id for c in chunks}) == 1 and {c.model for c in chunks} == {model}
        assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices, chunks[-1]
        finish = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
        assert len(finish) == 1, finish
        assert len(chunks) > 4, "it was not streamed"
        plain = list(house.openai().chat.completions.create(model=model, messages=MESSAGES, stream=True, **options))
        assert all(c.choices for c in plain) and all(c.usage is None for c in plain), "usage was not asked for"


@check
def openai_async_streams_side_by_side(house):
    async def one(client, n):
        stream = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": f"number {n}"}], stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key="none", timeout=PATIENCE) as client:
            return await asyncio.gather(*(one(client, n) for n in range(50)))

    assert asyncio.run(all_of_them()) == [f"number {n}" for n in range(50)]


@check
def openai_completions(house):
    client = house.openai()
    assert client.completions.create(model="echo", prompt=PROMPT).choices[0].text == PROMPT
    text = "".join(c.choices[0].text for c in client.completions.create(model="echo", prompt=PROMPT, stream=True))
    assert text == PROMPT, text
    direct = house.direct().completions.create(model="tiny", prompt=PROMPT, **GREEDY).choices[0].text
    assert client.completions.create(model="tiny", prompt=PROMPT, **GREEDY).choices[0].text == direct


    def streamed(client):
        stream = client.completions.create(model="tiny", prompt=PROMPT, stream=True, **GREEDY)
        return "".join(c.choices[0].text for c in stream if c.choices)

    # Not the whole text: llama.cpp's stream leaves out bytes at the end that are half a character.
    assert streamed(client) == streamed(house.direct())


@check
def openai_embeddings(house):
    client = house.openai()
    for model in ("echo", "tiny-embed"):
        # Without a format this client asks for base64 and decodes it.
        decoded = client.embeddings.create(model=model, input=["sea", "land"])
        floats = client.embeddings.create(model=model, input=["sea", "land"], encoding_format="float")
        base64 = client.embeddings.create(model=model, input="sea", encoding_format="base64")
        assert [d.index for d in floats.data] == [0, 1]
        for one, two in zip(decoded.data, floats.data):
            assert len(one.embedding) == len(two.embedding) > 8
            assert all(abs(a - b) < 1e-5 for a, b in zip(one.embedding, two.embedding)), model
        import base64 as codec
        raw = codec.b64decode(base64.data[0].embedding)
        vector = struct.unpack(f"<{len(raw) // 4}f", raw)
        assert all(abs(a - b) < 1e-5 for a, b in zip(vector, floats.data[0].embedding)), model
        assert floats.usage.prompt_tokens > 0


@check
def openai_models(house):
    client = house.openai()
    names = [model.id for model in client.models.list()]
    for name in ("tiny", "tiny-embed", "rescued"):
        assert name in names, names
        assert client.models.retrieve(name).id == name


@check
def openai_errors(house):
    client = house.openai()
    for call in (
        lambda: client.chat.completions.create(model="no-such-model", messages=MESSAGES),
        lambda: client.chat.completions.create(model="no-such-model", messages=MESSAGES, stream=True),
        lambda: client.embeddings.create(model="no-such-model", input="x"),
        lambda: client.models.retrieve("no-such-model"),
    ):
        try:
            call()
        except openai.NotFoundError as error:
            assert error.code == "model_not_found" and error.request_id, error
            assert "no-such-model" in error.message, error
        else:
            raise AssertionError("no error")
    try:
        client.chat.completions.create(model="echo", messages="not a list")
    except openai.BadRequestError as error:
        assert error.code == "invalid_field" and "messages" in error.message, error
    else:
        raise AssertionError("no error")


@check
def openai_does_not_retry_what_the_gateway_gave_up(house):
    before = Broken.asked.get("busy-lost", 0)
    for stream in (False, True):
        try:
            house.openai().chat.completions.create(model="lost", messages=MESSAGES, stream=stream)
        except openai.InternalServerError as error:
            assert error.status_code == 503, error
        else:
            raise AssertionError("no error")
    # The client retries a 503 twice unless it is told not to.
    assert Broken.asked["busy-lost"] - before == 2, Broken.asked


@check
def openai_sees_a_broken_stream_as_an_error(house):
    text = ""
    try:
        for chunk in house.openai().chat.completions.create(model="cut", messages=MESSAGES, stream=True):
            text += chunk.choices[0].delta.content or ""
    except openai.APIError as error:
        assert error.message, error
    else:
        raise AssertionError("a stream that broke off looked like a success")
    assert text == "one two three", text


@check
def openai_sees_nothing_of_a_fallback(house):
    direct = house.direct().chat.completions.create(model="tiny", messages=MESSAGES, **GREEDY)
    expected = direct.choices[0].message.content
    answer = house.openai().chat.completions.create(model="rescued", messages=MESSAGES, **GREEDY)
    assert answer.choices[0].message.content == expected and answer.model == "rescued"
    chunks = list(house.openai().chat.completions.create(model="rescued", messages=MESSAGES, stream=True, **GREEDY))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert {c.model for c in chunks} == {"rescued"} and len({c.id for c in chunks}) == 1
    # llama.cpp leaves the role out when its first token is half a character.
    assert sum(1 for c in chunks if c.choices[0].delta.role) <= 1, "one role chunk"


@check
def openai_cancelled_stream(house):
    eventually("quiet", lambda: house.running() == 0)
    for model, extra in (("slow/echo", {}), ("tiny", {"max_tokens": 1900, "extra_body": {"ignore_eos": True}})):
        messages = [{"role": "user", "content": "word " * 200}] if model != "tiny" else MESSAGES
        stream = house.openai().chat.completions.create(model=model, messages=messages, stream=True, **extra)
        for _, _chunk in zip(range(3), stream):
            pass
        stream.close()
        eventually(f"{model}: cancelled upstream", lambda: house.running() == 0, 2.0)
    # And the connection pool of the client is not confused by it.
    openai_chat_whole(house)


# === ollama ===


@check
def ollama_chat(house):
    client = house.ollama()
    answer = client.chat(model="echo", messages=MESSAGES)
    assert answer.message.content == PROMPT and answer.done and answer.done_reason == "stop", answer
    assert answer.model == "echo" and answer.eval_count == 5, answer
    chunks = list(client.chat(model="echo", messages=MESSAGES, stream=True))
    assert "".join(c.message.content or "" for c in chunks) == PROMPT
    assert [c.done for c in chunks] == [False] * (len(chunks) - 1) + [True]
    options = {"num_predict": 24, "temperature": 0, "seed": 1}
    direct = house.direct().chat.completions.create(model="tiny", messages=MESSAGES, **GREEDY)
    expected = direct.choices[0].message.content
    whole = client.chat(model="tiny", messages=MESSAGES, options=options)
    assert whole.message.content == expected and whole.model == "tiny", (whole, expected)
    chunks = list(client.chat(model="tiny", messages=MESSAGES, options=options, stream=True))
    assert "".join(c.message.content or "" for c in chunks) == expected
    assert chunks[-1].eval_count == direct.usage.completion_tokens, chunks[-1]
    assert len(chunks) > 4, "it was not streamed"


@check
def ollama_generate(house):
    client = house.ollama()
    assert client.generate(model="echo", prompt=PROMPT).response == PROMPT
    assert "".join(c.response for c in client.generate(model="echo", prompt=PROMPT, stream=True)) == PROMPT
    options = {"num_predict": 12, "temperature": 0, "seed": 1}
    whole = client.generate(model="tiny", prompt=PROMPT, options=options)
    assert whole.done and whole.response, whole
    streamed = "".join(c.response for c in client.generate(model="tiny", prompt=PROMPT, options=options, stream=True))
    assert streamed == whole.response, (streamed, whole.response)


@check
def ollama_embeddings(house):
    client = house.ollama()
    for model in ("echo", "tiny-embed"):
        one = client.embed(model=model, input="sea")
        two = client.embed(model=model, input=["sea", "land"])
        assert len(one.embeddings) == 1 and len(two.embeddings) == 2
        same = zip(one.embeddings[0], two.embeddings[0])
        assert all(abs(a - b) < 1e-3 for a, b in same), model
        legacy = client.embeddings(model=model, prompt="sea")
        assert len(legacy.embedding) == len(one.embeddings[0])


@check
def ollama_catalog(house):
    client = house.ollama()
    names = [model.model for model in client.list().models]
    for name in ("tiny", "tiny-embed", "rescued"):
        assert name in names or f"{name}:latest" in names, names
    assert client.ps().models is not None
    assert client.show("tiny").details is not None


@check
def ollama_errors(house):
    client = house.ollama()
    for call in (
        lambda: client.chat(model="no-such-model", messages=MESSAGES),
        lambda: list(client.chat(model="no-such-model", messages=MESSAGES, stream=True)),
        lambda: client.generate(model="no-such-model", prompt="x"),
        lambda: client.embed(model="no-such-model", input="x"),
        lambda: client.show("no-such-model"),
    ):
        try:
            call()
        except ollama.ResponseError as error:
            assert error.status_code == 404 and "no-such-model" in error.error, error
        else:
            raise AssertionError("no error")


@check
def ollama_sees_a_broken_stream_as_an_error(house):
    text = ""
    try:
        for chunk in house.ollama().chat(model="cut", messages=MESSAGES, stream=True):
            text += chunk.message.content or ""
    except ollama.ResponseError as error:
        assert error.error, error
    else:
        raise AssertionError("a stream that broke off looked like a success")
    assert text == "one two three", text


@check
def ollama_cancelled_stream(house):
    eventually("quiet", lambda: house.running() == 0)
    for model, options in (("slow/echo", {}), ("tiny", {"num_predict": 1900, "temperature": 0})):
        prompt = "word " * 200 if model != "tiny" else PROMPT
        stream = house.ollama().generate(model=model, prompt=prompt, options=options, stream=True)
        for _, _chunk in zip(range(3), stream):
            pass
        stream.close()
        eventually(f"{model}: cancelled upstream", lambda: house.running() == 0, 2.0)
    ollama_chat(house)


def main(program):
    failed = []
    with tempfile.TemporaryDirectory(prefix="tidegate-clients-") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        house = House(program, folder, stack)
        for function in CHECKS:
            try:
                function(house)
                print(f"client {function.__name__} ... ok", flush=True)
            except Exception:
                failed.append(function.__name__)
                print(f"client {function.__name__} ... FAILED", flush=True)
                traceback.print_exc()
        if failed:
            print("--- the gateway's last lines")
            print("\n".join((folder / "tidegate.log").read_text().splitlines()[-20:]))
    print(f"client result: {len(CHECKS) - len(failed)} passed; {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
