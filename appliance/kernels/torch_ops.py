"""Ops in plain torch, on any device: the meaning of the fast ones, and what serves the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from appliance.kernels.chains import PLAIN, Chains
from appliance.kernels.ops import Activation, Rounded, Rounding

_LARGEST = 448.0
"""Of e4m3."""
SORTED_ROWS = 128
"""Rows sorted at a time: bounds the memory that a step's filters take."""
CHANGED_ROWS = 64
"""Rows that penalties or masks change at a time, so that this takes less memory than filters, which
the memory plan knows: bits of 512 rows alone, each made a number, were half a GB."""
_CACHED = 1 << 18
"""Logits that a CPU changes at a time: what a chain makes of more leaves its cache in between, and
64 rows of 150,000 took eight times as long."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


def rotate(x_TND: Tensor, cos_sin_TD: Tensor) -> Tensor:
    """Turns pairs (i, i + D/2) of every head by the angles of its token."""
    half = x_TND.shape[-1] // 2
    cos, sin = cos_sin_TD[:, None, :half], cos_sin_TD[:, None, half:]
    wide = x_TND.float()
    left, right = wide[..., :half], wide[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x_TND.dtype)


def round_rows(x_TI: Tensor, fixed: Tensor | None, cap: float) -> tuple[Tensor, Tensor]:
    """x in e4m3, and the float32 scale [T, 1] that undoes it."""
    wide = x_TI.float()
    if fixed is not None:
        scale = fixed.repeat(x_TI.shape[0])[:, None]
    else:
        largest = wide.abs().amax(1, keepdim=True)
        if cap > 0:
            largest = largest.clamp(max=cap)
        scale = (largest / _LARGEST).clamp(min=1e-12)
    return (wide / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn), scale


def rounded(x_TI: Tensor, how: Rounding) -> Rounded:
    """x as `how` says."""
    if not how.run:
        return Rounded(*round_rows(x_TI, how.fixed, how.cap), x_TI.dtype)
    tokens, ins = x_TI.shape
    runs = F.pad(x_TI, (0, -ins % how.run)).view(-1, how.run)
    values, scale = round_rows(runs, None, how.cap)
    values = values.view(tokens, -1)[:, :ins].contiguous()
    return Rounded(values, scale.view(tokens, -1), x_TI.dtype)


def narrow(x: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """x / scale in an 8-bit float format, clipped to the largest value the format holds."""
    most = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-most, most).to(dtype)


def _write(pages: Tensor, rows_T: Tensor, x_TKD: Tensor, scale: float) -> None:
    kv_heads, size = pages.shape[2:]
    if pages.dtype.itemsize == 1:
        # torch copies bytes by index on every device, 8-bit floats only on some
        x_TKD = narrow(x_TKD, pages.dtype, scale).view(torch.uint8)
        pages = pages.view(torch.uint8)
    pages.view(-1, kv_heads, size).index_copy_(0, rows_T, x_TKD)


def descending(x_BV: Tensor) -> Tensor:
    """Each row's values, largest first; not a number before all."""
    if x_BV.device.type != "cpu":
        return x_BV.sort(-1, descending=True).values
    # numpy sorts with vector instructions: some thirty times as fast
    return torch.from_numpy(np.sort(x_BV.numpy(), axis=-1)).flip(-1)


