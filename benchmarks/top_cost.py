"""What `appliance top` costs a run that is busy: its own CPU, the supervisor's, and a token's.

    appliance up -d --wait && python -m benchmarks.top_cost

Eight streams go on while windows with and without the dashboard (4 Hz, 140×40, on a pty) take
turns. CPU time per token of frontends and engines tells a slowdown that busy neighbours hide.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from appliance import paths
from appliance.client import Client

STREAMS = 8
SETTLE_S = 3.0


def ask_for_ever(url: str, stopping: threading.Event) -> None:
    fields = {"model": "default", "prompt": "Tell a story", "max_tokens": 200, "ignore_eos": True}
    headers = {"content-type": "application/json"}
    while not stopping.is_set():
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(fields).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        except urllib.error.URLError:
            time.sleep(0.2)


def generated(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("appliance_generation_tokens_total")
    )


def cpu(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(t.user + t.system for t in times)


@contextmanager
def dashboard(name: str) -> Iterator[int]:
    """Its pid, while what it draws is read."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    command = [sys.executable, "-m", "appliance", "top", name, "--interval", "0.25"]
    env = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
    )
    os.close(slave)
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if select.select([master], [], [], 0.2)[0]:
                try:
                    os.read(master, 1 << 16)
                except OSError:
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        time.sleep(SETTLE_S)
        yield process.pid
    finally:
        os.write(master, b"q")
        process.wait(10)
        done.set()
        reader.join()
        os.close(master)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of a window")
    args = parser.parse_args()
    status = Client(paths.control_socket(paths.runtime_dir() / args.run)).status()
    url = status.url.removesuffix("/v1")
    above = [p.pid for p in status.processes if p.role == "supervisor"]
    serving = [p.pid for p in status.processes if p.role != "supervisor"]
    stopping = threading.Event()
    for _ in range(STREAMS):
        threading.Thread(target=ask_for_ever, args=(url, stopping), daemon=True).start()

    def window(top: list[int]) -> dict[str, float]:
        began, tokens = time.monotonic(), generated(url)
        before = [cpu(pids) for pids in (top, above, serving)]
        time.sleep(args.seconds)
        spent = [cpu(p) - b for p, b in zip((top, above, serving), before, strict=True)]
        took, made = time.monotonic() - began, generated(url) - tokens
        return {
            "tok_s": made / took,
            "us_per_token": 1e6 * spent[2] / made,
            "supervisor_percent": 100 * spent[1] / took,
            "top_percent": 100 * spent[0] / took,
        }

    without, with_top = [], []
    time.sleep(SETTLE_S)
    for _ in range(args.rounds):
        without.append(window([]))
        with dashboard(args.run) as pid:
            with_top.append(window([pid]))
    stopping.set()
    for name, rows in (("without", without), ("with", with_top)):
        middle = {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
        print(name, json.dumps(middle))


if __name__ == "__main__":
    main()
