"""What a run claims before anything else starts: its name (flock) and its TCP port."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

import psutil

from appliance import paths
from appliance.errors import BusyError, UsageError


class RunLock:
    """Held from `take` until the process ends or `release`. A lock decides; a pid never does."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def take(cls, run: Path) -> RunLock:
        """BusyError when another supervisor holds the run."""
        fd = os.open(paths.lock_file(run), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise BusyError(
                f"a run named '{run.name}' is up already"
                + (f" (supervisor pid {holder})." if holder else "."),
                f"`appliance down {run.name}` ends it, `appliance status {run.name}` shows it; "
                "or give this one another name with --name.",
                code="APL-BSY-002",
            ) from None
        lock = cls(fd)
        lock.sign()
        return lock

    def sign(self) -> None:
        """Writes this process's number into the file, for those who find it locked."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Closes this process's hold; one that inherited the lock still has it."""
        os.close(self.fd)


def held(run: Path) -> bool:
    """Whether a supervisor holds the run now."""
    try:
        fd = os.open(paths.lock_file(run), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. BusyError names who has the port; UsageError a bad address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as e:
        raise UsageError(
            f"'{host}' is no address of this machine: {e.strerror}.", "Use --host 127.0.0.1."
        ) from e
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(4096)
    except PermissionError as e:
        sock.close()
        raise UsageError(
            f"this user may not listen on port {port}.", "Use a port of 1024 or more with --port."
        ) from e
    except OSError as e:
        sock.close()
        if e.errno != errno.EADDRINUSE:
            raise UsageError(
                f"cannot listen on {host}:{port}: {e.strerror}.", "Use --host 127.0.0.1."
            ) from e
        raise _taken(host, port) from None
    sock.setblocking(False)
    return sock


def _taken(host: str, port: int) -> BusyError:
    """Whose the port is, and the next one that is free."""
    pid, name = _user_of(port)
    free = next_free(host, port)
    return BusyError(
        f"{host}:{port} is used by {f'pid {pid} ({name})' if pid else 'another process'}.",
        f"--port {free}     is free; -y takes it without a question\n"
        f"--port 0     takes any{f'; kill {pid} ends who has it' if pid else ''}",
        code="APL-BSY-001",
        detail={"host": host, "port": port, "pid": pid, "process": name, "free_port": free},
    )


def _user_of(port: int) -> tuple[int | None, str | None]:
    """(pid, name), as far as this user may see."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
                return connection.pid, psutil.Process(connection.pid).name()
    except (psutil.Error, OSError):
        pass
    return None, None


def next_free(host: str, port: int) -> int:
    """The first port above that can be taken now; 0, which takes any, when there is none near."""
    for candidate in range(port + 1, min(port + 200, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, candidate))
                return candidate
            except OSError:
                continue
    return 0
