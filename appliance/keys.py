"""Named API keys in a file: who may call, under which limits. A key itself is never kept.

What is kept of a key is the SHA-256 of its bytes; keys are made here, of 256 random bits, so that a
digest tells nothing about its key and a look-up by digest says nothing by the time it takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from appliance.errors import NotFoundError, UsageError

MAX_KEYS = 1024
PREFIX = "sk-appliance-"
_SHORTEST = 16
"""Characters of a key of somebody else's making."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")

Slot = Annotated[int, Meta(ge=0, lt=MAX_KEYS)]
Limit = Annotated[int, Meta(ge=0, le=(1 << 53))]


class Key(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """slot: the key's place in the tables of what is used; unique in its file.

    created: seconds since 1970. Limits: 0 is none. admin: may see the log, the settings and the
    events of a run from elsewhere. What is a default is not written, so that older versions, which
    do not know it, go on reading files without it.
    """

    name: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    slot: Slot
    created: float = 0.0
    requests_per_minute: Limit = 0
    tokens_in_flight: Limit = 0
    admin: bool = False

    @property
    def namespace(self) -> str:
        """Names the key where it may be told; 16 hexadecimal digits."""
        return self.sha256[:16]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, Meta(ge=1, le=1)]
    keys: Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)] = ()


def digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file that is there. UsageError when it cannot be trusted or understood."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as e:
        raise UsageError(
            f"the file of keys {path} cannot be read: {e.strerror}.",
            "Make one with `appliance key add NAME`, or leave serve.keys_file empty.",
            code="APL-USE-020",
        ) from e
    if mode & 0o022:
        raise UsageError(
            f"the file of keys {path} can be written by others (mode {mode & 0o777:03o}).",
            f"chmod 600 {path}",
            code="APL-USE-021",
        )
    try:
        keys = msgspec.json.decode(data, type=_File).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UsageError(
            f"the file of keys {path} is not understood: {e}.",
            "Restore it from a copy, or remove it and add the keys again.",
            code="APL-USE-022",
        ) from e
    for what in ("name", "slot", "sha256"):
        if len({msgspec.structs.asdict(k)[what] for k in keys}) < len(keys):
            raise UsageError(f"two keys of {path} have the same {what}.", code="APL-USE-022")
    return keys


def add_key(
    path: Path,
    name: str,
    *,
    requests_per_minute: int = 0,
    tokens_in_flight: int = 0,
    admin: bool = False,
) -> str:
    """Makes a key and keeps its digest; the key itself, which is told only this once."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a key.",
            "Use 1 to 40 letters, digits, dots, dashes and underscores.",
            code="APL-USE-023",
        )
    made = PREFIX + secrets.token_urlsafe(32)

    def more(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if any(k.name == name for k in keys):
            raise UsageError(
                f"there is a key named '{name}' already.",
                f"appliance key revoke {name}     ends it; then add it again",
                code="APL-USE-024",
            )
        free = sorted(set(range(MAX_KEYS)) - {k.slot for k in keys})
        if not free:
            raise UsageError(
                f"{path} holds {MAX_KEYS} keys, which is the most.",
                "Revoke one that is no longer used: `appliance key revoke NAME`.",
                code="APL-USE-025",
            )
        key = Key(
            name=name,
            sha256=digest(made.encode()),
            slot=free[0],
            created=float(int(time.time())),
            requests_per_minute=requests_per_minute,
            tokens_in_flight=tokens_in_flight,
            admin=admin,
        )
        return (*keys, key)

    _change(path, more)
    return made


def read_plain_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file that holds them as they are, one a line: a secret that systemd or a
    container hands over. UsageError when it cannot be read, or others can: not counted is the
    group of a file that is not this user's, for by that the container reads what was handed to it.
    """
    try:
        st, text = path.stat(), path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise UsageError(
            f"the file of API keys {path} cannot be read: {why}.",
            "Name a file that holds one key a line.",
            code="APL-USE-034",
        ) from e
    mode = st.st_mode & 0o777
    if mode & (0o077 if st.st_uid == os.getuid() else 0o037):
        raise UsageError(
            f"others may read the file of API keys {path} (mode {mode:03o}).",
            f"chmod 600 {path}",
            code="APL-USE-034",
        )
    found = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    short = [n for n, key in enumerate(found, 1) if len(key) < _SHORTEST]
    if not found or short or len(found) > MAX_KEYS:
        why = f"key {short[0]} is shorter than {_SHORTEST} characters" if short else "it holds none"
        raise UsageError(
            f"the file of API keys {path} is of no use: {why}.",
            "`appliance key add NAME` makes one that nobody guesses.",
            code="APL-USE-034",
        )
    return found


def write_digests(path: Path, keys: Sequence[str]) -> None:
    """Keeps the digests of such keys in a file that frontends read, without limits."""
    named = tuple(
        Key(name=f"key-{n}", sha256=digest(key.encode()), slot=n) for n, key in enumerate(keys)
    )
    _change(path, lambda _: named)


def revoke_key(path: Path, name: str) -> None:
    """The key ends: running frontends refuse it from the next request on."""

    def fewer(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        left = tuple(k for k in keys if k.name != name)
        if len(left) == len(keys):
            known = ", ".join(k.name for k in keys) or "none"
            raise NotFoundError(
                f"there is no key named '{name}'.", f"Keys: {known}.", code="APL-NOT-019"
            )
        return left

    _change(path, fewer)


def _change(path: Path, change: Callable[[tuple[Key, ...]], tuple[Key, ...]]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        keys = read_keys(path) if path.exists() else ()
        data = msgspec.json.format(msgspec.json.encode(_File(version=1, keys=change(keys))))
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:  # mkstemp makes it 0600
                file.write(data + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by the one process that changes the file; the file itself is replaced, not written."""
    lock = path.with_name(f"{path.name}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
