"""What each row of the table could reach at most, were the machine's ceilings met one by one.

    python -m benchmarks.limits [--rows 1024] [--pool 420000]

The serial limit: prompts are arithmetic, decode steps read the weights (or compute, whichever is
longer) and then K and V, one after the other, no host, no launch, no HTTP. Ceilings are those of
one H100 80GB, the shape is Llama-3.1-8B. What overlaps arithmetic with reading may pass it.
"""

from __future__ import annotations

import argparse
import shlex

import numpy as np

from appliance.bench.workload import Workload, lengths
from benchmarks.rows import GROUPS, Row

COPY = 3.02e12
"""Bytes a second."""
FLOPS = {"bf16": 779e12, "fp8": 1415e12}
WEIGHTS = {"bf16": 15.0e9, "fp8": 8.0e9}
PREFILL_FLOP, DECODE_FLOP, KV_BYTES = 14.0e9, 15.0e9, 131_072
"""Of one token."""


def workload_of(row: Row) -> Workload:
    words = shlex.split(row.arguments)
    given = dict(zip(words[::2], words[1::2], strict=True))
    dataset = given["--dataset"]
    groups = int(dataset.partition(":")[2].split(",")[0]) if dataset.startswith("prefix:") else 0
    requests = int(given.get("--num-prompts", 16 * groups))
    return Workload(dataset=dataset, requests=requests, model="m")


def shared_tokens(row: Row) -> tuple[int, int]:
    """(groups of 16 requests, tokens that those of a group begin with); (0, 0): nothing shared."""
    dataset = shlex.split(row.arguments)[1]
    if not dataset.startswith("prefix:"):
        return 0, 0
    groups, shared, *_ = map(int, dataset.partition(":")[2].split(","))
    return groups, shared


def seconds(row: Row, most_rows: int, pool: int) -> tuple[float, int]:
    """(serial seconds, output tokens) of all requests at once, admitted in order as they fit."""
    kind = row.id.partition("-")[0]
    inputs, outputs = lengths(workload_of(row))
    groups, shared = shared_tokens(row)
    inputs = inputs - shared  # a group's beginning is computed, held and read once
    prefill = (groups * shared + int(inputs.sum())) * PREFILL_FLOP / FLOPS[kind]
    pool -= groups * shared
    whole, waiting, decode = inputs + outputs, 0, 0.0
    position = np.zeros(0, dtype=np.int64)
    last = np.zeros(0, dtype=np.int64)
    while waiting < len(inputs) or len(position):
        free = pool - int(last.sum())
        while waiting < len(inputs) and len(position) < most_rows and whole[waiting] <= free:
            position = np.append(position, inputs[waiting])
            last = np.append(last, whole[waiting])
            free -= int(whole[waiting])
            waiting += 1
        arithmetic = len(position) * DECODE_FLOP / FLOPS[kind]
        read = int(position.sum()) + -(-len(position) // 16) * shared
        decode += max(WEIGHTS[kind] / COPY, arithmetic) + read * KV_BYTES / COPY
        position = position + 1
        going = position < last
        position, last = position[going], last[going]
    return prefill + decode, int(outputs.sum())


def limit(row: Row, most_rows: int, pool: int) -> float:
    """In the unit of the row's figure."""
    kind = row.id.partition("-")[0]
    if row.figure == "tpot_ms_p50":
        inputs, outputs = lengths(workload_of(row))
        context = float(np.median(inputs + outputs / 2))
        return (WEIGHTS[kind] + context * KV_BYTES) / COPY * 1e3
    took, tokens = seconds(row, most_rows, pool)
    return tokens / took if row.figure == "out_tok_s" else workload_of(row).requests / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument(
        "--pool", type=int, default=420_000, help="tokens that K and V have room for"
    )
    given = parser.parse_args()
    for row in (row for group in GROUPS for row in group.rows):
        bound = limit(row, given.rows, given.pool)
        peer = row.better_peer / bound if row.above else bound / row.better_peer
        print(f"{row.id:20} {row.figure:12} limit {bound:10,.1f}  goal {row.goal:>9,.1f}"
              f"  better peer {row.better_peer:>9,.1f} = {peer:.0%} of it")  # fmt: skip


if __name__ == "__main__":
    main()
