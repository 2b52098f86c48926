"""Decode attention over pages, captured: FlashInfer's kernels and our own, at copy speed's side.

    python -m benchmarks.decode_attention [--programs 0,64,40,32]

The 8B shape, pages of bfloat16 and of e4m3 that lie anywhere. Microseconds of one layer, and the
bytes of keys and values a second; --programs: multiprocessors that our kernel takes (0: all).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from appliance.kernels import paged_attention, paged_decode
from benchmarks.gpu_clock import captured, microseconds

HEADS, KV_HEADS, SIZE, PAGE = 32, 8, 128, 16
LAYERS = 3
"""In turn, so that nothing is found in the cache."""


def loads() -> dict[str, list[int]]:
    """Tokens of each row."""
    rng = np.random.default_rng(1)
    return {
        "122 rows of 2048 to 4608": rng.integers(2048, 4608, 122).tolist(),
        "120 rows of 3200": [3200] * 120,
        "400 rows of 300 to 1500": rng.integers(300, 1500, 400).tolist(),
        "1000 rows, log-normal, 300": np.clip(rng.lognormal(5.4, 0.7, 1000), 8, 2000)
        .astype(int)
        .tolist(),
        "64 rows of 512": [512] * 64,
        "24 rows of 64 to 1000": rng.integers(64, 1000, 24).tolist(),
        "20 rows of 300, one of 100,000": [300] * 20 + [100_000],
    }


class Load:
    def __init__(self, lengths: list[int], kv_dtype: torch.dtype) -> None:
        counts = [-(-n // PAGE) for n in lengths]
        shape = sum(counts) + 1, PAGE, KV_HEADS, SIZE
        self.rows = len(lengths)
        self.host = np.cumsum([0, *counts]).astype(np.int32)
        self.indptr = torch.from_numpy(self.host).cuda()
        last = [n - (c - 1) * PAGE for n, c in zip(lengths, counts, strict=True)]
        self.last_len = torch.tensor(last, dtype=torch.int32, device="cuda")
        self.indices = (torch.randperm(sum(counts), dtype=torch.int32) + 1).cuda()
        self.layers = [
            paged_attention.LayerPages(_random(shape, kv_dtype), _random(shape, kv_dtype), 1.0, 1.0)
            for _ in range(LAYERS)
        ]
        self.q = torch.randn(self.rows, HEADS, SIZE, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)
        self.bytes = 2 * sum(lengths) * KV_HEADS * SIZE * kv_dtype.itemsize

    def theirs(self, attention: paged_attention.PagedAttention) -> None:
        for pages in self.layers:
            attention.run_graph(self.rows, self.q, pages, self.out)

    def ours(self, kernel: paged_decode.PagedDecode, programs: int) -> None:
        for pages in self.layers:
            kernel.run(
                self.q, pages.k, pages.v, self.indptr, self.last_len, self.indices, self.out,
                programs=programs,
            )  # fmt: skip


def _random(shape: tuple[int, ...], kv_dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(kv_dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", default="0,64,40,32")
    programs = [int(n) for n in parser.parse_args().programs.split(",")]
    device = torch.device("cuda")
    for kv_dtype in (torch.bfloat16, torch.float8_e4m3fn):
        narrow = kv_dtype.itemsize == 1
        kernel = paged_decode.PagedDecode(
            paged_decode.Shape(HEADS, KV_HEADS, SIZE, PAGE, torch.bfloat16, narrow), 1024, device
        )
        shape = paged_attention.Shape(HEADS, KV_HEADS, SIZE, PAGE, torch.bfloat16, kv_dtype)
        for name, lengths in loads().items():
            load = Load(lengths, kv_dtype)
            theirs = paged_attention.PagedAttention(
                shape, 0, paged_attention.Workspace(device, shape), "fa2"
            )
            theirs.plan_graph(load.rows, load.host, load.indptr, load.last_len, load.indices)
            told = [_told("FlashInfer", captured(partial(load.theirs, theirs)), load)]
            told += [
                _told(
                    f"ours on {n or kernel.programs}", captured(partial(load.ours, kernel, n)), load
                )
                for n in programs
            ]
            print(f"{name}, {str(kv_dtype)[6:]}: {'; '.join(told)}", flush=True)


def _told(name: str, replay: Callable[[], object], load: Load) -> str:
    took = microseconds(replay, LAYERS)
    return f"{name} {took:.0f} us {load.bytes / took / 1e6:.2f} TB/s"


if __name__ == "__main__":
    main()
