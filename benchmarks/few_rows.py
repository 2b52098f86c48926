"""A decoder layer for few rows on one GPU: our chained kernels beside the library's, by tile.

    python -m benchmarks.few_rows [--rows 1,4,16] [--position 512] [--layers 8] [--quick]
        [--fp8]

First each matmul of the 8B shape: which tile reads the weights fastest, chained in a CUDA graph
over weights that rotate through more memory than the cache holds, checked against a float32
product. Then whole layers with the best tiles, beside norms and attention of FlashInfer and
torch's matmuls in the same order. --fp8: of 8-bit weights, beside tokens rounded and torch's
scaled matmul. Bytes of the weights over 3.02 TB/s (a device copy) is the floor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

from appliance.kernels import few_rows, gemm_fp8
from appliance.kernels.few_rows import Tile

HIDDEN, INNER, HEADS, KV_HEADS, SIZE, PAGE = 4096, 14336, 32, 8, 128, 16
COPY = 3.02e12
EPS = 1e-5

KINDS = {
    "qkv": ((HEADS + 2 * KV_HEADS) * SIZE, HIDDEN),
    "out": (HIDDEN, HEADS * SIZE),
    "gate_up": (2 * INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}


class Weight(NamedTuple):
    """[N, K], and the scale of its rows when it is of 8-bit floats."""

    values: torch.Tensor
    scale: torch.Tensor | None

    def wide(self) -> torch.Tensor:
        values = self.values.float()
        return values if self.scale is None else values * self.scale[:, None]


def made(outs: int, ins: int, fp8: bool) -> Weight:
    values = torch.randn(outs, ins, device="cuda", dtype=torch.bfloat16) * 0.02
    if not fp8:
        return Weight(values, None)
    scale = values.abs().amax(1).float() / 448.0
    return Weight((values.float() / scale[:, None]).to(torch.float8_e4m3fn), scale)


def library(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    if weight.scale is None:
        return torch.nn.functional.linear(x, weight.values)
    return gemm_fp8.linear(x, weight.values, weight.scale, None, 0.0, None)


def tiles(quick: bool, fp8: bool) -> list[Tile]:
    """By bytes of the pipeline; `depth` counts elements."""
    found = []
    for rows, depth, stages, warps, ahead in itertools.product(
        (16, 32, 64), (128, 256, 512), (2, 3, 4, 6), (2, 4, 8), (0, 4, 16)
    ):
        buffered = rows * depth * 2 * stages
        if 24 << 10 <= buffered <= 128 << 10 and rows * depth >= warps * 512:
            found.append(Tile(rows, depth * (2 if fp8 else 1), stages, warps, ahead))
    return found[:: 9 if quick else 3]


def fits(kind: str, tile: Tile, fp8: bool) -> bool:
    outs, ins = KINDS[kind]
    copies = 2 if kind == "gate_up" else 1
    read = tile.rows * copies * (1 if fp8 else 2) + few_rows.MAX_ROWS * 2
    shared = read * tile.depth * tile.stages
    programs = outs // copies // tile.rows
    return (
        outs // copies % tile.rows == 0 and ins % tile.depth == 0 and shared <= 220 << 10
        and 100 <= programs <= 9000 and tile.ahead <= ins // tile.depth
    )  # fmt: skip


class Given(NamedTuple):
    """What a matmul is called with: h [M, E] is normed or added to, x [M, K] is multiplied."""

    h: torch.Tensor
    x: torch.Tensor
    norm: torch.Tensor
    carried: few_rows.Carried
    form: few_rows.Form


def given(kind: str, rows: int, weight: Weight) -> Given:
    outs, ins = KINDS[kind]
    form = few_rows.Form.against(weight.values, torch.bfloat16)
    width = outs if kind in ("out", "down") else ins
    h = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    norm = torch.rand(width, device="cuda", dtype=torch.bfloat16) + 0.5
    x = (torch.randn(rows, ins, device="cuda") * form.unit).to(form.dtype)
    return Given(h, x, norm, few_rows.begin(h, norm, form), form)


def call(kind: str, g: Given, w: Weight, tile: Tile) -> torch.Tensor:
    """The result at its own size."""
    if kind in ("out", "down"):
        return few_rows.summed(g.x, w.values, w.scale, tile, g.form, g.h, g.norm).h
    return few_rows.normed(g.carried, w.values, w.scale, tile, g.form, EPS, gated=kind == "gate_up")


def reference(kind: str, g: Given, w: Weight) -> torch.Tensor:
    if kind in ("out", "down"):
        return g.h.float() + g.x.float() / g.form.unit @ w.wide().T
    wide = g.h.float()
    out = wide * torch.rsqrt((wide**2).mean(1, keepdim=True) + EPS) * g.norm.float() @ w.wide().T
    if kind == "gate_up":
        gate, up = out.chunk(2, 1)
        return torch.nn.functional.silu(gate) * up * g.form.unit
    return out


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


def compile_share(part: int, parts: int, quick: bool, fp8: bool) -> None:
    """Every parts-th variant into triton's cache: compiling is the host's time, not the GPU's."""
    variants = [(k, t) for k in KINDS for t in tiles(quick, fp8) if fits(k, t, fp8)]
    for kind, tile in variants[part::parts]:
        weight = made(*KINDS[kind], fp8)
        try:
            call(kind, given(kind, 1, weight), weight, tile)
        except Exception as e:
            if "out of resource" not in str(e):
                print(kind, tile, e, flush=True)


