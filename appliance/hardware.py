"""The machine as an object with typed absence: GPUs through NVML, CPU and memory. No torch."""

from __future__ import annotations

from msgspec import Struct


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


class HardwareSnapshot(Struct, frozen=True):
    cores: int
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    problem: str = ""
    """Why no GPU can be seen, when a driver is there but does not answer."""
