"""Draws against plain torch in Triton's interpreter; run by test_kernels_interpreted.py."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.chains import gumbel_noise
from appliance.kernels.draw import gumbel_argmax
from appliance.kernels.torch_ops import TorchOps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows,vocab", [(1, 1), (5, 4096), (3, 9000)])
def test_draws(rows, vocab, dtype):
    """Where two tokens are as good within the last bit of a logarithm, either may be drawn."""
    torch.manual_seed(vocab)
    wider = (torch.randn(rows, vocab + 9) * 3).to(dtype)
    logits, temperature = wider[:, :vocab], torch.rand(rows) * 2 + 0.1
    logits[0, : vocab // 2] = -torch.inf
    seeds = torch.randint(-(1 << 62), 1 << 62, (rows,))
    counters = torch.randint(0, 5000, (rows,), dtype=torch.int32)
    got = gumbel_argmax(logits, temperature, seeds, counters)
    want = TorchOps().gumbel_argmax(logits, temperature, seeds, counters)
    score = logits.float() / temperature[:, None] + gumbel_noise(seeds, counters, vocab)
    found, best = (score.gather(1, tokens[:, None]) for tokens in (got, want))
    torch.testing.assert_close(found, best, rtol=0, atol=1e-4)
    assert got.dtype is torch.int64 and float((got == want).float().mean()) > 0.5
