"""Decode rows over pages, and their attention in float32: what our kernels of it are held to."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from appliance.kernels.paged_decode import Shape

cuda = "cuda"
PAGE = 16
E4M3 = torch.float8_e4m3fn
BF16, F16 = torch.bfloat16, torch.float16

SHAPES = {
    "8B": Shape(32, 8, 128, PAGE, BF16, False),
    "seven to a head": Shape(28, 4, 128, PAGE, BF16, False),
    "five to a head, float16": Shape(40, 8, 128, PAGE, F16, False),
    "each its own, heads of 64": Shape(32, 32, 64, PAGE, BF16, False),
    "one head of eight": Shape(8, 1, 128, PAGE, BF16, False),
    "a rank's odd share": Shape(10, 5, 64, PAGE, F16, False),
    "pages of 32": Shape(32, 8, 128, 32, BF16, False),
    "8-bit pages": Shape(32, 8, 128, PAGE, BF16, True),
    "8-bit pages, heads of 64, float16": Shape(32, 4, 64, PAGE, F16, True),
}


class DecodeRows:
    """Rows whose pages lie anywhere; what no token was written to is no number."""

    def __init__(self, shape: Shape, lengths: list[int], seed: int, to_come: int = 0) -> None:
        """to_come: of each row's tokens, the last that are not written yet."""
        counts = [-(-n // shape.page) for n in lengths]
        total = sum(counts)
        torch.manual_seed(seed)
        self.shape, self.lengths = shape, lengths
        self.indptr = ints([0, *np.cumsum(counts)])
        self.last_len = ints(
            [n - (c - 1) * shape.page for n, c in zip(lengths, counts, strict=True)]
        )
        self.indices = (torch.randperm(total, dtype=torch.int32) + 1).to(cuda)
        self.last_pages = self.indices[self.indptr[1:].long() - 1].long()
        self.k, self.v = self._pages(total, to_come), self._pages(total, to_come)

    def _pages(self, total: int, to_come: int) -> Tensor:
        s = self.shape
        pages = torch.randn(total + 1, s.page, s.kv_heads, s.head_dim, device=cuda, dtype=BF16)
        pages = pages.to(E4M3 if s.narrow else s.dtype)
        for page, used in zip(self.last_pages.tolist(), self.last_len.tolist(), strict=True):
            pages[page, used - to_come :] = math.nan
        return pages

    def attended(
        self, q: Tensor, k: Tensor, v: Tensor, k_scale: float = 1.0, v_scale: float = 1.0
    ) -> Tensor:
        """softmax(q k^T / sqrt(D)) v in float32 over these pages times their scales."""
        s, firsts = self.shape, self.indptr.tolist()
        out = torch.empty(q.shape, dtype=torch.float32, device=cuda)
        for row, n in enumerate(self.lengths):
            mine = self.indices[firsts[row] : firsts[row + 1]].long()
            keys = k[mine].flatten(0, 1)[:n].float() * k_scale
            values = v[mine].flatten(0, 1)[:n].float() * v_scale
            own = q[row].float().view(s.kv_heads, -1, s.head_dim)
            scores = torch.einsum("kgd,lkd->kgl", own, keys) / math.sqrt(s.head_dim)
            out[row] = torch.einsum("kgl,lkd->kgd", scores.softmax(-1), values).flatten(0, 1)
        return out


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=cuda)


def relative(out: Tensor, want: Tensor) -> float:
    return ((out.float() - want).norm() / want.norm()).item()