def sweep(kind: str, rows_list: list[int], quick: bool, fp8: bool) -> dict[int, Tile]:
    """The fastest tile by rows; prints the three best beside torch's matmul."""
    outs, ins = KINDS[kind]
    size = outs * ins * (1 if fp8 else 2)
    copies = max(3, min(12, math.ceil((400 << 20) / size)))
    weights = [made(outs, ins, fp8) for _ in range(copies)]
    best: dict[int, Tile] = {}
    for rows in rows_list:
        g = given(kind, rows, weights[0])
        truth = reference(kind, g, weights[0])
        x = torch.randn(rows, ins, device="cuda", dtype=torch.bfloat16)
        plain = microseconds(lambda x=x: [library(x, w) for w in weights], copies)
        found: list[tuple[float, Tile]] = []
        for tile in tiles(quick, fp8):
            if not fits(kind, tile, fp8):
                continue
            try:
                out = call(kind, g, weights[0], tile)
            except Exception:
                continue
            error = float((out.float() - truth).norm() / truth.norm())
            if not error < 1e-2:
                print(f"WRONG {kind} rows={rows} {tile} {error:.1e}", flush=True)
                continue
            us = microseconds(lambda t=tile, g=g: [call(kind, g, w, t) for w in weights], copies)
            found.append((us, tile))
        found.sort()
        best[rows] = found[0][1]
        shown = "  ".join(f"{us:.1f}us={size / us / 1e6:.2f} {tuple(t)}" for us, t in found[:3])
        print(
            f"{kind:8} rows {rows:2}  torch alone {plain:6.1f} us = {size / plain / 1e6:.2f} TB/s"
            f" | floor {size / COPY * 1e6:.1f} us | {shown}",
            flush=True,
        )
    return best


