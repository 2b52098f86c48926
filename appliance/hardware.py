"""The machine as an object with typed absence: GPUs through NVML, CPU and memory. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

_CGROUP = Path("/sys/fs/cgroup")

_P2P_READ = 0
"""NVML_P2P_CAPS_INDEX_READ, which nvidia-ml-py holds as a tuple."""

_MOST_EVENTS = 64
"""Read at one time; a GPU that falls apart can tell them faster than anybody reads."""

_THROTTLE = {
    0x04: "power",
    0x08: "hw-slowdown",
    0x20: "heat",
    0x40: "heat",
    0x80: "power-brake",
}
"""Bits of NVML's clock throttle reasons that cost speed."""
THROTTLE_REASONS = tuple(dict.fromkeys(_THROTTLE.values()))
"""All words of Gpu.throttle."""


class GpuProcess(Struct, frozen=True):
    pid: int
    name: str
    memory_bytes: int


class Gpu(Struct, frozen=True):
    """One GPU. A sensor that is missing is None."""

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    sm: int
    """Compute capability, 90 for 9.0."""
    utilization: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    throttle: tuple[str, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    ecc_uncorrected: int | None = None
    """Memory errors since the driver was loaded that could not be corrected."""


class Peers(Struct, frozen=True):
    """How several GPUs reach one another. cut: pairs without a direct way. nvlinks: that are up."""

    cut: tuple[tuple[int, int], ...] = ()
    nvlinks: int = 0


class HardwareSnapshot(Struct, frozen=True):
    cores: int
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    problem: str = ""
    """Why no GPU can be seen, when a driver is there but does not answer."""


def detect() -> HardwareSnapshot:
    """The machine as it is now. Never raises: what cannot be seen is absent."""
    total, available = host_memory()
    gpus = Gpus()
    try:
        return HardwareSnapshot(
            cores=cores(),
            memory_total=total,
            memory_available=available,
            gpus=gpus.sample(),
            driver=gpus.driver,
            cuda=gpus.cuda,
            problem=gpus.problem,
        )
    finally:
        gpus.close()


def peers() -> Peers:
    """As the driver tells now; nothing is cut where it does not tell."""
    gpus = Gpus()
    try:
        return gpus.peers()
    finally:
        gpus.close()


def cores() -> int:
    """CPUs that this process may use, a container's quota included."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    if quota == "max":
        return allowed
    return max(1, min(allowed, int(quota) // int(period)))


def host_memory() -> tuple[int, int]:
    """(total, available) bytes, a container's limit included."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text()) - _reclaimable()
    except (OSError, ValueError):
        return total, available
    return min(total, limit), max(0, min(available, limit - used))


def _reclaimable() -> int:
    """File cache that the kernel counts as used and gives back when asked."""
    for line in (_CGROUP / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


class Gpus:
    """The GPUs through NVML, opened once and sampled as often as wished.

    Only those that CUDA_VISIBLE_DEVICES shows, in its order. Without a driver there are none, and
    `problem` says why when a driver is there but does not answer.
    """

    def __init__(self) -> None:
        self.driver = ""
        self.cuda = ""
        self.problem = ""
        self._nvml: Any = None
        self._handles: list[tuple[int, Any]] = []
        self._events: Any = None
        try:
            import pynvml
        except ImportError:
            self.problem = "the package nvidia-ml-py is not installed" if _driver_files() else ""
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as e:
            if _driver_files():
                self.problem = f"the NVIDIA driver does not answer: {e}"
            return
        self._nvml = pynvml
        self.driver = _text(self._ask(pynvml.nvmlSystemGetDriverVersion))
        version = self._ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        self.cuda = f"{version // 1000}.{version % 1000 // 10}" if version else ""
        self._handles = self._visible()

    def _visible(self) -> list[tuple[int, Any]]:
        nvml = self._nvml
        found = []
        for index in range(self._ask(nvml.nvmlDeviceGetCount) or 0):
            try:
                found.append((index, nvml.nvmlDeviceGetHandleByIndex(index)))
            except nvml.NVMLError as e:
                self.problem = f"GPU {index} does not answer: {e}"
        uuids = {index: _text(self._ask(nvml.nvmlDeviceGetUUID, h)) for index, h in found}
        chosen = visible_indices(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)
        by_index = dict(found)
        return [(i, by_index[i]) for i in chosen]

    def sample(self) -> tuple[Gpu, ...]:
        """Blocks for as long as the driver does: milliseconds, or for ever when it is broken."""
        gpus = []
        for index, handle in self._handles:
            gpu = self._sample_one(index, handle)
            if gpu is not None:
                gpus.append(gpu)
        return tuple(gpus)

    def _sample_one(self, index: int, handle: Any) -> Gpu | None:
        n = self._nvml
        memory = self._ask(n.nvmlDeviceGetMemoryInfo, handle)
        if memory is None:
            self.problem = f"GPU {index} no longer answers"
            return None
        major, minor = self._ask(n.nvmlDeviceGetCudaComputeCapability, handle) or (0, 0)
        rates = self._ask(n.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(n.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(n.nvmlDeviceGetEnforcedPowerLimit, handle)
        reasons = self._ask(n.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        return Gpu(
            index=index,
            uuid=_text(self._ask(n.nvmlDeviceGetUUID, handle)),
            name=_text(self._ask(n.nvmlDeviceGetName, handle)),
            memory_total=int(memory.total),
            memory_used=int(memory.used),
            sm=major * 10 + minor,
            utilization=None if rates is None else rates.gpu / 100,
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            temperature_c=self._ask(n.nvmlDeviceGetTemperature, handle, n.NVML_TEMPERATURE_GPU),
            sm_clock_mhz=self._ask(n.nvmlDeviceGetClockInfo, handle, n.NVML_CLOCK_SM),
            throttle=tuple(word for bit, word in _THROTTLE.items() if reasons & bit),
            processes=self._processes(handle),
            ecc_uncorrected=self._ask(
                n.nvmlDeviceGetTotalEccErrors,
                handle,
                n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                n.NVML_VOLATILE_ECC,
            ),
        )

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...]:
        rows = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        return tuple(
            GpuProcess(row.pid, _process_name(row.pid), int(row.usedGpuMemory or 0)) for row in rows
        )

    def peers(self) -> Peers:
        n, links, cut = self._nvml, 0, []
        for at, (index, handle) in enumerate(self._handles):
            for link in range(n.NVML_NVLINK_MAX_LINKS):
                links += self._ask(n.nvmlDeviceGetNvLinkState, handle, link) == 1
            for other, peer in self._handles[at + 1 :]:
                status = self._ask(n.nvmlDeviceGetP2PStatus, handle, peer, _P2P_READ)
                if status not in (None, n.NVML_P2P_STATUS_OK):
                    cut.append((index, other))
        return Peers(tuple(cut), links // 2)

    def xids(self) -> list[tuple[int, int]]:
        """(GPU, Xid) of each critical error since the last call; the first call begins to listen.

        Never waits. Nothing where the driver tells no events.
        """
        n = self._nvml
        if not self._handles:
            return []
        if self._events is None:
            self._events = self._ask(n.nvmlEventSetCreate)
            for _, handle in self._handles if self._events is not None else ():
                kind = n.nvmlEventTypeXidCriticalError
                self._ask(n.nvmlDeviceRegisterEvents, handle, kind, self._events)
        if self._events is None:
            return []
        shown = {index for index, _ in self._handles}
        found = []
        for _ in range(_MOST_EVENTS):
            event = self._ask(n.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                break
            index = self._ask(n.nvmlDeviceGetIndex, event.device)
            if index in shown:
                found.append((int(index), int(event.eventData)))
        return found

    def _ask(self, call: Any, *args: Any) -> Any:
        """The answer of one sensor, or None when this GPU has none."""
        try:
            return call(*args)
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        if self._nvml is not None:
            if self._events is not None:
                self._ask(self._nvml.nvmlEventSetFree, self._events)
            self._ask(self._nvml.nvmlShutdown)
            self._nvml, self._handles, self._events = None, [], None


def visible_indices(setting: str | None, uuids: dict[int, str]) -> list[int]:
    """GPU numbers that a value of CUDA_VISIBLE_DEVICES shows; None shows all.

    As in CUDA, what follows the first entry that names no GPU is not seen.
    """
    if setting is None:
        return sorted(uuids)
    chosen: list[int] = []
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        if entry.isdigit() and int(entry) in uuids:
            index = int(entry)
        else:
            matches = [i for i, uuid in uuids.items() if entry in uuid and entry.startswith("GPU-")]
            if not matches:
                break
            index = matches[0]
        if index not in chosen:
            chosen.append(index)
    return chosen


def _driver_files() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _process_name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "?"
