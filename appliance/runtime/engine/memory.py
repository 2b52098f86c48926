"""How many pages fit: measured after load, not guessed.

A pass of the largest prefill chunk and a captured decode pass run against a small pool; what they
needed beyond it is kept free, and the rest of the allowed memory becomes pages.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import psutil
import torch

from appliance.errors import DoesNotFitError
from appliance.runtime.config import RuntimeConfig

_CPU_MOST = 8 << 30
_SLACK = 512 << 20
"""Bytes left for the allocator's fragmentation and libraries that allocate late."""

_KEPT = 256 << 20
"""Bytes that a CPU's engine has freed and does not give back to the system."""
_MALLOC = {
    "M_MMAP_THRESHOLD": (-3, 32 << 20),
    "M_TRIM_THRESHOLD": (-1, _KEPT),
    "M_ARENA_MAX": (-8, 1),
}
"""glibc's options, their numbers and values: 32 MB is the most that it takes for the first, and
arenas of other threads give back whatever is said."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of this rank's device."""

    weights: int
    workspace: int
    pages: int
    page_bytes: int
    count: int


def keep_freed() -> bool:
    """What a step frees is there for the next one: by itself glibc gives it back to the system, and
    each step takes it anew, page by page. False where the C library is another one."""
    try:
        option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([option(*pair) for pair in _MALLOC.values()])


def pages_wanted(config: RuntimeConfig) -> int:
    """Pages that all slots at full context would take: more are of no use."""
    size = config.schedule.page_size
    each = -(-config.model.context // size)
    return config.schedule.max_running * each


def cpu_pages(config: RuntimeConfig, page_bytes: int) -> int:
    free = psutil.virtual_memory().available
    budget = min(int(free * config.engine.memory_fraction), _CPU_MOST)
    return max(1, min(pages_wanted(config), budget // page_bytes))


def gpu_pages(
    config: RuntimeConfig,
    page_bytes: int,
    device: torch.device,
    weights: int,
    peak: int,
    graphs: int,
) -> Measured:
    """peak: bytes a rank had allocated at most during the trial pass, its small pool left out.

    graphs: bytes the captured passes will take. DoesNotFitError with numbers when no page fits.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    others = total - free - reserved
    allowed = int(total * config.engine.memory_fraction) - others
    workspace = peak - weights + graphs + _SLACK
    room = allowed - weights - workspace
    count = min(room // page_bytes, pages_wanted(config))
    if count < 1:
        gib = 1 << 30
        raise DoesNotFitError(
            f"no KV page fits: {allowed / gib:.1f} GiB are allowed on the GPU, weights take "
            f"{weights / gib:.1f} GiB and workspace {workspace / gib:.1f} GiB.",
            "Use a smaller chunk (--set schedule.chunk=2048), more GPUs (--tp 2), or a GPU with "
            f"{(weights + workspace) * 1.2 / gib:.0f} GiB or more.",
        )
    return Measured(weights, workspace, count * page_bytes, page_bytes, int(count))
