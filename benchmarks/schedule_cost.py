"""Host cost of one decode step: next_step, the tables of its inputs, settle, and sending.

python benchmarks/schedule_cost.py [--rows 64 512 2048] [--steps 400] [--shared 16]

The device is a stub that answers at once, so all that is measured is ours. Medians, and beside
next_step its mean: every row needs a new page each 16 steps, here all of them in the same one.
--shared: so many rows at a time have the first half of their prompt in common, and steps say so.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

import numpy as np

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.engine.inputs import decode_tables
from appliance.runtime.schedule.desk import Desk
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.channel import frame
from appliance.runtime.wire.delta import ToFrontend
from appliance.runtime.wire.request import Sampling, ToEngine, TokenRequest, ids_to_bytes
from appliance.runtime.wire.step import Step, StepResult

PROMPT = 256
VOCAB = 128_000


class EncodingDoor:
    """Takes messages in, encodes what goes out, sends nothing."""

    def __init__(self) -> None:
        self.incoming: list[tuple[int, ToEngine | None]] = []

    def receive(self, timeout: float) -> list[tuple[int, ToEngine | None]]:
        incoming, self.incoming = self.incoming, []
        return incoming

    def send(self, peer: int, message: ToFrontend) -> None:
        frame(message)


def answer(step: Step, rng: np.random.Generator) -> StepResult:
    return StepResult(rng.integers(3, VOCAB, len(step.slots), dtype=np.int32))


def measure(rows: int, steps: int, shared: int) -> tuple[float, ...]:
    """Microseconds with `rows` rows decoding: next_step, its mean, inputs, settle, send."""
    tokens = PROMPT + steps + 8
    config = ScheduleConfig(
        chunk=8192, max_running=rows, conservativeness=0.0, share_from=1 if shared else 0
    )
    pages = rows * (tokens // config.page_size + 2)
    scheduler = Scheduler(config, pages, 131_072, rows, VOCAB)
    door = EncodingDoor()
    desk = Desk(door, scheduler)
    rng = np.random.default_rng(0)
    sampling = Sampling(max_tokens=steps + 4, stop_ids=(0, 1, 2))
    for rid in range(rows):
        ids = rng.integers(3, VOCAB, PROMPT, dtype=np.int32)
        if shared:
            ids[: PROMPT // 2] = 3 + rid // shared
        prompt = ids_to_bytes(ids)
        door.incoming.append((rid % 4, TokenRequest(rid=rid, prompt=prompt, sampling=sampling)))
    desk.drain(0.0)
    times: list[tuple[float, ...]] = []
    gc.freeze()
    while not scheduler.idle:
        t0 = time.perf_counter()
        step = scheduler.next_step()
        t1 = time.perf_counter()
        assert step is not None
        if step.prefill_rows == 0:
            decode_tables(step, rows, rows, config.page_size)
        tables = time.perf_counter()
        result = answer(step, rng)
        t2 = time.perf_counter()
        next, deltas = scheduler.settle(step, result)
        t3 = time.perf_counter()
        desk.send(deltas, next=next)
        t4 = time.perf_counter()
        if step.prefill_rows == 0 and len(step.slots) == rows:
            times.append((t1 - t0, tables - t1, t3 - t2, t4 - t3))
    gc.unfreeze()
    parts = [[t * 1e6 for t in part] for part in zip(*times, strict=True)]
    middle = [statistics.median(part) for part in parts]
    return middle[0], statistics.mean(parts[0]), *middle[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--shared", type=int, default=0)
    args = parser.parse_args()
    heads = ("next_step", "its mean", "inputs", "settle", "send")
    print(f"{'rows':>6} " + " ".join(f"{head:>10}" for head in heads) + "  (µs a step)")
    for rows in args.rows:
        print(
            f"{rows:>6} " + " ".join(f"{p:>10.0f}" for p in measure(rows, args.steps, args.shared))
        )


if __name__ == "__main__":
    main()
