"""One listed file -> verified bytes under their final name, whatever the connection does.

Every try starts at the hub's own address, so an expired CDN link is simply asked for again.
"""

from __future__ import annotations

import email.utils
import socket
import ssl
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from appliance.errors import (
    ApplianceError,
    IntegrityError,
    NetworkError,
    NotAuthorisedError,
    NotFoundError,
)
from appliance.hub.part import Part, Stopped
from appliance.hub.source import MAY_PASS, Patience, RemoteFile, Request, TryAgain
from appliance.hub.throttle import Throttle

_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_BODY = 32 << 30
"""Bytes asked for in one request; content networks cap a response, not a range of a file."""
_SECRETS = ("authorization", "cookie")


@dataclass
class Transfer:
    """What is known of one file's way, for whoever draws it. Written by one thread only."""

    file: RemoteFile
    state: str = "waiting"
    """waiting, checking, fetching, retrying, here, done."""
    done: int = 0
    """Bytes on the disk; never goes back."""
    received: int = 0
    """Bytes that came over the network."""
    why: str = ""
    failures: int = 0

    def reached(self, have: int) -> None:
        self.done = max(self.done, have)


class Fetcher:
    """Fetches files over one pool of connections; safe to call from several threads."""

    def __init__(
        self,
        patience: Patience,
        stop: threading.Event,
        longest_body: int = _LONGEST_BODY,
        max_rate: float = 0.0,
    ) -> None:
        """max_rate: bytes a second of all transfers together; 0 is no limit."""
        self._patience = patience
        self._throttle = Throttle(max_rate)
        self._stop = stop
        self._longest_body = longest_body
        self._sockets: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._client = httpx.Client(
            verify=_certificates(),
            follow_redirects=False,
            timeout=httpx.Timeout(patience.stall_s, connect=patience.connect_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            headers={"User-Agent": "appliance", "Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        """Ends every transfer at once: a thread that waits for bytes wakes up."""
        with self._guard:
            for s in self._sockets:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._client.close()

    def fetch(
        self, request: Request, file: RemoteFile, path: Path, body: Path, t: Transfer
    ) -> None:
        """Leaves the verified file at `body`; resumes what lies at `path`.

        IntegrityError after two whole tries with wrong bytes, NetworkError when patience ends,
        DoesNotFitError when the disk is full, Stopped when told to.
        """
        t.state = "checking"
        with Part(file, path, self._stop) as part:
            t.reached(part.have)
            for last in (False, True):
                self._fill(request, part, t)
                if part.matches:
                    break
                got = part.hex
                part.restart()
                if last:
                    part.discard()
                    raise IntegrityError(
                        f"{file.path} came twice with wrong bytes: its {file.algorithm} should be "
                        f"{file.hex} and is {got}.",
                        "The hub or something on the way serves another file. Try again later or "
                        "from another --source or --endpoint.",
                        code="APL-INT-001",
                    )
                t.why = "wrong bytes, fetching it again"
            part.publish(body)
        t.state = "done"
        t.reached(file.size)

    def small(self, request: Request, file: RemoteFile) -> bytes:
        """A small file's content in memory, for planning; same errors as `fetch`."""
        failures = 0
        while True:
            content = bytearray()
            try:
                with closing(self._open(request, file, {})) as response:
                    for block in response.iter_bytes():
                        content += block
                        if len(content) > file.size:
                            break
                return bytes(content)
            except (TryAgain, httpx.TransportError) as e:
                failures += 1
                self._pause(_again(e), failures, file, self._patience.questions, None)

    def _fill(self, request: Request, part: Part, t: Transfer) -> None:
        """Reads until the part is whole; digest not yet looked at."""
        failures = 0
        while not part.whole:
            before = t.received
            t.state = "fetching"
            try:
                self._stream(request, part, t)
            except (TryAgain, httpx.TransportError) as e:
                if self._stop.is_set():
                    raise Stopped from e
                failures = 1 if t.received > before else failures + 1
                self._pause(_again(e), failures, part.file, self._patience.attempts, t)
        t.why = ""

    def _pause(
        self, again: TryAgain, failures: int, file: RemoteFile, most: int, t: Transfer | None
    ) -> None:
        wait = self._patience.wait_s(failures, again.retry_after_s)
        if failures >= most or wait > self._patience.longest_retry_after_s:
            asked = (
                f" The hub asks to wait {again.retry_after_s:.0f} s."
                if again.retry_after_s and wait > self._patience.longest_retry_after_s
                else ""
            )
            raise NetworkError(
                f"{file.path} cannot be fetched: {again.why} ({failures} tries without a new "
                f"byte).{asked}",
                "Run the same command again; it resumes.",
                code="APL-NET-001",
            )
        if t is not None:
            t.state, t.failures = "retrying", failures
            t.why = f"{again.why}, retrying {failures}/{most}"
        if self._stop.wait(wait):
            raise Stopped

    def _stream(self, request: Request, part: Part, t: Transfer) -> None:
        """One request's bytes into the part."""
        ask = {}
        size = part.file.size
        end = min(size, part.have + self._longest_body)
        if part.have or end < size:
            ask["Range"] = f"bytes={part.have}-{end - 1 if end < size else ''}"
        response = self._open(request, part.file, ask)
        wire = response.extensions.get("network_stream")
        sock = wire.get_extra_info("socket") if wire is not None else None
        with self._guard:
            if sock is not None:
                self._sockets.add(sock)
        try:
            with closing(response):
                end = self._begin(response, part, end)
                for block in response.iter_bytes():
                    if part.have + len(block) > size:
                        part.restart()
                        raise TryAgain(f"the hub sends more than the listed {size} bytes")
                    part.write(block)
                    t.received += len(block)
                    t.reached(part.have)
                    wait = self._throttle.taken(len(block))
                    if wait > 0 and self._stop.wait(wait):
                        raise Stopped
                if part.have < end:
                    raise TryAgain(f"the connection was cut at {part.have} of {size} bytes")
        finally:
            with self._guard:
                if sock is not None:
                    self._sockets.discard(sock)

    def _begin(self, response: httpx.Response, part: Part, end: int) -> int:
        """Makes the part ready for what this response carries; where its bytes will end."""
        size = part.file.size
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        length = response.headers.get("Content-Length", "")
        if response.status_code == 206:
            start, total = _content_range(response.headers.get("Content-Range", ""))
            if start == part.have and total in (size, None) and not encoded:
                return end
            part.restart()
            raise TryAgain(f"the hub answered another range than bytes {part.have}-")
        if part.have:
            # The range was ignored: this is the whole file, so it must not be appended.
            part.restart()
        if length.isdigit() and int(length) != size and not encoded:
            raise TryAgain(f"the hub sends {length} bytes where {size} were listed")
        return size

    def _open(self, request: Request, file: RemoteFile, extra: dict[str, str]) -> httpx.Response:
        """The response with the body still to come. Secrets stay at the request's own origin."""
        url, home = request.url, _origin(request.url)
        for _ in range(6):
            headers = dict(request.headers) | extra
            if _origin(url) != home:
                headers = {k: v for k, v in headers.items() if k.lower() not in _SECRETS}
            response = self._client.send(
                self._client.build_request("GET", url, headers=headers), stream=True
            )
            if response.status_code in _REDIRECTS and "Location" in response.headers:
                url = urljoin(url, response.headers["Location"])
                response.close()
                if urlsplit(url).scheme not in ("http", "https"):
                    raise TryAgain("the hub redirects to something that is not HTTP")
                continue
            if response.status_code in (200, 206):
                return response
            response.close()
            raise _refusal(response, file, away=_origin(url) != home)
        raise TryAgain("the hub redirects without end")


@cache
def _certificates() -> ssl.SSLContext:
    """Reading all the authorities takes tens of milliseconds; once is enough."""
    return httpx.create_ssl_context()


def _refusal(response: httpx.Response, file: RemoteFile, *, away: bool) -> Exception:
    status = response.status_code
    if status in MAY_PASS:
        return TryAgain(f"the hub answers {status}", _retry_after(response.headers))
    if status == 416:
        return TryAgain("the hub refuses the range")
    if away:
        return TryAgain(f"the link to the file's bytes answers {status}, asking for a new one")
    if status in (401, 403):
        return _no_access(file)
    if status in (404, 410):
        return NotFoundError(
            f"{file.path} is listed but the hub no longer has it ({status}).",
            "The model changed meanwhile. Run the same command again.",
            code="APL-NOT-003",
        )
    return NetworkError(
        f"{file.path} cannot be fetched: the hub answers {status}.", code="APL-NET-001"
    )


def _no_access(file: RemoteFile) -> ApplianceError:
    return NotAuthorisedError(
        f"the hub lists {file.path} but does not give it to this account.",
        "Accept the model's terms on its page, and set HF_TOKEN (or MODELSCOPE_API_TOKEN).",
        code="APL-AUT-002",
    )


def _again(e: TryAgain | httpx.TransportError) -> TryAgain:
    if isinstance(e, TryAgain):
        return e
    if isinstance(e, httpx.ReadTimeout):
        return TryAgain("the connection stalled")
    if isinstance(e, httpx.TimeoutException):
        return TryAgain("no connection in time")
    if isinstance(e, httpx.ConnectError):
        return TryAgain(f"no connection ({e})")
    return TryAgain(f"the connection broke ({e})" if str(e) else "the connection broke")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", port


def _content_range(text: str) -> tuple[int | None, int | None]:
    """`bytes 5-9/10` -> (5, 10); None where it does not say."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    start = span.split("-")[0]
    if unit != "bytes" or not start.isdigit():
        return None, None
    return int(start), int(total) if total.isdigit() else None


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds or a date, as HTTP allows both."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return max(0.0, when.timestamp() - time.time())
