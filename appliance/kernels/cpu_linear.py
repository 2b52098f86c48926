"""Linears on a CPU, over weights that oneDNN has packed once.

A few rows take about half the time that the plain layout takes, many rows a third; and a row's
result does not depend on the rows beside it, so a request's tokens do not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


class PackedLinear:
    """weight [out, in] in a layout of its own; the tensor it was made from may go."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias: [T, in] -> [T, out]."""
        rows = x.shape[0]
        size = bucket(rows)
        if size != rows:
            x = torch.nn.functional.pad(x, (0, 0, 0, size - rows))
        out = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, "none", [], "")
        return out[:rows]


_ROWS = 32
"""The row count the layout is made for; it serves all others as well."""


def bucket(rows: int) -> int:
    """`rows` or a little more: eight sizes between a power of two and the next.

    oneDNN makes code for each row count it sees, which takes it milliseconds and half a megabyte
    that it keeps. Prompts come in every length, so they are filled up to a few.
    """
    step = 1 << max(0, rows.bit_length() - 4)
    return -(-rows // step) * step


def pack(weight: Tensor) -> PackedLinear | None:
    """None where there is nothing to gain: another device or dtype, a torch without oneDNN."""
    if weight.device.type != "cpu" or not weight.numel() or not _multiplies(weight.dtype):
        return None
    try:
        return PackedLinear(weight.detach().contiguous())
    except (AttributeError, NotImplementedError):  # a build of oneDNN without these two
        return None


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has fast instructions for it here."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
