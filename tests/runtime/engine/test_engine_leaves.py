"""A rank that leaves lets go of its captured passes at once: their collectives hold the others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from appliance.runtime.engine.captures import Captures
from appliance.runtime.engine.forward import Forward
from appliance.runtime.engine.graphs import DecodeGraphs
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.engine.prefill_graphs import PrefillGraphs
from appliance.runtime.engine.slots import Slots
from appliance.runtime.model.attention.backend import RowTables

CPU = torch.device("cpu")


class Captured:
    """In a CUDA graph's place."""


class Lists:
    def graph_inputs(self, rows: int) -> RowTables:
        return RowTables(*torch.zeros(3, 8, dtype=torch.int32))


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """As in an engine that serves, where what was built is never collected."""
    gc.disable()
    yield
    gc.enable()


def captured_in(captures: Captures) -> weakref.ref[Captured]:
    graph: Any = Captured()
    captures._graphs[1] = graph
    return weakref.ref(graph)


def test_captured_passes_go_without_a_collection() -> None:
    model: Any = None
    backend: Any = Lists()
    slots, staging = Slots(2, 4, model, CPU), Staging(CPU, 64)
    decode = DecodeGraphs(
        model, backend, model, slots, [], 4, 8, torch.float32, (1,), staging, None, 0
    )
    prefill = PrefillGraphs(model, backend, slots, [], 4, 8, torch.float32, (1,), staging)
    found = [captured_in(decode.captures), captured_in(prefill.captures)]
    forward = Forward(model, slots, [], 4, decode, prefill)
    del decode, prefill
    assert all(ref() is not None for ref in found)
    forward.drop_graphs()
    assert all(ref() is None for ref in found)
