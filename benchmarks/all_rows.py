"""Everything that is recorded, in order of importance, within a budget of time.

    python -m benchmarks.all_rows --model FOLDER --append FILE [--budget 25m] [--only ID,ID]

Rows that FILE already has for this commit and machine are skipped, so that a run that was cut off
goes on where it stopped; a row is begun only when its time is left. APPLIANCE_COMMIT names the
commit where there is no repository. `--sweep` adds the search for a profile's values at the end.
`--tiny` runs all of it on a CPU in a minute.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from appliance.hardware import detect
from benchmarks.rows import GROUPS, NO_CACHE
from benchmarks.serve_table import arguments_of, serve_group
from benchmarks.serving import machine

_UNITS = {"s": 1, "m": 60, "h": 3600}
SERVER_S = 45
"""Until a server is ready, and gone again."""
ENGINE_S, START_S, SWEEP_S = 120, 300, 1200


def seconds(text: str) -> float:
    return float(text.rstrip("smh")) * _UNITS.get(text[-1], 1)


def recorded(file: Path, here: dict[str, object]) -> set[str]:
    """Rows of this commit and machine that are in the file and had no failures."""
    if not file.exists():
        return set()
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    return {
        line["row"]
        for line in lines
        if all(line.get(name) == here[name] for name in ("commit", "gpu"))
        and not line.get("failed")
    }


def script(name: str, words: list[str], limit_s: float) -> int:
    """Another script of this folder, in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    print(f"-- {' '.join(command[2:])}", flush=True)
    try:
        return subprocess.run(command, timeout=limit_s, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: did not end in {limit_s:.0f} s", flush=True)
        return 1


class Work:
    """The rows that are wanted and not there yet, and the time that is left for them."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._end = time.monotonic() + seconds(given.budget)
        self._only = set(given.only.split(",")) if given.only else None
        self.failed = 0
        self.left_out: list[str] = []

    def wanted(self, *rows: str) -> list[str]:
        done = recorded(self._given.append, machine())
        asked = [row for row in rows if self._only is None or row in self._only]
        for row in set(asked) & done:
            print(f"{row}: recorded already", flush=True)
        return [row for row in asked if row not in done]

    def time_for(self, need_s: float, rows: list[str]) -> bool:
        need_s = 60.0 if self._given.tiny else need_s
        if not rows or self._end - time.monotonic() >= need_s:
            return bool(rows)
        self.left_out += rows
        return False

    @property
    def left_s(self) -> float:
        return max(1.0, self._end - time.monotonic())

    def serve(self, number: int) -> None:
        """The rows of a group that there is time for."""
        group, kept, need = GROUPS[number], [], SERVER_S
        wanted = self.wanted(*(row.id for row in group.rows))
        for row in group.rows:
            if row.id in wanted and self.time_for(need + row.seconds, [row.id]):
                kept.append(row)
                need += row.seconds
        if kept:
            self.failed += serve_group(group, kept, self._given, self._given.append)

    def engine(self) -> None:
        rows = self.wanted("host", "idle")
        if not self.time_for(ENGINE_S, rows):
            return
        words = ["--model", self._model(), "--append", str(self._given.append)]
        words += ["--which", rows[0] if len(rows) == 1 else "both"]
        if self._given.tiny:
            words += ["--device", "cpu", "--rows", "8", "--steps", "120", "--traced", "8"]
        self.failed += script("engine_rows", words, self.left_s)

    def start(self) -> None:
        if self.time_for(START_S, self.wanted("start")):
            words = [*self._common(), "--set", NO_CACHE, "--append", str(self._given.append)]
            self.failed += script("start_times", words, self.left_s)

    def sweep(self) -> None:
        if self.time_for(SWEEP_S, ["sweep"]):
            words = [*self._common(), "--budget", f"{self.left_s:.0f}s"]
            words += ["--out", str(self._given.append.parent)]
            self.failed += script("sweep_profile", words, self.left_s + 120)

    def _common(self) -> list[str]:
        tiny = ["--tiny"] if self._given.tiny else []
        return [*(["--model", self._given.model] if self._given.model else []), *tiny]

    def _model(self) -> str:
        return self._given.model or str(Path(__file__).parents[1] / "appliance" / "default_model")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of(parser)
    parser.add_argument("--append", type=Path, required=True)
    parser.add_argument("--budget", default="25m", help="90s, 25m, 1h")
    parser.add_argument("--only", default="", help="IDs with commas")
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    work = Work(given)
    work.serve(0)
    work.engine()
    work.start()
    if detect().gpus or not given.tiny:  # 8-bit float needs a GPU that has it
        work.serve(1)
        work.serve(2)
    if given.sweep:
        work.sweep()
    print(f"left out for want of time: {', '.join(work.left_out) or 'nothing'}", flush=True)
    return 1 if work.failed else 0


if __name__ == "__main__":
    sys.exit(main())
