"""The steps that are tried before a rank serves are as large as those to come, and no larger."""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch

from appliance.runtime.config import RuntimeConfig
from appliance.runtime.engine.graphs import DecodeGraphs
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.engine.kit import Kit
from appliance.runtime.engine.slots import Slots
from appliance.runtime.engine.trial import largest_prefill, trial_step
from appliance.runtime.model.attention.backend import RowTables
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes
from appliance.runtime.wire.step import Step, StepResult

CPU = torch.device("cpu")


def config_of(chunk: int, context: int, max_running: int) -> RuntimeConfig:
    told = {
        "run": "x", "dir": "/x", "model": {"path": "/x", "id": "x", "context": context},
        "schedule": {"chunk": chunk, "max_running": max_running},
    }  # fmt: skip
    return msgspec.convert(told, RuntimeConfig)


def prefills(config: RuntimeConfig, length: int) -> list[int]:
    """Tokens of the prefill steps while more prompts of `length` tokens wait than have slots."""
    s = config.schedule
    s = msgspec.structs.replace(s, conservativeness=0.0, prefix_cache=False)
    scheduler = Scheduler(s, 1 << 12, config.model.context, s.max_running, 99)
    for rid in range(2 * s.max_running + 2):
        prompt = ids_to_bytes(np.full(length, rid % 99).tolist())
        scheduler.add(TokenRequest(rid, prompt, Sampling(max_tokens=1)))
    found = []
    while (step := scheduler.next_step()) is not None:
        found.append(int(step.lengths[: step.prefill_rows].sum()))
        scheduler.settle(step, StepResult(np.where(step.samples, 5, -1).astype(np.int32)))
    return found


@pytest.mark.parametrize(
    "chunk,context,max_running",
    [*product([64, 512, 8192], [48, 100, 500, 513, 4097], [1, 2, 3, 8, 64]), (8192, 4096, 1)],
)
def test_the_largest_prefill_is_tried(chunk: int, context: int, max_running: int) -> None:
    config = config_of(chunk, context, max_running)
    rows, length = largest_prefill(config)
    assert 1 <= rows <= max_running and 1 <= length <= context
    for prompt in {context - 1, context // 2, max(1, min(context - 1, chunk // 2 + 1))}:
        most = max(prefills(config, prompt))
        assert most <= rows * length < max(most, chunk, rows * context) + rows


def test_rows_that_pad_keep_their_page_when_there_is_one_slot() -> None:
    """The slot after the last is theirs; a trial that took it would send their keys to page 1."""
    config = config_of(8192, 4096, 1)
    rows, length = largest_prefill(config)
    step = trial_step(rows, length, 16, 99, prefill=True)
    slots = Slots(1, 256, cast(Any, Ops()), CPU)
    slots.apply(step, Staging(CPU, 1 << 20))
    assert not slots.page_table[slots.spare].any()


class Ops:
    def write_pages(self, table: Any, slots: Any, columns: Any, pages: Any) -> None:
        table[slots.long(), columns.long()] = pages


def test_no_prefill_is_captured_where_the_context_is_shorter_than_the_least() -> None:
    none: Any = None
    told = msgspec.structs.replace(config_of(64, 24, 2))
    told = msgspec.structs.replace(
        told, engine=msgspec.structs.replace(told.engine, graphs=True, graph_batch_sizes=(1, 2))
    )
    gpu = torch.device("cuda")
    assert Kit(told, none, none, none, gpu, none, none, none, none, {}).prefill_graphs([]) is None


class Lists:
    """A backend whose list of all rows' pages has so many entries."""

    def __init__(self, entries: int) -> None:
        self.indices = torch.zeros(entries, dtype=torch.int32)

    def graph_inputs(self, rows: int) -> RowTables:
        return RowTables(self.indices[: rows + 1], self.indices[:rows], self.indices)


def decode(rows: int, start: int) -> Step:
    step = trial_step(rows, start + 1, 4, 99, prefill=False)
    assert step.starts.tolist() == [start] * rows
    return step


def graphs(entries: int, columns: int, few: Any = None) -> DecodeGraphs:
    """few: would run passes of up to 2 rows."""
    none: Any = None
    slots = Slots(8, columns, none, CPU)
    staging = Staging(CPU, 64)
    found = DecodeGraphs(
        none, cast(Any, Lists(entries)), none, slots, [], 4, 8, torch.float32, (2, 4, 8), staging,
        few, 2,
    )  # fmt: skip
    for size in (2, 4, 8):
        found.captures._graphs[size] = none
    return found


def test_a_replay_reads_the_rows_of_its_step_and_spare_ones_up_to_its_size() -> None:
    class Backend(Lists):
        planned = 0
        pages_before = torch.zeros(9, dtype=torch.int32)

        def graph_inputs(self, rows: int) -> RowTables:
            return RowTables(self.pages_before[: rows + 1], self.indices[:rows], self.indices)

        def plan_graph(self, rows: int, indptr: np.ndarray) -> None:
            self.planned = rows

        def leave_room(self, room: bool) -> None: ...

    class Graph:
        def replay(self) -> None:
            seen.append((found._table[:8].tolist(), backend.pages_before[:5].tolist()))

    seen: list[tuple[list[int], list[int]]] = []
    found = graphs(8 * 20, 20)
    found._backend = backend = cast(Any, Backend(8 * 20))
    found.captures._graphs[4] = cast(Any, Graph())
    found._prepare(4)
    assert found._table[:4].tolist() == [8] * 4 and backend.pages_before[:5].tolist() == [*range(5)]
    hidden, slots = found.replay(decode(3, 7), 4)
    assert seen == [([0, 1, 2, 8, 7, 7, 7, 0], [0, 2, 4, 6, 7])] and backend.planned == 4
    assert hidden.shape == (3, 8) and slots.tolist() == [0, 1, 2]


def test_beside_a_prefill_few_rows_go_through_the_decoder() -> None:
    """The one kernel needs all multiprocessors at once."""
    some, none = graphs(8 * 20, 20, few=object()), graphs(8 * 20, 20)
    assert [some.size_for(decode(n, 7)) for n in (1, 2, 3)] == [2, 2, 4]
    assert [some.size_for(decode(n, 7), crowded=True) for n in (1, 2, 3)] == [4, 4, 4]
    assert [none.size_for(decode(n, 7), crowded=True) for n in (1, 2, 3)] == [2, 2, 4]


def test_a_step_of_more_pages_than_can_be_listed_is_not_a_captured_one() -> None:
    """Rows that begin alike list the pages they share each for itself."""
    ample = graphs(8 * 20, 20)
    assert ample.size_for(decode(8, 79)) == 8 and ample.size_for(decode(3, 79)) == 4
    scarce = graphs(100, 20)
    assert scarce.size_for(decode(8, 47)) == 8  # 8 rows of 12 pages
    assert scarce.size_for(decode(8, 51)) is None  # of 13
    assert scarce.size_for(decode(7, 51)) == 8  # and a row that pads has one
    assert scarce.size_for(decode(5, 79)) is None
    assert scarce.size_for(decode(3, 79)) == 4
