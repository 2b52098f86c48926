"""A decoder's layers for up to 8 rows as one kernel (few_rows.cu): build, buffers and launch.

The kernel holds every multiprocessor from the first layer to the last, so that weights are read
without a pause: what a decode step of few rows takes is the time of that. Its blocks never meet:
what they hand to each other is asked for until it is there. It is compiled for the model's widths
and the GPU at hand, since Hopper, when it is first needed, and kept beside triton's kernels.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from appliance.kernels.cuda_source import Kernel, architecture, image

MAX_ROWS = 8
HEAD = 128
"""The size of a head that the kernel knows."""

_SOURCE = Path(__file__).with_suffix(".cu")
_WARPS = 8
_HELPERS = 4
"""Warps beside those that compute."""
_LINE = 1024
"""Bytes of each row that a stage of the ring holds."""
_STAGE = 16 * _LINE
_STAGES_MOST = 13
_AWAY = 4
"""Stages on their way at a time, enough to keep the memory busy: what blocks wait for queues behind
them."""
_CHUNK = 4
"""16 rows each, whose sums over columns the warps of a block put together at a time."""
_PAIRS = 2
"""16s of gates, and as many of their values, that a tile holds at most."""
_SPLITS_MOST = 16
_FIXED_SHARED = 1024
_HANDED = (
    "first", "qkv", "mixed", "second", "inner", "first_squares", "second_squares",
    "parts", "part_max", "part_sum",
)  # fmt: skip


class Shape(NamedTuple):
    """heads, kv_heads: of 128 values. page: tokens. head_norm: q and k are normed by head.
    narrow: weights are 8-bit floats (e4m3) with a scale a row, else bfloat16."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    page: int
    head_norm: bool
    narrow: bool


class LayerTensors(NamedTuple):
    """One layer's. weights: qkv [(H + 2 K) 128, E], out [E, H 128], gate and up [2 I, E], down
    [E, I]; scales: float32 of their rows, or None. Norm weights [E] in bfloat16, of q and k [128];
    k, v [pages, P, K, 128]; cos_sin float32 [positions, 128]."""

    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    scales: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    mlp_norm: Tensor
    next_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    k: Tensor
    v: Tensor
    cos_sin: Tensor


def why_not(shape: Shape, capability: tuple[int, int]) -> str:
    """What of these widths or of the GPU the kernel does not know; empty: nothing."""
    if capability < (9, 0):
        return "it is for GPUs since Hopper"
    width = 1 if shape.narrow else 2
    for name, depth in (
        ("hidden", shape.hidden), ("intermediate", shape.inner), ("attention", shape.heads * HEAD),
    ):  # fmt: skip
        if depth * width % _LINE:
            return f"its {name} size {depth} is not divisible by {_LINE // width}"
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 8:
        return f"{shape.heads} query heads share {shape.kv_heads} key-value heads"
    return ""


class Plan(NamedTuple):
    """How the kernel is divided. blocks_qkv, blocks_gate: of 16 rows, that a tile holds; stages of
    the ring; away: those on their way; room: bytes of shared memory behind the ring."""

    blocks_qkv: int
    blocks_gate: int
    stages: int
    away: int
    room: int

    @property
    def shared_bytes(self) -> int:
        return self.stages * _STAGE + self.room


