"""The rotary kernel in Triton's interpreter; run by test_kernels_interpreted.py.

The interpreter does not round to 8 bits as hardware does, so pages are float32 here and what the
kernel would store is rounded by torch.
"""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.rope import rope_store
from appliance.kernels.torch_ops import TorchOps


@pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("norm", [False, True])
def test_rope_store(dtype, norm):
    torch.manual_seed(0)
    heads, kv_heads, size, tokens, pages, page = 4, 2, 16, 5, 3, 4
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size) * 40
    qkv[0] *= 1000  # past what the formats hold
    positions, table = torch.randint(0, 50, (tokens,)), torch.randn(50, size)
    rows = torch.randperm(pages * page)[:tokens]
    weights = (torch.rand(size) + 0.5, torch.rand(size) + 0.5) if norm else (None, None)
    scales = (0.13, 2.7)
    shape = pages, page, kv_heads, size
    got = torch.full(shape, 7.0), torch.full(shape, 7.0)
    want = torch.full(shape, 7.0).to(dtype or torch.float32), torch.full(shape, 7.0)
    want = want[0], want[1].to(want[0].dtype)
    largest = torch.finfo(dtype).max if dtype else 0.0
    q = rope_store(qkv, positions, table, *got, rows, *weights, 1e-6, *scales, largest)
    q_want = TorchOps().rope_store(qkv, positions, table, *want, rows, *weights, 1e-6, *scales)
    assert torch.allclose(q, q_want, rtol=1e-5, atol=1e-4)
    for out, ref in zip(got, want, strict=True):
        stored = out.to(dtype) if dtype else out
        assert torch.isfinite(stored.float()).all()
        assert torch.allclose(stored.float(), ref.float(), rtol=1e-5, atol=1e-4)
