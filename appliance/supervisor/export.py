"""What only the supervisor knows, for Prometheus: the run's state, restarts, alerts, GPUs, disk.

Written to a file once a second; each frontend adds it to its /metrics.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from appliance.hardware import THROTTLE_REASONS, Gpu
from appliance.metrics import Dump, Registry
from appliance.status import State
from appliance.supervisor.alerts import CODES

EVERY_S = 1.0
GPU = ("gpu", "name")
STATES: tuple[State, ...] = typing.get_args(State)


def dump(
    state: State,
    restarts: int,
    started_at: float,
    gpus: Sequence[Gpu] = (),
    disk_free: int | None = None,
    log_dropped: int = 0,
    device: str = "cpu",
    alerts: Mapping[str, int] = {},
) -> Dump:
    """started_at: Unix time. disk_free: bytes where logs and batches lie. log_dropped: lines
    that the log file lacks. device: what the engines compute on. alerts: how many stand, by
    code; those that are left out are 0. A sensor that is missing has no series."""
    registry = Registry()
    told = registry.gauge("appliance_run_state", "1 for the state the run is in", ("state",))
    for one in STATES:
        told.set(float(one == state), one)
    again = registry.counter("appliance_engine_restarts_total", "Engines started again")
    again.add(float(restarts))
    registry.gauge("appliance_start_time_seconds", "Unix time of the start").set(started_at)
    build = registry.gauge("appliance_build_info", "1, with the version", ("version",))
    build.set(1.0, version("appliance"))
    on = registry.gauge("appliance_device_info", "1 for what engines compute on", ("device",))
    on.set(1.0, device)
    standing = registry.gauge("appliance_alerts", "Alerts that stand in `appliance top`", ("code",))
    for code in CODES:
        standing.set(float(alerts.get(code, 0)), code)
    if disk_free is not None:
        free = registry.gauge("appliance_disk_free_bytes", "Free where logs and batches lie")
        free.set(float(disk_free))
    dropped = registry.counter("appliance_log_lines_dropped_total", "Log lines not in the file")
    dropped.add(float(log_dropped))
    if gpus:
        _gpus(registry, gpus)
    return registry.dump()


def _gpus(registry: Registry, gpus: Sequence[Gpu]) -> None:
    sensors: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
        ("utilization_ratio", "Share of time with work, 0 to 1", lambda g: g.utilization),
        ("memory_used_bytes", "Memory in use, by anybody", lambda g: g.memory_used),
        ("memory_total_bytes", "Memory", lambda g: g.memory_total),
        ("power_watts", "Power drawn", lambda g: g.power_w),
        ("power_limit_watts", "Power allowed", lambda g: g.power_limit_w),
        ("temperature_celsius", "Temperature", lambda g: g.temperature_c),
        ("sm_clock_hertz", "Clock", lambda g: g.sm_clock_mhz and g.sm_clock_mhz * 1e6),
        (
            "uncorrected_errors",
            "Memory errors that it could not correct, since its driver was loaded",
            lambda g: g.ecc_uncorrected,
        ),
    )
    for short, help, sensor in sensors:
        metric = registry.gauge(f"appliance_gpu_{short}", help, GPU)
        for gpu in gpus:
            value = sensor(gpu)
            if value is not None:
                metric.set(float(value), *_names(gpu))
    throttled = registry.gauge("appliance_gpu_throttled", "1 while slowed down", (*GPU, "reason"))
    for gpu in gpus:
        for reason in THROTTLE_REASONS:
            throttled.set(float(reason in gpu.throttle), *_names(gpu), reason)


def _names(gpu: Gpu) -> tuple[str, str]:
    return str(gpu.index), gpu.name.replace("|", "_")


async def keep_exporting(path: Path, look: Callable[[], Dump]) -> None:
    """Writes what `look` sees until it is cancelled; nothing while nothing changes."""
    last = b""
    while True:
        data = msgspec.json.encode(look())
        if data != last:
            temporary = path.with_name(f".{path.name}.new")
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
                last = data
            except OSError:
                pass  # a full disk is told by the log; the file is old until there is room
        await asyncio.sleep(EVERY_S)
