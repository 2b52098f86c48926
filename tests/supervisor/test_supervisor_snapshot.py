"""Rates, quantiles and sums from what frontends publish, over times of our own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance import paths
from appliance.metrics import Registry
from appliance.status import EngineState, FrontendSnapshot, PrefixRow, publish
from appliance.supervisor.snapshot import Sampler


class Door:
    """A frontend as the sampler sees it."""

    def __init__(self, run: Path, index: int, pid: int) -> None:
        self.run, self.index, self.pid = run, index, pid
        self.stats: dict[str, float] = {}
        self.generation = 1
        self.live = 0
        registry = Registry()
        self.generated = registry.counter("appliance_generation_tokens_total", "", ("model_name",))
        self.requests = registry.counter("appliance_requests_total", "", ("model_name", "status"))
        self.ttft = registry.histogram(
            "appliance_time_to_first_token_seconds", "", (0.1, 0.2, 0.4), ("model_name",)
        )
        self.registry = registry

    def publish(self, at: float) -> None:
        engine = EngineState(0, True, self.generation, self.stats)
        publish(
            paths.frontend_snapshot(self.run, self.index),
            FrontendSnapshot(
                self.index, self.pid, at, self.live, [], [engine], self.registry.dump()
            ),
        )


def test_rate_sums_over_frontends_and_survives_a_restart(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=False)
    doors = [Door(tmp_path, 0, 100), Door(tmp_path, 1, 101)]
    for second in range(6):
        for door in doors:
            door.publish(1000.0 + second)
            door.generated.add(50.0, "m")
        sampler.sample(1000.0 + second)
    assert sampler.throughput()["gen_tok_s"] == pytest.approx(100.0)
    doors[1] = Door(tmp_path, 1, 202)
    doors[1].generated.add(30.0, "m")
    for door in doors:
        door.publish(1006.0)
    sampler.sample(1006.0)
    assert 50.0 <= sampler.throughput()["gen_tok_s"] <= 80.0
    assert list(sampler.history["gen_tok_s"])[-2] == pytest.approx(100.0)


def test_latency_is_of_the_last_minute(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=False)
    door = Door(tmp_path, 0, 1)
    door.ttft.observe(0.39, "m", count=1000)
    for second in range(70):
        if second == 65:
            door.ttft.observe(0.05, "m", count=10)
        door.publish(1000.0 + second)
        sampler.sample(1000.0 + second)
    latency = sampler.latency["ttft_s"]
    assert latency["p50"] is not None and latency["p50"] <= 0.1
    assert latency["p99"] is not None and latency["p99"] <= 0.1
    assert sampler.latency["itl_s"] == {"p50": None, "p90": None, "p99": None}


def test_errors_of_the_last_minute_by_class(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=False)
    door = Door(tmp_path, 0, 1)
    door.publish(0.0)
    sampler.sample(0.0)
    for status, count in (("2xx", 5), ("4xx", 2), ("5xx", 1), ("cancelled", 3)):
        door.requests.add(count, "m", status)
    door.publish(1.0)
    sampler.sample(1.0)
    assert sampler.outcomes() == {"2xx": 5.0, "4xx": 2.0, "5xx": 1.0, "cancelled": 3.0}


def test_engine_state_is_the_newest_and_hits_survive_a_new_generation(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=False)
    door = Door(tmp_path, 0, 1)
    door.live = 7
    door.stats = {"running": 4, "waiting": 1, "used_tokens": 50, "total_tokens": 200, "time": 1.0}
    door.stats |= {"cache_hit_tokens": 100, "cache_query_tokens": 400}
    door.publish(0.0)
    sampler.sample(0.0)
    assert sampler.queue() == {"running": 4.0, "waiting": 3.0}
    assert sampler.kv()["ratio"] == 0.25
    assert sampler.prefix_cache()["hit_ratio_total"] == 0.25
    door.generation, door.stats = 2, {"cache_hit_tokens": 30.0, "cache_query_tokens": 40.0}
    door.publish(1.0)
    sampler.sample(1.0)
    assert sampler.prefix_cache()["hit_ratio_60s"] == 0.75


def test_nothing_there_is_zero_and_none(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=False)
    assert sampler.throughput()["gen_tok_s"] == 0.0
    (tmp_path / "frontend-0.json").write_text("half a fi")
    sampler.sample(0.0)
    assert sampler.kv()["ratio"] == 0.0
    assert sampler.latency["ttft_s"]["p50"] is None
    assert sampler.cpu["mem_total_bytes"]


async def test_those_who_look_after_each_sample_are_called_while_nobody_asks(
    tmp_path: Path,
) -> None:
    sampler, looked = Sampler(tmp_path, gpus=False), asyncio.Event()
    sampler.after_each(looked.set)
    sampling = asyncio.create_task(sampler.run())
    await asyncio.wait_for(looked.wait(), 30)
    sampling.cancel()
    assert sampler.history_seq >= 1


def test_shared_beginnings_of_all_engines_most_saved_first(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=False)
    shared = {0: [PrefixRow(1, 64, 64, 10, 0)], 1: [PrefixRow(1, 2048, 2048, 3, 1)]}
    engines = [EngineState(replica, True, 1, {}, rows) for replica, rows in shared.items()]
    publish(
        paths.frontend_snapshot(tmp_path, 0),
        FrontendSnapshot(0, 1, 1.0, 0, [], engines, Registry().dump()),
    )
    sampler.sample(1.0)
    assert [(p.replica, p.saved) for p in sampler.prefixes()] == [(1, 6144), (0, 640)]
