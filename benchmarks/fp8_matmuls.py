"""Ways to multiply by 8-bit weights on one GPU, tokens rounded already: what serves is chosen here.

    python -m benchmarks.fp8_matmuls [--rows 1,16,64,256,1024,8192]

Microseconds of the four matmuls of a layer of the 8B shape, captured, over layers that no cache
holds; beside each way how far its product is from that in float32 (relative L2, the worst of the
four). A way that the library refuses is told and left out.

rows: a scale a row of the weight and a token: torch's, which is CUTLASS (it serves); the same with
products summed in float32 throughout; torch's with one scale for all, which is cuBLAS, and the
scales of rows and tokens in a pass behind it. blocks: scales of 128 × 128 and runs of 128: torch's
by cuBLAS (it serves where it can); the same with the tokens' rounding; our Triton kernel. Of rows,
also ours for up to 64 tokens, which serve in captured passes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from appliance.kernels import gemm_fp8
from appliance.kernels.ops import Rounded
from appliance.kernels.skinny import MAX_ROWS, Form, Skinny, padded
from appliance.kernels.torch_ops import round_rows
from benchmarks.gpu_clock import captured, microseconds

SIZES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
LAYERS = 3
E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16


class Given(NamedTuple):
    """x: tokens; by_row, by_run: the same in e4m3. row_scale, block_scale: of the weight."""

    x: Tensor
    by_row: Rounded
    by_run: Rounded
    weight: Tensor
    wide: Tensor
    row_scale: Tensor
    block_scale: Tensor


def plain(g: Given) -> Tensor:
    return torch.nn.functional.linear(g.x, g.wide)


def rows(g: Given, fast: bool = True) -> Tensor:
    return torch._scaled_mm(
        g.by_row.values, g.weight.t(), scale_a=g.by_row.scale, scale_b=g.row_scale[None, :],
        out_dtype=BF16, use_fast_accum=fast,
    )  # fmt: skip


def one_scale(g: Given) -> Tensor:
    one = torch.ones((), device=g.x.device)
    out = torch._scaled_mm(
        g.by_row.values, g.weight.t(), scale_a=one, scale_b=one, out_dtype=BF16, use_fast_accum=True
    )
    return (out * g.by_row.scale * g.row_scale).to(BF16)


def blocks(g: Given, alone: bool = True) -> Tensor:
    x = g.by_run if alone else Rounded(*gemm_fp8.round_runs(g.x), BF16)
    return gemm_fp8.block_linear(x, g.weight, g.block_scale, None)


def blocks_by_triton(g: Given) -> Tensor:
    return gemm_fp8.blocks_by_kernel(g.by_run, g.weight, g.block_scale, None)


_OURS: dict[Form, Skinny] = {}


def ours(g: Given) -> Tensor:
    """RuntimeError for more than 64 rows."""
    if len(g.x) > MAX_ROWS:
        raise RuntimeError("it is for up to 64 rows")
    outs, depth = g.weight.shape
    form = Form(E4M3, BF16, outs, depth, padded(len(g.x)))
    if form not in _OURS:
        _OURS[form] = Skinny(form, g.x.device)
    return _OURS[form].run(g.by_row.values, g.weight, None, g.by_row.scale, g.row_scale)


WAYS: dict[str, Callable[[Given], Tensor]] = {
    "bfloat16": plain,
    "rows: CUTLASS": rows,
    "  all in float32": partial(rows, fast=False),
    "  cuBLAS, then scales": one_scale,
    "  ours for 64": ours,
    "blocks": blocks,
    "  and the rounding": partial(blocks, alone=False),
    "  Triton": blocks_by_triton,
}


def given(count: int, outs: int, ins: int, device: str) -> Given:
    """The same weight for rows and blocks: one scale for all, said in either form."""
    x = torch.randn(count, ins, device=device).to(BF16)
    weight = torch.randn(outs, ins, device=device).mul_(64).clamp_(-448, 448).to(E4M3)
    unit = 2.0**-11
    runs, scale = round_rows(x.view(-1, 128), None, 0.0)
    return Given(
        x,
        Rounded(*round_rows(x, None, 0.0), BF16),
        Rounded(*gemm_fp8.laid_out(runs.view(count, ins), scale.view(count, -1)), BF16),
        weight,
        (weight.float() * unit).to(BF16),
        torch.full((outs,), unit, device=device),
        torch.full((-(-outs // 128), -(-ins // 128)), unit, device=device),
    )


def error(way: Callable[[Given], Tensor], g: Given) -> float:
    want = g.x.float() @ g.wide.float().t()
    return float((way(g).float() - want).norm() / want.norm())


def measured(way: Callable[[Given], Tensor], layers: list[list[Given]]) -> tuple[float, float]:
    """(microseconds of a layer, worst error). What the way raises, where it is refused."""
    worst = max(error(way, g) for g in layers[0])

    def work() -> None:
        for g in (g for layer in layers for g in layer):
            way(g)

    return microseconds(captured(work), len(layers)), worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,16,64,256,1024,8192")
    counts = [int(n) for n in parser.parse_args().rows.split(",")]
    print(f"{'':22}" + "".join(f"{n:>10}" for n in counts) + "  rows; worst error")
    found: dict[str, list[str]] = {name: [] for name in WAYS}
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for count in counts:
        layers = [[given(count, *size, "cuda") for size in SIZES] for _ in range(LAYERS)]
        for name, way in WAYS.items():
            try:
                took, worst = measured(way, layers)
            except (RuntimeError, ValueError) as problem:
                found[name].append("–")
                refused[name] = str(problem).splitlines()[0]
                continue
            found[name].append(f"{took:.1f}")
            errors[name] = max(errors.get(name, 0.0), worst)
    for name, times in found.items():
        print(f"{name:22}" + "".join(f"{t:>10}" for t in times) + f"  {errors.get(name, 0):.4f}")
    for name, problem in refused.items():
        print(f"refused: {name.strip()}: {problem}")


if __name__ == "__main__":
    main()
