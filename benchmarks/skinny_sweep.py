"""Which tile reads the weights of few-row matmuls fastest, on one GPU, beside torch's matmul.

    python -m benchmarks.skinny_sweep [--rows 1,16,64] [--shapes 8b]

Every variant is checked against a float32 product first. Times are of CUDA graph replays over
weights that rotate through more memory than the cache holds. Prints TB/s of weights read.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys

import torch

from appliance.kernels.skinny_matmul import Tile, skinny_matmul

SHAPES = {"qkv": (6144, 4096), "out": (4096, 4096), "gate_up": (28672, 4096),
          "down": (4096, 14336), "head": (128256, 4096)}  # fmt: skip

TILES = [
    Tile(rows, depth, split, stages, warps)
    for rows, depth, split, stages, warps in itertools.product(
        (16, 32, 64), (128, 256, 512), (1, 2, 4), (2, 3, 4, 5), (2, 4, 8)
    )
    if 48 * 1024 <= rows * depth * 2 * stages * 1.0 <= 160 * 1024 and rows * depth >= warps * 512
]


def fits(tile: Tile, rows: int, n: int, k: int) -> bool:
    block = 16 if rows <= 16 else 32 if rows <= 32 else 64
    shared = (tile.rows + block) * tile.depth * 2 * tile.stages
    steps = -(-k // tile.depth) // tile.split
    programs = n // tile.rows * tile.split
    return (
        shared <= 220 * 1024 and n % tile.rows == 0 and k % (tile.depth * tile.split) == 0
        and steps >= 2 and 100 <= programs <= 9000
    )  # fmt: skip


def microseconds(call, copies: int) -> float:
    """Median of graph replays that run `call(i)` for each copy of the weights."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(copies):
            call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            call(i)
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / copies)
    return sorted(times[2:])[5]


def compile_part(part: int, parts: int, rows_list: list[int]) -> None:
    """Compiles every parts-th variant into triton's cache."""
    for number, (rows, tile) in enumerate(itertools.product(rows_list, TILES)):
        if number % parts == part:
            n, k = tile.rows * 2, tile.depth * tile.split * 16
            x = torch.zeros(rows, k, device="cuda", dtype=torch.bfloat16)
            w = torch.zeros(n, k, device="cuda", dtype=torch.bfloat16)
            try:
                skinny_matmul(x, w, None, tile)
            except Exception as e:
                if "out of resource" not in str(e):
                    print(tile, e, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--compile", default="")
    args = parser.parse_args()
    rows_list = [int(r) for r in args.rows.split(",")]
    if args.compile:
        part, parts = (int(v) for v in args.compile.split("/"))
        compile_part(part, parts, rows_list)
        return
    workers = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.skinny_sweep", "--rows", args.rows,
                          "--compile", f"{i}/14"])
        for i in range(14)
    ]  # fmt: skip
    for worker in workers:
        worker.wait()
    print(f"{len(TILES)} tiles compiled", flush=True)
    for name in args.shapes.split(","):
        n, k = SHAPES[name]
        copies = max(2, min(12, (300 << 20) // (n * k * 2) + 1))
        weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
                   for _ in range(copies)]  # fmt: skip
        for rows in rows_list:
            sweep_one(name, n, k, rows, weights)


def sweep_one(name: str, n: int, k: int, rows: int, weights: list[torch.Tensor]) -> None:
    copies = len(weights)
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    truth = x.float() @ weights[0].float().T
    torch_us = microseconds(lambda i: torch.nn.functional.linear(x, weights[i]), copies)
    found = []
    for tile in TILES:
        if not fits(tile, rows, n, k):
            continue
        try:
            out = skinny_matmul(x, weights[0], None, tile)
        except Exception:
            continue
        error = float((out.float() - truth).norm() / truth.norm())
        if not error < 1e-2:
            print(f"WRONG {name} rows={rows} {tile} {error:.1e}")
            continue
        found.append(
            (microseconds(lambda i, t=tile: skinny_matmul(x, weights[i], None, t), copies), tile)
        )
    found.sort()
    size = n * k * 2
    best = "  ".join(f"{us:.1f}us={size / us / 1e6:.2f} {tuple(t)}" for us, t in found[:3])
    print(
        f"{name:8} M={rows:3} torch {torch_us:7.1f} us = {size / torch_us / 1e6:.2f} TB/s | {best}",
        flush=True,
    )


if __name__ == "__main__":
    main()
