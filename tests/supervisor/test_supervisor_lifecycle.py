"""The life of a run on stand-in processes: start, death, hang, failure, drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import time

import pytest
from supervisor_stage import FAST, StandIns, alive, pids, staged

from appliance import paths
from appliance.errors import EngineError
from appliance.status import RunStatus
from appliance.supervisor.health import Limits
from appliance.supervisor.replica import PHASES


async def test_what_an_engine_tells_later_is_of_its_facts() -> None:
    async with staged(StandIns(beat_facts={"pages": 65, "captured": 7})) as stage:
        await stage.heard("ready")
        status = await stage.until(lambda s: "captured" in s.facts)
        assert status.facts == {"pages": 65, "captured": 7, "generation": 1}


async def test_starts_and_becomes_ready() -> None:
    async with staged(StandIns(phases=["import", "load", "plan"]), frontends=2) as stage:
        await stage.heard("ready")
        status = await stage.status()
        assert (status.state, status.phase, status.model) == ("ready", None, "tiny")
        assert status.url == f"http://127.0.0.1:{stage.port}"
        assert [p["name"] for p in status.phases] == ["spawn", "import", "load", "plan"]
        assert status.facts == {"pages": 64, "generation": 1}
        assert [(p.role, p.index, p.rank) for p in status.processes] == [
            ("supervisor", 0, None),
            ("frontend", 0, None),
            ("frontend", 1, None),
            ("engine", 0, 0),
        ]
        assert all(p.state == "ready" and p.memory_bytes for p in status.processes)
        assert stage.state_file().reached_ready
        assert await stage.ask_frontend() in pids(status, "frontend")


async def test_control_socket_is_private() -> None:
    async with staged() as stage:
        mode = paths.control_socket(stage.run).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


async def test_port_is_open_while_the_engine_loads() -> None:
    async with staged(StandIns(phases=["load"], hang_in_phase=True)) as stage:
        status = await stage.until(lambda s: s.phase == "load")
        assert (status.state, status.progress) == ("starting", 0.5)
        assert await stage.ask_frontend() in pids(status, "frontend")
        assert stage.state_file().phase == "load"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_dead_engine_is_started_again(number: signal.Signals) -> None:
    async with staged() as stage:
        await stage.heard("ready")
        (first,) = pids(await stage.status(), "engine")
        os.kill(first, number)
        cause = await stage.heard("death")
        assert cause.startswith(f"engine 0 was killed by {number.name}")
        status = await stage.until(lambda s: s.facts.get("generation") == 2 and s.state == "ready")
        assert status.restarts == 1
        assert pids(status, "engine") != [first]
        assert not alive(first)


async def test_degraded_while_an_engine_comes_back() -> None:
    commands = StandIns()
    commands.by_generation[2] = {"phases": ["load"], "hang_in_phase": True}
    async with staged(commands) as stage:
        await stage.heard("ready")
        os.kill(pids(await stage.status(), "engine")[0], signal.SIGKILL)
        status = await stage.until(lambda s: s.state == "degraded" and s.phase == "load")
        assert stage.state_file().state == "degraded"
        assert stage.state_file().reached_ready
        assert await stage.ask_frontend() in pids(status, "frontend")


async def test_all_ranks_go_together() -> None:
    async with staged(tp=3) as stage:
        await stage.heard("ready")
        before = pids(await stage.status(), "engine")
        assert len(before) == 3
        os.kill(before[1], signal.SIGKILL)
        assert "rank 1" in await stage.heard("death")
        status = await stage.until(lambda s: s.facts.get("generation") == 2 and s.state == "ready")
        assert not set(before) & set(pids(status, "engine"))
        assert not any(alive(pid) for pid in before)


async def test_other_replicas_live_on() -> None:
    async with staged(replicas=2) as stage:
        await stage.heard("ready")
        first, second = pids(await stage.status(), "engine")
        os.kill(first, signal.SIGKILL)
        await stage.heard("death")
        status = await stage.until(lambda s: s.state == "ready" and s.restarts == 1)
        assert second in pids(status, "engine")


async def test_stopped_engine_is_killed_within_its_limit() -> None:
    async with staged(StandIns(beat_limit=3.0)) as stage:
        await stage.heard("ready")
        (first,) = pids(await stage.status(), "engine")
        os.kill(first, signal.SIGSTOP)
        began = time.monotonic()
        cause = await stage.heard("death")
        took = time.monotonic() - began
        assert "no sign of life" in cause and "serving" in cause
        assert took < 4.5  # 3 s of silence, a tick, and a slow machine
        await stage.until(lambda s: s.facts.get("generation") == 2 and s.state == "ready")
        assert not alive(first)


async def test_hang_in_a_phase_is_found() -> None:
    commands = StandIns()
    commands.by_generation[1] = {"phases": ["load"], "phase_limit": 0.3, "hang_in_phase": True}
    async with staged(commands) as stage:
        cause = await stage.heard("death")
        assert "in phase 'load'" in cause
        await stage.heard("ready")


async def test_too_many_deaths_fail_the_run_and_frontends_stay() -> None:
    limits = Limits(deaths=3, window_s=60, delays_s=(0.0,), term_s=0.5)
    async with staged(limits=limits) as stage:
        await stage.heard("ready")
        for generation in range(1, 5):

            def came(status: RunStatus, wanted: int = generation) -> bool:
                return status.facts.get("generation") == wanted and status.state == "ready"

            status = await stage.until(came)
            os.kill(pids(status, "engine")[0], signal.SIGKILL)
            await stage.heard("death", generation)
        await stage.heard("failed")
        status = await stage.until(lambda s: s.state == "failed")
        assert status.failure is not None
        assert status.failure["message"].startswith("engine 0 was killed by SIGKILL")
        assert "4 deaths in 60 s, no more tries" in status.failure["message"]
        assert status.failure["exit_code"] == 10
        first = "engine 0 was killed by SIGKILL: 4 deaths in 60 s, no more tries"
        assert stage.state_file().failure == first
        assert await stage.ask_frontend() in pids(status, "frontend")
        assert not any(alive(pid) for pid in pids(status, "engine"))
        with pytest.raises(EngineError):
            await asyncio.to_thread(stage.client.restart)


async def test_permanent_failure_is_told_in_its_own_words_and_not_retried() -> None:
    failed = {"message": "weights need 16.1 GB", "hint": "use --tp 2", "code": "APL-FIT-009"}
    commands = StandIns(failed={**failed, "exit_code": 7})
    async with staged(commands, leave_when_failed=True) as stage:
        death = await stage.ended()
        assert death is not None
        assert (death.message, death.hint, death.exit_code) == (
            "weights need 16.1 GB",
            "use --tp 2",
            7,
        )
        assert sum(kind == "death" for kind, _ in stage.told) == 1


async def test_failed_frontend_leaves_the_supervisor_to_answer() -> None:
    commands = StandIns()
    commands.frontend_told = {"failed": {"message": "tokenizer.json is cut off", "exit_code": 9}}
    async with staged(commands) as stage:
        await stage.heard("failed")
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503") and b"x-should-retry: false" in head
        assert "tokenizer.json is cut off" in json.loads(body)["error"]["message"]
        status = await stage.status()
        assert status.failure is not None and status.failure["exit_code"] == 9


async def test_passing_failure_at_the_start_is_tried_again() -> None:
    commands = StandIns()
    commands.by_generation[1] = {"failed": {"message": "out of luck", "exit_code": 10}}
    async with staged(commands) as stage:
        assert await stage.heard("death") == "out of luck"
        await stage.heard("ready")


async def test_engine_that_never_starts_fails_with_its_last_words() -> None:
    commands = StandIns(print=["Traceback:", "  File x", "ImportError: no libfoo"], exit=1)
    async with staged(commands, leave_when_failed=True) as stage:
        death = await stage.ended()
        assert death is not None and death.exit_code == 10
        assert death.message.startswith("engine 0 exited with status 1")
        assert "ImportError: no libfoo" in death.message
        assert sum(kind == "death" for kind, _ in stage.told) == FAST.start_deaths + 1


async def test_dead_frontend_returns_on_the_same_port() -> None:
    async with staged() as stage:
        await stage.heard("ready")
        before = await stage.ask_frontend()
        os.kill(before, signal.SIGKILL)
        await stage.heard("death")  # what it had accepted is gone; the port is not
        assert await stage.ask_frontend() != before
        assert (await stage.status()).state == "ready"


async def test_down_drains_and_tells_each_step() -> None:
    commands = StandIns(ignore_term=True)
    commands.frontend_told = {"drain_s": 0.3}
    async with staged(commands) as stage:
        await stage.heard("ready")
        processes = (await stage.status()).processes[1:]
        steps: list[str] = []
        await asyncio.to_thread(stage.client.down, 10.0, steps.append)
        assert await stage.ended() is None
        assert steps[0].startswith("draining 0 request(s)")
        assert steps[1].startswith("frontends finished")
        assert "engine 0 did not end within 0.5 s of SIGTERM: SIGKILL" in steps[2]
        assert steps[3].startswith("stopped in")
        assert not any(alive(p.pid) for p in processes)
        assert stage.state_file().state == "stopped"
        assert not paths.control_socket(stage.run).exists()


async def test_drain_has_an_end() -> None:
    commands = StandIns()
    commands.frontend_told = {"drain_s": 1000}
    async with staged(commands) as stage:
        await stage.heard("ready")
        steps: list[str] = []
        await asyncio.to_thread(stage.client.down, 0.2, steps.append)
        assert "1 frontend(s) did not finish in time: SIGKILL" in steps


async def test_engine_that_dies_while_draining_comes_back_for_the_live_requests() -> None:
    commands = StandIns()
    commands.frontend_told = {"drain_s": 1.5}
    async with staged(commands) as stage:
        await stage.heard("ready")
        down = asyncio.create_task(asyncio.to_thread(stage.client.down, 10.0))
        await stage.heard("step")
        os.kill(pids(await stage.status(), "engine")[0], signal.SIGKILL)
        status = await stage.until(lambda s: s.facts.get("generation") == 2)
        assert status.state == "draining"
        await down


async def test_restart_is_no_death() -> None:
    async with staged() as stage:
        await stage.heard("ready")
        for generation in range(2, 7):
            await asyncio.to_thread(stage.client.restart)

            def came(status: RunStatus, wanted: int = generation) -> bool:
                return status.facts.get("generation") == wanted and status.state == "ready"

            await stage.until(came)
        assert not [text for kind, text in stage.told if kind in ("death", "failed")]
        top = await asyncio.to_thread(stage.client.top)
        assert "APL-ALR-001" not in {alert["code"] for alert in top.alerts}


async def test_what_an_engine_started_goes_with_it() -> None:
    async with staged(StandIns(grandchild=True)) as stage:
        await stage.heard("ready")
        (engine,) = pids(await stage.status(), "engine")
        children = await asyncio.to_thread(_children_of, engine)
        assert children
        os.kill(engine, signal.SIGKILL)
        await stage.heard("death")
        async with asyncio.timeout(5):
            while any(alive(pid) for pid in children):
                await asyncio.sleep(0.01)


def _children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


async def test_lines_of_children_reach_the_log_and_its_followers() -> None:
    line = "2026-11-20T12:00:01.123Z WARNING engine-0 pool is small \x1b[31m"
    async with staged(StandIns(print=[line, "plain words"])) as stage:
        await stage.heard("ready")
        text = await asyncio.to_thread(stage.client.logs, 50, "engine", "")
        assert text.splitlines() == [line.replace("\x1b", "\\x1b"), "plain words"]
        assert await asyncio.to_thread(stage.client.logs, 1, "engine", "error") == ""
        logged = paths.supervisor_log("stage").read_text()
        assert "plain words" in logged and "ready: ready in" in logged

        def first_followed() -> str:
            return next(iter(stage.client.follow_logs(1, "engine")))

        assert await asyncio.to_thread(first_followed) == "plain words"


async def test_a_rolling_restart_leaves_the_others_serving() -> None:
    async with staged(replicas=3) as stage:
        await stage.heard("ready")
        old = set(pids(await stage.status(), "engine"))
        await asyncio.to_thread(stage.client.restart, True)
        await asyncio.to_thread(stage.client.restart, True)  # while it goes on: nothing more
        away: list[int] = []

        def done(status: RunStatus) -> bool:
            engines = [p for p in status.processes if p.role == "engine"]
            away.append(sum(p.state != "ready" for p in engines))
            return status.restarts == 3 and status.state == "ready"

        status = await stage.until(done)
        assert max(away) == 1 and not old & set(pids(status, "engine"))
        assert not any(kind == "death" for kind, _ in stage.told)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", PHASES[1:])
async def test_the_first_cause_is_told_whichever_rank_has_it(phase: str, rank: int) -> None:
    phases = list(PHASES[1 : PHASES.index(phase) + 1])
    failed = {"message": f"rank {rank} found no room", "code": "APL-FIT-009", "exit_code": 7}
    commands = StandIns(phases=phases, failed=failed, only_rank=rank, hang_otherwise=True)
    async with staged(commands, tp=2, leave_when_failed=True) as stage:
        death = await stage.ended()
        assert death is not None
        assert (death.message, death.code) == (f"rank {rank} found no room", "APL-FIT-009")
        assert sum(kind == "death" for kind, _ in stage.told) == 1


async def test_no_zombies_after_many_restarts() -> None:
    async with staged() as stage:
        await stage.heard("ready")
        seen: list[int] = []
        for generation in range(2, 12):
            seen += pids(await stage.status(), "engine")
            await asyncio.to_thread(stage.client.restart)

            def came(status: RunStatus, wanted: int = generation) -> bool:
                return status.facts.get("generation") == wanted

            await stage.until(came)
        assert not any(os.path.exists(f"/proc/{pid}") for pid in seen)
