"""What the processes of a run still hold of the GPUs after they have ended, as the driver says.

A driver takes a dead process's memory back some time after its end. Until then the next start finds
too little, so whoever ends a run, or comes after one that was killed, waits for it and names what
stays. The engines' pids are in a file of the run for as long as the driver may know them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from appliance import paths
from appliance.hardware import Gpu, Gpus

LIMIT_S = 10.0
_PAUSE_S = 0.1


class Holder(Struct, frozen=True):
    """A process of the run that holds memory of a GPU."""

    gpu: int
    pid: int
    name: str
    memory_bytes: int

    @property
    def words(self) -> str:
        amount = f"{self.memory_bytes / 1e9:.1f} GB" if self.memory_bytes else "memory"
        return f"pid {self.pid} ({self.name}) still holds {amount} of GPU {self.gpu}"


def cure(held: list[Holder]) -> str:
    """What frees it: an end for those that live, the driver's own means for those that do not."""
    alive = sorted({h.pid for h in held if psutil.pid_exists(h.pid)})
    if alive:
        return f"kill -9 {' '.join(map(str, alive))}"
    gpus = ",".join(map(str, sorted({h.gpu for h in held})))
    return f"fuser -v /dev/nvidia* shows who has it open; sudo nvidia-smi --gpu-reset -i {gpus}"


def holders(gpus: Iterable[Gpu], pids: Iterable[int]) -> list[Holder]:
    """pids: of the run; what these started in their sessions counts too."""
    ours = set(pids)
    return [
        Holder(gpu.index, p.pid, p.name, p.memory_bytes)
        for gpu in gpus
        for p in gpu.processes
        if p.pid in ours or _session(p.pid) in ours
    ]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def remember(run: Path, pids: Iterable[int]) -> None:
    """The engines that live now, for those who come after a supervisor that was killed."""
    rows = [(pid, _born(pid)) for pid in pids]
    with suppress(OSError):  # a full disk: then nobody asks later
        paths.engine_pids(run).write_bytes(msgspec.json.encode(rows))


def forget(run: Path) -> None:
    paths.engine_pids(run).unlink(missing_ok=True)


def remembered(run: Path) -> list[int]:
    """Engines of this run, but for numbers that other processes have by now."""
    try:
        data = paths.engine_pids(run).read_bytes()
        rows = msgspec.json.decode(data, type=list[tuple[int, float]])
    except (OSError, msgspec.DecodeError):
        return []
    return [pid for pid, born in rows if _born(pid) in (0.0, born)]


def _born(pid: int) -> float:
    """Unix time; 0 for a process that is not there."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def freed(
    run: Path, limit_s: float = LIMIT_S, sample: Callable[[], tuple[Gpu, ...]] | None = None
) -> list[Holder] | None:
    """Waits until the driver has taken back what a run that has ended held; what stays after
    `limit_s`. None: nothing was left to ask about."""
    pids = remembered(run)
    if not pids:
        forget(run)
        return None
    gpus = Gpus() if sample is None else None
    look = gpus.sample if gpus is not None else sample
    assert look is not None
    end = time.monotonic() + limit_s
    try:
        while held := holders(look(), pids):
            if time.monotonic() >= end:
                return held
            time.sleep(_PAUSE_S)
    finally:
        if gpus is not None:
            gpus.close()
    forget(run)
    return []
