"""The search keeps what wins, stops in time, and says what it saw; profiles survive writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from profiles_machines import H100, HOST

from appliance import paths
from appliance.errors import BusyError, EngineError, UsageError
from appliance.profiles import schema, store
from appliance.profiles.search import Found, Trial, axes, search
from appliance.profiles.write import match_of, save, text_of
from appliance.runtime.config import (
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    ScheduleConfig,
    ServeConfig,
)


class Bench:
    """A machine on which each trial takes ten seconds and each setting adds its worth."""

    def __init__(self, worth: dict[tuple[str, Any], float]) -> None:
        self.worth, self.now = worth, 0.0
        self.asked: list[dict[str, Any]] = []

    def clock(self) -> float:
        return self.now

    def measure(self, values: dict[str, Any]) -> tuple[float, str]:
        self.now += 10.0
        self.asked.append(values)
        if values.get("a") == "broken":
            raise EngineError("it died")
        return 100 + sum(self.worth.get(pair, 0) for pair in values.items()), "fine"

    def search(self, candidates: dict[str, tuple[Any, ...]], budget_s: float) -> Found:
        return search(candidates, self.measure, budget_s, self.clock)


def test_what_wins_is_kept_and_built_upon() -> None:
    bench = Bench({("a", 2): 20, ("b", True): -5, ("c", 1): 1, ("c", 2): 30})
    found = bench.search({"a": (1, 2), "b": (True,), "c": (1, 2)}, 1000)
    assert found.best.values == {"a": 2, "c": 2} and found.best.score == 150
    assert found.complete
    assert bench.asked[0] == {} and bench.asked[-2:] == [{}, {"a": 2, "c": 2}]
    assert {"a": 2, "b": True} in bench.asked and {"a": 2, "c": 1} in bench.asked


def test_less_than_noise_is_not_kept() -> None:
    found = Bench({("a", 1): 1.5}).search({"a": (1,)}, 1000)
    assert found.best.values == {} and len(found.trials) == 2


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((50, 100, 100, 100), {}),  # a start that was slow by chance
        ((100, 120, 100, 101), {}),  # a change that was fast by chance
        ((90, 120, 110, 130), {"a": 1}),
    ],
)
def test_what_won_is_measured_again_and_so_is_the_start(
    scores: tuple[float, ...], kept: dict[str, Any]
) -> None:
    told = iter((float(score), "") for score in scores)
    found = search({"a": (1,)}, lambda values: next(told), 1000, lambda: 0.0)
    assert found.best.values == kept and len(found.trials) == 4
    assert found.best.score == (120 if kept else max(scores[0], scores[2]))


def test_no_trial_begins_that_leaves_no_time_to_measure_again() -> None:
    bench = Bench({("a", 2): 30})
    found = bench.search({"a": (1, 2, 3), "b": (1,)}, 55)
    assert [t.values for t in found.trials] == [{}, {"a": 1}, {"a": 2}, {}, {"a": 2}]
    assert bench.now == 50 and not found.complete and found.best.values == {"a": 2}


def test_what_failed_was_not_compared() -> None:
    found = Bench({}).search({"a": ("broken",), "b": (1,)}, 1000)
    assert found.compared() == ("b",)


def test_a_trial_that_fails_is_told_and_passed_over() -> None:
    found = Bench({("a", 2): 50}).search({"a": ("broken", 2)}, 1000)
    assert found.best.values == {"a": 2}
    assert found.trials[1] == Trial({"a": "broken"}, 0.0, 10.0, problem="it died")


def test_a_start_that_fails_is_an_error() -> None:
    def measure(values: dict[str, Any]) -> tuple[float, str]:
        raise EngineError("no")

    with pytest.raises(EngineError):
        search({"a": (1,)}, measure, 100, lambda: 0.0)


def test_axes_never_offer_what_is_there() -> None:
    config = RuntimeConfig(
        run="r",
        dir="/r",
        model=ModelConfig(path="/m", id="m"),
        serve=ServeConfig(frontends=1),
        schedule=ScheduleConfig(chunk=256, max_running=4096),
        engine=EngineConfig(even_decode=False),
    )
    usual = {
        "schedule.chunk": (512,),
        "schedule.max_running": (2048,),
        "schedule.mixed_chunk": (True,),
        "serve.frontends": (2,),
    }
    assert axes(config, 2) == usual
    beside = msgspec.structs.replace(config.schedule, beside_rows=64, beside_filled=0.35)
    engine = EngineConfig(even_decode=True)
    assert axes(msgspec.structs.replace(config, schedule=beside, engine=engine), 2) == usual | {
        "schedule.beside_filled": (0.85,),
        "schedule.beside_rows": (32, 128),
        "engine.even_decode": (False,),
    }


def test_every_shipped_profile_survives_writing(tmp_path: Path) -> None:
    for stored in store.load(paths.shipped_profiles(), tmp_path).values():
        assert schema.parse(text_of(stored.profile).encode(), "x") == stored.profile


def test_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG_DIR", str(tmp_path))
    cpu = store.load(paths.shipped_profiles(), tmp_path / "none")["cpu"].profile
    mine = msgspec.structs.replace(cpu, name="mine")
    path = save(mine, replace=False)
    assert store.load(own=paths.user_profiles())["mine"].profile == mine
    with pytest.raises(BusyError, match="already"):
        save(mine, replace=False)
    assert save(mine, replace=True) == path
    assert [p.name for p in path.parent.iterdir()] == ["mine.toml"]
    for name in ("../x", "", "Big", "a b"):
        with pytest.raises(UsageError):
            save(msgspec.structs.replace(cpu, name=name), replace=False)


def test_match_of_this_machine() -> None:
    found = match_of(H100, "cuda", 1)
    assert found.gpus == ("NVIDIA H100 80GB HBM3",)
    assert found.memory_min_gib < 79.6 < found.memory_max_gib
    assert match_of(HOST, "cpu", 1) == schema.Match(device="cpu", count=0)
