"""Run by test_kernels_few_rows.py in a process of its own: kernels in triton's interpreter."""

from __future__ import annotations

import sys

import numpy as np
import torch

from appliance.kernels import few_rows
from appliance.kernels.torch_ops import TorchOps


def relative(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out.double() - want.double()).norm() / want.double().norm())


TILE = few_rows.Tile(rows=16, depth=64, stages=2, warps=4, ahead=0)
EPS = 1e-5


def normal(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt((x**2).mean(1, keepdim=True) + EPS) * weight.double()


def linears(dtype: torch.dtype, bound: float, narrow: bool) -> None:
    """The three ways into a matmul and out of it, one after the other as in a layer."""
    wide, inner = 256, 96
    for rows in (1, 5):
        h = torch.randn(rows, wide).to(dtype)
        h[0, 7] = 900.0  # an outlier, as trained models have them
        norms = [(torch.rand(wide) + 0.5).to(dtype) for _ in range(2)]
        values = [torch.randn(2 * inner, wide) / 16, torch.randn(wide, 2 * inner) / 16]
        scales = [None, None]
        if narrow:
            scales = [v.abs().amax(1) / 448 for v in values]
            values = [
                (v / s[:, None]).to(torch.float8_e4m3fn)
                for v, s in zip(values, scales, strict=True)
            ]
        else:
            values = [v.to(dtype) for v in values]
        whole = [
            v.double() * (s.double()[:, None] if s is not None else 1.0)
            for v, s in zip(values, scales, strict=True)
        ]
        form = few_rows.Form.against(values[0], dtype)
        assert form.unit == (0.0625 if narrow and dtype.itemsize == 2 else 1.0)
        x = few_rows.begin(h, norms[0], form, chained=False)
        plain = few_rows.normed(x, values[0], scales[0], TILE, form, EPS, chained=False)
        want = normal(h, norms[0]) @ whole[0].T
        assert plain.dtype == dtype and relative(plain, want) < bound, (rows, narrow)
        gated = few_rows.normed(x, values[0], scales[0], TILE, form, EPS, gated=True, chained=False)
        gate, up = want.chunk(2, 1)
        want_gated = torch.nn.functional.silu(gate) * up
        assert gated.dtype == form.dtype
        assert relative(gated.double() / form.unit, want_gated) < bound, (rows, narrow)
        into = (torch.randn(rows, 2 * inner) * form.unit).to(form.dtype)
        y = few_rows.summed(into, values[1], scales[1], TILE, form, h, norms[1], chained=False)
        want_sum = h.double() + into.double() / form.unit @ whole[1].T
        assert y.h.dtype == dtype and relative(y.h, want_sum) < bound
        again = few_rows.normed(y, values[0], scales[0], TILE, form, EPS, chained=False)
        assert relative(again, normal(want_sum, norms[1]) @ whole[0].T) < 2 * bound


def attentions(
    dtype: torch.dtype, bound: float, heads: int, kv_heads: int, splits: int, norm: bool
) -> None:
    size, page = 32, 16
    ends = np.array([1, 16, 17, 70])
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
    form = few_rows.Form(dtype, 1.0)
    scratch = few_rows.Scratch(8, kv_heads, size, splits, torch.device("cpu"))
    for tensor in (scratch.parts, scratch.max, scratch.sum):
        tensor.fill_(float("nan"))
    for _ in range(2):  # the counters are left as they were found
        got = few_rows.attention(
            qkv, positions, table, k, v, indptr, indices, scratch, form, softmax_scale=0.2,
            q_weight_D=weights[0], k_weight_D=weights[1], eps=1e-6, block=16, chained=False,
        )  # fmt: skip
        error = relative(got.view(rows, heads, size), want)
        assert error < bound, (heads, kv_heads, splits, norm, error)
        assert relative(k, want_k) < bound and relative(v, want_v) < bound
        assert not scratch.arrived.any()


def refusals() -> None:
    form = few_rows.Form(torch.float32, 1.0)
    for rows, outs, ins, gated in ((17, 32, 256, False), (1, 32, 100, False),
                                   (1, 24, 256, False), (1, 16, 256, True)):  # fmt: skip
        x = few_rows.begin(torch.zeros(rows, ins), torch.ones(ins), form, chained=False)
        try:
            few_rows.normed(x, torch.zeros(outs, ins), None, TILE, form, EPS, gated=gated,
                            chained=False)  # fmt: skip
        except ValueError as e:
            assert "rows" in str(e)
        else:
            raise AssertionError("taken")


def main() -> None:
    torch.manual_seed(int(sys.argv[1]))
    for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 3e-3)):
        linears(dtype, bound, narrow=False)
        linears(dtype, bound, narrow=True)
        attentions(dtype, bound, heads=8, kv_heads=2, splits=1, norm=False)
        attentions(dtype, bound, heads=8, kv_heads=2, splits=4, norm=True)
        attentions(dtype, bound, heads=3, kv_heads=3, splits=8, norm=False)
    refusals()
    print("agrees")


if __name__ == "__main__":
    main()
