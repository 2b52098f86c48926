"""The one typed client of a run's supervisor: HTTP over its control socket.

status = Client.of_run("default").status()
status = await AsyncClient.of_run("default").status()
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from appliance import address, paths
from appliance.address import UnixConnection
from appliance.errors import (
    ApplianceError,
    BusyError,
    DoesNotFitError,
    EngineError,
    HardwareError,
    IntegrityError,
    NetworkError,
    NotAuthorisedError,
    NotFoundError,
    NotRunningError,
    UsageError,
)
from appliance.status import Event, Reloaded, RunStatus, TopSnapshot

_BASE = "/appliance/v1"
_T = TypeVar("_T")

_BY_EXIT_CODE: dict[int, type[ApplianceError]] = {
    e.exit_code: e
    for e in (
        UsageError,
        NotRunningError,
        NotFoundError,
        NotAuthorisedError,
        NetworkError,
        DoesNotFitError,
        HardwareError,
        IntegrityError,
        EngineError,
        BusyError,
    )
}


def error_of(fields: dict[str, Any]) -> ApplianceError:
    """The exception that `fields` (message, hint, code, exit_code) describe."""
    kind = _BY_EXIT_CODE.get(int(fields.get("exit_code", 1)), ApplianceError)
    return kind(
        str(fields.get("message", "")),
        str(fields.get("hint", "")),
        code=str(fields.get("code", "")),
        detail=fields.get("detail") or {},
    )


class Client:
    """Asks the supervisor that listens on `socket`.

    Every method raises NotRunningError when nobody listens there or the answer does not come
    within `timeout` seconds, and the supervisor's own ApplianceError when it refuses.
    """

    def __init__(self, socket: Path, *, timeout: float = 10.0) -> None:
        self.socket = socket
        self.timeout = timeout

    @classmethod
    def of_run(cls, name: str = "default", *, timeout: float = 10.0) -> Client:
        """The client of the run of this name."""
        return cls(paths.control_socket(paths.run_dir(name)), timeout=timeout)

    def status(self) -> RunStatus:
        """State, URL, processes and start of the run."""
        return self._decode("/status", RunStatus)

    def top(self, history: int = 900, lines: int = 50) -> TopSnapshot:
        """history: seconds of it that are wanted; lines: of the log."""
        return self._decode(f"/top?history={history}&lines={lines}", TopSnapshot)

    def cancel(self, id: str) -> None:
        """Ends one live request; NotFoundError when there is none of this id."""
        with self._ask("POST", "/cancel", json.dumps({"id": id}).encode()) as answer:
            answer.read()

    def plan(self) -> dict[str, Any]:
        """plan.json of the run: the resolved config and where each value came from."""
        return self._decode("/plan", dict[str, Any])

    def logs(
        self,
        lines: int = 200,
        component: str = "",
        level: str = "",
        *,
        since: str = "",
        until: str = "",
        holds: Sequence[str] = (),
    ) -> str:
        """The last `lines` lines, each ended by a newline.

        since, until: `2026-11-20T12:00:01`, in UTC. holds: texts that each line has.
        """
        query = _log_query(lines, component, level, since, until, holds)
        with self._ask("GET", f"/logs?{query}") as answer:
            return answer.read().decode(errors="replace")

    def follow_logs(
        self,
        lines: int = 20,
        component: str = "",
        level: str = "",
        *,
        since: str = "",
        until: str = "",
        holds: Sequence[str] = (),
    ) -> Iterator[str]:
        """The last `lines` lines, then each new one without its newline, until the run ends."""
        with self._follow(lines, component, level, since, until, holds) as answer:
            yield from answer.lines()

    def _follow(
        self,
        lines: int,
        component: str,
        level: str,
        since: str = "",
        until: str = "",
        holds: Sequence[str] = (),
    ) -> _Answer:
        query = _log_query(lines, component, level, since, until, holds) + "&follow=1"
        return self._ask("GET", f"/logs?{query}", timeout=None)

    def down(self, drain_s: float = 30.0, on_step: Callable[[str], None] | None = None) -> None:
        """Stops the run and returns when it has gone. on_step is told each step as it happens."""
        body = json.dumps({"drain_s": drain_s}).encode()
        with self._ask("POST", "/down", body, timeout=drain_s + 60) as answer:
            for line in answer.lines():
                if on_step is not None:
                    on_step(line)

    def restart(self, rolling: bool = False) -> None:
        """Starts every engine again; live requests wait and go on. rolling: one after the other."""
        with self._ask("POST", "/restart", b'{"rolling": true}' if rolling else b"{}") as answer:
            answer.read()

    def reload(
        self, values: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Reloaded:
        """Other values for dotted settings; tells which hold now and which want a start.

        answers: of the plan, where each value comes from. UsageError: nothing was changed.
        """
        body = json.dumps({"values": dict(values), "answers": dict(answers or {})}).encode()
        return self._decode("/reload", Reloaded, "POST", body)

    def events(
        self, *, after: str = "", history: int = 1000, follow: bool = True
    ) -> Iterator[Event]:
        """What has happened to the run, oldest first, then each new event until the run ends.

        after: the id of an event; those behind it. history: at most so many of what has been.
        follow: False ends with what has been.
        """
        with self._happened(after, history, follow) as answer:
            yield from filter(None, map(_event_of, answer.lines()))

    def _happened(self, after: str, history: int, follow: bool) -> _Answer:
        told = {"after": after, "history": str(history), "follow": str(int(follow))}
        return self._ask("GET", f"/events?{urlencode(told)}", timeout=None if follow else -1.0)

    def _decode(
        self, path: str, kind: type[_T], method: str = "GET", body: bytes | None = None
    ) -> _T:
        with self._ask(method, path, body) as answer:
            body = answer.read()
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as e:
            raise NotRunningError(
                f"the supervisor's answer to {path} is not understood: {e}.",
                "It is of another version: run `appliance down`, then `appliance up`.",
                code="APL-RUN-003",
            ) from e

    def _ask(
        self, method: str, path: str, body: bytes | None = None, timeout: float | None = -1.0
    ) -> _Answer:
        limit = self.timeout if timeout == -1.0 else timeout
        connection = UnixConnection(str(self.socket), limit)
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            connection.request(method, _BASE + path, body, headers)
            answer = _Answer(connection, connection.getresponse(), self.socket)
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            raise _gone(self.socket, e) from e
        if answer.status != 200:
            with answer:
                raise _refusal(answer.status, answer.read())
        return answer


class AsyncClient:
    """`Client` for asyncio: the same methods, each awaited; a thread waits for the socket."""

    def __init__(self, socket: Path, *, timeout: float = 10.0) -> None:
        self._client = Client(socket, timeout=timeout)

    @classmethod
    def of_run(cls, name: str = "default", *, timeout: float = 10.0) -> AsyncClient:
        """The client of the run of this name."""
        return cls(paths.control_socket(paths.run_dir(name)), timeout=timeout)

    async def status(self) -> RunStatus:
        """As `Client.status`."""
        return await asyncio.to_thread(self._client.status)

    async def top(self, history: int = 900, lines: int = 50) -> TopSnapshot:
        """As `Client.top`."""
        return await asyncio.to_thread(self._client.top, history, lines)

    async def cancel(self, id: str) -> None:
        """As `Client.cancel`."""
        await asyncio.to_thread(self._client.cancel, id)

    async def plan(self) -> dict[str, Any]:
        """As `Client.plan`."""
        return await asyncio.to_thread(self._client.plan)

    async def logs(
        self,
        lines: int = 200,
        component: str = "",
        level: str = "",
        *,
        since: str = "",
        until: str = "",
        holds: Sequence[str] = (),
    ) -> str:
        """As `Client.logs`."""
        return await asyncio.to_thread(
            self._client.logs, lines, component, level, since=since, until=until, holds=holds
        )

    async def follow_logs(
        self,
        lines: int = 20,
        component: str = "",
        level: str = "",
        *,
        since: str = "",
        until: str = "",
        holds: Sequence[str] = (),
    ) -> AsyncIterator[str]:
        """Leaving the loop, or its cancellation, closes the connection."""
        answer = await asyncio.to_thread(
            self._client._follow, lines, component, level, since, until, holds
        )
        try:
            while (line := await asyncio.to_thread(answer.line)) is not None:
                yield line
        finally:
            answer.stop()

    async def events(
        self, *, after: str = "", history: int = 1000, follow: bool = True
    ) -> AsyncIterator[Event]:
        """Leaving the loop, or its cancellation, closes the connection."""
        answer = await asyncio.to_thread(self._client._happened, after, history, follow)
        try:
            while (line := await asyncio.to_thread(answer.line)) is not None:
                event = _event_of(line)
                if event is not None:
                    yield event
        finally:
            answer.stop()

    async def down(
        self, drain_s: float = 30.0, on_step: Callable[[str], None] | None = None
    ) -> None:
        """As `Client.down`; `on_step` is called in the loop that awaits this."""
        loop = asyncio.get_running_loop()

        def step(line: str) -> None:
            if on_step is not None:
                loop.call_soon_threadsafe(on_step, line)

        await asyncio.to_thread(self._client.down, drain_s, step)

    async def restart(self, rolling: bool = False) -> None:
        """As `Client.restart`."""
        await asyncio.to_thread(self._client.restart, rolling)

    async def reload(
        self, values: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Reloaded:
        """As `Client.reload`."""
        return await asyncio.to_thread(self._client.reload, values, answers)


class _Answer:
    """An open HTTP answer; closing it closes the connection."""

    def __init__(
        self, connection: UnixConnection, response: http.client.HTTPResponse, path: Path
    ) -> None:
        self._connection, self._response, self._path = connection, response, path
        self.status = response.status

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def read(self) -> bytes:
        try:
            return self._response.read()
        except (OSError, http.client.HTTPException) as e:
            raise _gone(self._path, e) from e

    def stop(self) -> None:
        """Closes it, also while another thread waits for a line of it."""
        if self._connection.wire is not None:
            try:
                self._connection.wire.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._connection.close()

    def lines(self) -> Iterator[str]:
        """Lines as they come. The end of the supervisor is the end of the lines."""
        while (line := self.line()) is not None:
            yield line

    def line(self) -> str | None:
        try:
            line = self._response.readline()
        except (ConnectionError, http.client.HTTPException):
            return None
        except OSError as e:
            raise _gone(self._path, e) from e
        return line.decode(errors="replace").rstrip("\n") if line else None


def _event_of(line: str) -> Event | None:
    """Of a line of server-sent events; None for one that holds no data, or is not understood."""
    if not line.startswith("data: "):
        return None
    try:
        return msgspec.json.decode(line[6:], type=Event)
    except msgspec.DecodeError:
        return None  # of a later version; the others are


def _log_query(
    lines: int, component: str, level: str, since: str, until: str, holds: Sequence[str]
) -> str:
    told = {"component": component, "level": level, "since": since, "until": until}
    said = [("lines", str(lines)), *((k, v) for k, v in told.items() if v)]
    return urlencode([*said, *(("holds", text) for text in holds)])


def _gone(path: Path, cause: Exception) -> NotRunningError:
    name = path.parent.name
    if isinstance(cause, TimeoutError):
        return NotRunningError(
            f"the supervisor of run '{name}' does not answer.",
            f"Look at the end of its log with `appliance logs {name}`.",
            code="APL-RUN-002",
        )
    doors = set(path.parent.parent.glob(f"*/{path.name}")) - {path}
    hint = address.start_or_name(address.listening(doors))
    return NotRunningError(f"nothing runs under the name '{name}'.", hint)


def _refusal(status: int, body: bytes) -> ApplianceError:
    try:
        fields = json.loads(body)["error"]
        return error_of(fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        text = body[:200].decode(errors="replace")
        return ApplianceError(f"the supervisor refused with status {status}: {text}")
