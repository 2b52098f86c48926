"""The machine through a stand-in for NVML: sensors that answer, that are missing, that break."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from appliance import hardware
from appliance.hardware import Gpus, cores, detect, host_memory, visible_indices


class FakeNvml(ModuleType):
    """Two GPUs; `missing` names the calls that fail."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_NVLINK_MAX_LINKS = 18
    NVML_P2P_STATUS_OK = 0
    nvmlEventTypeXidCriticalError = 8

    def __init__(self, missing: set[str]) -> None:
        super().__init__("pynvml")
        self.missing = missing
        self.closed = 0
        self.events: list[tuple[int, int]] = []
        self.listening: list[int] = []
        answers: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": self._close,
            "nvmlSystemGetDriverVersion": lambda: "580.95.05",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda i: i,
            "nvmlDeviceGetUUID": lambda h: f"GPU-{h}aaaa",
            "nvmlDeviceGetName": lambda h: b"NVIDIA H100",
            "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(total=80 << 30, used=1 << 30),
            "nvmlDeviceGetCudaComputeCapability": lambda h: (9, 0),
            "nvmlDeviceGetUtilizationRates": lambda h: SimpleNamespace(gpu=91),
            "nvmlDeviceGetPowerUsage": lambda h: 612_000,
            "nvmlDeviceGetEnforcedPowerLimit": lambda h: 700_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda h: 0x04 | 0x40,
            "nvmlDeviceGetTemperature": lambda h, kind: 63,
            "nvmlDeviceGetClockInfo": lambda h, kind: 1980,
            "nvmlDeviceGetTotalEccErrors": lambda h, kind, counter: 0,
            "nvmlDeviceGetNvLinkState": lambda h, link: int(link < 4),
            "nvmlDeviceGetP2PStatus": lambda h, other, kind: 1,
            "nvmlEventSetCreate": lambda: "set",
            "nvmlEventSetFree": lambda events: None,
            "nvmlDeviceRegisterEvents": lambda h, kind, events: self.listening.append(h),
            "nvmlEventSetWait_v2": self._event,
            "nvmlDeviceGetIndex": lambda h: h,
            "nvmlDeviceGetComputeRunningProcesses": lambda h: [
                SimpleNamespace(pid=1, usedGpuMemory=None)
            ],
        }
        for name, answer in answers.items():
            setattr(self, name, self._guarded(name, answer))

    def _guarded(self, name: str, answer: Any) -> Any:
        def call(*args: Any) -> Any:
            if name in self.missing:
                raise self.NVMLError("Not Supported")
            return answer(*args)

        return call

    def _close(self) -> None:
        self.closed += 1

    def _event(self, events: str, timeout_ms: int) -> SimpleNamespace:
        assert timeout_ms == 0
        if not self.events:
            raise self.NVMLError("Timeout")
        gpu, xid = self.events.pop(0)
        return SimpleNamespace(device=gpu, eventData=xid)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(set())
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_all_sensors(nvml: FakeNvml) -> None:
    found = detect()
    assert (found.driver, found.cuda, found.problem) == ("580.95.05", "13.0", "")
    assert [g.index for g in found.gpus] == [0, 1]
    gpu = found.gpus[1]
    assert (gpu.name, gpu.uuid, gpu.sm) == ("NVIDIA H100", "GPU-1aaaa", 90)
    assert (gpu.utilization, gpu.power_w, gpu.power_limit_w) == (0.91, 612.0, 700.0)
    assert (gpu.temperature_c, gpu.sm_clock_mhz) == (63, 1980)
    assert gpu.throttle == ("power", "heat")
    assert gpu.processes[0].memory_bytes == 0
    assert nvml.closed == 1


@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlSystemGetDriverVersion",
        "nvmlSystemGetCudaDriverVersion_v2",
    ],
)
def test_missing_sensor_is_absent_and_no_more(nvml: FakeNvml, call: str) -> None:
    nvml.missing = {call}
    found = detect()
    assert len(found.gpus) == 2 and found.gpus[0].memory_total == 80 << 30


def test_gpu_that_falls_off_the_bus(nvml: FakeNvml) -> None:
    gpus = Gpus()
    assert len(gpus.sample()) == 2
    nvml.missing = {"nvmlDeviceGetMemoryInfo"}
    assert gpus.sample() == ()
    assert "no longer answers" in gpus.problem
    gpus.close()
    assert gpus.sample() == ()


def test_critical_errors_are_told_once_by_those_that_are_shown(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    gpus = Gpus()
    assert gpus.xids() == [] and nvml.listening == [1]
    nvml.events = [(1, 79), (0, 31), (1, 48)]
    assert gpus.xids() == [(1, 79), (1, 48)]
    assert gpus.xids() == [] and nvml.listening == [1]
    gpus.close()
    assert gpus.xids() == []


@pytest.mark.parametrize("call", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_a_driver_without_events_tells_none(nvml: FakeNvml, call: str) -> None:
    nvml.missing = {call}
    assert Gpus().xids() == []


def test_driver_that_does_not_answer(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.missing = {"nvmlInit"}
    monkeypatch.setattr(hardware, "_driver_files", lambda: True)
    found = detect()
    assert found.gpus == () and "does not answer: Not Supported" in found.problem
    monkeypatch.setattr(hardware, "_driver_files", lambda: False)
    assert detect().problem == ""


def test_only_visible_gpus(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [g.index for g in detect().gpus] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect().gpus == ()


@pytest.mark.parametrize(
    ("setting", "chosen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        ("1, 1", [1]),
        ("GPU-bbb", [1]),
        ("0,7,1", [0]),
        ("-1", []),
    ],
)
def test_visible_indices(setting: str | None, chosen: list[int]) -> None:
    assert visible_indices(setting, {0: "GPU-aaa", 1: "GPU-bbb", 2: "GPU-ccc"}) == chosen


def test_host() -> None:
    total, available = host_memory()
    assert 0 < available <= total
    assert cores() >= 1


def test_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(set()))
    assert hardware.peers() == hardware.Peers(((0, 1),), 4)
    silent = FakeNvml({"nvmlDeviceGetNvLinkState", "nvmlDeviceGetP2PStatus"})
    monkeypatch.setitem(sys.modules, "pynvml", silent)
    assert hardware.peers() == hardware.Peers()
    assert silent.closed == 1
