"""The table of docs/measurements.md: starts the appliance on one GPU and sends each row's workload.

    python -m benchmarks.serve_table --model FOLDER [--rows ID,ID] [--append FILE] [--set K=V]

FOLDER holds config.json and a tokenizer; weights are made up (`--load-format dummy`). Each row is
one `appliance bench serve`, and appends one JSON line. Prints a line a row. Rows of one server go
into one call: those of fp8 with `--set model.quantization=fp8`, and fp8-prefix with
`--set schedule.prefix_cache=true` besides.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    id: str
    arguments: str
    better_peer: str


ROWS = (
    Row("bf16-one", "--dataset fixed:128,256 --num-prompts 6 --max-concurrency 1",
        "TTFT 16.7 / TPOT 6.42 ms"),
    Row("bf16-16", "--dataset fixed:512,256 --num-prompts 16", "2,038 tok/s"),
    Row("bf16-rate-8", "--dataset sharegpt-like --num-prompts 240 --request-rate 8",
        "TTFT 23.6 / TPOT 7.23 ms"),
    Row("bf16-rate-16", "--dataset sharegpt-like --num-prompts 480 --request-rate 16",
        "TTFT 26.0 / TPOT 7.87 ms"),
    Row("bf16-mid-600", "--dataset range:512-1024,128-512 --num-prompts 600", "6,796 tok/s"),
    Row("bf16-long-300", "--dataset range:2048-4096,256-512 --num-prompts 300", "2,397 tok/s"),
    Row("bf16-sharegpt-2000", "--dataset sharegpt-like --num-prompts 2000", "9,737 tok/s"),
    Row("fp8-one", "--dataset fixed:128,256 --num-prompts 6 --max-concurrency 1", "TPOT 4.22 ms"),
    Row("fp8-long-300", "--dataset range:2048-4096,256-512 --num-prompts 300", "3,031 tok/s"),
    Row("fp8-sharegpt-2000", "--dataset sharegpt-like --num-prompts 2000", "11,697 tok/s"),
    Row("fp8-prefix", "--dataset prefix:64,2048,128,64", "77.6 req/s"),
)  # fmt: skip

APPLIANCE = [sys.executable, "-m", "appliance"]


def call(arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*APPLIANCE, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", default="")
    parser.add_argument("--append", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--profile", default="")
    parser.add_argument("--port", default="8000")
    args = parser.parse_args()
    wanted = args.rows.split(",") if args.rows else [r.id for r in ROWS if r.id[:4] == "bf16"]
    append = args.append or Path(tempfile.mkdtemp()) / "rows.jsonl"
    up = ["up", args.model, "-d", "--wait=180", "--load-format", "dummy", "--port", args.port]
    for setting in ["schedule.prefix_cache=false", *args.set]:
        up += ["--set", setting]
    up += ["--profile", args.profile] if args.profile else []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    begin = time.perf_counter()
    started = call(up, 240)
    print(f"up: rc {started.returncode} in {time.perf_counter() - begin:.1f} s", flush=True)
    if started.returncode:
        print(started.stdout[-3000:], started.stderr[-6000:])
        return 1
    failed = 0
    try:
        print(call(["status"], 30).stdout, flush=True)
        for row in ROWS:
            if row.id in wanted:
                failed += run_row(row, append, args.label, args.port)
    finally:
        print(call(["down"], 60).stderr[-400:], flush=True)
    return 1 if failed else 0


def run_row(row: Row, append: Path, labels: list[str], port: str) -> int:
    arguments = ["bench", "serve", *row.arguments.split(), "--row", row.id,
                 "--append", str(append), "--url", f"http://127.0.0.1:{port}"]  # fmt: skip
    for label in labels:
        arguments += ["--label", label]
    begin = time.perf_counter()
    try:
        done = call(arguments, 200)
    except subprocess.TimeoutExpired:
        print(f"{row.id}: did not end in 200 s", flush=True)
        return 1
    if done.returncode:
        print(f"{row.id}: rc {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return 1
    figures = json.loads(append.read_text().splitlines()[-1])
    print(
        f"{row.id:20} {figures['out_tok_s']:9.0f} out tok/s  ttft p50 {figures['ttft_ms_p50']:8.1f}"
        f"  tpot p50 {figures['tpot_ms_p50']:7.2f}  e2e p50 {figures['e2e_ms_p50']:8.0f} ms"
        f"  failed {figures['failed']}  ({time.perf_counter() - begin:.0f} s)"
        f"  better peer: {row.better_peer}",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
