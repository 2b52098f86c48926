"""A run on stand-in processes, supervised in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance import paths
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.runtime.config import (
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    ServeConfig,
    write_config,
)
from appliance.status import RunState, RunStatus
from appliance.supervisor.claim import RunLock, bind
from appliance.supervisor.daemon import supervise
from appliance.supervisor.health import Limits
from appliance.supervisor.replica import Death

STANDIN = Path(__file__).with_name("standin.py")
FAST = Limits(delays_s=(0.0, 0.05, 0.05), term_s=0.5)


class StandIns:
    """Commands of stand-ins. Change `engine` or `frontend` to change how the next ones act;
    `by_generation` goes before."""

    def __init__(self, **engine: Any) -> None:
        self.engine_told: dict[str, Any] = engine
        self.frontend_told: dict[str, Any] = {}
        self.by_generation: dict[int, dict[str, Any]] = {}
        self._base = [sys.executable, "-I", "-S", str(STANDIN)]

    def frontend(self, index: int, listen_fd: int, status_fd: int) -> list[str]:
        told = json.dumps(self.frontend_told)
        fds = ["--listen-fd", str(listen_fd), "--status-fd", str(status_fd)]
        return [*self._base, "--role", "frontend", "--index", str(index), *fds, "--told", told]

    def engine(self, replica: int, rank: int, generation: int, status_fd: int) -> list[str]:
        told = json.dumps(self.by_generation.get(generation, self.engine_told))
        place = ["--replica", str(replica), "--rank", str(rank), "--generation", str(generation)]
        fds = ["--status-fd", str(status_fd)]
        return [*self._base, "--role", "engine", *place, *fds, "--told", told]


def make_config(
    run: Path,
    *,
    tp: int = 1,
    replicas: int = 1,
    frontends: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
) -> RuntimeConfig:
    return RuntimeConfig(
        run=run.name,
        dir=str(run),
        model=ModelConfig(path="/nowhere", id="tiny", dtype="float32", context=128),
        serve=ServeConfig(port=0, frontends=frontends),
        engine=EngineConfig(device=device, tp=tp, replicas=replicas, memory_fraction=0.5),
    )


class Stage:
    """What a test sees of the run it started."""

    def __init__(self, run: Path, listener: socket.socket, commands: StandIns) -> None:
        self.run = run
        self.port: int = listener.getsockname()[1]
        self.commands = commands
        self.told: list[tuple[str, str]] = []
        self.client = Client(paths.control_socket(run))
        self.task: asyncio.Task[Death | None] | None = None
        self._news = asyncio.Event()

    def watch(self, kind: str, text: str) -> None:
        self.told.append((kind, text))
        self._news.set()

    async def heard(self, kind: str, count: int = 1) -> str:
        """Waits until `kind` was told `count` times; the text of the last."""
        while sum(k == kind for k, _ in self.told) < count:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 20)
        return [text for k, text in self.told if k == kind][count - 1]

    async def status(self) -> RunStatus:
        return await asyncio.to_thread(self.client.status)

    async def until(self, condition: Callable[[RunStatus], bool]) -> RunStatus:
        """Asks the control socket until the condition holds."""
        async with asyncio.timeout(20):
            while True:
                status = await self.status()
                if condition(status):
                    return status
                await asyncio.sleep(0.02)

    def state_file(self) -> RunState:
        return msgspec.json.decode(paths.run_state(self.run).read_bytes(), type=RunState)

    async def ask_frontend(self) -> int:
        """The pid of the frontend that answers on the TCP port."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        return int(answer.rpartition(b"\r\n\r\n")[2])

    async def ended(self) -> Death | None:
        assert self.task is not None
        return await asyncio.wait_for(asyncio.shield(self.task), 20)


def pids(status: RunStatus, role: str) -> list[int]:
    return [p.pid for p in status.processes if p.role == role]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def staged(
    commands: StandIns | None = None,
    *,
    tp: int = 1,
    replicas: int = 1,
    frontends: int = 1,
    limits: Limits = FAST,
    leave_when_failed: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
) -> AsyncIterator[Stage]:
    """Starts a run and takes it down, whatever became of it."""
    home = Path(tempfile.mkdtemp(prefix="apl"))
    run = paths.private_dir(home / "stage")
    lock = RunLock.take(run)
    listener = bind("127.0.0.1", 0)
    config = make_config(run, tp=tp, replicas=replicas, frontends=frontends, device=device)
    write_config(config, paths.config_file(run))
    stage = Stage(run, listener, commands or StandIns())
    stage.task = asyncio.create_task(
        supervise(
            config,
            listener,
            commands=stage.commands,
            limits=limits,
            watcher=stage.watch,
            leave_when_failed=leave_when_failed,
        )
    )
    try:
        while not stage.task.done() and not paths.control_socket(run).exists():
            await asyncio.sleep(0.005)
        yield stage
    finally:
        if not stage.task.done():
            try:
                with contextlib.suppress(NotRunningError):  # it is on its way down already
                    await asyncio.to_thread(stage.client.down, 0.0)
            finally:
                await asyncio.wait_for(stage.task, 20)
        lock.release()
        shutil.rmtree(home)
