"""A decode step's attention from what the linear of queries, keys and values leaves: rotary
embedding, K and V to their pages, and attention over these, in one kernel for few rows
(paged_decode.cu).

Where rows are few, a kernel takes longer to begin and to end than its bytes take. A block has one
key-value head of a row: its queries are turned by who needs them, and no part of a row waits for
another block's, unless rows are so long that blocks would idle otherwise.
"""

from __future__ import annotations

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from appliance.kernels import paged_decode
from appliance.kernels.cuda_source import Kernel, architecture, image
from appliance.kernels.multiprocessors import Share, spared
from appliance.kernels.ops import Turns
from appliance.kernels.paged_decode import SOURCE, Shape, tile_bytes

MAX_ROWS = 64
"""More are divided evenly among multiprocessors, which then counts for more than a launch."""
_LEAST = 768
"""Tokens of a row whose pieces are not worth putting together."""
_STAGES_MOST = 6
_KEPT = 1 << 10
"""Bytes of a multiprocessor's shared memory that each block takes for itself, and that a block has
besides its tiles."""


class Division(NamedTuple):
    """warps of a block; tiles that each has on their way or at work; blocks that share a
    multiprocessor."""

    warps: int
    stages: int
    shared: int


class _Given(ctypes.Structure):
    """As in paged_decode.cu."""

    _fields_ = (
        *paged_decode.Given._fields_,
        *((name, ctypes.c_uint64) for name in (
            "qkv", "positions", "cos_sin", "q_weight", "k_weight",
        )),
        ("eps", ctypes.c_float),
        ("k_scale", ctypes.c_float),
        ("v_scale", ctypes.c_float),
        ("least", ctypes.c_int),
    )  # fmt: skip


class _Built(NamedTuple):
    """slots: blocks that a key-value head has at a time."""

    kernel: Kernel
    division: Division
    slots: int


def why_not(shape: Shape, capability: tuple[int, int]) -> str:
    """What of this shape or GPU the kernel does not know; empty: nothing."""
    if capability[0] < 9:
        return "it begins before the kernel in front has ended, which GPUs before Hopper do not"
    if capability[0] > 10:
        return "a multiprocessor has too little shared memory for it"
    return paged_decode.why_not(shape, capability)


def divided(shape: Shape, shared_most: int, alone: bool) -> Division:
    """For a multiprocessor that gives a block so many bytes of shared memory. alone: no more blocks
    than multiprocessors have work."""
    warps, shared = (8, 1) if alone else (4, 2)
    room = (shared_most + _KEPT) // shared - 2 * _KEPT
    return Division(warps, min(_STAGES_MOST, room // (warps * tile_bytes(shape))), shared)


class TurnedDecode:
    """One shape's kernels on one GPU: a block to a multiprocessor where rows are so few, else two.
    Not for two streams at a time: the buffers are its own.

    RuntimeError when it cannot be built here.
    """

    def __init__(
        self, shape: Shape, head_norm: bool, device: torch.device, folder: Path | None = None
    ) -> None:
        """folder: where what is compiled is kept; triton's when None."""
        properties = torch.cuda.get_device_properties(device)
        self._shape, self._head_norm = shape, head_norm
        self._multiprocessors = properties.multi_processor_count
        most = properties.shared_memory_per_block_optin
        divisions = [divided(shape, most, alone) for alone in (True, False)]
        arch = architecture(device)
        options = [definitions(shape, division, head_norm) for division in divisions]
        with ThreadPoolExecutor(len(divisions)) as pool:
            codes = list(pool.map(lambda given: image(SOURCE, given, arch, folder), options))
        with torch.cuda.device(device):
            self._alone, self._two = (
                _Built(
                    Kernel(code, "turned_decode", d.stages * d.warps * tile_bytes(shape)), d,
                    max(1, self._multiprocessors * d.shared // shape.kv_heads),
                )
                for code, d in zip(codes, divisions, strict=True)
            )  # fmt: skip
        pieces = (self._two.slots + MAX_ROWS) * shape.heads
        self._parts = torch.zeros(pieces * shape.head_dim, dtype=torch.float32, device=device)
        self._sums = torch.zeros(pieces * 2, dtype=torch.float32, device=device)
        self._arrived = torch.zeros(MAX_ROWS * shape.kv_heads, dtype=torch.int32, device=device)
        self._share = Share(device, self._multiprocessors, spared(device))

    def leave_room(self, room: bool) -> None:
        """Whether runs from now on, captured ones too, leave multiprocessors to others. Queued on
        the current stream."""
        self._share.leave_room(room)

    def run(
        self,
        qkv: Tensor,
        turns: Turns,
        k: Tensor,
        v: Tensor,
        indptr: Tensor,
        last_len: Tensor,
        indices: Tensor,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        least: int = _LEAST,
    ) -> Tensor:
        """[B, H, D]: what Ops.rope_store and then attention of one token a row give, of qkv
        [B, (H + 2 K) D]; a row's token is the last of its last page. k, v [pages, P, K, D] get it;
        page lists as PagedDecode.run has them.

        It begins before the kernel in front has ended, which may have written qkv and nothing else
        that is read here. least: tokens of a row that is not divided.
        """
        shape, rows = self._shape, len(qkv)
        assert 0 < rows <= MAX_ROWS and qkv.is_contiguous()
        assert qkv.shape[1] == (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        assert (turns.q_weight is not None) == self._head_norm
        assert turns.positions.dtype is torch.int64 and turns.cos_sin.dtype is torch.float32
        out = torch.empty((rows, shape.heads, shape.head_dim), dtype=qkv.dtype, device=qkv.device)
        weights = [0 if w is None else w.data_ptr() for w in (turns.q_weight, turns.k_weight)]
        given = _Given(
            k=k.data_ptr(), v=v.data_ptr(), indptr=indptr.data_ptr(),
            last_len=last_len.data_ptr(), indices=indices.data_ptr(), out=out.data_ptr(),
            parts=self._parts.data_ptr(), sums=self._sums.data_ptr(),
            arrived=self._arrived.data_ptr(), programs=self._share.taken.data_ptr(), rows=rows,
            scale=shape.head_dim**-0.5 * math.log2(math.e) * k_scale, value_scale=v_scale,
            dependent=1, qkv=qkv.data_ptr(), positions=turns.positions.data_ptr(),
            cos_sin=turns.cos_sin.data_ptr(), q_weight=weights[0], k_weight=weights[1],
            eps=turns.eps, k_scale=k_scale, v_scale=v_scale, least=-(-least // shape.page),
        )  # fmt: skip
        few = rows * shape.kv_heads <= self._multiprocessors
        kernel, division, slots = self._alone if few else self._two
        kernel.launch(given, slots * shape.kv_heads, 32 * division.warps, dependent=True)
        return out


def definitions(shape: Shape, division: Division, head_norm: bool) -> list[str]:
    """Options of the compiler."""
    shared = division.shared
    return paged_decode.definitions(shape, division.warps, division.stages, shared, head_norm)
