#!/usr/bin/env python3
"""The Autobahn test suite against the built program: tests/autobahn/run.py PROGRAM [CASES...]

Its fuzzing client speaks to `GET /drill/ws-echo` of a daemon with drills; every case but those of compression, which is never
agreed on, must end OK, and so must its close. INFORMATIONAL ones say nothing either way. The suite wants Python 2.7: `python2.7`
on the PATH, one of pyenv's, or what PYTHON27 names. Without one it is not run, says so, and tests/websocket.rs, which
drives the same cases by a client of its own, is what there is."""

import collections
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

SUITE = "autobahntestsuite==25.10.1"
# Of this release, without 12.* and 13.*.
CASES = 301
RUN = "import site, sys; site.addsitedir(sys.argv.pop(1)); from autobahntestsuite.wstest import run; run()"


def python27():
    """A Python 2.7 that starts, and the environment that it starts in."""
    names = [os.environ.get("PYTHON27"), "python2.7"]
    versions = []
    if shutil.which("pyenv"):
        bare = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True)
        versions = [line.strip() for line in bare.stdout.splitlines() if line.startswith("2.7")]
    for name in filter(None, names):
        for version in [None, *versions]:
            env = {**os.environ, **({"PYENV_VERSION": version} if version else {})}
            try:
                if subprocess.run([name, "--version"], env=env, capture_output=True).returncode == 0:
                    return name, env
            except OSError:
                break
    return None


def suite(python, env, folder):
    """The suite and what it wants, installed once."""
    if not (folder / "autobahntestsuite").is_dir():
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(folder), SUITE]
        subprocess.run(pip, env=env, check=True)


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def ready(ops, daemon):
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ops}/livez", timeout=1):
                return
        except OSError:
            assert daemon.poll() is None, "the daemon ended"
            time.sleep(0.05)
    raise AssertionError("the daemon does not answer")


def verdicts(folder, program, cases, python, env, packages):
    data, ops = free_port(), free_port()
    config = folder / "tidegate.toml"
    config.write_text(f'[server]\nlisten = "127.0.0.1:{data}"\n[ops]\nlisten = "127.0.0.1:{ops}"\n[state]\ndir = "{folder}/state"\n')
    spec = folder / "spec.json"
    servers = [{"agent": "tidegate", "url": f"ws://127.0.0.1:{data}/drill/ws-echo"}]
    excluded = ["12.*", "13.*"]
    reports = folder / "reports"
    spec.write_text(json.dumps({"outdir": str(reports), "servers": servers, "cases": cases or ["*"], "exclude-cases": excluded}))
    with open(folder / "log", "w") as log:
        daemon = subprocess.Popen([program, "run", "--config", config], env={**os.environ, "TIDEGATE_DRILLS": "1"}, stdout=log, stderr=log)
        try:
            ready(ops, daemon)
            client = [python, "-c", RUN, str(packages), "-m", "fuzzingclient", "-s", str(spec)]
            ran = subprocess.run(client, env=env, stdout=log, stderr=log, timeout=900)
            assert ran.returncode == 0, (folder / "log").read_text()[-4000:]
        finally:
            daemon.terminate()
            daemon.wait(60)
    return json.loads((reports / "index.json").read_text())["tidegate"]


def main():
    program, cases = os.path.abspath(sys.argv[1]), sys.argv[2:]
    found = python27()
    if not found:
        print("NOT RUN: there is no Python 2.7 here, which the Autobahn test suite wants")
        return 0
    python, env = found
    packages = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")).absolute() / "autobahn"
    suite(python, env, packages)
    with tempfile.TemporaryDirectory() as folder:
        all_of_them = verdicts(pathlib.Path(folder), program, cases, python, env, packages)
    counts = collections.Counter(case["behavior"] for case in all_of_them.values())
    print(f"Autobahn: {len(all_of_them)} cases: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    fine = {"OK", "INFORMATIONAL"}
    bad = {number: case for number, case in all_of_them.items() if {case["behavior"], case["behaviorClose"]} - fine}
    for number, case in bad.items():
        print(f"  {number}: {case['behavior']}, close {case['behaviorClose']} ({case['remoteCloseCode']})")
    if not cases and len(all_of_them) != CASES:
        print(f"there should be {CASES}")
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
