"""What a step on a CPU frees is not taken from the system anew by the next one."""

from __future__ import annotations

import resource

import pytest
import torch

from appliance.runtime.engine.memory import keep_freed

ROUNDS = 20
PAGES = 4 * (16 << 20) // 4096
"""Of what a round makes."""


def faults() -> int:
    """Pages that the system handed to this thread, which made and dropped 64 MB over and over."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(ROUNDS):
        made = [torch.ones(4 << 20) for _ in range(4)]
        del made
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_freed_memory_is_used_again() -> None:
    if not keep_freed():
        pytest.skip("another C library than glibc")
    assert faults() < ROUNDS * PAGES / 4
