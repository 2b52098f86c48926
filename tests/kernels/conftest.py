"""What is allocated without a value is poisoned, so that an output left unwritten is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def poisoned(tensor: Tensor) -> Tensor:
    """Filled with what no result may be: no number, or the largest integer."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor.view(torch.uint8).fill_(0x7F)  # no number in e4m3 and in e5m2
    elif tensor.dtype.is_floating_point:
        tensor.fill_(torch.nan)
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).max)
    return tensor


def _poisoning(maker: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        return poisoned(maker(*args, **kwargs))

    return made


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a captured pass the poison is captured too, so that each replay begins with it."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoning(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", _poisoning(Tensor.new_empty))
