"""A draw of each row's token by Gumbel noise, from logits as the model left them.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _mix32(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _gumbel_part(
    logits, stride, temperature, seeds, counters, best_value, best_index, vocab, parts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The best of one block of the vocabulary of one row."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    seed = tl.load(seeds + row)
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key = _mix32(low ^ _mix32(high))
    key = _mix32(key + tl.load(counters + row).to(tl.uint32))
    token = part * BLOCK + tl.arange(0, BLOCK)
    bits = _mix32(key + token.to(tl.uint32) * 0x9E3779B9)
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    noise = -tl.log(-tl.log(uniform))
    value = tl.load(logits + row * stride + token, mask=token < vocab, other=float("-inf"))
    value = tl.math.div_rn(value.to(tl.float32), tl.load(temperature + row)) + noise
    value = tl.where(token < vocab, value, float("-inf"))
    best, index = tl.max(value, 0, return_indices=True)
    tl.store(best_value + row * parts + part, best)
    tl.store(best_index + row * parts + part, part * BLOCK + index)


def gumbel_argmax(
    logits_BV: Tensor, temperature_B: Tensor, seeds_B: Tensor, counters_B: Tensor
) -> Tensor:
    """As Ops.gumbel_argmax says."""
    rows, vocab = logits_BV.shape
    parts = triton.cdiv(vocab, _BLOCK)
    value = torch.empty((rows, parts), dtype=torch.float32, device=logits_BV.device)
    index = torch.empty((rows, parts), dtype=torch.int32, device=logits_BV.device)
    _gumbel_part[(rows, parts)](
        logits_BV, logits_BV.stride(0), temperature_B, seeds_B, counters_B, value, index,
        vocab, parts, BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
    best = torch.argmax(value, 1, keepdim=True)
    return index.gather(1, best).squeeze(1).long()
