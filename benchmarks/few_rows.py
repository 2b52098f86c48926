"""A decoder layer for few rows on one GPU: our chained kernels beside the library's, by tile.

    python -m benchmarks.few_rows [--rows 1,4,16] [--position 512] [--layers 8] [--quick]

First each matmul of the 8B shape: which tile reads the weights fastest, chained in a CUDA graph
over weights that rotate through more memory than the cache holds, checked against a float32
product. Then whole layers with the best tiles, beside norms and attention of FlashInfer and
torch's matmuls in the same order. Bytes of the weights over 3.02 TB/s (a device copy) is the floor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable

import torch

from appliance.kernels import few_rows
from appliance.kernels.few_rows import Norm, Tile

HIDDEN, INNER, HEADS, KV_HEADS, SIZE, PAGE, VOCAB = 4096, 14336, 32, 8, 128, 16, 128256
COPY = 3.02e12
EPS = 1e-5

KINDS: dict[str, tuple[int, int, dict[str, bool]]] = {
    "qkv": ((HEADS + 2 * KV_HEADS) * SIZE, HIDDEN, {"norm": True}),
    "out": (HIDDEN, HEADS * SIZE, {"add": True}),
    "gate_up": (2 * INNER, HIDDEN, {"norm": True, "gated": True}),
    "down": (HIDDEN, INNER, {"add": True}),
    "head": (VOCAB, HIDDEN, {"norm": True}),
}


def tiles(quick: bool) -> list[Tile]:
    found = []
    for rows, depth, stages, warps, ahead in itertools.product(
        (16, 32, 64), (128, 256, 512), (2, 3, 4, 6), (2, 4, 8), (0, 4, 16)
    ):
        buffered = rows * depth * 2 * stages
        if 24 << 10 <= buffered <= 128 << 10 and rows * depth >= warps * 512:
            found.append(Tile(rows, depth, stages, warps, ahead))
    return found[:: 9 if quick else 3]


def fits(kind: str, tile: Tile) -> bool:
    outs, ins, options = KINDS[kind]
    copies = 2 if options.get("gated") else 1
    shared = (tile.rows * copies + few_rows.MAX_ROWS) * tile.depth * 2 * tile.stages
    programs = outs // copies // tile.rows
    return (
        outs // copies % tile.rows == 0 and ins % tile.depth == 0 and shared <= 220 << 10
        and 100 <= programs <= 9000 and tile.ahead <= ins // tile.depth
    )  # fmt: skip


def call(kind: str, x, w, norm: Norm, add, tile: Tile, chained: bool = True) -> torch.Tensor:
    options = KINDS[kind][2]
    return few_rows.linear(
        x, w, tile, norm=norm if options.get("norm") else None,
        add_MN=add if options.get("add") else None, gated=bool(options.get("gated")),
        chained=chained,
    )  # fmt: skip


def reference(kind: str, x, w, norm: Norm, add) -> torch.Tensor:
    options, wide = KINDS[kind][2], x.float()
    if options.get("norm"):
        wide = wide * torch.rsqrt((wide**2).mean(1, keepdim=True) + EPS) * norm.weight.float()
    out = wide @ w.float().T
    if options.get("gated"):
        gate, up = out.chunk(2, 1)
        out = torch.nn.functional.silu(gate) * up
    return out + add.float() if options.get("add") else out


def microseconds(run: Callable[[], object], parts: int) -> float:
    """Median of graph replays of `run`, for each of its parts."""
    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(14):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / parts)
    return sorted(times[2:])[5]


def compile_share(part: int, parts: int, quick: bool) -> None:
    """Every parts-th variant into triton's cache: compiling is the host's time, not the GPU's."""
    variants = [(k, t) for k in KINDS for t in tiles(quick) if fits(k, t)]
    for kind, tile in variants[part::parts]:
        ins = KINDS[kind][1]
        small = tile.rows * (2 if kind == "gate_up" else 1)
        w = torch.zeros(small, ins, device="cuda", dtype=torch.bfloat16)
        x = torch.zeros(1, ins, device="cuda", dtype=torch.bfloat16)
        norm = Norm(torch.ones(ins, device="cuda", dtype=torch.bfloat16), EPS)
        add = torch.zeros(1, small, device="cuda", dtype=torch.bfloat16)
        try:
            call(kind, x, w, norm, add, tile)
        except Exception as e:
            if "out of resource" not in str(e):
                print(kind, tile, e, flush=True)


