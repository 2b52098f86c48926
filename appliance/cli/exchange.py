"""`doctor --links`: pairs of GPUs exchange bytes, timed, in processes that can be ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from appliance.cli.conditions import Check
from appliance.hardware import Gpu, HardwareSnapshot

_PROGRAM = [sys.executable, "-m", "appliance.runtime.model.parallel.pairs"]
_LIMIT_S = 900.0
_TOPOLOGY = (
    "nvidia-smi topo -p2p r     shows the pairs; direct copies are turned away by an IOMMU (kernel "
    "option iommu=pt),\nby ACS on PCIe switches, or by a virtual machine without peers"
)


def exchange(
    hardware: HardwareSnapshot, program: Sequence[str] = _PROGRAM, kind: str = "cuda"
) -> list[Check]:
    """One verdict for each pair that is broken or slow, or one for all. program, kind: for
    tests."""
    gpus = hardware.gpus
    if len(gpus) < 2:
        found = "fewer than two GPUs: nothing to exchange"
        return [Check("exchange", "ok", found)]
    words = [*program, "--kind", kind, "--count", str(len(gpus))]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL
        )
        told = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        found = f"the trial did not end within {_LIMIT_S:.0f} s"
        return [Check("exchange", "block", found, "nvidia-smi; dmesg | grep -i xid")]
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        return [Check("exchange", "block", f"the trial failed: {last[0]}", "pip install torch")]
    bad = [_broken(pair, gpus, told["moved_bytes"]) for pair in told["pairs"] if _failed(pair)]
    slow = [_slow(pair, gpus, told["moved_bytes"]) for pair in told["pairs"] if pair["slow"]]
    return [*bad, *slow] or [_all_well(told, gpus)]


def _failed(pair: dict[str, Any]) -> bool:
    return pair["seconds"] is None


def _name(pair: dict[str, Any], gpus: Sequence[Gpu]) -> str:
    return f"GPU {gpus[pair['a']].index} and GPU {gpus[pair['b']].index}"


def _rate(moved: int, seconds: float) -> str:
    return f"{moved / max(seconds, 1e-9) / 1e9:.1f} GB/s"


def _broken(pair: dict[str, Any], gpus: Sequence[Gpu], moved: int) -> Check:
    why = f" ({pair['why']})" if pair["why"] else ""
    text = f"{_name(pair, gpus)} do not reach one another{why}"
    if pair["host_seconds"] is None:
        fix = (
            "neither directly nor through the host's memory: docker run --shm-size=8g; "
            f"NCCL_DEBUG=INFO appliance up … logs why\n{_TOPOLOGY}"
        )
    else:
        through = _rate(moved, pair["host_seconds"])
        fix = (
            f"NCCL_P2P_DISABLE=1 appliance up …     tried: {through} through the host's memory\n"
            f"{_TOPOLOGY}"
        )
    return Check("exchange", "block", text, fix)


def _slow(pair: dict[str, Any], gpus: Sequence[Gpu], moved: int) -> Check:
    text = f"{_name(pair, gpus)}: {_rate(moved, pair['seconds'])}, and the others wait for them"
    return Check("exchange", "warn", text, _TOPOLOGY)


def _all_well(told: dict[str, Any], gpus: Sequence[Gpu]) -> Check:
    moved, pairs = told["moved_bytes"], told["pairs"]
    slowest = max(pairs, key=lambda pair: pair["seconds"])
    count = f"all {len(pairs)} pairs reach" if len(pairs) > 1 else "both reach"
    text = f"{count} one another; {_name(slowest, gpus)}: {_rate(moved, slowest['seconds'])}"
    return Check("exchange", "ok", text + (", the slowest" if len(pairs) > 1 else ""))