class Layers:
    """Random layers and a pool, and one decode pass through them by either way."""

    def __init__(self, count: int, rows: int, position: int, fp8: bool) -> None:
        self.weights = [{k: made(*KINDS[k][:2], fp8) for k in KINDS}
                        for _ in range(count)]  # fmt: skip
        self.norm = torch.rand(HIDDEN, device="cuda", dtype=torch.bfloat16) + 0.5
        self.form = few_rows.Form.against(self.weights[0]["qkv"].values, torch.bfloat16)
        pages = -(-(position + 1) // PAGE)
        shape = (rows * pages, PAGE, KV_HEADS, SIZE)
        self.k, self.v = (torch.randn(shape, device="cuda").bfloat16() for _ in range(2))
        self.indptr = torch.arange(rows + 1, device="cuda", dtype=torch.int32) * pages
        self.indices = torch.randperm(rows * pages, device="cuda").to(torch.int32)
        self.positions = torch.full((rows,), position, device="cuda", dtype=torch.int64)
        last = self.indices[self.indptr[1:].long() - 1].long()
        self.kv_rows = last * PAGE + position % PAGE
        self.cos_sin = torch.randn(position + 1, SIZE, device="cuda")
        self.x = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
        self.rows, self.position = rows, position

    def ours(self, best: dict[str, Tile], scratch: few_rows.Scratch, block: int, warps: int):
        x = few_rows.begin(self.x, self.norm, self.form)
        for w in self.weights:
            qkv = few_rows.normed(x, *w["qkv"], best["qkv"], self.form, EPS)
            mixed = few_rows.attention(
                qkv, self.positions, self.cos_sin, self.k, self.v, self.indptr, self.indices,
                scratch, self.form, softmax_scale=SIZE**-0.5, block=block, warps=warps,
            )  # fmt: skip
            x = few_rows.summed(mixed, *w["out"], best["out"], self.form, x.h, self.norm)
            inner = few_rows.normed(x, *w["gate_up"], best["gate_up"], self.form, EPS, gated=True)
            x = few_rows.summed(inner, *w["down"], best["down"], self.form, x.h, self.norm)
        return x.h

    def theirs(self, wrapper, ops) -> torch.Tensor:
        x, residual = self.x, self.x.clone()
        normed = ops.rms_norm(x, self.norm, EPS)
        for w in self.weights:
            q = ops.rope_store(
                library(normed, w["qkv"]), self.positions, self.cos_sin, self.k, self.v,
                self.kv_rows, None, None, EPS,
            )  # fmt: skip
            mixed = wrapper.run(q, (self.k, self.v)).flatten(1)
            normed, residual = ops.add_rms_norm(library(mixed, w["out"]), residual, self.norm, EPS)
            inner = ops.silu_and_mul(library(normed, w["gate_up"]))
            normed, residual = ops.add_rms_norm(library(inner, w["down"]), residual, self.norm, EPS)
        return residual


def whole_layers(count: int, rows: int, position: int, best: dict[str, Tile], fp8: bool) -> None:
    import flashinfer

    from appliance.kernels.cuda_ops import CudaOps

    layers, ops = Layers(count, rows, position, fp8), CudaOps(torch.device("cuda"))
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
    theirs = layers.theirs(wrapper, ops)
    library_us = microseconds(lambda: layers.theirs(wrapper, ops), count)
    found = []
    for splits, block, warps in itertools.product((2, 4, 8, 16), (32, 64), (4, 8)):
        scratch = few_rows.Scratch(rows, KV_HEADS, SIZE, splits, torch.device("cuda"))
        out = layers.ours(best, scratch, block, warps)
        error = float((out.float() - theirs.float()).norm() / theirs.float().norm())
        if not error < (8e-2 if fp8 else 3e-2):
            print(f"WRONG layers rows={rows} splits={splits} {error:.1e}", flush=True)
            continue
        us = microseconds(lambda s=scratch, b=block, w=warps: layers.ours(best, s, b, w), count)
        found.append((us, (splits, block, warps), error))
    found.sort()
    size = (1 if fp8 else 2) * sum(
        KINDS[k][0] * KINDS[k][1] for k in ("qkv", "out", "gate_up", "down")
    )
    floor = size / COPY * 1e6
    us, attention, error = found[0]
    print(
        f"layer at {position}, {rows:2} rows: theirs {library_us:.1f} us, ours {us:.1f} us"
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
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--compile", default="")
    args = parser.parse_args()
    if args.compile:
        part, parts = (int(v) for v in args.compile.split("/"))
        compile_share(part, parts, args.quick, args.fp8)
        return
    rows_list = [int(r) for r in args.rows.split(",")]
    flags = [f for f, on in (("--quick", args.quick), ("--fp8", args.fp8)) if on]
    command = [sys.executable, "-m", "benchmarks.few_rows", *flags]
    workers = [subprocess.Popen([*command, "--compile", f"{i}/14"]) for i in range(14)]
    for worker in workers:
        worker.wait()
    best = {kind: sweep(kind, rows_list, args.quick, args.fp8) for kind in KINDS}
    for rows in rows_list:
        chosen = {k: best[k][rows] for k in best}
        whole_layers(args.layers, rows, args.position, chosen, args.fp8)
    print(json.dumps({k: {r: list(t) for r, t in by.items()} for k, by in best.items()}))


if __name__ == "__main__":
    main()
