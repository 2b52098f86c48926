"""Row `start`: from the command to ready, the first time ever and with everything in caches.

    python -m benchmarks.start_times --model FOLDER [--append FILE] [--repeat 3] [--set K=V]

The first start of all has empty folders for every cache that anybody fills (kernels, triton,
CUDA, torch) and, where the weights are files, their pages are put out of memory. Each start is one
`up -d --wait`; the median of the warm ones counts. Prints the phases of the last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.serve_table import arguments_of
from benchmarks.serving import DidNotStart, Served, record

CACHES = {
    "APPLIANCE_CACHE_DIR": "appliance",
    "XDG_CACHE_HOME": "xdg",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}


def forget(folder: Path) -> None:
    """Tells the kernel that the weights' pages are not needed."""
    for file in folder.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of(parser)
    parser.add_argument("--append", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--limit-s", type=float, default=400.0)
    given = parser.parse_args()
    options = ["--load-format", given.load_format]
    for setting in given.set:
        options += ["--set", setting]
    options += ["--profile", given.profile] if given.profile else []
    times = []
    with tempfile.TemporaryDirectory(prefix="aplcache") as caches:
        own = {name: f"{caches}/{folder}" for name, folder in CACHES.items()}
        if given.model:
            forget(Path(given.model))
        for number in range(1 + (1 if given.tiny else given.repeat)):
            try:
                served = Served(given.model, options, own, given.limit_s)
            except DidNotStart as problem:
                print(problem)
                return 1
            times.append(served.started_s)
            phases = served.status.phases
            served.close()
            print(f"start {number}: {served.started_s:.2f} s", flush=True)
    figures = {
        "ready_s_cold": round(times[0], 2),
        "ready_s_warm": round(statistics.median(times[1:]), 2),
        "ready_s_all": [round(t, 2) for t in times],
        "phases": phases,
    }
    print(f"first {figures['ready_s_cold']} s, warm {figures['ready_s_warm']} s; phases: {phases}")
    if given.append:
        record(given.append, "start", figures, server=" ".join(["appliance up", *options]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
