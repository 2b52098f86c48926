"""A decoder's layers for up to 16 rows as one kernel (few_rows.cu): build, buffers and launch.

The kernel holds every multiprocessor from the first layer to the last, so that weights are read
without a pause: what a decode step of few rows takes is the time of that. It is compiled for the
model's widths and the GPU at hand when it is first needed, and kept beside triton's kernels. Up
to 8 rows go through eight_rows.py where the GPU can.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from appliance.kernels.cuda_source import Kernel, architecture, image

MAX_ROWS = 16
HEAD = 128
"""The size of a head that the kernel knows."""

_SOURCE = Path(__file__).with_suffix(".cu")
_WARPS = 8
_LINE = 128
"""Bytes of each row that a warp reads at a time."""
_TILE_MOST = 64
_SPLITS_MOST = 16
_BLOCKS = {"QKV": (1, 2, 3, 4), "GATE": (2, 4), "DOWN": (2, 1)}
"""16 rows each, that a tile may hold; of equal ones the first. OUT is as DOWN: the pieces that the
norm behind either adds up are theirs."""
_AHEAD = (2, 1)
"""Slices on their way to a thread; more cost registers that attention needs."""


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


class _Part(NamedTuple):
    """blocks of 16 rows to a tile, slices on their way."""

    blocks: int
    ahead: int


def why_not(shape: Shape) -> str:
    """What of these widths the kernel cannot divide; empty: nothing."""
    width = 1 if shape.narrow else 2
    for name, depth in (
        ("hidden", shape.hidden), ("intermediate", shape.inner), ("attention", shape.heads * HEAD),
    ):  # fmt: skip
        if depth * width % (_WARPS * _LINE):
            return f"its {name} size {depth} is not divisible by {_WARPS * _LINE // width}"
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 8:
        return f"{shape.heads} query heads share {shape.kv_heads} key-value heads"
    if shape.hidden % 16 or shape.inner % 16:
        return f"its sizes {shape.hidden} and {shape.inner} are not divisible by 16"
    return ""


def parts(shape: Shape, programs: int) -> dict[str, _Part]:
    """How each matmul of a layer is divided among so many blocks: as evenly as it goes."""
    width = 1 if shape.narrow else 2
    mixed = shape.heads * HEAD
    sizes = {  # results, values in, rows of the weight to a result
        "QKV": ((shape.heads + 2 * shape.kv_heads) * HEAD, shape.hidden, 1),
        "GATE": (shape.inner, shape.hidden, 2),
        "DOWN": (shape.hidden, shape.inner, 1),
    }
    found = {}
    for name, (outs, depth, rows_each) in sizes.items():
        fitting = [b for b in _BLOCKS[name] if outs % (16 * b // rows_each) == 0]
        blocks = max(fitting, key=lambda b: _evenness(outs * rows_each // (16 * b), programs))
        found[name] = _Part(blocks, _ahead(depth * width))
    found["OUT"] = _Part(found["DOWN"].blocks, _ahead(mixed * width))
    return found


def _evenness(tiles: int, programs: int) -> float:
    return round(tiles / (-(-tiles // programs) * programs), 2)


def _ahead(row_bytes: int) -> int:
    slices = row_bytes // _LINE // _WARPS
    return next(r for r in _AHEAD if slices % r == 0)


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
            "h", "weighed", "qkv", "mixed", "inner", "out",
            "squares", "parts", "part_max", "part_sum", "arrived", "counter",
        )),
        ("rows", ctypes.c_int),
        ("count", ctypes.c_int),
        ("splits", ctypes.c_int),
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
        properties = torch.cuda.get_device_properties(device)
        self._shape, self._programs = shape, properties.multi_processor_count
        self._eps, self._softmax_scale, self._count = eps, softmax_scale, len(layers)
        self._kernels = _kernels(shape, device, folder)
        self._kept = (list(layers), first_norm, final_norm)
        self._table = layer_table(layers, device)
        form = torch.float16 if shape.narrow else torch.bfloat16
        self._buffers = self._allocated(form, device)
        self._addresses = {name: t.data_ptr() for name, t in self._buffers.items()}
        self._addresses |= {
            "layers": self._table.data_ptr(),
            "first_norm": first_norm.data_ptr(),
            "final_norm": final_norm.data_ptr(),
        }

    def _allocated(self, form: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        s, kind = self._shape, torch.bfloat16
        runs = MAX_ROWS * s.kv_heads * _SPLITS_MOST
        each = s.heads // s.kv_heads
        sizes: dict[str, tuple[int, torch.dtype]] = {
            "h": (MAX_ROWS * s.hidden, kind),
            "weighed": (MAX_ROWS * s.hidden, form),
            "qkv": (MAX_ROWS * (s.heads + 2 * s.kv_heads) * HEAD, kind),
            "mixed": (MAX_ROWS * s.heads * HEAD, form),
            "inner": (MAX_ROWS * s.inner, form),
            "out": (MAX_ROWS * s.hidden, kind),
            "squares": (MAX_ROWS * s.hidden // 16, torch.float32),
            "parts": (runs * each * HEAD, torch.float32),
            "part_max": (runs * each, torch.float32),
            "part_sum": (runs * each, torch.float32),
            "arrived": (MAX_ROWS * s.kv_heads, torch.int32),
            "counter": (1, torch.int32),
        }
        return {n: torch.zeros(size, dtype=d, device=device) for n, (size, d) in sizes.items()}

    def run(self, x_TE: Tensor, positions_T: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
        """Hidden states [T, E] after the last norm, of T ≤ 16 rows with one token each; overwritten
        by the next run. K and V of the tokens are written to their pages.

        x: what the layers begin with, bfloat16. positions int64 [T]; the pages of row t are
        indices[indptr[t] : indptr[t + 1]], that of its token among them; int32.
        """
        rows = x_TE.shape[0]
        assert rows <= MAX_ROWS and x_TE.is_contiguous() and x_TE.dtype is torch.bfloat16
        given = _Given(
            **self._addresses,
            x=x_TE.data_ptr(), positions=positions_T.data_ptr(), indptr=indptr.data_ptr(),
            indices=indices.data_ptr(), rows=rows, count=self._count,
            splits=splits_for(rows, self._shape.kv_heads, self._programs),
            eps=self._eps, softmax_scale=self._softmax_scale,
        )  # fmt: skip
        kernel = self._kernels[0 if rows <= 8 else 1]
        kernel.launch(given, self._programs, 32 * _WARPS, together=True)
        return self._buffers["out"][: rows * self._shape.hidden].view(rows, -1)


def layer_table(layers: Sequence[LayerTensors], device: torch.device) -> Tensor:
    """The layers' addresses as both kernels for few rows read them."""

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


