"""Matmuls for up to 64 rows of tokens (skinny.cu): forms, division, build and launch.

For captured passes on GPUs of compute capability 9, whose tensor cores and copies they use: each
starts while the kernel in front of it ends. A launch costs the host more than the library's does.

Shapes: M rows, N outputs, K inputs.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from appliance.kernels.cuda_source import Kernel, architecture, image, tensor_map
from appliance.kernels.ops import Rounded

MAX_ROWS = 64

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_suffix(".cu")
_LINE = 128
_PADS = (16, 24, 32, 48, 64)
"""Rows are filled up to some of what wgmma takes: each block reads all of them."""
_BAND_MOST = 256
"""Rows of a bulk copy."""
_STAGE_MOST = 40 << 10
_RING = 200 << 10
_STAGES_MOST = 8
_TILE = 64
"""Rows of the weight that wgmma takes, though fewer may be there."""
_BEHIND = 8 << 10
"""Bytes behind the ring, at least."""
_KINDS = {torch.float8_e4m3fn: 1, torch.bfloat16: 2, torch.float16: 3}


class Form(NamedTuple):
    """kind: of weights and tokens. dtype: of results. gated: silu(gate) * up, of 2 N rows of W.
    tokens: rows, filled up."""

    kind: torch.dtype
    dtype: torch.dtype
    outs: int
    depth: int
    tokens: int
    gated: bool = False
    bias: bool = False

    @property
    def sides(self) -> int:
        return 2 if self.gated else 1


class Division(NamedTuple):
    """band: rows of the weight to a block, of gates as many more. stages of the ring, lines: of
    128 bytes of each row to a stage."""

    band: int
    stages: int
    lines: int


def padded(rows: int) -> int:
    """How many rows a kernel takes for so many, 64 at most."""
    return next(pad for pad in _PADS if rows <= pad)


def why_not(outs: int, depth: int, kind: torch.dtype, capability: tuple[int, int]) -> str:
    """What of a weight [N, K] or of the GPU the kernel does not know; empty: nothing."""
    if capability[0] != 9:
        return "it is for GPUs of compute capability 9"
    if kind not in _KINDS:
        return f"weights of {kind}"
    if depth * kind.itemsize % 16:
        return f"its rows of {depth} values are no multiples of 16 bytes"
    return ""


def divided(form: Form, programs: int) -> Division:
    """For so many multiprocessors: a band to each, or as many more as it takes; as much of a row at
    a time as has room, since memory gives 512 bytes side by side faster than 128."""
    most = _BAND_MOST // form.sides
    waves = -(-form.outs // (programs * most))
    band = -(-form.outs // (8 * programs * waves)) * 8
    line = (band * form.sides + form.tokens) * _LINE
    lines = next((n for n in (4, 2) if n * line <= _STAGE_MOST), 1)
    return Division(band, min(_STAGES_MOST, _RING // (line * lines)), lines)


def shared_bytes(form: Form, division: Division) -> int:
    rows = division.band * form.sides + form.tokens
    pitch = -(-division.band // 32) * 32 + 4
    ring = rows * _LINE * division.lines * division.stages
    return 1024 + max(ring + max(_BEHIND, _overread(form, division)), 4 * form.tokens * pitch)


def _overread(form: Form, division: Division) -> int:
    """Bytes behind the last stage that wgmma reads: each group has as many tiles, so that where
    three would do, the fourth lies behind the band as a whole. Of a stage, tokens come last."""
    groups = _groups(division.band)
    read = -(-division.band // (_TILE * groups)) * _TILE * groups
    return (read - division.band - form.tokens * division.lines) * _LINE


def _groups(band: int) -> int:
    """Of four warps, that multiply."""
    return 2 if band > _TILE else 1


class _Given(ctypes.Structure):
    """As in skinny.cu, whose maps are aligned to 64 bytes."""

    _fields_ = (
        ("weights", ctypes.c_uint64 * 16),
        ("tokens", ctypes.c_uint64 * 16),
        *((name, ctypes.c_uint64) for name in ("token_scale", "weight_scale", "bias", "out")),
        ("rows", ctypes.c_int),
        ("nothing", ctypes.c_int * 7),
    )


class Skinny:
    """One form's kernel on one GPU. RuntimeError when it cannot be built here."""

    def __init__(
        self,
        form: Form,
        device: torch.device,
        folder: Path | None = None,
        division: Division | None = None,
    ) -> None:
        """folder: where what is compiled is kept; triton's when None."""
        programs = torch.cuda.get_device_properties(device).multi_processor_count
        self.form, self.division = form, division or divided(form, programs)
        arch = architecture(device) + "a"
        code = image(_SOURCE, definitions(form, self.division), arch, folder)
        with torch.cuda.device(device):
            self._kernel = Kernel(code, "skinny", shared_bytes(form, self.division))

    def run(
        self,
        x_MK: Tensor,
        weight_NK: Tensor,
        bias_N: Tensor | None = None,
        token_scale_M: Tensor | None = None,
        weight_scale_N: Tensor | None = None,
    ) -> Tensor:
        """[M, N] as `form` says; all contiguous. scales: float32, of e4m3 alone."""
        form, band = self.form, self.division.band
        rows = len(x_MK)
        sides = form.sides
        assert rows <= form.tokens and x_MK.dtype is weight_NK.dtype is form.kind
        assert x_MK.shape[1] == form.depth and weight_NK.shape == (sides * form.outs, form.depth)
        out = torch.empty((rows, form.outs), dtype=form.dtype, device=x_MK.device)
        columns = _LINE // form.kind.itemsize
        given = _Given(
            token_scale=_address(token_scale_M), weight_scale=_address(weight_scale_N),
            bias=_address(bias_N), out=out.data_ptr(), rows=rows,
        )  # fmt: skip
        given.weights[:] = tensor_map(weight_NK, (columns, band))
        given.tokens[:] = tensor_map(x_MK, (columns, form.tokens))
        threads = 128 * _groups(band) + 32
        self._kernel.launch(given, -(-form.outs // band), threads, dependent=True)
        return out


def _address(tensor: Tensor | None) -> int:
    assert tensor is None or tensor.is_contiguous()
    return 0 if tensor is None else tensor.data_ptr()


def definitions(form: Form, division: Division) -> list[str]:
    """Options of the compiler."""
    values = {
        "GATED": int(form.gated), "KIND": _KINDS[form.kind],
        "HALF": int(form.dtype is torch.float16), "BIAS": int(form.bias), "DEPTH": form.depth,
        "OUTS": form.outs, "TOKENS": form.tokens, **division._asdict(),
    }  # fmt: skip
    return [f"-D{name.upper()}={value}" for name, value in values.items()]


class SkinnyMatmuls:
    """All forms of one GPU. None is the answer where the library multiplies: what the kernels do
    not know, and whatever is not being captured, which makes ready what a capture will need."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self._device, self._folder = device, folder
        self._capability = torch.cuda.get_device_capability(device)
        self._built: dict[Form, Skinny] = {}
        self._building = threading.Lock()
        self._lacking = False

    def linear(self, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor | None:
        """x W^T + bias."""
        form = self._form(x_MK, weight_NK, x_MK.dtype)
        if form is None:
            return None
        kernel = self._kernel(form._replace(bias=bias_N is not None))
        return kernel and kernel.run(x_MK, weight_NK, bias_N)

    def gated(self, x_MK: Tensor, weight_NK: Tensor) -> Tensor | None:
        """silu(x Wgate^T) * (x Wup^T), of a weight [2 N, K]."""
        form = self._form(x_MK, weight_NK, x_MK.dtype)
        if form is None:
            return None
        kernel = self._kernel(form._replace(outs=form.outs // 2, gated=True))
        return kernel and kernel.run(x_MK, weight_NK)

    def rounded(
        self, x: Rounded, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None
    ) -> Tensor | None:
        """x W^T + bias of e4m3 with a scale a token and a scale a row of W."""
        form = self._form(x.values, weight_NK, x.dtype)
        if form is None or x.scale.shape[1] != 1:
            return None
        kernel = self._kernel(form._replace(bias=bias_N is not None))
        return kernel and kernel.run(x.values, weight_NK, bias_N, x.scale, scale_N)

    def _form(self, x_MK: Tensor, weight_NK: Tensor, dtype: torch.dtype) -> Form | None:
        rows, (outs, depth) = len(x_MK), weight_NK.shape
        if not 0 < rows <= MAX_ROWS or self._lacking or x_MK.dtype is not weight_NK.dtype:
            return None
        if not x_MK.is_contiguous() or not weight_NK.is_contiguous() or dtype not in _KINDS:
            return None
        if why_not(outs, depth, weight_NK.dtype, self._capability):
            return None
        if (x_MK.data_ptr() | weight_NK.data_ptr()) % 16:
            return None  # bulk copies begin at lines of 16 bytes
        return Form(weight_NK.dtype, dtype, outs, depth, padded(rows))

    def _kernel(self, form: Form) -> Skinny | None:
        """All numbers of rows are compiled when the first is needed."""
        with self._building:
            if form not in self._built and not self._lacking:
                forms = [form._replace(tokens=pad) for pad in _PADS]
                make = partial(Skinny, device=self._device, folder=self._folder)
                try:
                    with ThreadPoolExecutor(len(forms)) as pool:
                        self._built.update(zip(forms, pool.map(make, forms), strict=True))
                except RuntimeError as e:
                    self._lacking = True
                    log.warning("few rows are multiplied by the library: %s", e)
        return self._built.get(form) if torch.cuda.is_current_stream_capturing() else None
