"""What it is worth to be ready with a few captured passes, and when the others are there.

    python -m benchmarks.first_captures --model FOLDER [--callers 37] [--seconds 12] [--append FILE]

Four starts with warm caches: one that is not counted, one that captures all before it is ready (as
a traced engine does), one that nobody asks for anything, and one that callers ask from its first
moment on, each for one answer after the other. Of the last, the milliseconds between two tokens of
an answer, in its first three seconds and in its last three.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.serve_table import arguments_of
from benchmarks.serving import DidNotStart, Served, record

TRACED = ["--set", "engine.profile_steps=1"]
PART_S = 3.0
LIMIT_S = 60.0


class Callers:
    """Threads that ask for one answer after the other. gaps: (when, seconds since the token before)
    of all tokens but first ones."""

    def __init__(self, url: str, count: int, tokens: int) -> None:
        self._address = urlsplit(url).netloc
        self._tokens, self._over = tokens, threading.Event()
        self.gaps: list[tuple[float, float]] = []
        self.failed = 0
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        rng = random.Random(number)
        while not self._over.is_set():
            body = {
                "prompt": [rng.randrange(300, 3000) for _ in range(rng.randrange(40, 400))],
                "max_tokens": rng.randrange(self._tokens // 2, self._tokens),
                "ignore_eos": True, "stream": True, "temperature": 0.0,
            }  # fmt: skip
            try:
                self._answer(json.dumps(body))
            except (OSError, http.client.HTTPException):
                self.failed += 1
                return

    def _answer(self, body: str) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=LIMIT_S)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer, last = connection.getresponse(), 0.0
        if answer.status != 200:
            raise http.client.HTTPException(answer.read(300))
        for line in answer:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                if last:
                    self.gaps.append((now, now - last))
                last = now
        connection.close()


def milliseconds(gaps: list[float]) -> dict[str, float]:
    if len(gaps) < 2:
        return {}
    parts = statistics.quantiles(gaps, n=100)
    found = {"p50": parts[49], "p99": parts[98], "max": max(gaps)}
    return {name: round(1e3 * value, 2) for name, value in found.items()}


def captured_after(served: Served, began: float) -> float:
    """Seconds from `began` till all are captured."""
    served.all_captured(LIMIT_S)
    return round(time.perf_counter() - began, 2)


def started(given: argparse.Namespace, more: list[str]) -> Served:
    options = ["--load-format", given.load_format, *more]
    for setting in given.set:
        options += ["--set", setting]
    options += ["--profile", given.profile] if given.profile else []
    return Served(given.model, options)


def before(given: argparse.Namespace) -> dict[str, Any]:
    """All captured before it is ready."""
    served = started(given, TRACED)
    have, passes = served.captured()
    served.close()
    print(f"all before       ready in {served.started_s:5.2f} s   {have} of {passes}", flush=True)
    return {"ready_s_all": round(served.started_s, 2), "passes": passes}


def alone(given: argparse.Namespace) -> dict[str, Any]:
    served = started(given, [])
    began = time.perf_counter()
    have, passes = served.captured()
    took = captured_after(served, began)
    served.close()
    print(f"a few before     ready in {served.started_s:5.2f} s   {have} of {passes} when looked at"
          f" first, all {took:.2f} s later", flush=True)  # fmt: skip
    return {"ready_s_few": round(served.started_s, 2), "captured_idle_s": took}


def asked(given: argparse.Namespace) -> dict[str, Any]:
    served = started(given, [])
    began = time.perf_counter()
    callers = Callers(served.url, given.callers, 64 if given.tiny else 256)
    seen = []
    while (now := time.perf_counter() - began) < given.seconds:
        seen.append(f"{now:.1f} s: {served.captured()[0]}")
        time.sleep(min(1.0, given.seconds / 10))
    callers.stop()
    ended = time.perf_counter()
    took = captured_after(served, ended)
    served.close()
    first, last = (
        milliseconds([gap for at, gap in callers.gaps if low <= at - began < low + PART_S])
        for low in (0.0, given.seconds - PART_S)
    )
    print(f"{given.callers} callers       captured after {', '.join(seen)}", flush=True)
    print(f"                 between tokens, ms: first {PART_S:.0f} s {first}, last {last}"
          f"   {callers.failed} failed", flush=True)  # fmt: skip
    print(f"                 all {took:.2f} s after the last answer", flush=True)
    return {"itl_ms_first": first, "itl_ms_last": last, "captured_after_load_s": took}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of(parser)
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--callers", type=int, default=37)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--append", type=Path)
    given = parser.parse_args()
    try:
        started(given, []).close()
        figures = before(given) | alone(given) | asked(given)
    except DidNotStart as problem:
        print(problem)
        return 1
    if given.append:
        record(given.append, "first-captures", figures, callers=given.callers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
