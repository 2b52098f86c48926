"""Run by test_kernels_few_rows.py in a process of its own: kernels in triton's interpreter."""

from __future__ import annotations

import sys

import numpy as np
import torch

from appliance.kernels import few_rows
from appliance.kernels.torch_ops import TorchOps


def relative(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out.double() - want.double()).norm() / want.double().norm())


def linears(dtype: torch.dtype, bound: float) -> None:
    tile = few_rows.Tile(rows=16, depth=64, stages=2, warps=4, ahead=0)
    for rows in (1, 5, 16):
        x = torch.randn(rows, 256).to(dtype)
        w = (torch.randn(96, 256) / 16).to(dtype)
        weight = (torch.rand(256) + 0.5).to(dtype)
        add = torch.randn(rows, 96).to(dtype)
        norm = few_rows.Norm(weight, 1e-5)
        wide = x.double()
        normed = wide * torch.rsqrt((wide**2).mean(1, keepdim=True) + 1e-5) * weight.double()
        gate, up = (normed @ w.double().T).chunk(2, 1)
        cases = {
            "plain": ({}, wide @ w.double().T),
            "norm": ({"norm": norm}, normed @ w.double().T),
            "add": ({"add_MN": add}, wide @ w.double().T + add.double()),
            "both": ({"norm": norm, "add_MN": add}, normed @ w.double().T + add.double()),
            "gated": ({"norm": norm, "gated": True}, torch.nn.functional.silu(gate) * up),
        }
        for name, (options, want) in cases.items():
            got = few_rows.linear(x, w, tile, chained=False, **options)
            assert got.dtype == dtype
            assert relative(got, want) < bound, (name, rows, dtype, relative(got, want))


def attentions(
    dtype: torch.dtype, bound: float, heads: int, kv_heads: int, splits: int, norm: bool
) -> None:
    size, page = 32, 16
    ends = np.array([1, 16, 17, 150, 64])
    rows = len(ends)
    counts = -(-ends // page)
    indptr = torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))
    pool = int(counts.sum()) + 3
    indices = torch.randperm(pool)[: int(counts.sum())].to(torch.int32)
    k = torch.randn(pool, page, kv_heads, size).to(dtype)
    v = torch.randn(pool, page, kv_heads, size).to(dtype)
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * size).to(dtype)
    table = torch.randn(200, size)
    positions = torch.from_numpy(ends - 1)
    weights = [(torch.rand(size) + 0.5).to(dtype) for _ in range(2)] if norm else [None, None]
    kv_rows = torch.tensor([
        int(indices[indptr[b] + (e - 1) // page]) * page + (e - 1) % page
        for b, e in enumerate(ends)
    ])  # fmt: skip
    want_k, want_v = k.double(), v.double()
    q = TorchOps().rope_store(
        qkv.double(), positions, table.double(), want_k, want_v, kv_rows,
        *(w.double() if w is not None else None for w in weights), 1e-6,
    )  # fmt: skip
    want = torch.empty(rows, heads, size, dtype=torch.float64)
    for b, end in enumerate(ends):
        own = indices[indptr[b] : indptr[b + 1]].long()
        keys = want_k[own].reshape(-1, kv_heads, size)[:end].repeat_interleave(heads // kv_heads, 1)
        values = want_v[own].reshape(-1, kv_heads, size)[:end]
        values = values.repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("hd,thd->ht", q[b], keys) * 0.2
        want[b] = torch.einsum("ht,thd->hd", scores.softmax(1), values)
    scratch = few_rows.Scratch(8, kv_heads, size, splits, torch.device("cpu"))
    for tensor in (scratch.parts, scratch.max, scratch.sum):
        tensor.fill_(float("nan"))
    for _ in range(2):  # the counters are left as they were found
        got = few_rows.attention(
            qkv, positions, table, k, v, indptr, indices, scratch, softmax_scale=0.2,
            q_weight_D=weights[0], k_weight_D=weights[1], eps=1e-6, block=16, chained=False,
        )  # fmt: skip
        error = relative(got.view(rows, heads, size), want)
        assert error < bound, (heads, kv_heads, splits, norm, error)
        assert relative(k, want_k) < bound and relative(v, want_v) < bound
        assert not scratch.arrived.any()


def refusals() -> None:
    tile = few_rows.Tile(rows=16, depth=64, stages=2, warps=4, ahead=0)
    for x, w, options in (
        (torch.zeros(17, 256), torch.zeros(32, 256), {}),
        (torch.zeros(1, 100), torch.zeros(32, 100), {}),
        (torch.zeros(1, 256), torch.zeros(24, 256), {}),
        (torch.zeros(1, 256), torch.zeros(16, 256), {"gated": True}),
    ):
        try:
            few_rows.linear(x, w, tile, chained=False, **options)
        except ValueError as e:
            assert "rows" in str(e)
        else:
            raise AssertionError("taken")


def main() -> None:
    torch.manual_seed(int(sys.argv[1]))
    for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 3e-3)):
        linears(dtype, bound)
        attentions(dtype, bound, heads=8, kv_heads=2, splits=1, norm=False)
        attentions(dtype, bound, heads=8, kv_heads=2, splits=4, norm=True)
        attentions(dtype, bound, heads=3, kv_heads=3, splits=8, norm=False)
    refusals()
    print("agrees")


if __name__ == "__main__":
    main()
