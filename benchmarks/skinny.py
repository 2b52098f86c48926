"""Decoder layers for few rows on one GPU: our kernels for so few beside the library's.

    python -m benchmarks.skinny [--rows 2,4,8,12,16,24,32,48,64] [--position 512]
        [--layers 8] [--fp8] [--sweep]

Random layers of the 8B shape, more of them than the cache holds, captured as a decode pass is;
microseconds of one layer, and of its four matmuls alone. `library`: cuBLAS (in 8 bits CUTLASS),
norms of FlashInfer, and rotary embedding and attention as kernels of their own, which are ours in
both. The floor is what reading weights, keys and values takes at the speed of a copy, 3.02 TB/s.
--sweep: each matmul divided in other ways, which belong into `skinny.divided`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from appliance.kernels import turned_decode
from appliance.kernels.cuda_ops import CudaOps
from appliance.kernels.ops import Rounded, Rounding, Turns
from appliance.kernels.paged_decode import PagedDecode
from appliance.kernels.paged_decode import Shape as PagesShape
from appliance.kernels.skinny import Division, Form, Skinny, padded
from appliance.kernels.turned_decode import TurnedDecode
from benchmarks.few_rows import COPY, EPS, SHAPE, SIZE, Layers, Weight
from benchmarks.gpu_clock import captured, microseconds

NAMES = ("qkv", "out", "gate_up", "down")
BANDS = {"qkv": (24, 48, 96), "out": (16, 32, 64), "gate_up": (56, 112), "down": (16, 32, 64)}
HOW = Rounding(None, 0.0)


class Pass:
    """A decode pass through `layers` by Ops. own: with all that we have for so few rows."""

    def __init__(self, layers: Layers, rows: int, own: bool) -> None:
        ops = CudaOps(torch.device("cuda"), skinny=own)
        self.layers, self.ops, self.narrow = layers, ops, layers.weights[0][0].scale is not None
        pages = PagesShape(SHAPE.heads, SHAPE.kv_heads, SIZE, SHAPE.page, torch.bfloat16, False)
        self._attention = PagedDecode(pages, rows, torch.device("cuda"))
        position = int(layers.positions[0])
        self._last_len = torch.full_like(layers.indptr[:rows], position % SHAPE.page + 1)
        self._turns = Turns(layers.positions, layers.cos_sin, None, None, EPS)
        turned = own and rows <= turned_decode.MAX_ROWS
        self._turned = TurnedDecode(pages, False, torch.device("cuda")) if turned else None

    def linear(self, x: Tensor | Rounded, i: int, name: str) -> Tensor:
        weight = self.layers.weights[i][NAMES.index(name)]
        if weight.scale is not None:
            return self.ops.fp8_linear(x, weight.values, weight.scale, None, 0.0, None)
        assert isinstance(x, Tensor)
        return self.ops.linear(x, weight.values, None)

    def normed(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor | Rounded, Tensor]:
        norm = self.layers.norm
        if self.narrow:
            return self.ops.rounded_norm(x, residual, norm, EPS, HOW)
        if residual is None:
            return self.ops.rms_norm(x, norm, EPS), x
        return self.ops.add_rms_norm(x, residual, norm, EPS)

    def gated(self, x: Tensor | Rounded, i: int) -> Tensor | Rounded:
        if self.narrow:
            return self.ops.rounded_silu_and_mul(self.linear(x, i, "gate_up"), HOW)
        assert isinstance(x, Tensor)
        return self.ops.gated_linear(x, self.layers.weights[i][2].values)

    def attended(self, qkv: Tensor) -> Tensor:
        own = self.layers
        lists = own.indptr, self._last_len, own.indices
        if self._turned is not None:
            return self._turned.run(qkv, self._turns, own.k, own.v, *lists)
        q = self.ops.rope_store(
            qkv, own.positions, own.cos_sin, own.k, own.v, own.kv_rows, None, None, EPS
        )
        mixed = torch.empty_like(q)
        self._attention.run(q, own.k, own.v, *lists, mixed)
        return mixed

    def run(self) -> Tensor:
        own = self.layers
        normed, residual = self.normed(own.x.clone(), None)
        for i in range(len(own.weights)):
            mixed = self.attended(self.linear(normed, i, "qkv"))
            normed, residual = self.normed(self.linear(mixed.flatten(1), i, "out"), residual)
            inner = self.gated(normed, i)
            normed, residual = self.normed(self.linear(inner, i, "down"), residual)
        return residual

    def matmuls(self, inputs: dict[str, Tensor | Rounded]) -> None:
        for i in range(len(self.layers.weights)):
            for name, x in inputs.items():
                if name == "gate_up" and not self.narrow:
                    self.gated(x, i)
                else:
                    self.linear(x, i, name)


def inputs_of(rows: int, narrow: bool) -> dict[str, Tensor | Rounded]:
    sizes = (SHAPE.hidden, SHAPE.heads * SIZE, SHAPE.hidden, SHAPE.inner)
    found: dict[str, Tensor | Rounded] = {}
    for name, size in zip(NAMES, sizes, strict=True):
        x = torch.randn(rows, size, device="cuda").bfloat16()
        one = torch.ones(rows, 1, device="cuda")
        found[name] = Rounded(x.to(torch.float8_e4m3fn), one, x.dtype) if narrow else x
    return found


def divisions(form: Form, name: str) -> Iterator[Division]:
    """Those that take most of a multiprocessor's shared memory."""
    for band in BANDS[name]:
        for lines in (1, 2, 4):
            stage = (band * form.sides + form.tokens) * 128 * lines
            yield from (
                Division(band, stages, lines)
                for stages in (3, 4, 5, 6, 8)
                if stage * stages <= 200 << 10 < stage * (stages + 3)
            )


