"""Attention of decode rows over pages, divided evenly among multiprocessors (paged_decode.cu).

FlashInfer divides rows before a pass is captured, by its longest; with rows of unequal length some
multiprocessors then wait for others. Here the division is made on the device from the page lists
themselves, so a captured pass needs no plan, and nothing but the lists changes from step to step.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from appliance.kernels.cuda_source import Kernel, architecture, image
from appliance.kernels.multiprocessors import Share, spared

SOURCE = Path(__file__).with_suffix(".cu")
_TILE = 16
_HEADS = (64, 128)
_STAGES = (3, 6)
"""Tiles of keys and values that a warp has on their way or at work: at least, at most."""
_SHARED_KEPT = 1 << 10
"""Bytes of a multiprocessor's shared memory that each block takes for itself."""
_FORMS = {torch.float16: 1, torch.bfloat16: 0}


class Shape(NamedTuple):
    """heads, kv_heads of this rank; page: tokens; narrow: pages of 8-bit floats (e4m3)."""

    heads: int
    kv_heads: int
    head_dim: int
    page: int
    dtype: torch.dtype
    narrow: bool


class Given(ctypes.Structure):
    """As in paged_decode.cu."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in (
            "q", "k", "v", "indptr", "last_len", "indices", "out", "parts", "sums", "arrived",
            "programs",
        )),
        ("rows", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("value_scale", ctypes.c_float),
        ("dependent", ctypes.c_int),
    )  # fmt: skip


def why_not(shape: Shape, capability: tuple[int, int]) -> str:
    """What of this shape or GPU the kernel does not know; empty: nothing."""
    if capability < (8, 9 if shape.narrow else 0):
        return f"compute capability {capability[0]}.{capability[1]}"
    if shape.dtype not in _FORMS:
        return f"{shape.dtype}"
    if shape.head_dim not in _HEADS:
        return f"heads of {shape.head_dim} values"
    if shape.page % _TILE:
        return f"pages of {shape.page} tokens, which {_TILE} does not divide"
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 8:
        return f"{shape.heads} query heads to {shape.kv_heads} key-value heads"
    return ""


def divided(shape: Shape, shared_most: int) -> tuple[int, int]:
    """Warps of a block, and tiles that each has on their way or at work, in so many bytes of shared
    memory."""
    tile, (least, most) = tile_bytes(shape), _STAGES
    warps = 8 if shared_most >= 8 * least * tile else 4
    return warps, min(most, shared_most // (warps * tile))


def enough(shape: Shape, warps: int, programs: int) -> int:
    """So many programs, or as many more as it takes that each key-value head has a warp: with fewer
    nothing would be computed. A small GPU's share may be less than that."""
    return max(programs, -(-shape.kv_heads // warps))


def tile_bytes(shape: Shape) -> int:
    return 2 * _TILE * shape.head_dim * (1 if shape.narrow else 2)


class PagedDecode:
    """One shape's kernel on one GPU. Not for two streams at a time: the buffers are its own.

    RuntimeError when it cannot be built here (no cuda-bindings).
    """

    def __init__(
        self, shape: Shape, rows: int, device: torch.device, folder: Path | None = None
    ) -> None:
        """rows: at most. folder: where what is compiled is kept; triton's when None."""
        properties = torch.cuda.get_device_properties(device)
        self._shape = shape
        self._dependent = properties.major >= 9
        shared_most = properties.shared_memory_per_block_optin - _SHARED_KEPT
        self._warps, depth = divided(shape, shared_most)
        self.programs = enough(shape, self._warps, properties.multi_processor_count)
        options = definitions(shape, self._warps, depth)
        code = image(SOURCE, options, architecture(device), folder)
        with torch.cuda.device(device):
            self._kernel = Kernel(code, "paged_decode", depth * self._warps * tile_bytes(shape))
        ranges = self.programs * self._warps // shape.kv_heads
        parts = 2 * ranges * shape.heads
        self._parts = torch.zeros(parts * shape.head_dim, dtype=torch.float32, device=device)
        self._sums = torch.zeros(parts * 2, dtype=torch.float32, device=device)
        self._share = Share(device, self.programs, enough(shape, self._warps, spared(device)))
        self._arrived = torch.zeros(rows * shape.kv_heads, dtype=torch.int32, device=device)

    def leave_room(self, room: bool) -> None:
        """Whether runs from now on, captured ones too, leave multiprocessors to others. Queued on
        the current stream."""
        self._share.leave_room(room)

    def run(
        self,
        q_BHD: Tensor,
        k: Tensor,
        v: Tensor,
        indptr: Tensor,
        last_len: Tensor,
        indices: Tensor,
        out: Tensor,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        programs: int = 0,
    ) -> None:
        """softmax(q k^T / sqrt(D)) v of B rows with one token each; out as q [B, H, D].

        k, v [pages, P, K, D]; the pages of row b are indices[indptr[b] : indptr[b + 1]], at least
        one, the last of which holds last_len[b] tokens; int32. programs: multiprocessors to take
        whatever `leave_room` said.

        On GPUs since Hopper it may begin before the kernel in front has ended, and read pages
        but each row's last at once: of a step, these alone get tokens.
        """
        rows = q_BHD.shape[0]
        assert q_BHD.is_contiguous() and out.is_contiguous() and programs <= self.programs
        assert rows * self._shape.kv_heads <= len(self._arrived), f"{rows} rows are too many"
        given = Given(
            q=q_BHD.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), indptr=indptr.data_ptr(),
            last_len=last_len.data_ptr(), indices=indices.data_ptr(), out=out.data_ptr(),
            parts=self._parts.data_ptr(), sums=self._sums.data_ptr(),
            arrived=self._arrived.data_ptr(), rows=rows,
            programs=0 if programs else self._share.taken.data_ptr(),
            scale=self._shape.head_dim**-0.5 * math.log2(math.e) * k_scale, value_scale=v_scale,
            dependent=self._dependent,
        )  # fmt: skip
        self._kernel.launch(
            given, programs or self.programs, 32 * self._warps, dependent=self._dependent
        )


def definitions(
    shape: Shape, warps: int, depth: int, turned: int = 0, head_norm: bool = False
) -> list[str]:
    """Options of the compiler for this shape. depth: tiles that a warp has on their way. turned,
    head_norm: of the kernel of `turned_decode.py`."""
    values = {
        "HEAD": shape.head_dim, "PAGE": shape.page, "KV_HEADS": shape.kv_heads,
        "EACH": shape.heads // shape.kv_heads, "WARPS": warps, "STAGES": depth,
        "NARROW": int(shape.narrow), "HALF": _FORMS[shape.dtype], "TURNED": turned,
        "HEAD_NORM": int(head_norm),
    }  # fmt: skip
    return [f"-D{name}={value}" for name, value in values.items()]
