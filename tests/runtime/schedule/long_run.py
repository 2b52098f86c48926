"""Random operations on the real scheduler with the oracle worker, for as long as wished.

python tests/runtime/schedule/long_run.py --steps 1000000 --seed 1 [--record FILE]

A step is one operation (submit, turn of the loop, abort, flush, poison, engine death); after each
all invariants are checked. Every 1500 steps the world is run dry and a new shape is drawn.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from pathlib import Path

from world import World, random_shape

STEPS_OF_A_WORLD = 1500


def run(steps: int, seed: int) -> dict[str, object]:
    """Runs until `steps` operations are done or one violates something."""
    rng = random.Random(seed)
    done = worlds = finished = turns = errors = retractions = 0
    started = time.monotonic()
    violations: list[dict[str, object]] = []
    while done < steps and not violations:
        world_seed = rng.randrange(1 << 40)
        world = World(random_shape(random.Random(world_seed)), world_seed, late=True)
        worlds += 1
        try:
            for _ in range(min(STEPS_OF_A_WORLD, steps - done)):
                world.random_operation()
                done += 1
            world.drain()
        except Exception as e:
            where = traceback.format_exc().strip().splitlines()[-6:]
            violations.append(
                {
                    "world_seed": world_seed,
                    "shape": repr(world.shape),
                    "step": done,
                    "message": f"{type(e).__name__}: {e}",
                    "trace": where,
                }
            )
        finished += world.finished
        turns += world.turns
        errors += world.errors
        retractions += world.retractions + world.scheduler.stats().retractions
    seconds = time.monotonic() - started
    return {
        "seed": seed,
        "steps": done,
        "steps_per_second": round(done / seconds),
        "worlds": worlds,
        "loop_turns": turns,
        "requests_ended": finished,
        "ended_with_error": errors,
        "retractions": retractions,
        "violations": violations,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    report = json.dumps(run(args.steps, args.seed), indent=1)
    print(report)
    if args.record:
        args.record.write_text(report + "\n")
    return 1 if json.loads(report)["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
