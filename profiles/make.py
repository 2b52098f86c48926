"""Writes the profiles of GPUs from one table: python profiles/make.py

Each file is one GPU class on one, two, four or eight GPUs. What was searched for on a machine by
benchmarks/sweep_profile.py is read from its results, with its evidence; what was measured as it
stands is in MEASURED; the rest follows from the class of the GPU's memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from appliance.profiles.fit import FP8_SM
from appliance.profiles.known import KNOWN, KnownGpu
from appliance.runtime.plan import gpu_class

FOLDER = Path(__file__).parent
SWEEPS = FOLDER.parent / "benchmarks" / "results"
MIB, GIB = 1 << 20, 1 << 30
COUNTS = (1, 2, 4, 8)
WORDS = {
    "t4": "T4", "l4": "L4", "a10": "A10", "rtx3090": "RTX 3090", "rtx4090": "RTX 4090",
    "rtx5090": "RTX 5090", "a100-40": "A100", "l40s": "L40S", "a6000": "RTX A6000",
    "a100-80": "A100", "h100": "H100", "h200": "H200", "b200": "B200",
}  # fmt: skip
"""Word of a profile's name -> what NVML's name must hold."""

DESKTOP = {"rtx3090", "rtx4090", "rtx5090"}
"""GPUs that often draw a desktop too: they keep two hundredths of their memory more."""

SUGGEST = (
    (145.4, "Qwen/Qwen2.5-72B-Instruct"),
    (65.5, "Qwen/Qwen3-32B"),
    (29.5, "Qwen/Qwen3-14B"),
    (16.4, "Qwen/Qwen3-8B"),
    (8.0, "Qwen/Qwen3-4B"),
)
"""GB of bfloat16 weights, model: the largest that leaves a fifth of the memory is suggested."""

MEASURED = {
    "h100x1-bf16": {
        "note": (
            "measured as one set: docs/measurements.md under 'One H100'; of its values mixed_chunk "
            "and max_running were measured against another there, the others are derived from the "
            "GPU's memory size and ran as they stand"
        ),
        "machine": "1x NVIDIA H100 80GB HBM3, 16 cores, torch 2.11+cu130, FlashInfer 0.6.14",
        "date": "2026-11-21",
        "result": "13,038 output tok/s for 2000 sharegpt-like requests of the Llama-3.1-8B shape",
        "fields": ["schedule.max_running", "schedule.mixed_chunk"],
    },
    "h100x1-fp8": {
        "note": (
            "measured as one set: docs/measurements.md under 'One H100'; its values are "
            "derived from the GPU\'s memory size and ran as they stand"
        ),
        "machine": "1x NVIDIA H100 80GB HBM3, 16 cores, torch 2.11+cu130, FlashInfer 0.6.14",
        "date": "2026-11-21",
        "result": "17,719 output tok/s for 2000 sharegpt-like requests of the Llama-3.1-8B shape",
        "fields": [],
    },
    "h200x1-bf16": {
        "note": (
            "measured as one set: docs/measurements.md under 'One H200'; its values are "
            "derived from the GPU\'s memory size and ran as they stand"
        ),
        "machine": "1x NVIDIA H200, 16 cores, torch 2.11+cu130, FlashInfer 0.6.14",
        "date": "2026-11-21",
        "result": "14,553 output tok/s for 2000 sharegpt-like requests of the Llama-3.1-8B shape",
        "fields": [],
    },
    "h200x1-fp8": {
        "note": (
            "measured as one set: docs/measurements.md under 'One H200'; its values are "
            "derived from the GPU\'s memory size and ran as they stand"
        ),
        "machine": "1x NVIDIA H200, 16 cores, torch 2.11+cu130, FlashInfer 0.6.14",
        "date": "2026-11-21",
        "result": "20,341 output tok/s for 2000 sharegpt-like requests of the Llama-3.1-8B shape",
        "fields": [],
    },
}  # fmt: skip


def sweeps(folder: Path = SWEEPS) -> dict[str, dict[str, Any]]:
    """What sweep_profile.py found, by the name of the profile; of several searches of one profile,
    all together."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("sweep-*.json"), key=lambda file: file.stem):
        sweep = json.loads(file.read_text())
        before = found.get(sweep["profile"])
        found[sweep["profile"]] = _both(before, sweep) if before else sweep
    return found


