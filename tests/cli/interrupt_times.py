"""How long one Ctrl-C takes to end a command, phase by phase: `interrupt_times.py [RUNS]`.

A table in Markdown: milliseconds from the signal to the end of the process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from cli_stage import write_tiny
from fakehub import FakeHub, Repo, tiny_model
from fakeopenai import FakeOpenAI, running

from appliance.hub.layout import PARTIAL
from appliance.supervisor.replica import PHASES

DRIVE = [sys.executable, str(Path(__file__).with_name("drive_up.py"))]
SHARD = "model-00001-of-00001.safetensors"
APPLIANCE = [sys.executable, "-m", "appliance"]
KEPT: list[socket.socket] = []
Begun = tuple[list[str], Callable[["Child"], None]]
Way = Callable[[Path, FakeHub], AbstractContextManager[Begun]]


class Child:
    """A command whose output is read as it comes."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.said = ""

    def sees(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in self.said:
            assert select.select([self.process.stdout], [], [], 60)[0], self.said[-2000:]
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, self.said[-2000:]
            self.said += data.decode(errors="replace")

    def interrupted(self) -> float:
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=60)
        took = time.monotonic() - began
        code = self.process.returncode
        assert code == 130, (code, (self.said + said.decode(errors="replace"))[-2000:])
        return took


def pulling(hub: FakeHub, *more: str) -> list[str]:
    hub.hf["org/tiny"] = Repo(tiny_model(shards=1, floats=750_000))
    return [*APPLIANCE, "pull", "org/tiny", "--source", "hf", *more]


@contextmanager
def pull_asking(home: Path, hub: FakeHub) -> Iterator[Begun]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        yield (
            [*pulling(hub), "--endpoint", url],
            lambda child: asked(silent),
        )


@contextmanager
def pull_config(home: Path, hub: FakeHub) -> Iterator[Begun]:
    hub.fault("config.json", stall_s=60)
    yield pulling(hub), lambda child: until(hub.body_started.is_set)


@contextmanager
def pull_bytes(home: Path, hub: FakeHub) -> Iterator[Begun]:
    hub.fault(SHARD, rate=300_000)
    yield pulling(hub), lambda child: reached(hub, 100_000)


@contextmanager
def pull_silent(home: Path, hub: FakeHub) -> Iterator[Begun]:
    hub.fault(SHARD, stall_s=60)
    yield pulling(hub), lambda child: reached(hub, 1_400_000)


@contextmanager
def pull_checking(home: Path, hub: FakeHub) -> Iterator[Begun]:
    """A part file of 8 GB, which is read before it is gone on with."""
    command = pulling(hub)
    sha = Repo(hub.hf["org/tiny"].files).etag(SHARD)
    entries = hub.hf["org/tiny"].tree()
    for entry in entries:
        if entry["path"] == SHARD:
            entry["size"] = entry["lfs"]["size"] = 9 << 30
    hub.hf["org/tiny"].listing = entries
    blobs = home / "hf" / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / f"{sha}{PARTIAL}").open("wb") as part:
        part.truncate(8 << 30)
    command += ["--progress", "json"]
    yield command, lambda child: child.sees('"checking"')


def reached(hub: FakeHub, count: int) -> None:
    until(lambda: hub.body_bytes > count)
    time.sleep(0.1)


def up_in(phase: str) -> Way:
    @contextmanager
    def begun(home: Path, hub: FakeHub) -> Iterator[Begun]:
        told = {"phases": list(PHASES[1 : PHASES.index(phase) + 1]), "hang_in_phase": True}
        model = write_tiny(home / "tiny")
        command = [
            *DRIVE,
            json.dumps(told),
            "-v",
            "up",
            str(model),
            "--load-format",
            "dummy",
            "--port",
            "0",
        ]
        yield command, lambda child: child.sees(phase)

    return begun


@contextmanager
def up_serving(home: Path, hub: FakeHub) -> Iterator[Begun]:
    model = write_tiny(home / "tiny")
    command = [*DRIVE, "{}", "-v", "up", str(model), "--load-format", "dummy", "--port", "0"]
    yield command, lambda child: child.sees("ready:")


@contextmanager
def top_stream(home: Path, hub: FakeHub) -> Iterator[Begun]:
    yield [*APPLIANCE, "--json", "top", "--demo", "--interval", "1"], lambda c: c.sees("\n")


@contextmanager
def bench_serve(home: Path, hub: FakeHub) -> Iterator[Begun]:
    with running(FakeOpenAI()) as fake:
        words = ["--dataset", "random", "--input-len", "4", "--request-rate", "2", "--warmup", "0"]
        command = [*APPLIANCE, "bench", "serve", fake.url, *words]
        yield command, lambda child: until(lambda: len(fake.requests) > 1)


@contextmanager
def run_prompt(home: Path, hub: FakeHub) -> Iterator[Begun]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        yield (
            [*APPLIANCE, "run", "hello", "--url", url],
            lambda child: asked(silent),
        )


def asked(silent: socket.socket) -> None:
    with silent.accept()[0] as connection:
        KEPT.append(connection.dup())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


WAYS: dict[str, Way] = {
    "`pull`: the hub is asked": pull_asking,
    "`pull`: config.json for the plan": pull_config,
    "`pull`: an old part is read": pull_checking,
    "`pull`: bytes come": pull_bytes,
    "`pull`: the hub has fallen silent": pull_silent,
    **{f"`up`: {phase}": up_in(phase) for phase in PHASES[1:]},
    "`up`: serving": up_serving,
    "`top --json --interval`": top_stream,
    "`bench serve`": bench_serve,
    "`run`: no answer yet": run_prompt,
}


def once(way: Way) -> float:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apl")))
        hub = stack.enter_context(FakeHub())
        names = {f"APPLIANCE_{n.upper()}_DIR": n for n in ("state", "runtime", "config", "cache")}
        env = os.environ | {k: str(home / v) for k, v in names.items()}
        env |= {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url, "HOME": str(home)}
        command, ready = stack.enter_context(way(home, hub))
        child = Child(command, env)
        try:
            ready(child)
            return child.interrupted()
        finally:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()


def main(runs: int) -> None:
    print("| phase | half of the runs | the longest |\n|---|---|---|")
    for name, way in WAYS.items():
        took = sorted(once(way) for _ in range(runs))
        print(f"| {name} | {took[runs // 2] * 1e3:.0f} | {took[-1] * 1e3:.0f} |", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