def _parts(logits: Tensor, rows: int, most: int) -> list[slice]:
    """Of so many rows, those that are changed at a time."""
    if logits.device.type == "cpu":
        most = max(1, min(most, _CACHED // logits.shape[1]))
    return [slice(begin, begin + most) for begin in range(0, rows, most)]


def keep_likely(
    logits_BV: Tensor,
    rows_R: Tensor,
    top_k_R: Tensor,
    top_p_R: Tensor,
    min_p_R: Tensor,
    keep: Callable[..., Tensor] = PLAIN.keep,
) -> Tensor:
    """As Ops.keep_likely says, by sorting."""
    for some in _parts(logits_BV, len(rows_R), SORTED_ROWS):
        rows = rows_R[some].long()
        part = logits_BV[rows]
        part = keep(part, descending(part), top_k_R[some], top_p_R[some], min_p_R[some])
        logits_BV.index_copy_(0, rows, part)
    return logits_BV


class TorchOps:
    def __init__(self, chains: Chains = PLAIN) -> None:
        self._chains = chains

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        return F.linear(x_TI, weight_OI, bias_O)

    def gated_linear(self, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
        return self.silu_and_mul(F.linear(x_TI, weight_OI))

    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x_TE, (x_TE.shape[-1],), weight_E, eps)

    def add_rms_norm(
        self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = residual_TE.add_(x_TE)
        return F.rms_norm(total, (total.shape[-1],), weight_E, eps), total

    def silu_and_mul(self, x_TI2: Tensor) -> Tensor:
        gate, up = x_TI2.chunk(2, -1)
        return F.silu(gate) * up

    def rounded_norm(
        self, x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, eps: float, how: Rounding
    ) -> tuple[Rounded, Tensor]:
        if residual_TE is None:
            normed, total = self.rms_norm(x_TE, weight_E, eps), x_TE
        else:
            normed, total = self.add_rms_norm(x_TE, residual_TE, weight_E, eps)
        return rounded(normed, how), total

    def rounded_silu_and_mul(self, x_TI2: Tensor, how: Rounding) -> Rounded:
        return rounded(self.silu_and_mul(x_TI2), how)

    def rope_store(
        self,
        qkv: Tensor,
        positions_T: Tensor,
        cos_sin: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        kv_rows_T: Tensor,
        q_weight_D: Tensor | None,
        k_weight_D: Tensor | None,
        eps: float,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> Tensor:
        kv_heads, size = k_pages.shape[2:]
        heads = qkv.shape[1] // size - 2 * kv_heads
        qkv = qkv.view(qkv.shape[0], -1, size)
        turned = qkv[:, : heads + kv_heads]
        if q_weight_D is not None and k_weight_D is not None:
            q = F.rms_norm(turned[:, :heads], (size,), q_weight_D, eps)
            k = F.rms_norm(turned[:, heads:], (size,), k_weight_D, eps)
            turned = torch.cat((q, k), 1)
        turned = rotate(turned, cos_sin.index_select(0, positions_T))
        _write(k_pages, kv_rows_T, turned[:, heads:], k_scale)
        _write(v_pages, kv_rows_T, qkv[:, heads + kv_heads :], v_scale)
        return turned[:, :heads]

    def write_pages(
        self, page_table: Tensor, slots: Tensor, columns: Tensor, pages: Tensor
    ) -> None:
        page_table[slots.long(), columns.long()] = pages

    def keep_likely(
        self, logits_BV: Tensor, rows_R: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor
    ) -> Tensor:
        return keep_likely(logits_BV, rows_R, top_k_R, top_p_R, min_p_R, self._chains.keep)

    def penalize(
        self,
        logits_SV: Tensor,
        at_R: Tensor,
        table: Tensor,
        rows_R: Tensor,
        repetition_R: Tensor,
        frequency_R: Tensor,
        presence_R: Tensor,
    ) -> None:
        for some in _parts(logits_SV, len(at_R), CHANGED_ROWS):
            at = at_R[some]
            part = self._chains.penalize(
                logits_SV, at, table, rows_R[some], repetition_R[some], frequency_R[some],
                presence_R[some],
            )  # fmt: skip
            logits_SV.index_copy_(0, at, part)

    def allow(self, logits_SV: Tensor, at_R: Tensor, bits_RW: Tensor) -> None:
        for some in _parts(logits_SV, len(at_R), CHANGED_ROWS):
            at = at_R[some]
            logits_SV.index_copy_(0, at, self._chains.allow(logits_SV, at, bits_RW[some]))

    def fp8_linear(
        self,
        x_TI: Activation,
        weight_OI: Tensor,
        scale_O: Tensor,
        input_scale: Tensor | None,
        cap: float,
        bias_O: Tensor | None,
    ) -> Tensor:
        if not isinstance(x_TI, Rounded):
            x_TI = rounded(x_TI, Rounding(input_scale, cap))
        out = (x_TI.values.float() @ weight_OI.float().T) * x_TI.scale * scale_O
        if bias_O is not None:
            out = out + bias_O.float()
        return out.to(x_TI.dtype)

    def fp8_block_linear(
        self, x_TI: Activation, weight_OI: Tensor, scale_BC: Tensor, bias_O: Tensor | None
    ) -> Tensor:
        if not isinstance(x_TI, Rounded):
            x_TI = rounded(x_TI, Rounding(None, 0.0, 128))
        ins = weight_OI.shape[1]
        x = x_TI.values.float() * x_TI.scale.repeat_interleave(128, 1)[:, :ins]
        spread = scale_BC.repeat_interleave(128, 0).repeat_interleave(128, 1)
        weight = weight_OI.float() * spread[: weight_OI.shape[0], :ins]
        out = x @ weight.T
        if bias_O is not None:
            out = out + bias_O.float()
        return out.to(x_TI.dtype)

    def first_largest(self, logits_BV: Tensor, otherwise: int) -> Tensor:
        largest, index = logits_BV.max(-1)
        return torch.where(torch.isfinite(largest), index, otherwise)

    def gumbel_argmax(
        self, logits_BV: Tensor, temperature_B: Tensor, seeds_B: Tensor, counters_B: Tensor
    ) -> Tensor:
        rows, given = len(logits_BV), (temperature_B, seeds_B, counters_B)
        drawn = [
            self._chains.draw(logits_BV[some].float().contiguous(), *(one[some] for one in given))
            for some in _parts(logits_BV, rows, rows)
        ]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
