"""Norm and activation with rounding in Triton's interpreter; run by test_kernels_interpreted.py.

The interpreter does not round to 8 bits as hardware does: the kernels leave float32 here, and torch
rounds it.
"""

from __future__ import annotations

import pytest
import torch

from appliance.kernels import gemm_fp8, round_fused
from appliance.kernels.ops import Rounded, Rounding
from appliance.kernels.torch_ops import TorchOps, rounded

PLAIN = TorchOps()
WAYS = {"token": Rounding(None, 0.0), "capped": Rounding(None, 1.5),
        "fixed": Rounding(torch.tensor([0.004]), 0.0), "runs": Rounding(None, 0.0, 128),
        "short runs": Rounding(None, 2.0, 32)}  # fmt: skip


def laid(scale: torch.Tensor, run: int) -> bool:
    """Side by side stand the scales of tokens, or those of a run, with room for 4 at a time."""
    return scale.stride() == (1, -(-len(scale) // 4) * 4 if run else 1)


def same(got: tuple[torch.Tensor, torch.Tensor], want: Rounded, run: int) -> None:
    values, scale = got
    assert values.is_contiguous() and laid(scale, run)
    assert torch.allclose(scale, want.scale, rtol=1e-6)
    assert float(values.abs().max()) <= 448
    narrow = values.to(torch.float8_e4m3fn).float()
    # a value within float32 rounding of a border of the format may fall to either side
    differs = narrow != want.values.float()
    assert float(differs.float().mean()) < 0.01
    step = want.values.float().abs().clamp(min=2**-6) / 8
    assert bool(((narrow - want.values.float()).abs() <= step + 1e-6).all())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width", [64, 128, 200, 384])
@pytest.mark.parametrize("add", [False, True])
def test_norm(way, width, add):
    torch.manual_seed(width)
    x = torch.randn(5, width) * torch.tensor([1e-4, 1.0, 3.0, 1e3, 0.0])[:, None]
    residual = torch.randn(5, width) if add else None
    weight, how = torch.rand(width) + 0.5, WAYS[way]
    mine = residual.clone() if residual is not None else None
    got = round_fused.norm(x, mine, weight, 1e-5, how, torch.float32)
    want, total = PLAIN.rounded_norm(x, residual, weight, 1e-5, how)
    same(got, want, how.run)
    if mine is not None:
        assert torch.equal(mine, total)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width", [64, 128, 200, 384])
def test_silu_and_mul(way, width):
    torch.manual_seed(width)
    x, how = torch.randn(5, 2 * width) * 3, WAYS[way]
    got = round_fused.silu_mul(x, how, torch.float32)
    same(got, PLAIN.rounded_silu_and_mul(x, how), how.run)


@pytest.mark.parametrize("rows,width", [(1, 128), (5, 300), (8, 1024), (3, 2500)])
def test_runs(rows, width):
    torch.manual_seed(width)
    x = torch.randn(rows, width + 8)[:, :width] * 3
    got = gemm_fp8.round_runs(x, torch.float32)
    same(got, rounded(x, Rounding(None, 0.0, 128)), 128)