def sweep(kind: str, rows_list: list[int], quick: bool) -> dict[int, Tile]:
    """The fastest tile by rows; prints the three best beside torch's matmul."""
    outs, ins, options = KINDS[kind]
    copies = max(3, min(12, math.ceil((400 << 20) / (outs * ins * 2))))
    weights = [torch.randn(outs, ins, device="cuda", dtype=torch.bfloat16) * 0.02
               for _ in range(copies)]  # fmt: skip
    norm = Norm(torch.rand(ins, device="cuda", dtype=torch.bfloat16) + 0.5, EPS)
    width = outs // 2 if options.get("gated") else outs
    best: dict[int, Tile] = {}
    for rows in rows_list:
        x = torch.randn(rows, ins, device="cuda", dtype=torch.bfloat16)
        add = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
        truth = reference(kind, x, weights[0], norm, add)
        plain = microseconds(
            lambda x=x: [torch.nn.functional.linear(x, w) for w in weights], copies
        )
        found: list[tuple[float, Tile]] = []
        for tile in tiles(quick):
            if not fits(kind, tile):
                continue
            try:
                out = call(kind, x, weights[0], norm, add, tile)
            except Exception:
                continue
            error = float((out.float() - truth).norm() / truth.norm())
            if not error < 1e-2:
                print(f"WRONG {kind} rows={rows} {tile} {error:.1e}", flush=True)
                continue
            us = microseconds(
                lambda t=tile, x=x, a=add: [call(kind, x, w, norm, a, t) for w in weights], copies
            )
            found.append((us, tile))
        found.sort()
        best[rows] = found[0][1]
        size = outs * ins * 2
        shown = "  ".join(f"{us:.1f}us={size / us / 1e6:.2f} {tuple(t)}" for us, t in found[:3])
        print(
            f"{kind:8} rows {rows:2}  torch alone {plain:6.1f} us = {size / plain / 1e6:.2f} TB/s"
            f" | floor {size / COPY * 1e6:.1f} us | {shown}",
            flush=True,
        )
    return best


