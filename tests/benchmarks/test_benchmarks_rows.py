"""The scripts that record figures: each runs on a CPU, so that no hour of a GPU is a first try."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.hardware import Gpu
from appliance.profiles.known import KNOWN
from appliance.profiles.schema import Profile
from benchmarks import (
    all_rows,
    client_cost,
    engine_rows,
    limits,
    rows,
    serving,
    soak,
    sweep_profile,
)

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "appliance" / "default_model"


def test_every_row_of_the_table_has_its_script() -> None:
    found = [row.id for group in rows.GROUPS for row in group.rows]
    assert len(found) == len(set(found)) == 11
    for row in (row for group in rows.GROUPS for row in group.rows):
        words = rows.tiny(row.arguments).split()
        assert "--dataset" in words and words[words.index("--num-prompts") + 1] == "4"
        assert "sharegpt" not in rows.tiny(row.arguments) and "2048" not in rows.tiny(row.arguments)


def test_host_and_idle_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.jsonl"
    words = ["x", "--model", str(MODEL), "--device", "cpu", "--rows", "8", "--steps", "300"]
    monkeypatch.setattr(sys, "argv", [*words, "--traced", "6", "--append", str(file)])
    assert engine_rows.main() == 0
    host, idle = (json.loads(line) for line in file.read_text().splitlines())
    assert (host["row"], host["gpu"]) == ("host", "none")
    assert host["host_us"] == round(host["schedule_us"] + host["inputs_us"], 1)
    assert host["inputs_us"] <= host["launch_us"] <= host["step_us"]
    assert idle["row"] == "idle" and 0 <= idle["idle_share"] < 1
    assert idle["seen_on"] == "host: launches"


@pytest.mark.slow
def test_rows_are_served_once_for_each_commit(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "benchmarks.all_rows", "--tiny", "--append", str(file)]
    for said in ("bf16-one             tpot_ms_p50", "bf16-one: recorded already"):
        done = subprocess.run(
            [*command, "--only", "bf16-one", "--budget", "5m"],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env=os.environ | {"APPLIANCE_COMMIT": "abc1234"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (
        (line["row"], line["commit"]) == ("bf16-one", "abc1234")
        and line["failed"] == 0
        and line["torch"]
    )
    assert "schedule.prefix_cache=false" in line["server"]


def test_what_the_time_is_short_for_is_left_out(tmp_path: Path) -> None:
    given = argparse.Namespace(append=tmp_path / "none", budget="50s", only="", tiny=False)
    work = all_rows.Work(given)
    assert work.time_for(40, ["a"]) and not work.time_for(120, ["b", "c"])
    assert work.left_out == ["b", "c"] and not work.time_for(1, [])


def found_by(monkeypatch: pytest.MonkeyPatch, budget_s: float) -> dict[str, Any]:
    """A sweep whose trials take no time: 4096 is the best chunk, 0.96 the best share."""

    def trial(values: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
        score = 100.0 * (1.2 if values.get("schedule.chunk") == 4096 else 1.0)
        score *= 1.1 if values.get("engine.memory_fraction") == 0.96 else 1.0
        return {"values": values, "score": score, "tok_s": [score], "seconds": 10.0,
                "profile": "h100x1-bf16"}  # fmt: skip

    monkeypatch.setattr(sweep_profile, "trial", trial)
    given = argparse.Namespace(budget_s=budget_s, fp8=False)
    return sweep_profile.evidence(sweep_profile.search(sweep_profile.FIELDS, given), given)


def test_a_sweep_becomes_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = found_by(monkeypatch, 1e9)
    assert found["values"] == {"schedule.chunk": 4096, "engine.memory_fraction": 0.96}
    assert set(found["tried"]) == set(sweep_profile.FIELDS)
    (tmp_path / "sweep-h100x1-bf16.json").write_text(json.dumps(found))
    make = runpy.run_path(str(ROOT / "profiles" / "make.py"))
    gpu = next(gpu for gpu in KNOWN if gpu.word == "h100")
    text = make["text_of"](gpu, 1, False, make["sweeps"](tmp_path)["h100x1-bf16"])
    profile = msgspec.convert(tomllib.loads(text), Profile)
    assert profile.evidence.measured and "schedule.chunk" in profile.evidence.fields
    assert profile.schedule["chunk"] == 4096 and profile.engine["memory_fraction"] == 0.96
    assert profile.schedule["max_running"] == 2048


def test_two_sweeps_of_a_profile_are_both_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = found_by(monkeypatch, 1e9)
    later = {**first, "tried": ["schedule.depth"], "values": {"schedule.chunk": 512}, "note": "x"}
    for name, found in (("", first), ("-2", later)):
        (tmp_path / f"sweep-h100x1-bf16{name}.json").write_text(json.dumps(found))
    both = runpy.run_path(str(ROOT / "profiles" / "make.py"))["sweeps"](tmp_path)["h100x1-bf16"]
    assert both["tried"] == [*first["tried"], "schedule.depth"]
    assert both["values"] == {"schedule.chunk": 512, "engine.memory_fraction": 0.96}
    assert both["note"] == f"{first['note']}; then x"


def test_a_sweep_of_a_rounding_profile_begins_at_the_plain_one() -> None:
    assert sweep_profile.searched("h100x1-bf16", True) == "h100x1-fp8"
    assert sweep_profile.searched("h100x1-bf16", False) == "h100x1-bf16"


class OneGpu:
    """Samples of a GPU: idle, then at work, held down for power every other time."""

    def __init__(self, most: int) -> None:
        self._most, self.asked, self.done = most, 0, threading.Event()

    def sample(self) -> tuple[Gpu, ...]:
        at, self.asked = self.asked, self.asked + 1
        if at >= self._most:
            self.done.set()
            return ()
        return (
            Gpu(0, "u", "H", 1, 1, 90, utilization=float(at > 0), power_w=600.0 + at,
                power_limit_w=700.0, sm_clock_mhz=1400 + 10 * at,
                throttle=("power",) if at % 2 else ()),
        )  # fmt: skip


def test_a_row_tells_what_the_gpu_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the samples in which it was at work."""
    monkeypatch.setattr(serving.GpuWatch, "EVERY_S", 0.001)
    gpus = OneGpu(5)
    with serving.GpuWatch(gpus) as watch:  # type: ignore[arg-type]
        assert gpus.done.wait(30)
    found = watch.figures()
    assert found == {"power_w": 602.5, "power_limit_w": 700.0, "power_bound": 0.5, "sm_mhz": 1425}
    with serving.GpuWatch(OneGpu(0)) as nothing:  # type: ignore[arg-type]
        pass
    assert nothing.figures() == {}
    file = tmp_path / "r.jsonl"
    file.write_text('{"row": "a"}\n{"row": "b", "x": 1}\n')
    assert serving.amend(file, found)["power_w"] == 602.5
    first, last = map(json.loads, file.read_text().splitlines())
    assert first == {"row": "a"} and last == {"row": "b", "x": 1} | found


