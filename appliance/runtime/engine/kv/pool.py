"""The page pool: K and V of every layer as [pages, P, K, D]. Page 0 belongs to nobody.

Rows that only pad a captured pass write to page 0, so it is never given to a request.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from appliance.runtime.model.batch import KVPages
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.spec import ModelSpec


def page_bytes(spec: ModelSpec, mesh: Mesh, page_size: int, dtype: torch.dtype) -> int:
    """Bytes one page takes on this rank, all layers together."""
    kv_heads = mesh.kv_share(spec.attention.kv_heads)[1]
    token = 2 * spec.layers * kv_heads * spec.attention.head_dim * dtype.itemsize
    return token * page_size


def allocate(
    spec: ModelSpec,
    mesh: Mesh,
    page_size: int,
    pages: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[KVPages]:
    """One KVPages a layer, with `pages` usable pages after page 0."""
    kv_heads = mesh.kv_share(spec.attention.kv_heads)[1]
    layers = range(spec.layers)
    shape = (pages + 1, page_size, kv_heads, spec.attention.head_dim)
    if device.type == "cpu":
        return [KVPages(_untouched(shape, dtype), _untouched(shape, dtype)) for _ in layers]
    return [
        KVPages(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )
        for _ in layers
    ]


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros whose memory the system hands out page by page as it is written."""
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
