"""Whether pairs of devices reach one another, each pair in two processes of its own, so that one
that hangs can be ended: python -m appliance.runtime.model.parallel.pairs --kind cuda --count 8

Prints one JSON object. `appliance doctor --links` starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from appliance.runtime.model.parallel import comm
from appliance.runtime.model.parallel.links import Found, Pair, Trade, rounds
from appliance.runtime.model.parallel.mesh import Mesh

START_LIMIT_S = 60.0
"""For torch to come up on both sides, beside the limits of what they then do."""
_MODULE = [sys.executable, "-m", "appliance.runtime.model.parallel.pairs"]
_THROUGH_HOST = {"NCCL_P2P_DISABLE": "1"}


def try_all(kind: str, count: int, child: Sequence[str] = _MODULE) -> dict[str, Any]:
    """Every pair; those that fail once more through the host's memory.

    child: what is started for each side, for tests. Of the answer: pairs, each with `a`, `b`,
    `seconds` (None when it failed), `why`, `host_seconds` (through the host; None when that failed
    too or was not tried) and `slow`; moved_bytes.
    """
    moved = comm.TRADE_BYTES[kind]
    seconds: dict[Pair, float] = {}
    failed: dict[Pair, tuple[str, float | None]] = {}
    with tempfile.TemporaryDirectory(prefix="appliance-links-") as folder:

        def tried(pair: Pair) -> None:
            first = _one(kind, pair, Path(folder), child, {})
            if first.seconds is not None:
                seconds[pair] = first.seconds
                return
            again = _one(kind, pair, Path(folder), child, _THROUGH_HOST)
            failed[pair] = first.why, again.seconds

        for pairs in rounds(count):
            with ThreadPoolExecutor(len(pairs)) as pool:
                list(pool.map(tried, pairs))
    slow = Found(seconds, {}).slow(moved, comm.LEAST_RATE[kind])
    return {
        "moved_bytes": moved,
        "pairs": [
            {
                "a": pair[0],
                "b": pair[1],
                "seconds": seconds.get(pair),
                "why": failed.get(pair, ("", None))[0],
                "host_seconds": failed.get(pair, ("", None))[1],
                "slow": pair in slow,
            }
            for pair in sorted([*seconds, *failed])
        ],
    }


def _one(
    kind: str, pair: Pair, folder: Path, child: Sequence[str], environment: Mapping[str, str]
) -> Trade:
    """One pair's exchange; what does not come back is killed."""
    meeting = folder / f"{pair[0]}-{pair[1]}{'-host' if environment else ''}"
    # devices are counted as the driver counts them, and small messages stay on this machine
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    sides = [
        subprocess.Popen(
            [*child, "--kind", kind, "--pair", *map(str, pair), "--side", str(side),
             "--meeting", str(meeting)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**own, **os.environ, **environment},
        )
        for side in (0, 1)
    ]  # fmt: skip
    try:
        told = [_answer(side) for side in sides]
    finally:
        for side in sides:
            side.kill()
            side.wait()
    bad = [t for t in told if t.seconds is None]
    if bad:
        return next((t for t in bad if t.why), bad[0])
    return max(told, key=lambda t: t.seconds or 0.0)


def _answer(side: subprocess.Popen[str]) -> Trade:
    try:
        said, errors = side.communicate(timeout=START_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Trade(None, f"no answer within {START_LIMIT_S:.0f} s")
    lines = said.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        return Trade(**json.loads(lines[-1]))
    last = errors.strip().splitlines()
    return Trade(None, last[-1][:200] if last else f"it ended with exit code {side.returncode}")


def exchange(kind: str, pair: Sequence[int], side: int, meeting: Path) -> Trade:
    """One side of a pair, in a process that knows no other devices."""
    device = torch.device(kind, pair[side]) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    found = comm.Group(Mesh(side, 2), device, meeting).try_pairs()
    if found.failed:
        why = found.failed[0, 1] or f"nothing arrived within {comm.TRADE_LIMIT_S:.0f} s"
        return Trade(None, why)
    return Trade(found.seconds[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--pair", type=int, nargs=2)
    parser.add_argument("--side", type=int, default=0)
    parser.add_argument("--meeting", type=Path, default=Path())
    given = parser.parse_args()
    if given.pair is None:
        told: dict[str, Any] = try_all(given.kind, given.count)
    else:
        told = exchange(given.kind, given.pair, given.side, given.meeting)._asdict()
    print(json.dumps(told), flush=True)
    if given.pair is not None:
        os._exit(0)  # a device that hangs would keep an orderly end waiting


if __name__ == "__main__":
    main()