_built: dict[tuple[Shape, int], tuple[Kernel, Kernel]] = {}


def _kernels(shape: Shape, device: torch.device, folder: Path | None) -> tuple[Kernel, Kernel]:
    """For up to 8 rows, and for up to 16. Once in a process for each GPU."""
    key = shape, device.index or 0
    if key not in _built:
        arch = architecture(device)
        programs = torch.cuda.get_device_properties(device).multi_processor_count
        divided = parts(shape, programs)
        with ThreadPoolExecutor(2) as pool:
            images = list(
                pool.map(
                    lambda g: image(_SOURCE, definitions(shape, divided, g), arch, folder), (1, 2)
                )
            )
        with torch.cuda.device(device):
            one, two = (
                Kernel(code, "few_rows", 2 * _WARPS * _TILE_MOST * (8 * g + 1) * 4)
                for code, g in zip(images, (1, 2), strict=True)
            )
        _built[key] = one, two
    return _built[key]


def definitions(shape: Shape, divided: dict[str, _Part], groups: int) -> list[str]:
    """Options of the compiler for this shape. groups: of 8 tokens."""
    values = {
        "HIDDEN": shape.hidden, "INNER": shape.inner, "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads, "PAGE": shape.page, "GROUPS": groups,
        "FP8": int(shape.narrow), "HEAD_NORM": int(shape.head_norm),
        **{f"RB_{name}": part.blocks for name, part in divided.items()},
        **{f"R_{name}": part.ahead for name, part in divided.items()},
    }  # fmt: skip
    return [f"-D{name}={value}" for name, value in values.items()]
