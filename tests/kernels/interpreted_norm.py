"""Norms of few tokens in Triton's interpreter; run by test_kernels_interpreted.py."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.norm import norm
from appliance.kernels.torch_ops import TorchOps


@pytest.mark.parametrize("rows,width", [(1, 64), (5, 100), (3, 1025)])
@pytest.mark.parametrize("added", [False, True])
def test_norm(rows: int, width: int, added: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, width), torch.rand(width) + 0.5
    residual = torch.randn(rows, width) if added else None
    kept = residual.clone() if residual is not None else None
    found = norm(x.clone(), kept, weight, 1e-5)
    if residual is None:
        want = TorchOps().rms_norm(x, weight, 1e-5)
    else:
        want, total = TorchOps().add_rms_norm(x, residual, weight, 1e-5)
        assert kept is not None and torch.equal(kept, total)
    assert torch.allclose(found, want, rtol=1e-5, atol=1e-5)
