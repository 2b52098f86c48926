"""Ways to multiply by 8-bit weights say the same; those that a CPU has are tried here."""

from __future__ import annotations

import pytest
import torch

from benchmarks import fp8_matmuls


@pytest.mark.parametrize("name", ["bfloat16", "rows: CUTLASS", "  cuBLAS, then scales"])
def test_each_way_is_the_same_product(name: str) -> None:
    torch.manual_seed(0)
    g = fp8_matmuls.given(17, 128, 256, "cpu")
    rounded = 0.0 if name == "bfloat16" else 0.01
    assert rounded < fp8_matmuls.error(fp8_matmuls.WAYS[name], g) + 1e-9 < 0.045


def test_runs_and_rows_stand_for_the_same_tokens() -> None:
    g = fp8_matmuls.given(5, 128, 384, "cpu")
    values, scale, _ = g.by_run
    assert scale.shape == (5, 3) and scale.stride(0) == 1
    back = values.float() * scale.repeat_interleave(128, 1)
    assert float((back - g.x.float()).norm() / g.x.float().norm()) < 0.036
    assert torch.equal(g.wide.float(), g.weight.float() * g.row_scale[:, None])
