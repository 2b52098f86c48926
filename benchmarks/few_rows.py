"""Decoder layers for few rows on one GPU: the one kernel beside the library's kernels in a graph.

    python -m benchmarks.few_rows [--rows 1,2,4,8] [--position 512] [--layers 8] [--fp8]

Random layers of the 8B shape, more of them than the cache holds. Both ways are captured and played;
the times are medians of replays, for one layer. Bytes of the weights over 3.02 TB/s (a device copy)
is the floor. --fp8: 8-bit weights, which the library's way multiplies by tokens rounded to 8 bits.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import flashinfer
import torch

from appliance.kernels import gemm_fp8
from appliance.kernels.cuda_ops import CudaOps
from appliance.kernels.few_rows import MAX_ROWS, FewRows, LayerTensors, Shape
from appliance.kernels.ops import Rounded
from benchmarks.gpu_clock import captured, microseconds

SHAPE = Shape(4096, 14336, 32, 8, 16, head_norm=False, narrow=False)
SIZE = 128
COPY = 3.02e12
EPS = 1e-5


class Weight(NamedTuple):
    """[N, K], and the scale of its rows when it is of 8-bit floats."""

    values: torch.Tensor
    scale: torch.Tensor | None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            return torch.nn.functional.linear(x, self.values)
        rounded = Rounded(*gemm_fp8.round_rows(x, None, 0.0), x.dtype)
        return gemm_fp8.linear(rounded, self.values, self.scale, None)


def made(outs: int, ins: int, fp8: bool) -> Weight:
    values = torch.randn(outs, ins, device="cuda", dtype=torch.bfloat16) * 0.02
    if not fp8:
        return Weight(values, None)
    scale = values.abs().amax(1).float() / 448.0
    return Weight((values.float() / scale[:, None]).to(torch.float8_e4m3fn), scale)


class Layers:
    """Random layers, a pool, and one decode pass through them by either way."""

    def __init__(self, count: int, rows: int, position: int, shape: Shape) -> None:
        e, i, mixed = shape.hidden, shape.inner, shape.heads * SIZE
        sizes = (((shape.heads + 2 * shape.kv_heads) * SIZE, e), (e, mixed), (2 * i, e), (e, i))
        self.bytes = sum(n * k for n, k in sizes) * (1 if shape.narrow else 2)
        self.weights = [[made(n, k, shape.narrow) for n, k in sizes] for _ in range(count)]
        self.norm = torch.rand(e, device="cuda", dtype=torch.bfloat16) + 0.5
        pages = -(-(position + 1) // shape.page)
        pool = (rows * pages, shape.page, shape.kv_heads, SIZE)
        self.k, self.v = (torch.randn(pool, device="cuda").bfloat16() for _ in range(2))
        self.indptr = torch.arange(rows + 1, device="cuda", dtype=torch.int32) * pages
        self.indices = torch.randperm(rows * pages, device="cuda").to(torch.int32)
        self.positions = torch.full((rows,), position, device="cuda", dtype=torch.int64)
        last = self.indices[self.indptr[1:].long() - 1].long()
        self.kv_rows = last * shape.page + position % shape.page
        self.cos_sin = torch.randn(position + 1, SIZE, device="cuda")
        self.x = torch.randn(rows, e, device="cuda", dtype=torch.bfloat16)
        self._ops = CudaOps(torch.device("cuda"))
        self._wrapper = self._planned(rows, position, shape)
        layers = [
            LayerTensors(tuple(w.values for w in ws), tuple(w.scale for w in ws), self.norm,
                         self.norm, None, None, self.k, self.v, self.cos_sin)
            for ws in self.weights
        ]  # fmt: skip
        given = shape, layers, self.norm, self.norm, EPS, SIZE**-0.5
        self._kernel = FewRows(*given) if rows <= MAX_ROWS else None

    def _planned(
        self, rows: int, position: int, shape: Shape
    ) -> flashinfer.BatchDecodeWithPagedKVCacheWrapper:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.zeros(128 << 20, dtype=torch.uint8, device="cuda"), "NHD", use_cuda_graph=True,
            paged_kv_indptr_buffer=self.indptr.clone(),
            paged_kv_indices_buffer=self.indices.clone(),
            paged_kv_last_page_len_buffer=torch.zeros(rows, dtype=torch.int32, device="cuda"),
        )  # fmt: skip
        last = torch.full((rows,), position % shape.page + 1, dtype=torch.int32)
        wrapper.plan(
            self.indptr.cpu(), self.indices, last, shape.heads, shape.kv_heads, SIZE, shape.page,
            q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
        )  # fmt: skip
        return wrapper

    def ours(self) -> torch.Tensor:
        assert self._kernel is not None
        return self._kernel.run(self.x, self.positions, self.indptr, self.indices)

    def theirs(self) -> torch.Tensor:
        ops, residual = self._ops, self.x.clone()
        normed = ops.rms_norm(self.x, self.norm, EPS)
        for qkv, out, gate_up, down in self.weights:
            q = ops.rope_store(
                qkv.of(normed), self.positions, self.cos_sin, self.k, self.v, self.kv_rows,
                None, None, EPS,
            )  # fmt: skip
            mixed = self._wrapper.run(q, (self.k, self.v)).flatten(1)
            normed, residual = ops.add_rms_norm(out.of(mixed), residual, self.norm, EPS)
            inner = ops.silu_and_mul(gate_up.of(normed))
            normed, residual = ops.add_rms_norm(down.of(inner), residual, self.norm, EPS)
        return normed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,2,4,8")
    parser.add_argument("--position", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--fp8", action="store_true")
    given = parser.parse_args()
    counts = [int(rows) for rows in given.rows.split(",")]
    if max(counts) > MAX_ROWS:
        parser.error(f"the kernel is for up to {MAX_ROWS} rows; benchmarks.skinny is for more")
    for rows in counts:
        layers = Layers(given.layers, rows, given.position, SHAPE._replace(narrow=given.fp8))
        theirs, floor = layers.theirs().clone(), layers.bytes / COPY * 1e6
        library = microseconds(captured(layers.theirs), given.layers)
        differs = float((layers.ours().float() - theirs.float()).norm() / theirs.float().norm())
        own = microseconds(captured(layers.ours), given.layers)
        print(
            f"layer at {given.position}, {rows} rows: library {library:6.1f} us, one kernel "
            f"{own:6.1f} us = {library / own:.3f} x, weights at {floor / own:.2f} of "
            f"copy speed (floor {floor:.1f} us), differs by {differs:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
