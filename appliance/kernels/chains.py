"""Chains: what is done to rows of logits on the way to tokens, in plain torch, as pure functions.

Run as they stand each of their operations reads and writes all of the vocabulary; `compiled.py`
makes one kernel of each chain.

Shapes: S rows of logits, R of them that a chain is for, V the vocabulary, W = ceil(V / 32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_M32 = 0xFFFFFFFF


def mix32(x: Tensor) -> Tensor:
    """An invertible hash of 32 bits held in int64 (Wellons' lowbias32 constants)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _M32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _M32
    return x ^ (x >> 16)


def gumbel_noise(seeds_R: Tensor, counters_R: Tensor, vocab: int) -> Tensor:
    """float32 [R, vocab], a pure function of (seed, counter, token)."""
    seeds = seeds_R.to(torch.int64)
    key = mix32((seeds & _M32) ^ mix32((seeds >> 32) & _M32))
    key = mix32((key + counters_R.to(torch.int64)) & _M32)
    token = torch.arange(vocab, dtype=torch.int64, device=seeds.device)
    bits = mix32((key[:, None] + token[None, :] * 0x9E3779B9) & _M32)
    uniform = ((bits >> 9).float() + 0.5) * (1.0 / (1 << 23))  # 24 bits: never rounds to 1
    return -torch.log(-torch.log(uniform))


def draw(logits_RV: Tensor, temperature_R: Tensor, seeds_R: Tensor, counters_R: Tensor) -> Tensor:
    """The token of each row where its logits at its temperature and noise are largest together:
    int64 [R]."""
    noise = gumbel_noise(seeds_R, counters_R, logits_RV.shape[1])
    return torch.argmax(logits_RV / temperature_R[:, None] + noise, -1)


def keep(
    logits_RV: Tensor, ordered_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor
) -> Tensor:
    """What Ops.keep_likely leaves of these rows. ordered: the same, largest first."""
    top_p, min_p = top_p_R[:, None], min_p_R[:, None]
    rank = torch.arange(ordered_RV.shape[1], device=ordered_RV.device)
    kept = ordered_RV.masked_fill(rank[None, :] >= top_k_R[:, None], -torch.inf)
    likely = kept.softmax(-1)
    before = likely.cumsum(-1) - likely
    # sums of everything may round to more than one: without a top_p nothing is too late
    stays = ((before < top_p) | (top_p >= 1)) & (likely > 0)
    stays &= likely >= min_p * likely[:, :1]
    last = stays.sum(-1, keepdim=True).clamp(min=1) - 1
    return logits_RV.masked_fill(logits_RV < ordered_RV.gather(1, last), -torch.inf)


def penalize(
    logits_SV: Tensor,
    at_R: Tensor,
    table: Tensor,
    rows_R: Tensor,
    repetition_R: Tensor,
    frequency_R: Tensor,
    presence_R: Tensor,
) -> Tensor:
    """What Ops.penalize makes of the rows `at`: [R, V]."""
    part, seen = logits_SV.index_select(0, at_R), table.index_select(0, rows_R)
    turned = repetition_R[:, None]
    scaled = torch.where(part > 0, part / turned, part * turned)
    part = torch.where(seen != 0, scaled, part)
    counts = seen >> 1
    return part - counts * frequency_R[:, None] - (counts > 0) * presence_R[:, None]


def allow(logits_SV: Tensor, at_R: Tensor, bits_RW: Tensor) -> Tensor:
    """What Ops.allow makes of the rows `at`: [R, V]."""
    shifts = torch.arange(32, device=logits_SV.device, dtype=torch.int32)
    bits = (bits_RW[:, :, None] >> shifts) & 1
    allowed = bits.flatten(1)[:, : logits_SV.shape[1]].bool()
    return logits_SV.index_select(0, at_R).masked_fill(~allowed, -torch.inf)


class Chains(NamedTuple):
    """The functions above, or others that mean the same."""

    draw: Callable[..., Tensor] = draw
    keep: Callable[..., Tensor] = keep
    penalize: Callable[..., Tensor] = penalize
    allow: Callable[..., Tensor] = allow


PLAIN = Chains()
