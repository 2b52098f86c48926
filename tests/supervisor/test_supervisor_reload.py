"""A reload through the control socket: what holds now, what wants a start, nothing by halves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest
from supervisor_stage import StandIns, pids, staged

from appliance import paths
from appliance.errors import NotRunningError, UsageError
from appliance.runtime.config import read_config
from appliance.status import Change

WANTED: dict[str, Any] = {
    "log_level": "debug",
    "serve.max_queue": 7,
    "schedule.policy": "lpm",
    "engine.tp": 2,
}


async def test_each_setting_is_told_where_it_belongs() -> None:
    async with staged(replicas=2) as stage:
        await stage.heard("ready")
        before = pids(await stage.status(), "engine")
        told = await asyncio.to_thread(stage.client.reload, WANTED)
        assert told.applied == [
            Change("log_level", "info", "debug"),
            Change("serve.max_queue", 4096, 7),
        ]
        assert told.restart == [Change("schedule.policy", "fcfs", "lpm")]
        assert told.up == [Change("engine.tp", 1, 2)]
        assert (told.rolling, told.late) == (True, [])
        assert logging.getLogger().level == logging.DEBUG
        written = read_config(paths.config_file(stage.run))
        assert (written.serve.max_queue, written.schedule.policy) == (7, "lpm")
        assert (written.engine.tp, written.log_level) == (1, "debug")
        said = await stage.heard("reload")
        assert "serve.max_queue is 7" in said and "engine.tp" in said
        # nobody was started again for it, and until somebody is, it is said again
        assert pids(await stage.status(), "engine") == before
        again = await asyncio.to_thread(stage.client.reload, {})
        assert (again.applied, again.restart, again.up) == ([], told.restart, [])
        await asyncio.to_thread(stage.client.restart, True)
        await stage.until(lambda s: not set(pids(s, "engine")) & set(before) and s.state == "ready")
        last = await asyncio.to_thread(stage.client.reload, {})
        assert last.restart == []


@pytest.mark.parametrize(
    "wrong", [{"serve.max_queue": 0}, {"serve.max_quue": 7}, {"log_level": "loud"}, {"tp": 1}]
)
async def test_one_wrong_setting_leaves_all_as_they_were(wrong: dict[str, Any]) -> None:
    async with staged() as stage:
        await stage.heard("ready")
        before = paths.config_file(stage.run).read_bytes()
        with pytest.raises(UsageError):
            await asyncio.to_thread(stage.client.reload, {"serve.drain_s": 1.0} | wrong)
        assert paths.config_file(stage.run).read_bytes() == before
        assert not [kind for kind, _ in stage.told if kind == "reload"]


async def test_the_plan_tells_what_holds() -> None:
    async with staged() as stage:
        answers = [{"field": "serve.max_queue", "value": 4096, "source": "default", "reason": ""}]
        plan = {"config": {"serve": {"max_queue": 4096}}, "answers": answers}
        paths.plan_file(stage.run).write_bytes(msgspec.json.encode(plan))
        await asyncio.to_thread(
            stage.client.reload,
            {"serve.max_queue": 7, "engine.tp": 2},
            {"serve.max_queue": {"value": 7, "source": "file x"}, "engine.tp": {}},
        )
        now = await asyncio.to_thread(stage.client.plan)
        assert now["answers"][0] == answers[0] | {"value": 7, "source": "file x"}
        assert now["config"] == {"serve": {"max_queue": 7}}


async def test_how_long_a_signal_lets_requests_finish_is_of_now() -> None:
    async with staged() as stage:
        await stage.heard("ready")
        await asyncio.to_thread(stage.client.reload, {"serve.drain_s": 0.5})
        assert read_config(paths.config_file(stage.run)).serve.drain_s == 0.5


async def test_a_run_that_is_being_stopped_changes_no_more() -> None:
    commands = StandIns()
    commands.frontend_told = {"drain_s": 1.0}
    async with staged(commands) as stage:
        await stage.heard("ready")
        down = asyncio.create_task(asyncio.to_thread(stage.client.down, 5.0))
        await stage.until(lambda s: s.state == "draining")
        with pytest.raises(NotRunningError, match="is being stopped"):
            await asyncio.to_thread(stage.client.reload, {"serve.max_queue": 7})
        await down
