"""Ops: the arithmetic a layer asks for, as one protocol with two makers.

`torch_ops.TorchOps` is plain torch on any device and says what each one means; `cuda_ops.CudaOps`
is the fast one on NVIDIA. Nothing else in the project knows triton or flashinfer.

Shapes: T tokens, H query heads and K kv heads of this rank, D head size, P page size, B rows.
"""

from __future__ import annotations

import subprocess
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from appliance.kernels.chains import PLAIN, Chains


class Rounding(NamedTuple):
    """How a linear wants its tokens in e4m3: all by the scale `fixed` [1], or each so that its
    largest magnitude, at most `cap` when cap > 0, becomes 448; or, when run > 0, each run of so
    many of its values by itself."""

    fixed: Tensor | None
    cap: float
    run: int = 0


class Rounded(NamedTuple):
    """Tokens that are rounded already: values e4m3 [T, I] times scale float32 [T, 1], or [T, runs];
    values and a token's own scale contiguous, as a GPU's products take no others. Scales of runs
    may lie as these products read them (`gemm_fp8.room_by_runs`), else are laid so when they are
    multiplied. dtype: what they would be in otherwise."""

    values: Tensor
    scale: Tensor
    dtype: torch.dtype


Activation = Tensor | Rounded
"""What goes into a linear."""


class Turns(NamedTuple):
    """What turns queries and keys, of T tokens: positions int64 [T]; cos_sin float32 [context, D],
    cosines then sines; q_weight, k_weight [D] with eps: norm of each head before the turn; None
    for none."""

    positions: Tensor
    cos_sin: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    eps: float


