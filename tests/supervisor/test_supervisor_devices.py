"""After an end the driver is asked: whether it has the memory back, and who has it if not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from supervisor_stage import StandIns, alive, pids, staged

from appliance import paths
from appliance.hardware import Gpu, GpuProcess
from appliance.supervisor import devices, snapshot

DEAD = 2**22 + 7
"""Above any number that Linux gives."""


def gpu(*processes: tuple[int, int], index: int = 0) -> Gpu:
    rows = tuple(GpuProcess(pid, "python", size) for pid, size in processes)
    return Gpu(index, "GPU-0", "H100", 80 << 30, 0, 90, processes=rows)


@pytest.fixture
def run(own_folders: Path) -> Path:
    return paths.run_dir("gone")


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    """A process that leads a session, as engines do, and has one of its own."""
    code = "import os, time; os.spawnv(os.P_NOWAIT, '/bin/sleep', ['sleep', '99']); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-ISc", code], start_new_session=True)
    yield process
    os.killpg(process.pid, 9)
    process.wait()


def test_holders_are_ours_and_what_they_started(child: subprocess.Popen[bytes]) -> None:
    while not (started := psutil.Process(child.pid).children()):
        pass
    seen = [gpu((child.pid, 7), (os.getpid(), 8)), gpu((started[0].pid, 9), index=1)]
    held = devices.holders(seen, [child.pid])
    assert [(h.gpu, h.pid, h.memory_bytes) for h in held] == [
        (0, child.pid, 7),
        (1, started[0].pid, 9),
    ]
    assert devices.cure(held).startswith(f"kill -9 {min(child.pid, started[0].pid)}")


def test_it_waits_until_the_memory_is_back(run: Path) -> None:
    devices.remember(run, [DEAD])
    seen = [[gpu((DEAD, 1 << 30))], [gpu((DEAD, 1 << 30))], [gpu()]]
    assert devices.freed(run, 30.0, lambda: tuple(seen.pop(0))) == []
    assert not seen and not paths.engine_pids(run).exists()
    assert devices.freed(run) is None


def test_what_stays_is_named_with_its_cure(run: Path) -> None:
    devices.remember(run, [DEAD])
    held = devices.freed(run, 0.0, lambda: (gpu(), gpu((DEAD, 71_200_000_000), index=1)))
    assert held is not None
    assert held[0].words == f"pid {DEAD} (python) still holds 71.2 GB of GPU 1"
    assert "nvidia-smi --gpu-reset -i 1" in devices.cure(held)
    assert devices.remembered(run) == [DEAD], "the next one asks again"


def test_numbers_that_others_have_by_now_are_not_ours(
    run: Path, child: subprocess.Popen[bytes]
) -> None:
    devices.remember(run, [child.pid])
    assert devices.remembered(run) == [child.pid]
    written = paths.engine_pids(run).read_text()
    paths.engine_pids(run).write_text(written.replace(".", "9.", 1))
    assert devices.remembered(run) == []
    paths.engine_pids(run).write_text("{")
    assert devices.freed(run, 0.0, lambda: (gpu((child.pid, 1)),)) is None


class Sensors:
    """GPU 0, which holds memory of whoever `holding` says."""

    holding: Callable[[], list[int]] = list

    def __init__(self) -> None:
        self.problem = ""

    def sample(self) -> tuple[Gpu, ...]:
        return (gpu(*((pid, 5 << 30) for pid in type(self).holding())),)

    def xids(self) -> list[tuple[int, int]]:
        return []

    def close(self) -> None:
        pass


async def test_down_tells_when_the_driver_has_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "Gpus", Sensors)
    async with staged(StandIns(), tp=2, device="cuda") as stage:
        await stage.heard("ready")
        engines = pids(await stage.status(), "engine")
        assert sorted(devices.remembered(stage.run)) == sorted(engines)
        asked = iter(range(3))  # dead for a while before the driver notices

        def holding() -> list[int]:
            if any(alive(pid) for pid in engines) or next(asked, None) is not None:
                return engines
            return []

        monkeypatch.setattr(Sensors, "holding", staticmethod(holding))
        await asyncio.to_thread(stage.client.down, 0.0)
        await stage.ended()
        steps = [text for kind, text in stage.told if kind == "step"]
        assert "the driver says that the GPUs have their memory back" in steps
        assert not paths.engine_pids(stage.run).exists()


async def test_down_names_who_still_holds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "Gpus", Sensors)
    monkeypatch.setattr(snapshot.Sampler.freed, "__defaults__", (0.2,))
    async with staged(StandIns(), device="cuda") as stage:
        await stage.heard("ready")
        engines = pids(await stage.status(), "engine")
        monkeypatch.setattr(Sensors, "holding", staticmethod(lambda: engines))
        await asyncio.to_thread(stage.client.down, 0.0)
        await stage.ended()
        told = next(text for kind, text in stage.told if "still holds" in text)
        assert f"pid {engines[0]} (python) still holds 5.4 GB of GPU 0" in told
        assert devices.remembered(stage.run) == engines


async def test_an_engine_starts_again_when_its_memory_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, "Gpus", Sensors)
    async with staged(StandIns(), device="cuda") as stage:
        await stage.heard("ready")
        first = pids(await stage.status(), "engine")
        looks = [0]

        def holding() -> list[int]:
            looks[0] += 1
            return first if looks[0] < 5 else []

        monkeypatch.setattr(Sensors, "holding", staticmethod(holding))
        os.kill(first[0], 9)
        status = await stage.until(
            lambda s: s.state == "ready" and pids(s, "engine") not in ([], first)
        )
        assert looks[0] >= 5 and status.restarts == 1


async def test_an_engine_numbers_gpus_as_the_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA by itself puts the fastest first: on a mixed box `--gpus 0` would be another one."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    async with staged(StandIns()) as stage:
        await stage.heard("ready")
        engine = psutil.Process(pids(await stage.status(), "engine")[0])
        assert engine.environ()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
