"""8-bit float matmuls: tokens rounded to e4m3 in one pass, then a product that undoes the scales.

Shapes: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from appliance.kernels.dependent import behind, launched
from appliance.kernels.ops import Rounded

# how scales lie, as torch numbers it: one of 1 × 128, one of 128 × 128
_RUNS, _BLOCKS = 4, 5
_SPAN = 8
"""Runs that one program rounds."""


@triton.jit
def _round_rows(
    x, out, scale, fixed, K, stride, cap,
    FIXED: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One row: its largest magnitude becomes 448, or the fixed scale is used."""
    if DEPENDENT:
        behind()
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    ok = at < K
    value = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    if FIXED:
        unit = tl.load(fixed)
    else:
        largest = tl.max(tl.abs(value))
        largest = tl.where(cap > 0, tl.minimum(largest, cap), largest)
        unit = tl.maximum(largest / 448.0, 1e-12)
    rounded = tl.minimum(tl.maximum(value / unit, -448.0), 448.0)
    tl.store(out + row * K + at, rounded.to(tl.float8e4nv), mask=ok)
    tl.store(scale + row, unit)


@triton.jit(do_not_specialize=["apart"])
def _round_runs(
    x, out, scale, K, stride, apart,
    RUN: tl.constexpr, SPAN: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """SPAN runs of one row; a run's scales lie side by side, `apart` from those of the next."""
    if DEPENDENT:
        behind()
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * SPAN
    at = first * RUN + tl.arange(0, SPAN * RUN)
    ok = at < K
    value = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    runs = tl.reshape(value, (SPAN, RUN))
    units = tl.maximum(tl.max(tl.abs(runs), 1) / 448.0, 1e-12)
    rounded = tl.reshape(runs / units[:, None], (SPAN * RUN,))
    rounded = tl.minimum(tl.maximum(rounded, -448.0), 448.0)
    tl.store(out + row * K + at, rounded.to(out.dtype.element_ty), mask=ok)
    number = first + tl.arange(0, SPAN)
    tl.store(scale + row + number * apart, units, mask=number * RUN < K)


@triton.jit(do_not_specialize=["M", "apart"])
def _block_matmul(
    x, w, x_scale, w_scale, out, bias, M, N, K, RUNS, apart,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A tile [BM, BN] over runs of BK = 128 inputs; scales are applied to each run's product."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    m_ok, n_ok = m < M, n < N
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for run in range(0, RUNS):
        at = run * BK + k
        k_ok = at < K
        tile_x = tl.load(
            x + m[:, None].to(tl.int64) * K + at[None, :], mask=m_ok[:, None] & k_ok[None, :],
            other=0.0,
        )  # fmt: skip
        tile_w = tl.load(
            w + n[None, :].to(tl.int64) * K + at[:, None], mask=n_ok[None, :] & k_ok[:, None],
            other=0.0,
        )  # fmt: skip
        unit_x = tl.load(x_scale + run * apart + m, mask=m_ok, other=0.0)
        unit_w = tl.load(w_scale + (n // 128) * RUNS + run, mask=n_ok, other=0.0)
        total += tl.dot(tile_x, tile_w) * unit_x[:, None] * unit_w[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n_ok, other=0.0).to(tl.float32)[None, :]
    place = out + m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=m_ok[:, None] & n_ok[None, :])


def round_rows(
    x_MK: Tensor, fixed: Tensor | None, cap: float, dependent: bool = False
) -> tuple[Tensor, Tensor]:
    """e4m3 [M, K] and the float32 scale [M, 1] that undoes it. dependent: it may begin before the
    kernel in front has ended."""
    rows, ins = x_MK.shape
    out = torch.empty((rows, ins), dtype=torch.float8_e4m3fn, device=x_MK.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x_MK.device)
    block = triton.next_power_of_2(ins)
    _round_rows[(rows,)](
        x_MK, out, scale, scale if fixed is None else fixed, ins, x_MK.stride(0), cap,
        FIXED=fixed is not None, BLOCK=block, DEPENDENT=dependent,
        num_warps=min(16, max(4, block // 1024)), **launched(dependent),
    )  # fmt: skip
    return out, scale


def linear(x: Rounded, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    return torch._scaled_mm(
        x.values,
        weight_NK.t(),
        scale_a=x.scale,
        scale_b=scale_N[None, :],
        bias=bias_N,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )


def room_by_runs(
    rows: int, ins: int, run: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Room for values [M, K] and the float32 scales of their runs [M, runs] as cuBLAS reads them:
    a run's scales side by side, and 16 bytes at a time. So there is room behind both for M up to
    the next multiple of 4, which is written by nobody: what is made of it is cut off."""
    room = _whole(rows)
    values = torch.empty((room, ins), dtype=dtype, device=device)
    scale = torch.empty((triton.cdiv(ins, run), room), dtype=torch.float32, device=device)
    return values[:rows], scale.t()[:rows]


def _whole(rows: int) -> int:
    return triton.cdiv(rows, 4) * 4


def laid_out(values_MK: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The two as `room_by_runs` lays them: copies, where they are not."""
    if scale.stride() == (1, _whole(len(scale))):
        return values_MK, scale
    rows, ins = values_MK.shape
    values, units = room_by_runs(rows, ins, 128, values_MK.dtype, values_MK.device)
    return values.copy_(values_MK), units.copy_(scale)


def _with_room(values_MK: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The two as `room_by_runs` lays them, and what is behind them."""
    room, ins, runs = _whole(len(values_MK)), values_MK.shape[1], scale.shape[1]
    return values_MK.as_strided((room, ins), (ins, 1)), scale.as_strided((room, runs), (1, room))


def round_runs(
    x_MK: Tensor, dtype: torch.dtype = torch.float8_e4m3fn, dependent: bool = False
) -> tuple[Tensor, Tensor]:
    """e4m3 [M, K] and the float32 scales of runs of 128, laid as `room_by_runs` says. dtype: of
    the values; another one is for tests. dependent: as in round_rows."""
    rows, ins = x_MK.shape
    out, scale = room_by_runs(rows, ins, 128, dtype, x_MK.device)
    _round_runs[(rows, triton.cdiv(ins, 128 * _SPAN))](
        x_MK, out, scale, ins, x_MK.stride(0), scale.stride(1),
        RUN=128, SPAN=_SPAN, DEPENDENT=dependent, num_warps=4, **launched(dependent),
    )  # fmt: skip
    return out, scale


def library_multiplies(
    outs: int, ins: int, capability: tuple[int, int], cuda: tuple[int, ...]
) -> bool:
    """Whether cuBLAS multiplies by such a weight in blocks of 128 × 128: on Hopper alone, since
    CUDA 12.9; whole runs of inputs, and outputs by 16."""
    return capability[0] == 9 and cuda >= (12, 9) and ins % 128 == 0 and outs % 16 == 0


@cache
def _on(device: torch.device) -> tuple[tuple[int, int], tuple[int, ...]]:
    """What the device can do, and the CUDA that torch was built for."""
    cuda = tuple(int(part) for part in (torch.version.cuda or "0").split("."))
    return torch.cuda.get_device_capability(device), cuda


def block_linear(x: Rounded, weight_NK: Tensor, scale_BC: Tensor, bias_N: Tensor | None) -> Tensor:
    """By cuBLAS where it has the product, else by our kernel."""
    by_library = library_multiplies(*weight_NK.shape, *_on(weight_NK.device))
    multiply = blocks_by_library if by_library else blocks_by_kernel
    return multiply(x, weight_NK, scale_BC, bias_N)


def blocks_by_library(
    x: Rounded, weight_NK: Tensor, scale_BC: Tensor, bias_N: Tensor | None
) -> Tensor:
    values, scale = _with_room(*laid_out(x.values, x.scale))
    if scale_BC.shape[1] % 4:  # these scales, too, are read 16 bytes at a time
        scale_BC = F.pad(scale_BC, (0, -scale_BC.shape[1] % 4))
    out = torch._scaled_mm_v2(
        values, weight_NK.t(), [scale], [_RUNS], [], [scale_BC.t()], [_BLOCKS], [], bias_N, x.dtype
    )
    return out[: len(x.values)]


def blocks_by_kernel(
    x: Rounded, weight_NK: Tensor, scale_BC: Tensor, bias_N: Tensor | None
) -> Tensor:
    values, scale = laid_out(x.values, x.scale)
    rows, ins = values.shape
    outs, runs = weight_NK.shape[0], scale_BC.shape[1]
    out = torch.empty((rows, outs), dtype=x.dtype, device=values.device)
    tile = 16 if rows <= 16 else 64 if rows <= 64 else 128
    _block_matmul[(triton.cdiv(rows, tile), triton.cdiv(outs, 128))](
        values, weight_NK, scale, scale_BC, out, bias_N if bias_N is not None else out,
        rows, outs, ins, runs, scale.stride(1),
        BM=tile, BN=128, BK=128, BIAS=bias_N is not None,
        num_warps=8 if tile == 128 else 4, num_stages=3,
    )  # fmt: skip
    return out
