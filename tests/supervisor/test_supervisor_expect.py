"""How long a start takes is told from earlier ones, or reckoned; and no start is silent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from supervisor_stage import StandIns, make_config, staged

from appliance import paths
from appliance.runtime.config import RuntimeConfig
from appliance.status import about, start_words
from appliance.supervisor import expect, lifecycle
from appliance.supervisor.expect import Expected, StartTimes, remaining
from appliance.supervisor.replica import PhaseTime


@pytest.fixture
def config(tmp_path: Path) -> RuntimeConfig:
    """Of a model of 2 GB."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2_000_000_000)
    found = make_config(tmp_path)
    model = msgspec.structs.replace(found.model, path=str(tmp_path))
    return msgspec.structs.replace(found, model=model)


def on(config: RuntimeConfig, **engine: Any) -> RuntimeConfig:
    return msgspec.structs.replace(config, engine=msgspec.structs.replace(config.engine, **engine))


def named(config: RuntimeConfig, name: str) -> RuntimeConfig:
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, id=name))


def took(**phases: float) -> list[PhaseTime]:
    return [PhaseTime(name, 0.0, seconds) for name, seconds in phases.items()]


def test_the_first_start_is_reckoned_from_its_bytes(config: RuntimeConfig) -> None:
    phases, basis = StartTimes(config).expected
    assert basis == "assumed" and phases["load"] == pytest.approx(4.0)
    assert "compile" not in phases and "connect" not in phases
    assert StartTimes(on(config, compile=True)).expected.phases["compile"] > 0
    on_gpu = StartTimes(on(config, device="cuda")).expected.phases
    assert {"compile", "capture"} <= set(on_gpu) and "connect" not in on_gpu
    assert "connect" in StartTimes(on(config, device="cuda", tp=2)).expected.phases
    made_up = msgspec.structs.replace(config.model, load_format="dummy")
    assert StartTimes(msgspec.structs.replace(config, model=made_up)).expected.phases["load"] == 0


def test_the_second_start_goes_by_the_first(config: RuntimeConfig) -> None:
    StartTimes(config).learn(took(spawn=0.1, load=1.0, plan=0.5) + took(load=1.5))
    again = StartTimes(config).expected
    assert again == Expected({"spawn": 0.1, "load": 2.5, "plan": 0.5}, "earlier")


def test_another_model_goes_by_the_rate_that_was_measured(config: RuntimeConfig) -> None:
    StartTimes(config).learn(took(**{"import": 9.0, "load": 1.0}))
    other = StartTimes(named(config, "other")).expected
    assert other.basis == "assumed"
    assert other.phases["load"] == pytest.approx(1.0) and other.phases["import"] == 9.0
    elsewhere = StartTimes(on(config, device="cuda")).expected
    assert elsewhere.phases["load"] == pytest.approx(4.0), "a GPU has not been loaded yet"


def test_records_are_few_and_a_damaged_file_is_none(
    config: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expect, "KEPT", 2)
    for name in ("a", "b", "c"):
        StartTimes(named(config, name)).learn(took(load=1.0))
    bases = [StartTimes(named(config, name)).expected.basis for name in ("a", "b", "c")]
    assert bases == ["assumed", "earlier", "earlier"]
    paths.start_times().write_text("{")
    assert StartTimes(named(config, "c")).expected.basis == "assumed"
    gone = RuntimeConfig(run="x", dir="/x", model=config.model)
    StartTimes(gone, Path("/proc/nowhere/x.json")).learn(took(load=1.0))


@pytest.mark.parametrize(
    ("phase", "elapsed", "progress", "left"),
    [
        ("load", 0.0, 0.0, 17.0),
        ("load", 4.0, 0.0, 13.0),
        ("load", 5.0, 0.5, 12.0),  # its own pace: 5 s more
        ("load", 30.0, 0.0, 7.0),  # longer than it was
        ("plan", 1.0, 0.0, 6.0),
        ("capture", 20.0, 0.0, None),
    ],
)
def test_what_is_left(phase: str, elapsed: float, progress: float, left: float | None) -> None:
    expected = Expected({"import": 3.0, "load": 10.0, "plan": 2.0, "capture": 5.0}, "earlier")
    phases = [PhaseTime("import", 0.0), PhaseTime(phase, 100.0, progress=progress)]
    assert remaining(expected, phases, 100.0 + elapsed) == left


def test_words() -> None:
    assert start_words("load", 0.41, 131.0) == "load 41%, about 2 min left"
    assert start_words("load", 0.0, None) == "load"
    assert [about(s) for s in (0.2, 7.6, 12.0, 88.0, 91.0)] == [
        "about 1 s", "about 8 s", "about 10 s", "about 90 s", "about 2 min",
    ]  # fmt: skip


async def test_a_start_tells_how_long_it_takes_and_is_never_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "_SAID_EVERY_S", 0.05)
    async with staged() as stage:
        await stage.heard("ready")
        status = await stage.status()
        assert status.remaining_s is None and status.expected_from == ""
        assert stage.state_file().ready_at == 0.0
        (record,) = msgspec.json.decode(paths.start_times().read_bytes()).values()
        assert set(record["phases"]) >= {"spawn", "load"}
    _stretch("plan", 60.0)
    caplog.clear()
    async with staged(StandIns(phases=["load"], hang_in_phase=True)) as stage:
        status = await stage.until(lambda s: s.phase == "load")
        assert status.expected_from == "earlier" and 0 < (status.remaining_s or 0) <= 61
        assert 0 < stage.state_file().ready_at - time.time() <= 61
        shown = await asyncio.to_thread(stage.client.top)
        assert shown.phase == "load" and 0 < (shown.remaining_s or 0) <= 61
        while "still in phase load 50%, about 60 s left" not in caplog.text:
            await stage.status()


def _stretch(phase: str, seconds: float) -> None:
    """The last start's record, as if a phase had taken longer."""
    records = msgspec.json.decode(paths.start_times().read_bytes())
    for record in records.values():
        record["phases"][phase] = seconds
    paths.start_times().write_bytes(msgspec.json.encode(records))
