"""GPUs that can be assumed where they are not: `--assume-gpus h100x8` on any machine."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from appliance.errors import UsageError
from appliance.hardware import Gpu, HardwareSnapshot
from appliance.profiles.schema import Match

MIB = 1 << 20
IDLE_MIB = 550
"""What the driver keeps of an idle GPU."""
CORES_PER_GPU = 16
HOST_BYTES_PER_GPU = 128 << 30


class KnownGpu(NamedTuple):
    """word: as in profile names. name, mib: as NVML tells them."""

    word: str
    name: str
    mib: int
    sm: int


KNOWN = (
    KnownGpu("t4", "Tesla T4", 15360, 75),
    KnownGpu("l4", "NVIDIA L4", 23034, 89),
    KnownGpu("a10", "NVIDIA A10", 23028, 86),
    KnownGpu("rtx3090", "NVIDIA GeForce RTX 3090", 24576, 86),
    KnownGpu("rtx4090", "NVIDIA GeForce RTX 4090", 24564, 89),
    KnownGpu("rtx5090", "NVIDIA GeForce RTX 5090", 32607, 120),
    KnownGpu("a100-40", "NVIDIA A100-SXM4-40GB", 40960, 80),
    KnownGpu("l40s", "NVIDIA L40S", 46068, 89),
    KnownGpu("a6000", "NVIDIA RTX A6000", 49140, 86),
    KnownGpu("a100-80", "NVIDIA A100-SXM4-80GB", 81920, 80),
    KnownGpu("h100", "NVIDIA H100 80GB HBM3", 81559, 90),
    KnownGpu("h200", "NVIDIA H200", 143771, 90),
    KnownGpu("b200", "NVIDIA B200", 183359, 100),
)
"""In the order of their memory."""


SUGGESTED_BYTES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 269_000_000,
    "Qwen/Qwen3-0.6B": 1_503_000_000,
    "Qwen/Qwen3-1.7B": 4_064_000_000,
    "Qwen/Qwen3-4B": 8_045_000_000,
    "Qwen/Qwen3-8B": 16_381_000_000,
    "Qwen/Qwen3-14B": 29_537_000_000,
    "Qwen/Qwen3-32B": 65_524_000_000,
    "Qwen/Qwen2.5-72B-Instruct": 145_412_000_000,
}
"""What the models that profiles suggest take to download, by their parameters in two bytes each:
told before any hub is asked."""


def assumed(text: str) -> HardwareSnapshot:
    """`h100x8`, or as others write it `8xH100-80GB`, -> an idle machine of eight H100s with 16
    cores and 128 GiB for each; `h100` is one. UsageError lists the words there are."""
    written = text.strip().lower()
    found = re.fullmatch(r"(?:([1-9][0-9]?)x)?([a-z0-9-]+?)(?:x([1-9][0-9]?))?", written)
    gpu = _of_word(found[2]) if found and not (found[1] and found[3]) else None
    if found is None or gpu is None:
        word = found[2] if found else written
        close = [g.word for g in KNOWN if g.word.startswith(f"{word}-")]
        close = close or difflib.get_close_matches(word, [g.word for g in KNOWN], 1, 0.4)
        meant = f" Did you mean '{close[-1]}'?" if close else ""
        raise UsageError(
            f"no GPU is known as '{text}'.{meant}",
            f"Write NAME or NAMExCOUNT, as h100x8. Known: {', '.join(g.word for g in KNOWN)}.",
            code="APL-USE-015",
        )
    return machine_of(gpu, int(found[1] or found[3] or 1))


def _of_word(word: str) -> KnownGpu | None:
    """`a100-80` or `a100-80gb`; where one size alone is known, `h100-80gb` too."""
    words = {g.word: g for g in KNOWN}
    size = re.fullmatch(r"(.+?)-([0-9]+)g?i?b?", word)
    if size and f"{size[1]}-{size[2]}" in words:
        return words[f"{size[1]}-{size[2]}"]
    gpu = words.get(size[1] if size else word)
    if gpu and size and abs(int(size[2]) - gpu.mib / 1024) > gpu.mib / 1024 * 0.15:
        return None
    return gpu


def word_for(match: Match) -> str:
    """The machine that a profile is made for, as `assumed` reads it; empty where it names no GPU
    that is known."""
    for gpu in KNOWN:
        gib = gpu.mib / 1024
        named = any(part.casefold() in gpu.name.casefold() for part in match.gpus)
        low, high = match.memory_min_gib, match.memory_max_gib
        if named and (not low or gib >= low) and (not high or gib <= high):
            return f"{gpu.word}x{match.count}"
    return ""


def assumed_for(match: Match) -> HardwareSnapshot | None:
    """An idle machine that a profile is made for; None where it names no GPU that is known."""
    word = word_for(match)
    return assumed(word) if word else None


def machine_of(gpu: KnownGpu, count: int) -> HardwareSnapshot:
    gpus = tuple(
        Gpu(i, f"GPU-assumed-{i}", gpu.name, gpu.mib * MIB, IDLE_MIB * MIB, gpu.sm)
        for i in range(count)
    )
    host = HOST_BYTES_PER_GPU * count
    return HardwareSnapshot(CORES_PER_GPU * count, host, host, gpus, "assumed", "assumed")
