"""Which kernels of ours decode rows get, by GPU and by what can be built here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

ROOMS = ("appliance.kernels.paged_attention", "appliance.runtime.model.attention.paged")
HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The room, for which names of FlashInfer's are enough: it is not there without a GPU."""
    library, decode = ModuleType("flashinfer"), ModuleType("flashinfer.decode")
    for name in ("BatchPrefillWithPagedKVCacheWrapper", "BatchDecodeWithPagedKVCacheWrapper"):
        vars(library)[name] = type(name, (), {})
    vars(decode)["fast_decode_plan"] = None
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    monkeypatch.setitem(sys.modules, "flashinfer.decode", decode)
    before = {room: sys.modules.pop(room) for room in ROOMS if room in sys.modules}
    yield importlib.import_module(ROOMS[1])
    for room in ROOMS:  # others are to get them with what is really there
        del sys.modules[room]
    sys.modules.update(before)


def _cannot(*_: object) -> object:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("gpu", "even", "turned", "want"),
    [
        (HOPPER, True, True, ("even", "turned")),
        (HOPPER, True, False, ("even", None)),
        (AMPERE, True, True, ("even", None)),
        (HOPPER, False, True, None),
        (TURING, True, True, None),
    ],
)
def test_one_kernel_that_cannot_be_built_leaves_the_other(
    paged: Any,
    monkeypatch: pytest.MonkeyPatch,
    gpu: tuple[int, int],
    even: bool,
    turned: bool,
    want: tuple[str, str | None] | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: gpu)
    monkeypatch.setattr(paged, "PagedDecode", (lambda *_: "even") if even else _cannot)
    monkeypatch.setattr(paged, "TurnedDecode", (lambda *_: "turned") if turned else _cannot)
    shape = paged.Shape(32, 8, 128, 16, torch.bfloat16, torch.bfloat16)
    assert paged.own_decode(shape, False, 8, torch.device("cuda")) == want
