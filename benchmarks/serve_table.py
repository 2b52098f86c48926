"""The table of docs/measurements.md: starts the appliance and sends each row's workload over HTTP.

    python -m benchmarks.serve_table --model FOLDER [--rows ID,ID] [--append FILE] [--set K=V]

FOLDER holds config.json and a tokenizer; weights are made up (`--load-format dummy`). Each row is
one `appliance bench serve` with the settings of its group (benchmarks/rows.py), and appends one
JSON line. Prints a line a row. `--tiny` shrinks the rows until a CPU serves them in seconds.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import GROUPS, Group, Row, tiny
from benchmarks.serving import APPLIANCE, DidNotStart, GpuWatch, Served, amend, machine


def serve_group(group: Group, rows: list[Row], given: argparse.Namespace, append: Path) -> int:
    """Number of rows that failed; all of them when the server does not start."""
    options = ["--load-format", "dummy"]
    for setting in [*group.settings, *given.set]:
        options += ["--set", setting]
    options += ["--profile", given.profile] if given.profile else []
    try:
        served = Served(given.model, options).all_captured()
    except DidNotStart as problem:
        print(f"{group.name}: the server did not start\n{problem}", flush=True)
        return len(rows)
    print(f"{group.name}: ready in {served.started_s:.1f} s", flush=True)
    labels = {**machine(), "ready_s": round(served.started_s, 2)}
    labels["server"] = " ".join(["appliance up FOLDER", *options])
    try:
        return sum(run_row(row, served.url, append, labels, given.tiny) for row in rows)
    finally:
        served.close()


def run_row(row: Row, url: str, append: Path, labels: dict[str, object], small: bool) -> int:
    words = (tiny(row.arguments) if small else row.arguments).split()
    arguments = ["bench", "serve", *words, "--row", row.id, "--append", str(append), "--url", url]
    for name, value in ((n, v) for n, v in labels.items() if v is not None):
        arguments += ["--label", f"{name}={value}"]
    begin = time.perf_counter()
    try:
        with GpuWatch() as watch:
            done = subprocess.run(
                [*APPLIANCE, *arguments], capture_output=True, text=True, timeout=240, check=False
            )
    except subprocess.TimeoutExpired:
        print(f"{row.id}: did not end in 240 s", flush=True)
        return 1
    if done.returncode:
        print(f"{row.id}: rc {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return 1
    figures = {"ready_s": labels["ready_s"], **watch.figures()}  # a label is a word
    told(row, amend(append, figures), time.perf_counter() - begin)
    return 0


def told(row: Row, figures: dict[str, float], seconds: float) -> None:
    value = figures[row.figure]
    ratio = value / row.better_peer if row.above else row.better_peer / value
    print(
        f"{row.id:20} {row.figure} {value:10,.2f}  goal {'≥' if row.above else '≤'} {row.goal:g}"
        f"  better peer {row.better_peer:g} ({ratio:.2f} x)"
        f"  ttft p50 {figures['ttft_ms_p50']:.1f} ms  failed {figures['failed']}"
        f"  {figures.get('power_w', 0):.0f} W {figures.get('sm_mhz', 0):.0f} MHz"
        f"  ({seconds:.0f} s)",
        flush=True,
    )


def arguments_of(parser: argparse.ArgumentParser) -> None:
    """What every script takes that starts servers of a model."""
    parser.add_argument("--model", default="", help="folder; the embedded model when left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--profile", default="")
    parser.add_argument("--tiny", action="store_true", help="few, short requests")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of(parser)
    parser.add_argument("--rows", default="", help="IDs with commas; bf16 rows when left out")
    parser.add_argument("--append", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    wanted = given.rows.split(",") if given.rows else [r.id for r in GROUPS[0].rows]
    append = given.append or Path(tempfile.mkdtemp()) / "rows.jsonl"
    failed = 0
    for group in GROUPS:
        rows = [row for row in group.rows if row.id in wanted]
        failed += serve_group(group, rows, given, append) if rows else 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
