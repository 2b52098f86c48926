"""Several runs: what `ps` says of each, and every one ended at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_stage import live_run

from appliance import paths
from appliance.client import Client
from appliance.hardware import Gpu, GpuProcess
from appliance.supervisor import devices
from appliance.supervisor.claim import RunLock, held

Cli = Callable[..., Any]


def test_ps_has_memory_context_and_restarts(cli: Cli, live: Path) -> None:
    plan = {"config": {"model": {"context": 4096}}, "fit": {"gpus": [{"index": 1}]}}
    paths.plan_file(live).write_text(json.dumps(plan))
    Client(paths.control_socket(live)).restart()
    row: dict[str, Any] = {}
    while row.get("restarts") != 1 or row["state"] != "ready":
        (row,) = json.loads(cli("ps", "--json").out)["runs"]
    assert row["context_tokens"] == 4096 and row["gpus"] == [1]
    head, shown = (line.split() for line in cli("ps").out.splitlines())
    cells = dict(zip(head, [*shown[:6], " ".join(shown[6:8]), *shown[8:]], strict=True))
    assert (cells["NAME"], cells["STATE"], cells["GPUS"]) == ("default", "ready", "1")
    assert cells["MEMORY"].endswith(" MB") or cells["MEMORY"].endswith(" GB")
    assert (cells["CONTEXT"], cells["RESTARTS"]) == ("4096", "1")


def test_down_of_every_run_without_waiting(cli: Cli, own_home: Path) -> None:
    with live_run("one", drain_s=600.0) as one, live_run("two", drain_s=600.0) as two:
        said = cli("down", "--all", "--now", "--json")
        assert said.code == 0
        assert [run["run"] for run in json.loads(said.out)["stopped"]] == ["one", "two"]
        assert said.err.count("1 frontend(s) did not finish in time: SIGKILL") == 2
        assert not held(one) and not held(two)
        assert cli("down", "--all").out == "nothing to stop\n"


def test_after_a_supervisor_that_was_killed_the_driver_is_asked(
    cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dead = paths.run_dir("default"), 2**22 + 7
    monkeypatch.setattr(devices.freed, "__defaults__", (0.0, None))

    def sensors(*holders: int) -> None:
        rows = tuple(GpuProcess(pid, "python", 71_200_000_000) for pid in holders)
        gpu = Gpu(1, "GPU-1", "H100", 80 << 30, 0, 90, processes=rows)
        stub = SimpleNamespace(sample=lambda: (gpu,), close=lambda: None)
        monkeypatch.setattr(devices, "Gpus", lambda: stub)

    devices.remember(run, [dead])
    sensors(dead)
    said = cli("down")
    assert said.code == 0 and "nothing to stop" in said.out
    assert f"pid {dead} (python) still holds 71.2 GB of GPU 1" in said.err
    (told,) = json.loads(cli("down", "--json").out)["holding"]
    assert told == {"gpu": 1, "pid": dead, "name": "python", "memory_bytes": 71_200_000_000}
    said = cli("up", "--load-format", "dummy", "--set", "engine.tp=0")
    assert said.code == 2 and f"of the last run pid {dead} (python) still holds" in said.err
    sensors()
    assert "GPUs have their memory back" in cli("down").err
    assert "memory" not in cli("down").err


def test_a_run_of_another_name_is_told_wherever_none_was_named(cli: Cli, own_home: Path) -> None:
    """`default` is what is meant by itself; that it is not up does not mean that nothing is."""
    with live_run("night") as run:
        url = Client(paths.control_socket(run)).status().url
        welcome = cli()
        assert "Serving: night" in welcome.out and "appliance top night" in welcome.out
        assert json.loads(cli("--json").out)["url"] == url
        assert "Running here: night" in cli("status").out
        for words in (("top", "--once"), ("run", "hi"), ("reload",), ("events",)):
            said = cli(*words)
            assert said.code == 3 and "appliance chat --name night" in said.err, words
        assert "appliance bench night" in cli("bench", "--preset", "smoke").err
        connect = cli("connect", "openai")
        assert f"{url}/v1" in connect.out and "the run that is up, night" in connect.err
    assert "No model is being served" in cli().out
    assert "night" not in cli("status").out


def test_a_start_that_was_refused_is_no_stopped_run(cli: Cli, own_home: Path) -> None:
    RunLock.take(paths.run_dir("two")).release()
    with live_run("one"):
        pass
    runs = json.loads(cli("ps", "-a", "--json").out)["runs"]
    assert [run["run"] for run in runs] == ["one"]
