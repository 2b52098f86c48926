"""What the supervisor tells Prometheus: names and labels are a contract with people's boards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from supervisor_stage import staged

from appliance import paths
from appliance.hardware import Gpu
from appliance.metrics import Dump, merge, render
from appliance.supervisor.alerts import CODES, Alerts, Seen
from appliance.supervisor.export import STATES, dump, keep_exporting

GOLDEN = {
    "appliance_run_state": ("gauge", ["state"]),
    "appliance_engine_restarts_total": ("counter", []),
    "appliance_start_time_seconds": ("gauge", []),
    "appliance_build_info": ("gauge", ["version"]),
    "appliance_device_info": ("gauge", ["device"]),
    "appliance_alerts": ("gauge", ["code"]),
    "appliance_disk_free_bytes": ("gauge", []),
    "appliance_log_lines_dropped_total": ("counter", []),
    "appliance_gpu_utilization_ratio": ("gauge", ["gpu", "name"]),
    "appliance_gpu_memory_used_bytes": ("gauge", ["gpu", "name"]),
    "appliance_gpu_memory_total_bytes": ("gauge", ["gpu", "name"]),
    "appliance_gpu_power_watts": ("gauge", ["gpu", "name"]),
    "appliance_gpu_power_limit_watts": ("gauge", ["gpu", "name"]),
    "appliance_gpu_temperature_celsius": ("gauge", ["gpu", "name"]),
    "appliance_gpu_sm_clock_hertz": ("gauge", ["gpu", "name"]),
    "appliance_gpu_throttled": ("gauge", ["gpu", "name", "reason"]),
    "appliance_gpu_uncorrected_errors": ("gauge", ["gpu", "name"]),
}
GPUS = (
    Gpu(0, "GPU-a", "NVIDIA|X", 80, 60, 90, 0.9, 612.0, 700.0, 63, 1905, ("heat",), (), 2),
    Gpu(1, "GPU-b", "NVIDIA X", 80, 60, 90),
)


def test_names_kinds_and_labels_stay() -> None:
    seen = dump("ready", 2, 1.5e9, GPUS, 7)
    assert {name: (m["kind"], m["labels"]) for name, m in seen.items()} == GOLDEN


def test_a_sensor_that_is_missing_has_no_series() -> None:
    text = render(merge([dump("ready", 2, 1.5e9, GPUS, 7)]))
    assert 'appliance_gpu_power_watts{gpu="0",name="NVIDIA_X"} 612\n' in text
    assert 'appliance_gpu_sm_clock_hertz{gpu="0",name="NVIDIA_X"} 1905000000\n' in text
    assert 'appliance_gpu_throttled{gpu="1",name="NVIDIA X",reason="heat"} 0\n' in text
    assert 'appliance_gpu_throttled{gpu="0",name="NVIDIA_X",reason="heat"} 1\n' in text
    assert 'appliance_gpu_power_watts{gpu="1"' not in text
    assert 'appliance_run_state{state="ready"} 1\n' in text
    assert text.count("appliance_run_state{") == len(STATES)
    assert "gpu" not in render(dump("ready", 0, 0.0))


def test_alerts_are_counted_by_code_and_begin_at_zero() -> None:
    standing = Alerts()
    assert standing.standing() == dict.fromkeys(CODES, 0)
    hot = [msgspec.structs.replace(gpu, throttle=("heat",), ecc_uncorrected=0) for gpu in GPUS]
    seen = Seen(now=1000.0, gpus=hot, plain="ninja is not there")
    standing.judge(msgspec.structs.replace(seen, failure=("APL-ENG-002", "it died", "look")))
    text = render(dump("ready", 0, 0.0, alerts=standing.standing()))
    assert 'appliance_alerts{code="APL-ALR-003"} 2\n' in text
    assert 'appliance_alerts{code="APL-ALR-016"} 1\n' in text
    assert 'appliance_alerts{code="APL-ALR-015"} 0\n' in text
    assert text.count("appliance_alerts{") == len(CODES)
    standing.judge(Seen(now=1001.0))
    assert not any(standing.standing().values())


async def test_a_run_writes_them_until_it_ends() -> None:
    async with staged() as stage:
        await stage.heard("ready")
        path = paths.supervisor_metrics(stage.run)
        async with asyncio.timeout(20):
            while not path.exists() or _state(path) != "ready":
                await asyncio.sleep(0.02)
        async with asyncio.timeout(20):  # the disk is asked beside the loop
            while "appliance_disk_free_bytes" not in _read(path):
                await asyncio.sleep(0.02)
        assert _read(path)["appliance_disk_free_bytes"]["series"][""] > 0
        assert _read(path)["appliance_device_info"]["series"] == {"cpu": 1.0}
        assert set(_read(path)["appliance_alerts"]["series"]) == set(CODES)


async def test_a_disk_that_refuses_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "metrics.json"
    task = asyncio.create_task(keep_exporting(path, lambda: dump("ready", 0, 0.0)))
    await asyncio.sleep(0)
    assert not task.done() and not path.exists()  # no folder: a disk that refuses
    task.cancel()


def _read(path: Path) -> Dump:
    found: Dump = msgspec.json.decode(path.read_bytes())
    return found


def _state(path: Path) -> str:
    states = _read(path)["appliance_run_state"]["series"]
    return next(name for name, value in states.items() if value)
