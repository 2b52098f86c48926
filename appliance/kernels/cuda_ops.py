"""Ops on NVIDIA GPUs: FlashInfer's norms and activation, our own Triton kernels for the rest."""

from __future__ import annotations

import flashinfer
import torch
import triton
import triton.language as tl
from torch import Tensor

from appliance.kernels import (
    edit_logits,
    filter_logits,
    gemm_fp8,
    greedy,
    rope,
    round_fused,
    slot_tables,
    torch_ops,
)
from appliance.kernels.chains import PLAIN, Chains
from appliance.kernels.ops import Rounded, Rounding


@triton.jit
def _mix32(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _gumbel_part(
    logits, stride, seeds, counters, best_value, best_index, vocab, parts, BLOCK: tl.constexpr
):
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
    value = tl.where(token < vocab, value.to(tl.float32) + noise, float("-inf"))
    best, index = tl.max(value, 0, return_indices=True)
    tl.store(best_value + row * parts + part, best)
    tl.store(best_index + row * parts + part, part * BLOCK + index)


class CudaOps:
    def __init__(self, device: torch.device, search: bool = False, chains: Chains = PLAIN) -> None:
        self.device = device
        self._search = search
        self._plain = torch_ops.TorchOps(chains)

    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        return flashinfer.norm.rmsnorm(x_TE, weight_E, eps)

    def add_rms_norm(
        self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        flashinfer.norm.fused_add_rmsnorm(x_TE, residual_TE, weight_E, eps)
        return x_TE, residual_TE

    def silu_and_mul(self, x_TI2: Tensor) -> Tensor:
        return flashinfer.activation.silu_and_mul(x_TI2)

    def rounded_norm(self, x_TE, residual_TE, weight_E, eps, how) -> tuple[Rounded, Tensor]:
        rounded = round_fused.norm(x_TE, residual_TE, weight_E, eps, how)
        return Rounded(*rounded, x_TE.dtype), x_TE if residual_TE is None else residual_TE

    def rounded_silu_and_mul(self, x_TI2: Tensor, how: Rounding) -> Rounded:
        return Rounded(*round_fused.silu_mul(x_TI2, how), x_TI2.dtype)

    def rope_store(
        self, qkv, positions_T, cos_sin, k_pages, v_pages, kv_rows_T, q_weight_D, k_weight_D, eps,
        k_scale=1.0, v_scale=1.0,
    ) -> Tensor:  # fmt: skip
        return rope.rope_store(
            qkv, positions_T, cos_sin, k_pages, v_pages, kv_rows_T, q_weight_D, k_weight_D, eps,
            k_scale, v_scale,
        )  # fmt: skip

    def write_pages(
        self, page_table: Tensor, slots: Tensor, columns: Tensor, pages: Tensor
    ) -> None:
        slot_tables.write_pages(page_table, slots, columns, pages)

    def row_inputs(
        self, slots, starts, indptr, page_table, last_token, ids, positions, kv_rows, last_len,
        indices, page_size: int,
    ) -> None:  # fmt: skip
        slot_tables.row_inputs(
            slots, starts, indptr, page_table, last_token, ids, positions, kv_rows, last_len,
            indices, page_size,
        )  # fmt: skip

    def flatten_pages(self, page_table, slots, indptr, indices, firsts=None) -> None:
        slot_tables.flatten_pages(page_table, slots, indptr, indices, firsts)

    def keep_likely(self, logits_BV, rows_R, top_k_R, top_p_R, min_p_R) -> Tensor:
        by = filter_logits.keep_likely if self._search else self._plain.keep_likely
        return by(logits_BV, rows_R, top_k_R, top_p_R, min_p_R)

    def penalize(
        self, logits_SV, at_R, table, rows_R, repetition_R, frequency_R, presence_R
    ) -> None:
        edit_logits.penalize(logits_SV, at_R, table, rows_R, repetition_R, frequency_R, presence_R)

    def allow(self, logits_SV: Tensor, at_R: Tensor, bits_RW: Tensor) -> None:
        edit_logits.allow(logits_SV, at_R, bits_RW)

    def fp8_linear(self, x_TI, weight_OI, scale_O, input_scale, cap, bias_O) -> Tensor:
        return gemm_fp8.linear(x_TI, weight_OI, scale_O, input_scale, cap, bias_O)

    def fp8_block_linear(self, x_TI, weight_OI, scale_BC, bias_O) -> Tensor:
        return gemm_fp8.block_linear(x_TI, weight_OI, scale_BC, bias_O)

    def first_largest(self, logits_BV: Tensor, otherwise: int) -> Tensor:
        return greedy.first_largest(logits_BV, otherwise)

    def gumbel_argmax(self, logits_BV: Tensor, seeds_B: Tensor, counters_B: Tensor) -> Tensor:
        rows, vocab = logits_BV.shape
        parts = triton.cdiv(vocab, 4096)
        value = torch.empty((rows, parts), dtype=torch.float32, device=logits_BV.device)
        index = torch.empty((rows, parts), dtype=torch.int32, device=logits_BV.device)
        _gumbel_part[(rows, parts)](
            logits_BV, logits_BV.stride(0), seeds_B, counters_B, value, index, vocab, parts,
            BLOCK=4096, num_warps=8,
        )  # fmt: skip
        best = torch.argmax(value, 1, keepdim=True)
        return index.gather(1, best).squeeze(1).long()