def test_any_setting_can_be_swept() -> None:
    assert sweep_profile.named("engine.filter=sort,search") == ("engine.filter", ("sort", "search"))
    field, values = sweep_profile.named("schedule.mixed_chunk=true,false")
    assert [sweep_profile.setting(field, v) for v in values] == [
        "schedule.mixed_chunk=true", "schedule.mixed_chunk=false"
    ]  # fmt: skip
    assert sweep_profile.named("schedule.share_from=0,2000")[1] == (0, 2000)


def test_a_sweep_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, 5.0)
    assert found["values"] == {} and len(found["trials"]) == 1


def looks(growth: int, on_gpu: int = 0) -> list[dict[str, Any]]:
    def process(i: int) -> dict[str, int]:
        return {"pid": 7, "rss": (200 << 20) + growth * i, "fds": 9, "threads": 3}

    return [
        {"processes": {"engine-0": process(i)}, "gpus": [(70 << 30) + on_gpu * i] if on_gpu else []}
        for i in range(8)
    ]


@pytest.mark.parametrize(
    ("growth", "fds", "used", "leaks"),
    [(0, 9, 0, 0), (16 << 20, 9, 0, 1), (0, 40, 0, 1), (0, 9, 64, 1)],
)
def test_a_soak_tells_what_was_not_given_back(growth: int, fds: int, used: int, leaks: int) -> None:
    zero = ("requests_running", "requests_waiting", "live_requests", "kv_used_tokens")
    others = ("generation_tokens_total", "engine_steps_total", "preemptions_total",
              "evicted_tokens_total", "kv_total_tokens")  # fmt: skip
    idle = {f"appliance_{name}": 0.0 for name in (*zero, *others)}
    idle["appliance_kv_used_tokens"] = used
    seen = looks(growth)
    last = {"engine-0": {**seen[-1]["processes"]["engine-0"], "fds": fds}}
    told = soak.report(seen, idle, last, Counter(), 1.0)
    assert len(told["leaks"]) == leaks, told["leaks"]
    assert told["gpus_mib"] == []
    on_gpu = soak.report(looks(growth, 32 << 20), idle, last, Counter(), 1.0)
    assert len(on_gpu["leaks"]) == leaks + 1 and len(on_gpu["gpus_mib"]) == 1


def test_limits_are_above_what_was_measured() -> None:
    record = (ROOT / "benchmarks" / "results" / "h100.jsonl").read_text().splitlines()
    measured = {line["row"]: line for line in map(json.loads, record)}
    for row in (row for group in rows.GROUPS for row in group.rows):
        bound = limits.limit(row, 1024, 420_000)
        worse = bound if row.above else 1 / bound
        assert worse > (row.better_peer if row.above else 1 / row.better_peer), row.id
        if row.id in measured:
            value = measured[row.id][row.figure]
            assert worse > (value if row.above else 1 / value), row.id


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_server_that_costs_nothing_answers_every_stream(tmp_path: Path) -> None:
    program = client_cost.built(tmp_path)
    found = client_cost.measure(program, streams=5, tokens=7, processes=1, rate=5000.0)
    assert (found["streams"], found["processes"]) == (5, 1) and found["tok_s"] > 0