def _both(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    told = {key: f"{before[key]}; then {after[key]}" for key in ("note", "result")}
    tried = [*before["tried"], *(f for f in after["tried"] if f not in before["tried"])]
    return {**after, **told, "tried": tried, "values": before["values"] | after["values"]}


def text_of(gpu: KnownGpu, count: int, fp8: bool, sweep: dict[str, Any] | None = None) -> str:
    """The file of one class on `count` GPUs; sweep: what was found there."""
    dtype = "bfloat16" if gpu.sm >= 80 else "float16"
    name = name_of(gpu, count, fp8)
    numbers = "weights rounded to 8-bit float" if fp8 else dtype
    sizes = gpu_class(gpu.mib * MIB)
    gib = gpu.mib * MIB / GIB
    few = {1: "One", 2: "Two", 4: "Four", 8: "Eight"}[count]
    share = 0.92 if gpu.word in DESKTOP else 0.94
    values: dict[str, Any] = {
        "model.dtype": dtype,
        **({"model.quantization": "fp8"} if fp8 else {}),
        "engine.device": "cuda",
        "engine.tp": count,
        "engine.memory_fraction": share,
        "engine.attention": "flashinfer",
        "engine.graphs": True,
        "schedule.policy": "fcfs",
        "schedule.page_size": 16,
        "schedule.chunk": sizes.chunk,
        "schedule.max_prefill": 16384,
        "schedule.max_running": sizes.max_running,
        "schedule.mixed_chunk": False,
        "schedule.depth": 1,
    }
    values |= sweep["values"] if sweep else {}
    lines = [
        "# written by profiles/make.py",
        f'name = "{name}"',
        f'summary = "{few} {WORDS[gpu.word]} of {gib:.0f} GiB, {numbers}"',
        f'suggest = "{_suggested(gpu, count, fp8)}"',
        "",
        "[match]",
        'device = "cuda"',
        f'gpus = ["{WORDS[gpu.word]}"]',
        f"memory_min_gib = {gib * 0.9:.1f}",
        f"memory_max_gib = {gib * 1.1:.1f}",
        f"count = {count}",
        "",
        "[evidence]",
        *_evidence(name, gpu, sweep, set(values)),
    ]
    for section in ("model", "serve", "engine", "schedule"):
        own = {f: v for f, v in values.items() if f.partition(".")[0] == section}
        if own:
            lines += ["", f"[{section}]"]
            lines += [f"{f.partition('.')[2]} = {json.dumps(v)}" for f, v in own.items()]
    return "\n".join(lines) + "\n"


def name_of(gpu: KnownGpu, count: int, fp8: bool) -> str:
    return f"{gpu.word}x{count}-{'fp8' if fp8 else 'bf16' if gpu.sm >= 80 else 'fp16'}"


def _suggested(gpu: KnownGpu, count: int, fp8: bool) -> str:
    # in 8 bits a model takes little more than half of what SUGGEST says
    room = gpu.mib * MIB * count / 1e9 * (1.4 if fp8 else 0.8)
    return next(model for weights, model in SUGGEST if weights <= room)


def _evidence(name: str, gpu: KnownGpu, sweep: dict[str, Any] | None, given: set[str]) -> list[str]:
    """given: fields that the profile sets."""
    found = MEASURED.get(name)
    if sweep is not None:
        found = _swept(sweep, found, given)
    if found is not None:
        return ["measured = true"] + [f"{k} = {json.dumps(v)}" for k, v in found.items()]
    desktop = "; two hundredths of the memory more are left for a desktop"
    note = (
        "derived: chunk, graph rows and running requests are those of GPUs of this memory size; "
        "not measured on this machine" + (desktop if gpu.word in DESKTOP else "")
    )
    return ["measured = false", f"note = {json.dumps(note)}"]


def _swept(sweep: dict[str, Any], before: dict[str, Any] | None, given: set[str]) -> dict[str, Any]:
    """What a sweep shows, after what was measured of the profile as a whole."""
    tried = [f for f in sweep["tried"] if f in given]
    told = {k: sweep[k] for k in ("note", "machine", "date", "result")} | {"fields": tried}
    if before is None:
        return told
    searched = f"searched: {', '.join(sweep['tried'])} ({sweep['note']}; {sweep['result']})"
    fields = [*before["fields"], *(f for f in tried if f not in before["fields"])]
    return {**before, "note": f"{before['note']}; {searched}", "fields": fields}


def files() -> dict[str, str]:
    """File name -> content, of every profile that this script writes."""
    found = sweeps()
    return {
        f"{name_of(gpu, count, fp8)}.toml": text_of(
            gpu, count, fp8, found.get(name_of(gpu, count, fp8))
        )
        for gpu in KNOWN
        for count in COUNTS
        for fp8 in ((False, True) if gpu.sm >= FP8_SM else (False,))
    }


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text)
    sys.stdout.write(f"{len(files())} profiles in {FOLDER}\n")
