"""The simulated machine: every request of a load ends, and the parts of its report agree."""

from __future__ import annotations

import msgspec
import pytest

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.plan import graph_sizes
from benchmarks.simulate import LOADS, Machine, Run, report, simulate


def run(name: str, requests: int, asked: int = 0) -> Run:
    load = msgspec.structs.replace(LOADS[name], requests=requests)
    config = ScheduleConfig(chunk=8192, max_running=64, prefix_cache=False)
    return simulate(load, config, Machine("bf16", graph_sizes(64)), 20_000, asked=asked)


@pytest.mark.parametrize("asked", [0, 4096])
def test_a_load_ends_and_is_reported(asked: int) -> None:
    found = run("sharegpt", 120, asked)
    assert set(found.first) == set(found.last) == set(range(120))
    assert 0 < found.prefill_steps < found.steps and found.prefill_s < found.end
    assert "sharegpt" in report("sharegpt", found)


def test_a_request_waits_for_its_time() -> None:
    found = run("poisson8", 20)
    assert all(found.first[rid] > due for rid, due in found.due.items())
    assert found.end >= max(found.due.values())
