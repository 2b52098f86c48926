"""One process of the run: spawned in its own session, heard through pipes, reaped at once."""

from __future__ import annotations

import asyncio
import os
import signal
import site
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from appliance import paths
from appliance.status import ChildMessage, Failed, decode_child_message
from appliance.supervisor.oom import kills

_MAX_LINE = 16 << 10
_READ = 1 << 16


class Post(Struct, frozen=True):
    """The place a process fills. rank is None for a frontend."""

    role: Literal["frontend", "engine"]
    index: int
    rank: int | None = None
    generation: int = 0

    @property
    def component(self) -> str:
        """Its name in the log: frontend-0, engine-0, engine-0.1."""
        tail = f".{self.rank}" if self.rank else ""
        return f"{self.role}-{self.index}{tail}"

    @property
    def words(self) -> str:
        tail = f" (rank {self.rank})" if self.rank else ""
        return f"{self.role} {self.index}{tail}"


class Commands(Protocol):
    """Makes the command line of each post."""

    def frontend(self, index: int, listen_fd: int, status_fd: int) -> list[str]: ...

    def engine(self, replica: int, rank: int, generation: int, status_fd: int) -> list[str]: ...


class RuntimeCommands:
    """`python -m appliance.runtime` with this interpreter."""

    def __init__(self, config_file: Path) -> None:
        self._base = [sys.executable, "-m", "appliance.runtime", "--config", str(config_file)]

    def frontend(self, index: int, listen_fd: int, status_fd: int) -> list[str]:
        fds = ["--listen-fd", str(listen_fd), "--status-fd", str(status_fd)]
        return [*self._base, "--role", "frontend", "--index", str(index), *fds]

    def engine(self, replica: int, rank: int, generation: int, status_fd: int) -> list[str]:
        place = ["--replica", str(replica), "--rank", str(rank), "--generation", str(generation)]
        return [*self._base, "--role", "engine", *place, "--status-fd", str(status_fd)]


def child_environment() -> dict[str, str]:
    """For a Python of ours: it imports this very package, and nothing from its working folder. GPUs
    have the numbers that the driver tells; CUDA by itself numbers those of a mixed box by speed."""
    environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONSAFEPATH"] = "1"
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environment |= paths.kernel_variables()
    home = str(Path(paths.__file__).parents[1])
    if home not in site.getsitepackages():
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{home}{os.pathsep}{rest}" if rest else home
    return environment


class Lifeline:
    """A pipe whose write end only the supervisor holds; children read its end of file."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self._write_fd)


class Listener(Protocol):
    """Who is told of a child, always in the event loop."""

    def said(self, child: Child, message: ChildMessage) -> None: ...

    def ended_child(self, child: Child) -> None: ...

    def printed(self, child: Child, line: str) -> None: ...


class Child:
    """A live or dead process. Made by `spawn`, from the main thread: a parent-death signal is
    sent when the spawning *thread* ends."""

    def __init__(self, post: Post, process: subprocess.Popen[bytes], listener: Listener) -> None:
        self.post = post
        self.pid = process.pid
        self.started = time.monotonic()
        self.started_at = time.time()
        self.returncode: int | None = None
        self.failed: Failed | None = None
        self.last_lines: deque[str] = deque(maxlen=20)
        self.exited = asyncio.Event()
        self.kill_cause = ""
        """Who killed it, where SIGKILL ended it."""
        self.killed_for_memory = False
        self._killed_here = False
        self._kills_before = kills()
        self._process = process
        self._listener = listener
        self._pipes: dict[int, Callable[[str], None]] = {}
        self._partial: dict[int, bytes] = {}
        self._pidfd = -1

    @classmethod
    def spawn(
        cls,
        post: Post,
        command: Callable[[int], Sequence[str]],
        lifeline: Lifeline,
        listener: Listener,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """command: status fd -> argv. OSError when the program cannot be started."""
        status_r, status_w = os.pipe()
        output_r, output_w = os.pipe()
        environment = child_environment()
        try:
            process = subprocess.Popen(
                command(status_w),
                stdin=lifeline.read_fd,
                stdout=output_w,
                stderr=output_w,
                pass_fds=[status_w, *pass_fds],
                start_new_session=True,
                env=environment,
            )
        except OSError:
            os.close(status_r)
            os.close(output_r)
            raise
        finally:
            os.close(status_w)
            os.close(output_w)
        child = cls(post, process, listener)
        child._listen(status_r, child._on_status)
        child._listen(output_r, child._on_output)
        child._watch_end()
        return child

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """To the process and all that it started; nothing when it is dead."""
        if self.alive:
            self._killed_here |= number == signal.SIGKILL
            _signal_group(self.pid, number)

    def drain(self) -> None:
        """Reads what has come through the pipes; before its silence is judged."""
        for fd in list(self._pipes):
            self._read(fd)

    def reap(self) -> None:
        """Takes note of the process's end, if it has ended."""
        if not self.alive:
            return
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return
        self.drain()
        # while the dead leader is unreaped its number is not reused: what it left behind goes too
        _signal_group(self.pid, signal.SIGKILL)
        self.returncode = self._process.wait()
        if self.returncode == -signal.SIGKILL:
            self._ask_who_killed()
        for fd in list(self._pipes):
            self._close(fd)
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self.exited.set()
        self._listener.ended_child(self)

    def _ask_who_killed(self) -> None:
        if self._killed_here:
            self.kill_cause = "its supervisor ended it"
            return
        now = kills()
        self.killed_for_memory = now.since(self._kills_before)
        self.kill_cause = now.cause(self._kills_before)

    def _watch_end(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            return  # a kernel without pidfd: `reap` is also called at each tick
        asyncio.get_running_loop().add_reader(self._pidfd, self.reap)

    def _listen(self, fd: int, on_line: Callable[[str], None]) -> None:
        os.set_blocking(fd, False)
        self._pipes[fd] = on_line
        self._partial[fd] = b""
        asyncio.get_running_loop().add_reader(fd, self._read, fd)

    def _read(self, fd: int) -> None:
        for _ in range(16):
            if fd not in self._pipes:
                return
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(fd)
                return
            *whole, rest = (self._partial[fd] + data).split(b"\n")
            if len(rest) > _MAX_LINE:
                whole, rest = [*whole, rest], b""
            self._partial[fd] = rest
            for line in whole:
                self._pipes[fd](line[:_MAX_LINE].decode(errors="replace"))

    def _close(self, fd: int) -> None:
        if self._partial[fd]:
            self._pipes[fd](self._partial[fd].decode(errors="replace"))
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        del self._pipes[fd], self._partial[fd]

    def _on_status(self, line: str) -> None:
        try:
            message = decode_child_message(line.encode())
        except (msgspec.DecodeError, UnicodeError):
            self._listener.printed(self, f"(not a status message: {line[:200]})")
            return
        if isinstance(message, Failed) and self.failed is None:
            self.failed = message
        self._listener.said(self, message)

    def _on_output(self, line: str) -> None:
        if line.strip():
            self.last_lines.append(line)
        self._listener.printed(self, line)


def _signal_group(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        pass


def reap_orphans(known: set[int]) -> int:
    """What processes of ours have left behind when they died comes to the first process of a
    container, which has to take note of its end. known: children that are reaped elsewhere.
    Returns how many there were.
    """
    count = 0
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return count
        if ended is None or ended.si_pid in known:
            return count
        os.waitpid(ended.si_pid, 0)
        count += 1