class Ops(Protocol):
    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W^T + bias."""

    def gated_linear(self, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
        """silu_and_mul of x W^T, whose W holds the gates' rows, then as many of what they gate."""

    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight, computed in float32."""

    def add_rms_norm(
        self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """residual + x, and its rms_norm: (normed, sum). Both inputs may be overwritten."""

    def silu_and_mul(self, x_TI2: Tensor) -> Tensor:
        """silu(left half) * right half: [T, 2 I] -> [T, I]."""

    def rounded_norm(
        self, x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, eps: float, how: Rounding
    ) -> tuple[Rounded, Tensor]:
        """rms_norm, or add_rms_norm where there is a residual, with the normed tokens rounded as
        `how` says: (rounded, sum, or x without a residual)."""

    def rounded_silu_and_mul(self, x_TI2: Tensor, how: Rounding) -> Rounded:
        """silu_and_mul, rounded."""

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
        """Turns q and k by their positions, writes k and v to their pages, returns q [T, H, D].

        qkv: [T, (H + 2 K) D]. cos_sin: float32 [context, D], cosines then sines of D / 2 angles.
        k_pages, v_pages: [pages, P, K, D]; kv_rows_T: page * P + offset of each token.
        q_weight, k_weight: norm of each head before the turn; None for none.
        Pages of 8-bit floats take k / k_scale and v / v_scale, clipped to what the format holds;
        wider pages take k and v as they are.
        """

    def write_pages(
        self, page_table: Tensor, slots: Tensor, columns: Tensor, pages: Tensor
    ) -> None:
        """page_table[slots[i], columns[i]] = pages[i]; all int32."""

    def keep_likely(
        self, logits_BV: Tensor, rows_R: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor
    ) -> Tensor:
        """Minus infinity, in place, for what is unlikely in the rows named: all but the top_k
        largest; of these, what comes after a mass of top_p; and what is less likely than min_p
        times the likeliest. Values equal to the last one kept stay, and the largest always does.

        logits float32; rows, top_k int32 (the vocabulary's size: all); top_p, min_p float32.
        """

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
        """In place, for the rows `at`, by what table[rows] int16 has seen of each token (twice the
        times it was output, and one more where the prompt has it): what was seen is divided by
        `repetition` where it is positive, else multiplied; then `frequency` is taken off for each
        time it was output, and `presence` once.

        logits float32; at, rows int64, none twice.
        """

    def allow(self, logits_SV: Tensor, at_R: Tensor, bits_RW: Tensor) -> None:
        """Minus infinity, in place, in the rows `at` for tokens whose bit is not set. bits int32
        [R, ceil(V / 32)], the lowest bit of a word first."""

    def fp8_linear(
        self,
        x_TI: Activation,
        weight_OI: Tensor,
        scale_O: Tensor,
        input_scale: Tensor | None,
        cap: float,
        bias_O: Tensor | None,
    ) -> Tensor:
        """x W^T + bias with both rounded to e4m3: W as stored times scale_O (float32), x by token
        (its largest magnitude, at most `cap` when cap > 0, becomes 448) or by `input_scale` [1];
        what is rounded already is taken as it is."""

    def fp8_block_linear(
        self, x_TI: Activation, weight_OI: Tensor, scale_BC: Tensor, bias_O: Tensor | None
    ) -> Tensor:
        """As fp8_linear with scale_BC for blocks of 128 × 128, and x rounded in runs of 128."""

    def first_largest(self, logits_BV: Tensor, otherwise: int) -> Tensor:
        """The first index of each row's largest logit, or `otherwise` where that is not finite:
        where anything is not a number or infinite, or all is minus infinity. int64 [B]."""

    def gumbel_argmax(
        self, logits_BV: Tensor, temperature_B: Tensor, seeds_B: Tensor, counters_B: Tensor
    ) -> Tensor:
        """argmax of logits / temperature + Gumbel noise: a draw from softmax(logits / temperature).
        int64 [B].

        The noise of (seed, counter, token) is a pure function of the three, the same on every
        device and in every batch. logits of any float type; temperature float32; seeds int64;
        counters int32.
        """


class CaptureOps(Ops, Protocol):
    """What a captured pass needs besides: its inputs made on the device from slots alone."""

    def row_inputs(
        self,
        slots: Tensor,
        starts: Tensor,
        indptr: Tensor,
        page_table: Tensor,
        last_token: Tensor,
        ids: Tensor,
        positions: Tensor,
        kv_rows: Tensor,
        last_len: Tensor,
        indices: Tensor,
        page_size: int,
    ) -> None:
        """Fills ids, positions, kv_rows, last_len [B] and the flat page list of B decode rows.

        slots, starts int32 [B]; indptr int32 [B + 1]: pages before each row.
        """

    def flatten_pages(
        self,
        page_table: Tensor,
        slots: Tensor,
        indptr: Tensor,
        indices: Tensor,
        firsts: Tensor | None = None,
    ) -> None:
        """indices[indptr[r] : indptr[r + 1]] = pages of slot slots[r], from column firsts[r] on
        (int32 [R]; None: from the first)."""


def chains_of(device: torch.device, dtype: torch.dtype, search: bool) -> tuple[str, ...]:
    """Names of the chains that the Ops of `select` run: of the others there are kernels."""
    if device.type != "cuda" or dtype == torch.float32:
        return PLAIN._fields
    return () if search else ("keep",)


def select(
    device: torch.device,
    dtype: torch.dtype,
    search: bool = False,
    chains: Chains = PLAIN,
    skinny: bool = False,
) -> Ops:
    """The Ops for a device; float32 is computed by plain torch everywhere. search: the likely
    tokens are found without sorting, where there are kernels for it. skinny: what is captured for
    few tokens has matmuls of its own, where there are kernels for it. ImportError: something of
    theirs is not installed, or a library of it does not load."""
    if device.type == "cuda" and dtype != torch.float32:
        try:
            from appliance.kernels.cuda_ops import CudaOps
        except OSError as e:
            raise ImportError(str(e)) from e
        return CudaOps(device, search, chains, skinny)
    from appliance.kernels.torch_ops import TorchOps

    return TorchOps(chains)


def compile_failures() -> tuple[type[Exception], ...]:
    """What is raised where a kernel that comes as source cannot be compiled, loaded or launched.

    RuntimeError: FlashInfer, the CUDA driver, Triton where it finds no compiler or its passes fail.
    OSError: no ninja, nvcc or C compiler, a folder that cannot be written, a library that does not
    load. SubprocessError: a compiler that fails. ImportError: a part of one that is not installed.
    """
    known = (RuntimeError, OSError, subprocess.SubprocessError, ImportError)
    try:
        from triton.errors import TritonError
    except ImportError:
        return known
    return (*known, TritonError)