class Layers:
    """Random layers and a pool, and one decode pass through them by either way."""

    def __init__(self, count: int, rows: int, position: int) -> None:
        def made(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02

        self.weights = [{k: made(*KINDS[k][:2]) for k in ("qkv", "out", "gate_up", "down")}
                        for _ in range(count)]  # fmt: skip
        self.norm = Norm(torch.rand(HIDDEN, device="cuda", dtype=torch.bfloat16) + 0.5, EPS)
        pages = -(-(position + 1) // PAGE)
        self.k, self.v = (made(rows * pages, PAGE, KV_HEADS, SIZE) for _ in range(2))
        self.indptr = torch.arange(rows + 1, device="cuda", dtype=torch.int32) * pages
        self.indices = torch.randperm(rows * pages, device="cuda").to(torch.int32)
        self.positions = torch.full((rows,), position, device="cuda", dtype=torch.int64)
        last = self.indices[self.indptr[1:].long() - 1].long()
        self.kv_rows = last * PAGE + position % PAGE
        self.cos_sin = torch.randn(position + 1, SIZE, device="cuda")
        self.x = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
        self.rows, self.position = rows, position

    def ours(self, best: dict[str, Tile], scratch: few_rows.Scratch, block: int, warps: int):
        x = self.x
        for w in self.weights:
            qkv = call("qkv", x, w["qkv"], self.norm, None, best["qkv"])
            mixed = few_rows.attention(
                qkv, self.positions, self.cos_sin, self.k, self.v, self.indptr, self.indices,
                scratch, softmax_scale=SIZE**-0.5, block=block, warps=warps,
            )  # fmt: skip
            x = call("out", mixed, w["out"], self.norm, x, best["out"])
            inner = call("gate_up", x, w["gate_up"], self.norm, None, best["gate_up"])
            x = call("down", inner, w["down"], self.norm, x, best["down"])
        return x

    def library(self, wrapper, ops) -> torch.Tensor:
        x, residual = self.x, self.x.clone()
        linear = torch.nn.functional.linear
        normed = ops.rms_norm(x, self.norm.weight, EPS)
        for w in self.weights:
            q = ops.rope_store(
                linear(normed, w["qkv"]), self.positions, self.cos_sin, self.k, self.v,
                self.kv_rows, None, None, EPS,
            )  # fmt: skip
            mixed = wrapper.run(q, (self.k, self.v)).flatten(1)
            normed, residual = ops.add_rms_norm(
                linear(mixed, w["out"]), residual, self.norm.weight, EPS
            )
            inner = ops.silu_and_mul(linear(normed, w["gate_up"]))
            normed, residual = ops.add_rms_norm(
                linear(inner, w["down"]), residual, self.norm.weight, EPS
            )
        return residual


def whole_layers(count: int, rows: int, position: int, best: dict[str, Tile]) -> None:
    import flashinfer

    from appliance.kernels.cuda_ops import CudaOps

    layers, ops = Layers(count, rows, position), CudaOps(torch.device("cuda"))
    workspace = torch.zeros(128 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_cuda_graph=True, paged_kv_indptr_buffer=layers.indptr.clone(),
        paged_kv_indices_buffer=layers.indices.clone(),
        paged_kv_last_page_len_buffer=torch.zeros(rows, dtype=torch.int32, device="cuda"),
    )  # fmt: skip
    last = torch.full((rows,), position % PAGE + 1, dtype=torch.int32)
    wrapper.plan(
        layers.indptr.cpu(), layers.indices, last, HEADS, KV_HEADS, SIZE, PAGE,
        q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )  # fmt: skip
    theirs = layers.library(wrapper, ops)
    library_us = microseconds(lambda: layers.library(wrapper, ops), count)
    found = []
    for splits, block, warps in itertools.product((2, 4, 8, 16), (32, 64), (4, 8)):
        scratch = few_rows.Scratch(rows, KV_HEADS, SIZE, splits, torch.device("cuda"))
        out = layers.ours(best, scratch, block, warps)
        error = float((out.float() - theirs.float()).norm() / theirs.float().norm())
        if not error < 3e-2:
            print(f"WRONG layers rows={rows} splits={splits} {error:.1e}", flush=True)
            continue
        us = microseconds(lambda s=scratch, b=block, w=warps: layers.ours(best, s, b, w), count)
        found.append((us, (splits, block, warps), error))
    found.sort()
    size = 2 * sum(KINDS[k][0] * KINDS[k][1] for k in ("qkv", "out", "gate_up", "down"))
    floor = size / COPY * 1e6
    us, attention, error = found[0]
    print(
        f"layer at {position}, {rows:2} rows: library {library_us:.1f} us, ours {us:.1f} us"
        f" = {library_us / us:.3f} ×, floor {floor:.1f} us = {floor / us:.2f} of copy speed;"
        f" attention {attention}, differs by {error:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1,4,16")
    parser.add_argument("--position", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compile", default="")
    args = parser.parse_args()
    if args.compile:
        part, parts = (int(v) for v in args.compile.split("/"))
        compile_share(part, parts, args.quick)
        return
    rows_list = [int(r) for r in args.rows.split(",")]
    command = [sys.executable, "-m", "benchmarks.few_rows", *(["--quick"] if args.quick else [])]
    workers = [subprocess.Popen([*command, "--compile", f"{i}/14"]) for i in range(14)]
    for worker in workers:
        worker.wait()
    best = {kind: sweep(kind, rows_list, args.quick) for kind in KINDS}
    for rows in rows_list:
        whole_layers(args.layers, rows, args.position, {k: best[k][rows] for k in best})
    print(json.dumps({k: {r: list(t) for r, t in by.items()} for k, by in best.items()}))


if __name__ == "__main__":
    main()
