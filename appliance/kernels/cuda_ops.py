"""Ops on NVIDIA GPUs: FlashInfer's norms and activation, our own Triton kernels for the rest."""

from __future__ import annotations

import flashinfer
import torch
import torch.nn.functional as F
from torch import Tensor

from appliance.kernels import (
    draw,
    edit_logits,
    filter_logits,
    gemm_fp8,
    greedy,
    norm,
    rope,
    round_fused,
    slot_tables,
    torch_ops,
)
from appliance.kernels.chains import PLAIN, Chains
from appliance.kernels.ops import Rounded, Rounding
from appliance.kernels.skinny import SkinnyMatmuls


class CudaOps:
    def __init__(
        self,
        device: torch.device,
        search: bool = False,
        chains: Chains = PLAIN,
        skinny: bool = False,
    ) -> None:
        self.device = device
        self._search = search
        self._skinny = SkinnyMatmuls(device) if skinny else None
        # whether a kernel may begin before the one in front has ended
        self._dependent = torch.cuda.get_device_capability(device) >= (9, 0)
        self._plain = torch_ops.TorchOps(chains)

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        own = self._skinny and self._skinny.linear(x_TI, weight_OI, bias_O)
        return F.linear(x_TI, weight_OI, bias_O) if own is None else own

    def gated_linear(self, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
        own = self._skinny and self._skinny.gated(x_TI, weight_OI)
        return self.silu_and_mul(F.linear(x_TI, weight_OI)) if own is None else own

    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        if self._lets_begin(x_TE):
            return norm.norm(x_TE, None, weight_E, eps, self._dependent)
        return flashinfer.norm.rmsnorm(x_TE, weight_E, eps)

    def add_rms_norm(
        self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if self._lets_begin(x_TE) and residual_TE.is_contiguous():
            return norm.norm(x_TE, residual_TE, weight_E, eps, self._dependent), residual_TE
        flashinfer.norm.fused_add_rmsnorm(x_TE, residual_TE, weight_E, eps)
        return x_TE, residual_TE

    def _lets_begin(self, x_TE: Tensor) -> bool:
        """Whether a norm's own kernel serves, behind which a matmul of ours begins early."""
        few = self._skinny is not None and len(x_TE) <= norm.MAX_ROWS
        return few and x_TE.is_contiguous()

    def silu_and_mul(self, x_TI2: Tensor) -> Tensor:
        return flashinfer.activation.silu_and_mul(x_TI2)

    def rounded_norm(self, x_TE, residual_TE, weight_E, eps, how) -> tuple[Rounded, Tensor]:
        rounded = round_fused.norm(x_TE, residual_TE, weight_E, eps, how, dependent=self._dependent)
        return Rounded(*rounded, x_TE.dtype), x_TE if residual_TE is None else residual_TE

    def rounded_silu_and_mul(self, x_TI2: Tensor, how: Rounding) -> Rounded:
        rounded = round_fused.silu_mul(x_TI2, how, dependent=self._dependent)
        return Rounded(*rounded, x_TI2.dtype)

    def rope_store(
        self, qkv, positions_T, cos_sin, k_pages, v_pages, kv_rows_T, q_weight_D, k_weight_D, eps,
        k_scale=1.0, v_scale=1.0,
    ) -> Tensor:  # fmt: skip
        return rope.rope_store(
            qkv, positions_T, cos_sin, k_pages, v_pages, kv_rows_T, q_weight_D, k_weight_D, eps,
            k_scale, v_scale, dependent=self._dependent,
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
        x = x_TI
        if not isinstance(x, Rounded):
            rounded = gemm_fp8.round_rows(x, input_scale, cap, dependent=self._dependent)
            x = Rounded(*rounded, x.dtype)
        own = self._skinny and self._skinny.rounded(x, weight_OI, scale_O, bias_O)
        return gemm_fp8.linear(x, weight_OI, scale_O, bias_O) if own is None else own

    def fp8_block_linear(self, x_TI, weight_OI, scale_BC, bias_O) -> Tensor:
        x = x_TI
        if not isinstance(x, Rounded):
            x = Rounded(*gemm_fp8.round_runs(x, dependent=self._dependent), x.dtype)
        return gemm_fp8.block_linear(x, weight_OI, scale_BC, bias_O)

    def first_largest(self, logits_BV: Tensor, otherwise: int) -> Tensor:
        return greedy.first_largest(logits_BV, otherwise)

    def gumbel_argmax(
        self, logits_BV: Tensor, temperature_B: Tensor, seeds_B: Tensor, counters_B: Tensor
    ) -> Tensor:
        return draw.gumbel_argmax(logits_BV, temperature_B, seeds_B, counters_B)
