"""A run of the appliance in folders of its own, for scripts that measure one; their record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from appliance.client import Client
from appliance.hardware import Gpu, Gpus, detect

APPLIANCE = [sys.executable, "-m", "appliance"]


class DidNotStart(RuntimeError):
    """What `up` said."""


class Served:
    """`appliance up` until it is ready. started_s: from the command's start to ready."""

    def __init__(
        self,
        model: str,
        options: list[str],
        environment: dict[str, str] | None = None,
        limit_s: float = 300.0,
    ) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="apl")
        own = {f"APPLIANCE_{n}_DIR": f"{self._home.name}/{n.lower()}" for n in ("STATE", "RUNTIME")}
        own["APPLIANCE_CONFIG_DIR"] = f"{self._home.name}/config"
        self._environment = os.environ | own | (environment or {})
        command = [*APPLIANCE, "up", *([model] if model else []), "--port", "0", "-d"]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, f"--wait={limit_s:.0f}", *options],
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.started_s = time.perf_counter() - began
        if done.returncode:
            self._home.cleanup()
            raise DidNotStart((done.stdout + done.stderr)[-6000:])
        self.client = Client(Path(own["APPLIANCE_RUNTIME_DIR"]) / "default" / "control.sock")
        self.status = self.client.status()
        self.url = self.status.url

    def captured(self) -> tuple[int, int]:
        """Passes that are captured by now, and all that will be; (0, 0) where none are."""
        facts = self.client.status().facts
        have = facts.get("captured", 0)
        return have, have if "capture_failed" in facts else facts.get("passes", 0)

    def all_captured(self, limit_s: float = 60.0) -> Served:
        """When all passes are captured, as after some seconds of serving: for what is measured
        of one that has served for long."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            have, passes = self.captured()
            if have >= passes:
                return self
            time.sleep(0.1)
        self.close()
        raise DidNotStart(f"only {have} of {passes} passes were captured in {limit_s:.0f} s")

    def looked(self) -> dict[str, dict[str, int]]:
        """pid, rss, fds and threads of each process by its name."""
        found = {}
        for row in self.client.status().processes:
            process = psutil.Process(row.pid)
            found[f"{row.role}-{row.index}"] = {
                "pid": row.pid,
                "rss": process.memory_info().rss,
                "fds": process.num_fds(),
                "threads": process.num_threads(),
            }
        return found

    def close(self) -> None:
        self.client.down(0.0)
        end = time.monotonic() + 60
        while self._lives() and time.monotonic() < end:
            time.sleep(0.1)
        self._home.cleanup()

    def _lives(self) -> bool:
        pids = {row.pid: row.role for row in self.status.processes}
        return any(psutil.pid_exists(p) and "appliance" in _command(p) for p in pids)


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


class GpuWatch:
    """Power and clock of the first GPU from entry to exit: what a figure may be bound by."""

    EVERY_S = 0.25

    def __init__(self, gpus: Gpus | None = None) -> None:
        self._gpus = gpus or Gpus()
        self._seen: list[Gpu] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> GpuWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self.EVERY_S):
            self._seen += self._gpus.sample()[:1]

    def figures(self) -> dict[str, float]:
        """Means over the samples in which it worked: power_w, sm_mhz; power_limit_w and the share
        of them in which its clock was held down for power, power_bound. Empty without a GPU."""
        busy = [gpu for gpu in self._seen if (gpu.utilization or 0.0) > 0.5]
        if not busy:
            return {}
        return {
            "power_w": round(fmean(gpu.power_w or 0.0 for gpu in busy), 1),
            "power_limit_w": busy[-1].power_limit_w or 0.0,
            "power_bound": round(fmean("power" in gpu.throttle for gpu in busy), 2),
            "sm_mhz": round(fmean(gpu.sm_clock_mhz or 0 for gpu in busy)),
        }


def machine() -> dict[str, Any]:
    """Fields that each line of a record carries: gpu, torch, commit."""
    gpus = [gpu.name for gpu in detect().gpus]
    given = os.environ.get("APPLIANCE_COMMIT", "")
    asked = ["git", "rev-parse", "--short", "HEAD"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return {
        "gpu": f"{len(gpus)}x {gpus[0].removeprefix('NVIDIA ')}" if gpus else "none",
        "torch": metadata.version("torch"),
        "commit": given or told.stdout.strip() or None,
    }


def record(file: Path, row: str, figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Adds a line to `file`, as the bench does with --append."""
    line = {
        "row": row,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "command": " ".join(["python -m", *_words()]),
        **machine(),
        **more,
        **figures,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")
    return line


def amend(file: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """More figures to the last line of `file`, which is returned."""
    *lines, last = file.read_text().splitlines()
    line: dict[str, Any] = json.loads(last) | figures
    file.write_text("".join(f"{one}\n" for one in [*lines, json.dumps(line)]))
    return line


def _words() -> list[str]:
    main = Path(sys.argv[0])
    return [f"{main.parent.name}.{main.stem}", *sys.argv[1:]]
