"""Who killed a process, by the kernel's counters as they lie in files of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from supervisor_stage import pids, staged

from appliance.supervisor import child
from appliance.supervisor.oom import Kills, kills


def machine(folder: Path, *, group: int | None = 0, anywhere: int = 0, first: bool = False) -> None:
    """Writes /proc and /sys/fs/cgroup as a machine has them. first: the first version of groups."""
    (folder / "proc/self").mkdir(parents=True, exist_ok=True)
    (folder / "proc/vmstat").write_text(f"nr_free_pages 7\noom_kill {anywhere}\n")
    name = "7:cpu,memory:/box\n" if first else "0::/box\n"
    (folder / "proc/self/cgroup").write_text("3:cpuset:/other\n" + name)
    box = folder / ("groups/memory/box" if first else "groups/box")
    box.mkdir(parents=True, exist_ok=True)
    if group is not None:
        (box / ("memory.oom_control" if first else "memory.events")).write_text(
            f"low 0\noom 4\noom_kill {group}\n"
        )
        limit = "memory.limit_in_bytes" if first else "memory.max"
        (box / limit).write_text("8000000000\n")


def seen(folder: Path) -> Kills:
    return kills(folder / "proc", folder / "groups")


@pytest.mark.parametrize("first", [False, True])
def test_the_limit_of_a_container_is_named(tmp_path: Path, first: bool) -> None:
    machine(tmp_path, first=first)
    before = seen(tmp_path)
    assert "counts no kill for memory" in seen(tmp_path).cause(before)
    machine(tmp_path, group=1, anywhere=1, first=first)
    now = seen(tmp_path)
    assert now.since(before) and "this container or service, 8.0 GB, was reached" in now.cause(
        before
    )


def test_a_machine_that_ran_out(tmp_path: Path) -> None:
    machine(tmp_path, group=None)
    before = seen(tmp_path)
    machine(tmp_path, group=None, anywhere=2)
    assert "the machine ran out of memory" in seen(tmp_path).cause(before)


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert not seen(tmp_path).since(Kills())
    assert "by the kernel when memory ran out" in seen(tmp_path).cause(Kills())


async def test_the_death_of_an_engine_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [Kills(0, 0, 8 * 10**9)]
    monkeypatch.setattr(child, "kills", lambda: counted[-1])
    async with staged() as stage:
        await stage.heard("ready")
        counted.append(Kills(1, 1, 8 * 10**9))
        os.kill(pids(await stage.status(), "engine")[0], 9)
        told = await stage.heard("death")
        assert told.startswith("engine 0 was killed by SIGKILL\nthe kernel killed it: the memory")
        assert "8.0 GB" in told
