"""The engine dies by SIGKILL and SIGSTOP under 32 streams, again and again; every answer must be
the one that an undisturbed run gives.

    python tests/e2e/replay_rounds.py --rounds 20 --seed S [--model FOLDER] [--record FILE]

Rounds are paced so that no more than 3 deaths fall in 60 s. The record is JSON: what was asked,
each round's moment and pause, what differed. Exits 1 when anything did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from stand import Stand
from streams import Answer, ask, ask_all, bodies, with_stops, wrong

PACE_S = 22.0
"""Least seconds between two blows. A death is seen up to 5 s after its blow, so never more than 3
are seen within 60 s."""
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)


async def right_answers(url: str, asked: list[dict[str, Any]]) -> tuple[list[Any], list[Answer]]:
    """The requests with stop strings of their own, and their answers in an undisturbed run, each
    alone. AssertionError when they are others in company: then the model is near a tie."""
    asked = with_stops(asked, await ask_all(url, asked))
    alone = [await ask(url, body) for body in asked]
    together = await ask_all(url, asked)
    assert not wrong(together, alone), wrong(together, alone)
    return asked, alone


def run_round(
    stand: Stand,
    asked: list[dict[str, Any]],
    right: list[Answer],
    blow: signal.Signals,
    share: float,
) -> tuple[dict[str, Any], float]:
    """One death, and when it was dealt. share: of all tokens that have arrived by then."""
    total = sum(a.completion_tokens for a in right)
    struck: list[tuple[float, int]] = []

    def strike() -> None:
        struck.append((time.monotonic(), stand.strike("engine", blow)))

    replays = replayed(stand)
    began = time.monotonic()
    got = asyncio.run(ask_all(stand.url, asked, max(1, int(share * total)), strike))
    ended = time.monotonic()
    assert struck, "the engine was never struck"
    stand.wait_ready()
    done = {
        "signal": blow.name,
        "at_token": int(share * total),
        "of_tokens": total,
        "replayed": replayed(stand) - replays,
        "seconds": round(ended - began, 2),
        "seconds_after_death": round(ended - struck[0][0], 2),
        "wrong": wrong(got, right),
    }
    return done, struck[0][0]


def replayed(stand: Stand) -> int:
    """Requests that were sent again so far."""
    for line in httpx.get(f"{stand.url}/metrics").text.splitlines():
        if line.startswith("appliance_replayed_requests_total"):
            return int(float(line.rpartition(" ")[2]))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=300, help="of the longest answers")
    parser.add_argument("--model", default="", help="folder; default: the embedded model")
    parser.add_argument("--record", default="")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    rounds: list[dict[str, Any]] = []
    began = time.time()
    with Stand(*([given.model] if given.model else [])) as stand:
        asked, right = asyncio.run(right_answers(stand.url, bodies(given.seed, given.tokens)))
        for i in range(given.rounds):
            done, struck = run_round(stand, asked, right, SIGNALS[i % 2], rng.uniform(0.02, 0.9))
            rounds.append(done)
            print(f"round {i}: {json.dumps(done)}", flush=True)
            if i < given.rounds - 1:
                time.sleep(max(0.0, struck + PACE_S - time.monotonic()))
        status = stand.status()
    bad = [line for done in rounds for line in done["wrong"]]
    record = {
        "seed": given.seed,
        "model": status.model,
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "streams": len(asked),
        "sequences": sum(body.get("n", 1) for body in asked),
        "tokens_a_round": sum(a.completion_tokens for a in right),
        "engine_restarts": status.restarts,
        "wrong": len(bad),
        "rounds": rounds,
    }
    if given.record:
        Path(given.record).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "rounds"}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