def plan(shape: Shape, programs: int, shared_bytes: int) -> Plan:
    """programs: multiprocessors, with so many bytes of shared memory for a block."""
    qkv = min(3, _most((shape.heads + 2 * shape.kv_heads) * HEAD, programs, 16))
    gate = 2 * min(_PAIRS, _most(shape.inner, programs, 16))
    each = shape.heads // shape.kv_heads
    sums = _CHUNK * 16 * (MAX_ROWS + 1)
    attention = 2 * 2 * each + each * HEAD
    room = 4 * _WARPS * max(sums, attention)
    stages = min(_STAGES_MOST, (shared_bytes - _FIXED_SHARED - room) // _STAGE)
    return Plan(qkv, gate, stages, min(_AWAY, stages), room)


def _most(outs: int, programs: int, tile: int) -> int:
    """Tiles of the program that has most results, which go to programs by twos."""
    return math.ceil(2 * math.ceil(outs / 2 / programs) / tile)


def pieces_for(shape: Shape, programs: int) -> int:
    """Parts of a token's sum of squares: one of each tile of 32 that a block has at most."""
    return programs * _most(shape.hidden, programs, 32)


def places(shape: Shape, programs: int) -> dict[str, int]:
    """Where each of what blocks hand to each other in a layer begins, and the bytes of all."""
    qkv, each = (shape.heads + 2 * shape.kv_heads) * HEAD, shape.heads // shape.kv_heads
    runs = programs * each
    rows = {"first": shape.hidden, "qkv": qkv, "mixed": shape.heads * HEAD,
            "second": shape.hidden, "inner": shape.inner}  # fmt: skip
    squares = 4 * MAX_ROWS * pieces_for(shape, programs)
    sizes = {name: 2 * MAX_ROWS * values for name, values in rows.items()}
    sizes |= {"first_squares": squares, "second_squares": squares}
    sizes |= {"parts": 4 * runs * HEAD, "part_max": 4 * runs, "part_sum": 4 * runs}
    ends = list(accumulate(-(-sizes[name] // 16) * 16 for name in _HANDED))
    return dict(zip((*_HANDED, "handed_bytes"), (0, *ends), strict=True))


def splits_for(rows: int, kv_heads: int, programs: int) -> int:
    """Runs that a row's tokens are divided into, so that most blocks have one."""
    return max(1, min(_SPLITS_MOST, programs // (rows * kv_heads)))


class _Layer(ctypes.Structure):
    """As in few_rows.cu."""

    _fields_ = (
        ("w", ctypes.c_uint64 * 4),
        ("scale", ctypes.c_uint64 * 4),
        *((name, ctypes.c_uint64) for name in (
            "mlp_norm", "next_norm", "q_norm", "k_norm", "k_pages", "v_pages", "cos_sin", "nothing",
        )),
    )  # fmt: skip


class _Given(ctypes.Structure):
    """As in few_rows.cu."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in (
            "layers", "x", "positions", "indptr", "indices", "first_norm", "final_norm",
            "h", "out", "handed", "counter", *_HANDED, "handed_bytes",
        )),
        ("rows", ctypes.c_int),
        ("count", ctypes.c_int),
        ("splits", ctypes.c_int),
        ("pieces", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("softmax_scale", ctypes.c_float),
    )  # fmt: skip


class FewRows:
    """One model's layers on one GPU. Not for two streams at a time: the buffers are its own.

    RuntimeError when the kernel cannot be built here (no cuda-bindings, an old GPU).
    """

    def __init__(
        self,
        shape: Shape,
        layers: Sequence[LayerTensors],
        first_norm: Tensor,
        final_norm: Tensor,
        eps: float,
        softmax_scale: float,
        folder: Path | None = None,
    ) -> None:
        """folder: where compiled kernels are kept; triton's when left out."""
        device = final_norm.device
        self._shape = shape
        self._programs = torch.cuda.get_device_properties(device).multi_processor_count
        self._eps, self._softmax_scale, self._count = eps, softmax_scale, len(layers)
        self._places = places(shape, self._programs)
        self._kernel = _kernel(shape, device, folder)
        self._kept = (list(layers), first_norm, final_norm)
        self._table = _layer_table(layers, device)
        sizes = {
            "h": (MAX_ROWS * shape.hidden, torch.bfloat16),
            "out": (MAX_ROWS * shape.hidden, torch.bfloat16),
            "handed": (2 * self._places["handed_bytes"], torch.uint8),
            "counter": (1, torch.int32),
        }
        self._buffers = {
            name: torch.zeros(size, dtype=dtype, device=device)
            for name, (size, dtype) in sizes.items()
        }
        self._addresses = {name: t.data_ptr() for name, t in self._buffers.items()}
        self._addresses |= {
            "layers": self._table.data_ptr(),
            "first_norm": first_norm.data_ptr(),
            "final_norm": final_norm.data_ptr(),
        }

    def run(self, x_TE: Tensor, positions_T: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
        """Hidden states [T, E] after the last norm, of T ≤ 8 rows with one token each; overwritten
        by the next run. K and V of the tokens are written to their pages.

        x: what the layers begin with, bfloat16. positions int64 [T]; the pages of row t are
        indices[indptr[t] : indptr[t + 1]], that of its token among them; int32.
        """
        rows = x_TE.shape[0]
        assert rows <= MAX_ROWS and x_TE.is_contiguous() and x_TE.dtype is torch.bfloat16
        given = _Given(
            **self._addresses, **self._places,
            x=x_TE.data_ptr(), positions=positions_T.data_ptr(), indptr=indptr.data_ptr(),
            indices=indices.data_ptr(), rows=rows, count=self._count,
            splits=splits_for(rows, self._shape.kv_heads, self._programs),
            pieces=pieces_for(self._shape, self._programs),
            eps=self._eps, softmax_scale=self._softmax_scale,
        )  # fmt: skip
        self._kernel.launch(given, self._programs, 32 * (_WARPS + _HELPERS), together=True)
        return self._buffers["out"][: rows * self._shape.hidden].view(rows, -1)


def _layer_table(layers: Sequence[LayerTensors], device: torch.device) -> Tensor:
    """The layers' addresses as the kernel reads them."""

    def at(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    table = (_Layer * len(layers))()
    for row, t in zip(table, layers, strict=True):
        row.w[:] = [at(w) for w in t.weights]
        row.scale[:] = [at(s) for s in t.scales]
        row.mlp_norm, row.next_norm = at(t.mlp_norm), at(t.next_norm)
        row.q_norm, row.k_norm = at(t.q_norm), at(t.k_norm)
        row.k_pages, row.v_pages, row.cos_sin = at(t.k), at(t.v), at(t.cos_sin)
    return torch.frombuffer(bytearray(table), dtype=torch.uint8).to(device)


_built: dict[tuple[Shape, int], Kernel] = {}


def _kernel(shape: Shape, device: torch.device, folder: Path | None) -> Kernel:
    """Once in a process for each GPU."""
    key = shape, device.index or 0
    if key not in _built:
        properties = torch.cuda.get_device_properties(device)
        programs, most = properties.multi_processor_count, properties.shared_memory_per_block_optin
        divided = plan(shape, programs, most)
        code = image(_SOURCE, definitions(shape, divided), _with_features(device), folder)
        with torch.cuda.device(device):
            _built[key] = Kernel(code, "few_rows", divided.shared_bytes)
    return _built[key]


def _with_features(device: torch.device) -> str:
    """Of Hopper's own, the kernel uses that registers can be divided unevenly."""
    arch = architecture(device)
    return arch + "a" if arch == "sm_90" else arch


def definitions(shape: Shape, plan: Plan) -> list[str]:
    """Options of the compiler for this shape."""
    values = {
        "HIDDEN": shape.hidden, "INNER": shape.inner, "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads, "PAGE": shape.page, "FP8": int(shape.narrow),
        "HEAD_NORM": int(shape.head_norm), "RB_QKV": plan.blocks_qkv,
        "RB_GATE": plan.blocks_gate, "STAGES": plan.stages, "AWAY": plan.away, "CHUNK": _CHUNK,
    }  # fmt: skip
    return [f"-D{name}={value}" for name, value in values.items()]
