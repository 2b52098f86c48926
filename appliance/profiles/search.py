"""Searches settings by measuring: one axis after the other, each kept where it wins.

What measures is given, so the search itself needs neither a server nor time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from appliance.errors import ApplianceError
from appliance.runtime.config import RuntimeConfig

GAIN = 1.02
"""A change is kept when it is this much better: less is noise."""


class Trial(Struct, frozen=True):
    """values: dotted field -> value that differs from the start. score: output tokens a second;
    0 when it failed, and `problem` says why."""

    values: dict[str, Any]
    score: float
    seconds: float
    detail: str = ""
    problem: str = ""


class Found(Struct, frozen=True):
    best: Trial
    trials: tuple[Trial, ...]
    complete: bool
    """Whether every candidate was tried before the time was up."""

    def compared(self) -> tuple[str, ...]:
        """Fields of which another value than the start's was measured."""
        return tuple(sorted({f for t in self.trials if not t.problem for f in t.values}))


def axes(config: RuntimeConfig, cores: int) -> dict[str, tuple[Any, ...]]:
    """Dotted field -> the values to try beside the one it has, the likeliest first. config:
    resolved; what this machine or model does not allow is not tried."""
    s = config.schedule
    frontends = [n for n in (1, 2, 4, 8) if n != config.serve.frontends and n <= cores]
    chunks = {max(256, s.chunk // 2), min(32768, s.chunk * 2)} - {s.chunk}
    running = {max(8, s.max_running // 2), min(4096, s.max_running * 2)} - {s.max_running}
    found: dict[str, tuple[Any, ...]] = {
        "schedule.chunk": tuple(sorted(chunks)),
        "schedule.max_running": tuple(sorted(running, reverse=True)),
        "schedule.mixed_chunk": (not s.mixed_chunk,),
        "serve.frontends": tuple(frontends[:2]),
    }
    if s.beside_rows:
        filled = (value for value in (0.35, 0.85) if value != s.beside_filled)
        found["schedule.beside_filled"] = tuple(filled)
        found["schedule.beside_rows"] = (max(1, s.beside_rows // 2), s.beside_rows * 2)
    if config.engine.even_decode:
        found["engine.even_decode"] = (False,)
    return found


def search(
    candidates: Mapping[str, tuple[Any, ...]],
    measure: Callable[[dict[str, Any]], tuple[float, str]],
    budget_s: float,
    clock: Callable[[], float],
    told: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """Measures the start, then one changed value at a time on top of what has won so far. At the
    end the start and what won are measured again, for a machine is not equally fast at all times:
    the slower run of what won must be better than the faster run of the start.

    measure: changed values -> (score, detail); an ApplianceError makes a failed trial, at the
    start it is raised. No trial is begun after which, each lasting as long as the longest so far,
    there is no time within `budget_s` to measure those two again.
    """
    began = clock()
    trials: list[Trial] = []

    def attempt(values: dict[str, Any]) -> Trial:
        start = clock()
        try:
            score, detail = measure(values)
            trial = Trial(values, score, clock() - start, detail)
        except ApplianceError as e:
            if not trials:
                raise
            trial = Trial(values, 0.0, clock() - start, problem=e.message.split("\n")[0])
        trials.append(trial)
        told(trial)
        return trial

    def late() -> bool:
        return clock() - began + 3 * max(t.seconds for t in trials) > budget_s

    best = attempt({})
    complete = True
    for field, choices in candidates.items():
        base = best
        for choice in choices:
            if late():
                complete = False
                break
            trial = attempt(base.values | {field: choice})
            if trial.score > best.score * GAIN:
                best = trial
    if best.values:
        starts, wins = (trials[0], attempt({})), (best, attempt(best.values))
        start = max(starts, key=lambda t: t.score)
        worst = min(wins, key=lambda t: t.score)
        best = worst if worst.score > start.score * GAIN else start
    return Found(best, tuple(trials), complete)
