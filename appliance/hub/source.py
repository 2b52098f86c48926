"""What a hub is to us: a name becomes a listing, a listed file becomes an HTTP request.

Nothing a hub says becomes a path or a blob name before it has passed the checks here.
"""

from __future__ import annotations

import queue
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from appliance.errors import ApplianceError, IntegrityError, NetworkError, UsageError

Algorithm = Literal["sha256", "git-sha1", ""]
SourceKey = Literal["hf", "modelscope", "local"]

_PART = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}"
_NAME = re.compile(rf"{_PART}(/{_PART})?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-/]{0,254}")
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "git-sha1": re.compile(r"[0-9a-f]{40}")}

MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that another try may cure."""

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a hub may misbehave before we give up."""

    stall_s: float = 30.0
    """A connection without a byte for this long is dropped and made anew."""
    connect_s: float = 10.0
    attempts: int = 8
    """Failures in a row without one new byte."""
    questions: int = 4
    """Tries of a small question (resolve, listing)."""
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 300.0

    def wait_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """Seconds before the next try: exponential, jittered, never less than the hub asked for."""
        ceiling = min(self.longest_wait_s, self.first_wait_s * 2.0 ** max(0, failures - 1))
        jittered = ceiling * random.uniform(0.5, 1.0)
        return max(jittered, retry_after_s or 0.0)


class TryAgain(Exception):
    """A failure that another try may cure. `retry_after_s` is what the hub asked for."""

    def __init__(self, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing. hex is empty when the hub tells no digest."""

    path: str
    size: int
    algorithm: Algorithm
    hex: str


@dataclass(frozen=True)
class Listing:
    """One revision of a model as its hub lists it."""

    source: SourceKey
    title: str
    endpoint: str
    name: str
    revision: str
    """Branch, tag or commit as asked for, or the hub's default branch."""
    commit: str
    """What pins the files: a commit where the hub has one, else the revision."""
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Request:
    """A GET of one file. `headers` may hold a token: they go to the url's own origin only."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A hub."""

    key: SourceKey
    title: str
    endpoint: str

    def resolve(self, name: str, revision: str | None) -> Listing:
        """What `name` holds now.

        NotFoundError, NotAuthorisedError or NetworkError in the user's words.
        """

    def request(self, listing: Listing, file: RemoteFile) -> Request: ...


def parse_name(text: str, revision: str | None = None) -> tuple[str, str | None]:
    """`ORG/NAME[@REV]` -> (name, revision or None). UsageError when it is no such thing."""
    if "://" in text:
        tail = "/".join(text.split("://", 1)[1].split("/")[1:3])
        raise UsageError(
            f"{text!r} is an address, not the name of a model.",
            f"appliance pull {tail}" if _NAME.fullmatch(tail) else "Give it as ORG/NAME.",
            code="APL-USE-010",
        )
    name, at, asked = text.partition("@")
    if at and revision and asked != revision:
        raise UsageError(
            f"two revisions are given: @{asked} and --revision {revision}.",
            "Give one of them.",
            code="APL-USE-010",
        )
    wanted = asked if at else revision
    sane = _NAME.fullmatch(name) and ".." not in name and "--" not in name
    if not sane or name.endswith((".git", ".", "-")):
        raise UsageError(
            f"{name!r} is not the name of a model.",
            "Names look like Qwen/Qwen3-8B: letters, digits, '-', '_' and '.', one '/'.",
            code="APL-USE-010",
        )
    if wanted is not None and (not _REVISION.fullmatch(wanted) or ".." in wanted):
        raise UsageError(
            f"{wanted!r} is not a revision.",
            "A revision is a branch, a tag or a commit, for example main.",
            code="APL-USE-010",
        )
    return name, wanted


def checked_file(
    hub: str, path: object, size: object, algorithm: Algorithm, hex: str
) -> RemoteFile:
    """A listed file, when its path stays inside the model's folder and its digest is one.

    IntegrityError otherwise: an honest hub lists no such thing.
    """
    if not isinstance(path, str) or not is_inside(path):
        raise IntegrityError(
            f"{hub} lists a file whose path leaves the model's folder: {str(path)[:120]!r}.",
            "Nothing was written. Do not use this model.",
            code="APL-INT-002",
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise IntegrityError(f"{hub} lists {path} with the size {size!r}.", code="APL-INT-002")
    digest = hex.lower()
    if not digest:
        return RemoteFile(path, size, "", "")
    if not algorithm or not _HEX[algorithm].fullmatch(digest):
        raise IntegrityError(
            f"{hub} lists {path} with {hex[:80]!r}, which is no {algorithm or 'known'} digest.",
            "Nothing was written. Do not use this model.",
            code="APL-INT-002",
        )
    return RemoteFile(path, size, algorithm, digest)


def is_inside(path: str) -> bool:
    """Whether a relative path with '/' names a file below the folder it is joined to."""
    if not path or len(path) > 1024 or "\\" in path or path[1:2] == ":":
        return False
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        return False
    return all(p not in ("", ".", "..") and len(p.encode()) <= 255 for p in path.split("/"))


def ask(title: str, question: Callable[[], T], patience: Patience) -> T:
    """Runs a hub library's call, tries again what may pass, and gives up in bounded time.

    The call runs in a thread of its own because the libraries set no read timeout, and because
    Ctrl-C must not wait for one. The question raises TryAgain for what may pass.
    """
    last = TryAgain("no try was made")
    for failures in range(1, patience.questions + 1):
        try:
            return aside(question, patience.stall_s)
        except TryAgain as again:
            last = again
        if failures < patience.questions:
            wait = patience.wait_s(failures, last.retry_after_s)
            if wait > patience.longest_retry_after_s:
                break
            time.sleep(wait)
    raise NetworkError(
        f"{title} cannot be asked: {last.why}.",
        "Run the same command again; what is here already is kept.",
        code="APL-NET-002",
    )


def aside(question: Callable[[], T], limit_s: float | None = None) -> T:
    """The question's answer, from a thread that Ctrl-C does not wait for; nor does anything else
    after `limit_s`, which raises TryAgain."""
    answers: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def work() -> None:
        try:
            answers.put((question(), None))
        except BaseException as e:
            answers.put((None, e))

    threading.Thread(target=work, daemon=True, name="hub-question").start()
    try:
        answer, error = answers.get(timeout=limit_s)
    except queue.Empty:
        raise TryAgain(f"no answer within {limit_s or 0:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def offline_variable(environ: Mapping[str, str]) -> str:
    """The environment variable that forbids the network, or an empty string."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "APPLIANCE_OFFLINE"):
        if environ.get(variable, "").strip().lower() in ("1", "on", "yes", "true"):
            return variable
    return ""


def refuse_offline(variable: str) -> ApplianceError:
    who = "--offline or APPLIANCE_OFFLINE" if variable == "APPLIANCE_OFFLINE" else variable
    return NetworkError(
        f"the network is switched off by {who}, and the model is not complete on this disk.",
        f"env -u {variable} appliance pull …",
        code="APL-NET-003",
    )


def not_its_protocol(title: str, endpoint: str) -> ApplianceError:
    """An answer that the hub's own client cannot read, such as a login page."""
    return NetworkError(
        f"what answers at {endpoint} does not speak the protocol of {title}.",
        "Check --endpoint, and whether the network wants a login first.",
        code="APL-NET-004",
    )
