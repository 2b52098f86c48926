"""What a run claims before anything else starts: its name (flock), and its TCP port or the path of
its Unix socket."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
import time
from pathlib import Path

import psutil

from appliance import paths
from appliance.address import unix_url
from appliance.errors import ApplianceError, BusyError, UsageError
from appliance.runtime.config import RuntimeConfig, read_config

_FOLDER_S = 2.0


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


def listen(config: RuntimeConfig) -> socket.socket:
    """Where the settings say. BusyError or UsageError when that cannot be had."""
    serve = config.serve
    if serve.uds:
        return bind_unix(Path(serve.uds), int(serve.uds_mode, 8))
    return bind(serve.host, serve.port)


def url_of(config: RuntimeConfig, listener: socket.socket) -> str:
    """What a client on this machine types."""
    if config.serve.uds:
        return unix_url(config.serve.uds)
    port = listener.getsockname()[1]
    host = config.serve.host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Listening:
    """What the run listens on, for who asks where it is, and for who takes it down."""

    def __init__(self, config: RuntimeConfig, listener: socket.socket) -> None:
        self.listener = listener
        self.url = url_of(config, listener)
        self.uds = config.serve.uds
        self._own = _identity(self.uds) if self.uds else None

    def close(self) -> None:
        """Removes the socket's file, unless another has taken its place."""
        self.listener.close()
        if self._own is not None and _identity(self.uds) == self._own:
            Path(self.uds).unlink(missing_ok=True)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        st = os.lstat(path)
    except OSError:
        return None
    return st.st_dev, st.st_ino


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


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A listening Unix socket at `path`, of this mode before anybody can connect. One that a dead
    run left there is replaced. BusyError names who listens; UsageError says what else is wrong.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise UsageError(
            f"there can be no socket in {path.parent}: {e.strerror}.",
            f"mkdir -p {path.parent}",
            code="APL-USE-042",
        ) from e
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _hold(folder)
        _clear(path)
        sock.bind(str(path))
        path.chmod(mode)  # nobody can connect before it listens
        sock.listen(4096)
    except OSError as e:
        sock.close()
        raise UsageError(
            f"cannot listen on {path}: {e.strerror}.",
            "Give --uds a path in a folder that this user may write to.",
            code="APL-USE-042",
        ) from e
    except ApplianceError:
        sock.close()
        raise
    finally:
        os.close(folder)
    sock.setblocking(False)
    return sock


def _hold(folder: int) -> None:
    """So that two runs that look at once find each other. Who holds a folder for longer is none of
    ours, and is not waited for."""
    end = time.monotonic() + _FOLDER_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                return
            time.sleep(0.02)


def _clear(path: Path) -> None:
    """Removes a socket on which nobody listens."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise UsageError(
            f"{path} is there and is no socket.", "Give --uds another path.", code="APL-USE-042"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError:
            pid = None  # it listens, and takes nobody just now
        else:
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid = int.from_bytes(credentials[:4], sys.byteorder) or None
    raise BusyError(
        f"{path} is used by {_words_of(pid)}.",
        "--uds OTHER     listens on another path\n"
        "appliance ps    tells whether a run of yours has this one",
        code="APL-BSY-004",
        detail={"uds": str(path), "pid": pid},
    )


def _words_of(pid: int | None) -> str:
    if pid is None:
        return "another process"
    try:
        return f"pid {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"pid {pid}"


def _taken(host: str, port: int) -> BusyError:
    """Whose the port is, and the next one that is free."""
    pid, name = _user_of(port)
    free, run = next_free(host, port), _run_on(port)
    if run:
        who, end = f"the run '{run}'", f"; appliance down {run} ends it"
    elif pid:
        who, end = f"pid {pid} ({name})", f"; kill {pid} ends who has it"
    else:
        who, end = "another process", ""
    return BusyError(
        f"{host}:{port} is used by {who}.",
        f"--port {free}     is free; -y takes it without a question\n--port 0     takes any{end}",
        code="APL-BSY-001",
        detail={"host": host, "port": port, "pid": pid, "process": name, "free_port": free},
    )


def _run_on(port: int) -> str:
    """The name of the run of this user that listens there, or an empty string. Ending one of its
    processes would end nothing: it is started again."""
    for file in paths.runtime_dir().glob(f"*/{paths.config_file(Path()).name}"):
        try:
            serve = read_config(file).serve
        except ApplianceError:
            continue
        if serve.port == port and not serve.uds and held(file.parent):
            return file.parent.name
    return ""


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