def sweep(layers: Layers, rows: int, inputs: dict[str, Tensor | Rounded]) -> None:
    for at, name in enumerate(NAMES):
        x, weights = inputs[name], [ws[at] for ws in layers.weights]
        gated = name == "gate_up" and not isinstance(x, Rounded)
        outs, depth = weights[0].values.shape
        kind, count = weights[0].values.dtype, outs // (2 if gated else 1)
        form = Form(kind, torch.bfloat16, count, depth, padded(rows), gated)
        with ThreadPoolExecutor() as pool:
            make = partial(Skinny, form, torch.device("cuda"), None)
            kernels = list(pool.map(make, divisions(form, name)))
        for kernel in kernels:
            us = microseconds(captured(partial(multiply, kernel, x, weights)), len(weights))
            print(f"      {name:8} {us:6.1f} us {kernel.division}", flush=True)


def multiply(kernel: Skinny, x: Tensor | Rounded, weights: list[Weight]) -> None:
    for w in weights:
        if isinstance(x, Rounded):
            kernel.run(x.values, w.values, None, x.scale, w.scale)
        else:
            kernel.run(x, w.values)


def measured(decode: Pass, inputs: dict[str, Tensor | Rounded]) -> tuple[Tensor, float, float]:
    """What a pass leaves; microseconds of a layer, and of its matmuls."""
    decode.run()  # compiles what its capture needs
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = decode.run()
    graph.replay()
    left, count = result.float().clone(), len(decode.layers.weights)
    matmuls = captured(partial(decode.matmuls, inputs))
    return left, microseconds(graph.replay, count), microseconds(matmuls, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="2,4,8,12,16,24,32,48,64")
    parser.add_argument("--position", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    for rows in (int(r) for r in given.rows.split(",")):
        layers = Layers(given.layers, rows, given.position, SHAPE._replace(narrow=given.fp8))
        kv = rows * (given.position + 1) * SHAPE.kv_heads * SIZE * 4
        floor = (layers.bytes + kv) / COPY * 1e6
        inputs = inputs_of(rows, given.fp8)
        theirs, library, b = measured(Pass(layers, rows, own=False), inputs)
        own, ours, d = measured(Pass(layers, rows, own=True), inputs)
        off = float((own - theirs).norm() / theirs.norm())
        print(
            f"{rows:2} rows at {given.position}: floor {floor:5.1f} us, library {library:5.1f} "
            f"(matmuls {b:5.1f}), ours {ours:5.1f} ({d:5.1f}) = {library / ours:.3f} x, "
            f"{floor / ours:.2f} of the floor, off by {off:.1e}",
            flush=True,
        )
        if given.sweep:
            sweep(layers, rows, inputs)


if __name__ == "__main__":
    main()
