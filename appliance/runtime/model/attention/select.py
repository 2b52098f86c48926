"""AttentionSpec and backend name -> Backend: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from appliance.errors import UsageError
from appliance.kernels.ops import CaptureOps, Ops
from appliance.runtime.model.attention.backend import Backend
from appliance.runtime.model.attention.reference import ReferenceBackend
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.spec import AttentionSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """rows: most decode rows; graph_rows: of a captured pass. columns: most pages of one row.
    even_decode: decode rows through our own kernel where it knows the shape."""

    spec: AttentionSpec
    layers: int
    mesh: Mesh
    ops: Ops
    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    rows: int
    graph_rows: int
    columns: int
    even_decode: bool


def _reference(wanted: Wanted) -> Backend:
    return ReferenceBackend(wanted.device)


def _flashinfer(wanted: Wanted) -> Backend:
    from appliance.kernels.paged_attention import Shape
    from appliance.runtime.model.attention.paged import PagedBackend, own_decode

    a, rows = wanted.spec, max(wanted.rows, wanted.graph_rows)  # a captured pass is padded
    shape = Shape(
        heads=wanted.mesh.share(a.heads, "query heads"),
        kv_heads=wanted.mesh.kv_share(a.kv_heads)[1],
        head_dim=a.head_dim,
        page_size=wanted.page_size,
        dtype=wanted.dtype,
        kv_dtype=wanted.kv_dtype,
    )
    return PagedBackend(
        shape,
        a.windows(wanted.layers),
        cast(CaptureOps, wanted.ops),
        wanted.device,
        wanted.graph_rows,
        wanted.columns,
        own_decode(shape, a.qk_norm, rows, wanted.device) if wanted.even_decode else None,
    )


BACKENDS: dict[tuple[str, str], Callable[[Wanted], Backend]] = {
    ("gqa", "reference"): _reference,
    ("gqa", "flashinfer"): _flashinfer,
}


def select(name: str, wanted: Wanted) -> Backend:
    """UsageError when the backend does not know this kind of attention."""
    maker = BACKENDS.get((wanted.spec.kind, name))
    if maker is None:
        known = ", ".join(b for k, b in BACKENDS if k == wanted.spec.kind)
        raise UsageError(
            f"the attention backend {name!r} does not serve {wanted.spec.kind} attention.",
            f"Known for it: {known}.",
            code="APL-USE-016",
        )
    return maker(wanted)
