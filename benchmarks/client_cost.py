"""What the bench itself can take: streams of a server in C that costs next to nothing.

    python -m benchmarks.client_cost [--streams 64 256] [--tokens 400] [--processes 1]

Each round first without a pause (what bounds it then is told), then paced to `--rate` tokens a
second. CPU time of the client a token says what one core can take, whatever else a machine does.
Needs a C compiler.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.bench import load
from appliance.bench.measure import figures
from appliance.bench.workload import Workload

SOURCE = Path(__file__).with_name("fast_server.c")


def built(folder: Path) -> Path:
    program = folder / "fast_server"
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", str(program), str(SOURCE)], check=True)
    return program


@contextmanager
def serving(program: Path, every_us: float, told: dict[str, float]) -> Iterator[str]:
    """The server's URL; at the end what it sent and its CPU seconds."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([str(program), str(every_us)], stdin=pipe, stdout=pipe, text=True)
    assert server.stdin is not None and server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.stdin.close()
        events, cpu = server.stdout.readline().split()
        told.update(events=float(events), cpu_s=float(cpu))
        server.stdout.close()
        server.wait(10)


def measure(
    program: Path, streams: int, tokens: int, processes: int, rate: float
) -> dict[str, Any]:
    """rate: tokens a second that are offered; 0: as many as go."""
    server: dict[str, float] = {}
    every = streams / rate * 1e6 if rate else 0.0
    workload = Workload(dataset=f"fixed:8,{tokens}", requests=streams, model="fast")
    with serving(program, every, server) as url:
        run = load.run(workload, url, processes=processes)
    found = figures(run)
    assert not found["failed"] and found["output_tokens"] == server["events"], found
    each = found["sender_cpu_s"] / found["output_tokens"] * 1e6
    theirs = server["cpu_s"] / server["events"] * 1e6
    busy = found["sender_cpu_s"] / found["duration_s"] / processes
    serves = server["cpu_s"] / found["duration_s"]
    bound = "the client" if busy > 0.85 else "the server" if serves > 0.85 else "neither's CPU"
    return {
        "streams": streams,
        "processes": processes,
        "offered_tok_s": rate or None,
        "tok_s": round(found["out_tok_s"]),
        "client_us_a_token": round(each, 2),
        "server_us_a_token": round(theirs, 2),
        "client_core_share": round(busy, 2),
        "bound": "the pace" if rate and found["out_tok_s"] > 0.95 * rate else bound,
        "one_core_takes_tok_s": round(1e6 / each),
        "itl_ms_p50": round(found["itl_ms_p50"], 3),
        "itl_ms_p99": round(found["itl_ms_p99"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20_000.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = built(Path(folder))
        for streams in given.streams:
            for rate in (0.0, given.rate):
                print(measure(program, streams, given.tokens, given.processes, rate), flush=True)


if __name__ == "__main__":
    main()
