"""The first largest of each row against torch in Triton's interpreter; run by
test_kernels_interpreted.py."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.greedy import first_largest
from appliance.kernels.torch_ops import TorchOps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows,vocab", [(1, 1), (3, 511), (2, 1025), (1, 40000)])
def test_first_largest(rows, vocab, dtype):
    torch.manual_seed(vocab)
    x = torch.randn(rows, vocab).to(dtype)
    assert torch.equal(first_largest(x, -7), x.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ties_and_what_is_not_finite(dtype):
    x = torch.randn(9, 5000).to(dtype)
    x[0] = (x[0] * 2).round()
    x[1] = -1.25
    x[2] = torch.arange(5000)
    x[3, 40:] = -torch.inf
    x[4] = -torch.inf
    x[5, 4321] = torch.inf
    x[6, [11, 4000]] = torch.nan
    x[7] = torch.nan
    x[8, :4999] = -torch.inf
    padded = torch.full((9, 5100), 9e9).to(dtype)
    padded[:, :5000] = x
    want = TorchOps().first_largest(x, -7)
    assert want.tolist().count(-7) == 4
    assert torch.equal(first_largest(padded[:, :5000], -7), want)
