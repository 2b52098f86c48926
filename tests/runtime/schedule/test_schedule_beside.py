"""Prefills beside decode steps: situations that random worlds hardly meet, built by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from oracle import OracleError
from world import VOCAB, Shape, World

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.draft import Draft
from appliance.runtime.schedule.running import Running
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.request import Sampling

SHORT = 24
"""Tokens: so few that two requests that begin alike are computed at once."""


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + i) % VOCAB for i in range(length)]


def begun(**config: object) -> World:
    """A row decodes, and prefills run beside it, as late as the test says."""
    values = {"page_size": 4, "chunk": 48, "beside_rows": 1, "beside_filled": 0.0} | config
    world = World(Shape(ScheduleConfig(**values), 64, 200, 8))  # type: ignore[arg-type]
    world.submit(prompt(5, 40), Sampling(max_tokens=90))
    for _ in range(3):
        turn(world)
    world.oracle.early = 0.0
    return world


def turn(world: World) -> None:
    world.iterate()
    world.check()


def launched(world: World) -> int:
    """One turn that must launch a step beside others; its tokens."""
    before = len(world.beside)
    turn(world)
    assert len(world.beside) == before + 1
    return int(world.beside[-1].step.lengths.sum())


def finished(world: World) -> None:
    world.oracle.early = 0.3
    world.drain()
    assert world.errors == 0


def pages_in_use_beside() -> None:
    """Two rows compute the same beginning in one step beside others. When it settles the first puts
    it in the tree; the second is in the next step beside, which has looked up its pages already."""
    world = begun()
    world.submit(prompt(SHORT), Sampling(max_tokens=20))
    world.submit(prompt(64), Sampling(max_tokens=20))
    assert launched(world) == 48
    assert launched(world) == 40
    world.oracle.finish(world.beside[0])
    world.oracle.begin(world.beside[1])
    for _ in range(8):  # every row takes new pages, those given back last before all others
        turn(world)
    assert len(world.beside) == 1 and world.scheduler.running.count == 3
    world.oracle.finish(world.beside[0])
    finished(world)


def moves_of_rows_that_decode() -> None:
    """Two rows compute the same prompt. The second goes over to the first's pages and decodes; the
    next step runs beside others, and is late."""
    world = begun()
    for _ in range(2):
        world.submit(prompt(SHORT), Sampling(max_tokens=20))
    assert launched(world) == 48
    world.oracle.finish(world.beside[0])
    turn(world)
    assert not world.beside and world.scheduler.running.count == 3
    world.submit(prompt(8, 30), Sampling(max_tokens=20))
    assert launched(world) == 8
    for _ in range(4):
        turn(world)
    assert len(world.beside) == 1
    finished(world)


def chunks_that_tell_of_prompts() -> None:
    """What a request asks of its prompt holds for each of its chunks, not for the first alone."""
    world = begun()
    world.submit(prompt(120), Sampling(max_tokens=5, prompt_logprobs=1))
    world.submit(prompt(120, 7), Sampling(max_tokens=5))
    for _ in range(4):
        turn(world)
    finished(world)
    assert world.oracle.beside_steps > 0


def _commits_beside(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_may_commit", lambda self, request: request.lease is not None)


def _all_moves_beside(patch: pytest.MonkeyPatch) -> None:
    take = Running.take_moved
    patch.setattr(Running, "take_moved", lambda self, slots=None: take(self))


def _first_chunk_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Draft,
        "plain",
        property(
            lambda self: not any(n.sampling.prompt_logprobs >= 0 for n in self._new),
            lambda self, value: None,
        ),
        raising=False,
    )


SITUATIONS: list[tuple[Callable[[], None], Callable[[pytest.MonkeyPatch], None]]] = [
    (pages_in_use_beside, _commits_beside),
    (moves_of_rows_that_decode, _all_moves_beside),
    (chunks_that_tell_of_prompts, _first_chunk_alone),
]


@pytest.mark.parametrize("situation", [s for s, _ in SITUATIONS], ids=lambda s: s.__name__)
def test_late_steps_beside_others_do_no_harm(situation: Callable[[], None]) -> None:
    situation()


@pytest.mark.parametrize(
    "situation,plant", SITUATIONS, ids=[plant.__name__.strip("_") for _, plant in SITUATIONS]
)
def test_a_planted_bug_is_seen_there(
    situation: Callable[[], None],
    plant: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    with pytest.raises(OracleError):
        situation()
