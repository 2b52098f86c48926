"""What the greedy token of each row takes on a GPU: torch's reduction and our kernel.

    python -m benchmarks.greedy_rows [--vocab 128256]

Microseconds as CUDA graphs of ten passes, logits in bfloat16, and the share of the bytes' own time
at --bandwidth (bytes a second). Few rows are in the cache, as they are just after the last linear.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from appliance.kernels.greedy import first_largest
from benchmarks.gpu_clock import captured, microseconds

PASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--bandwidth", type=float, default=3.35e12)
    asked = parser.parse_args()
    print(f"{'rows':>5} {'torch':>8} {'ours':>8} {'of the bytes own':>17}")
    for rows in (1, 8, 64, 256, 1000):
        x = torch.randn(rows, asked.vocab, device="cuda", dtype=torch.bfloat16)
        assert torch.equal(first_largest(x, -1), x.argmax(-1))
        theirs, ours = (
            microseconds(captured(work, PASSES), PASSES)
            for work in (partial(x.max, -1), partial(first_largest, x, -1))
        )
        floor = x.numel() * 2 / asked.bandwidth * 1e6
        print(f"{rows:5} {theirs:8.1f} {ours:8.1f} {floor / ours:17.2f}")


if __name__ == "__main__":
    main()
