"""Cancel over the control socket, the history asked for in part, and power."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from supervisor_stage import staged

from appliance import paths
from appliance.errors import NotFoundError
from appliance.hardware import Gpu
from appliance.status import Cancels, FrontendSnapshot, RequestRow, publish
from appliance.supervisor.cancels import CancelDesk
from appliance.supervisor.snapshot import Sampler


def show(run: Path, *ids: str) -> None:
    rows = [RequestRow(name, "decode", 1, 0, 1, 9, 1.0) for name in ids]
    publish(paths.frontend_snapshot(run, 0), FrontendSnapshot(0, 1, 0.0, len(rows), rows, [], {}))


def told(run: Path) -> tuple[str, ...]:
    return msgspec.json.decode(paths.cancels(run).read_bytes(), type=Cancels).ids


def test_only_what_lives_is_cancelled(tmp_path: Path) -> None:
    desk = CancelDesk(tmp_path)
    show(tmp_path, "a", "b")
    assert not desk.add("c") and not paths.cancels(tmp_path).exists()
    assert desk.add("a") and desk.add("b") and desk.add("a")
    assert told(tmp_path) == ("a", "b")


async def test_over_the_control_socket() -> None:
    async with staged() as stage:
        await stage.heard("ready")
        show(stage.run, "req-1")
        await asyncio.to_thread(stage.client.cancel, "req-1")
        assert told(stage.run) == ("req-1",)
        with pytest.raises(NotFoundError, match="'req-2'"):
            await asyncio.to_thread(stage.client.cancel, "req-2")
        top = await asyncio.to_thread(stage.client.top, 1, 2)
        assert all(len(values) <= 1 for values in top.history.values())
        assert len(top.log_tail) <= 2 and top.history_seq >= 1


def test_power_and_the_history_of_a_gpu_seen_late(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=False)
    sampler.sample(100.0)
    assert sampler.power() == {}
    sampler.gpus = (Gpu(0, "GPU-0", "H100", 1, 1, 90, utilization=0.5, power_w=400.0),)
    for second in (101.0, 102.0):
        sampler.sample(second)
    assert sampler.power() == {"watts": 400.0, "tokens_per_joule": 0.0, "energy_j": 800.0}
    assert list(sampler.history["gpu0_power_w"]) == [0.0, 400.0, 400.0]
    assert sampler.recent(2)["gpu0_util"] == [0.5, 0.5]
    assert sampler.recent(0)["gpu0_util"] == [] and sampler.history_seq == 3
