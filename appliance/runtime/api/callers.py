"""Who calls: keys by their digest, and what each key uses, seen by every frontend of the run."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from appliance.errors import RequestError, UsageError
from appliance.keys import MAX_KEYS, Key, read_keys
from appliance.runtime.api.pace import Pace

log = logging.getLogger(__name__)

MINUTE_S = 60.0


class Usage:
    """What each key uses, in a file that the frontends of a run share. A frontend writes its own
    rows only and reads all, so no lock is needed; what it left when it died is cleared when its
    successor starts.

    columns: tokens in flight; number of the current minute; requests in it; in the one before.
    """

    def __init__(self, path: Path, frontends: int, index: int) -> None:
        shape = (max(frontends, index + 1), MAX_KEYS, 4)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, int(np.prod(shape)) * 8)
            shared = mmap.mmap(handle, int(np.prod(shape)) * 8)
        finally:
            os.close(handle)
        self._all: npt.NDArray[np.int64] = np.frombuffer(shared, dtype="<i8").reshape(shape)
        self._own = self._all[index]
        self._own[:] = 0

    def add_tokens(self, slot: int, tokens: int) -> None:
        self._own[slot, 0] += tokens

    def tokens(self, slot: int) -> int:
        return int(self._all[:, slot, 0].sum())

    def count(self, slot: int, now: float) -> None:
        minute, row = int(now // MINUTE_S), self._own[slot]
        if row[1] != minute:
            row[3] = row[2] if row[1] == minute - 1 else 0
            row[1], row[2] = minute, 0
        row[2] += 1

    def requests(self, slot: int, now: float) -> float:
        """Requests in the last 60 seconds; those of the minute before count for its share."""
        minute, part = int(now // MINUTE_S), now % MINUTE_S / MINUTE_S
        rows = self._all[:, slot]
        this = rows[rows[:, 1] == minute]
        before = rows[rows[:, 1] == minute - 1]
        earlier = int(this[:, 3].sum()) + int(before[:, 2].sum())
        return float(this[:, 2].sum()) + earlier * (1.0 - part)


class Caller:
    """On whose account a request runs.

    name: shown in `top`; empty: nobody is told apart. namespace: prefix of the cache's; what is
    kept for one caller is found by the same namespace only. known: may see what is said in full.
    priority: of all its requests, whatever they ask for; None: theirs.
    """

    def __init__(self, key: Key | None = None, usage: Usage | None = None, known: bool = True):
        self.key, self._usage, self.known = key, usage, known
        self.name = key.name if key else ""
        self.namespace = key.namespace if key else ""
        self.priority: int | None = None

    @property
    def admin(self) -> bool:
        """May see how the run is operated: never where anybody is let in."""
        return self.key is not None and self.key.admin

    def cache_key(self, asked: str) -> str:
        return f"{self.namespace}/{asked}" if self.namespace else asked

    def count_request(self, now: float) -> None:
        """RequestError 429 when the key's requests of a minute are used up."""
        if self.key is None or self._usage is None or not self.key.requests_per_minute:
            return
        limit = self.key.requests_per_minute
        if self._usage.requests(self.key.slot, now) + 1 > limit:
            wait = MINUTE_S - now % MINUTE_S
            raise _over(
                f"the key '{self.name}' may send {limit:,} requests a minute.",
                "requests_per_minute",
                min(wait, max(1.0, MINUTE_S / limit)),
            )
        self._usage.count(self.key.slot, now)

    def check_tokens(self, prompt_tokens: int, pace: Pace, param: str | None = None) -> None:
        """RequestError 429 when the key holds too many tokens for `prompt_tokens` more; 400 when
        they alone are too many. pace: at which requests end here."""
        if self.key is None or self._usage is None or not self.key.tokens_in_flight:
            return
        limit, held = self.key.tokens_in_flight, self._usage.tokens(self.key.slot)
        if prompt_tokens > limit:
            raise RequestError(
                f"the request's prompts have {prompt_tokens:,} tokens; the key '{self.name}' may "
                f"have {limit:,} in flight.",
                code="tokens_in_flight",
                param=param,
            )
        if held + max(1, prompt_tokens) > limit:
            raise _over(
                f"the key '{self.name}' has {held:,} tokens in flight and may have {limit:,}; this "
                f"request brings {prompt_tokens:,} more.",
                "tokens_in_flight",
                pace.wait_for_tokens(time.monotonic(), held + max(1, prompt_tokens) - limit),
            )

    def hold(self, tokens: int) -> None:
        """Tokens that came to be in flight; negative: that no longer are."""
        if self.key is not None and self._usage is not None:
            self._usage.add_tokens(self.key.slot, tokens)


def _over(message: str, code: str, retry_after_s: float) -> RequestError:
    return RequestError(
        message, status=429, type="rate_limit_error", code=code, retry_after_s=retry_after_s
    )


ANYBODY = Caller()
"""Everybody, where there are no keys."""
STRANGER = Caller(known=False)
"""Somebody without a key, on the routes that need none."""


class Keyring:
    """The keys of a file, read anew when it has changed.

    A file that is gone has no keys; one that is not understood leaves the keys as they were.
    """

    def __init__(self, path: Path, usage: Usage) -> None:
        """UsageError when the file is not understood."""
        self.path, self._usage = path, usage
        self._seen: tuple[int, int, int] | None = None
        self._callers: dict[bytes, Caller] = {}
        self._load(os.stat(path))

    def find(self, given: bytes) -> Caller | None:
        """Looks up by digest, which is as long for a wrong key as for a right one."""
        self._refresh()
        return self._callers.get(hashlib.sha256(given).digest())

    def _refresh(self) -> None:
        try:
            st = os.stat(self.path)
        except OSError as e:
            if self._callers:
                log.error("the file of keys %s is gone (%s): no key is valid", self.path, e)
            self._callers, self._seen = {}, None
            return
        if (st.st_mtime_ns, st.st_ino, st.st_size) != self._seen:
            try:
                self._load(st)
            except UsageError as e:
                log.error("%s The keys stay as they were.", e.message)

    def _load(self, st: os.stat_result) -> None:
        self._seen = (st.st_mtime_ns, st.st_ino, st.st_size)
        keys = read_keys(self.path)
        self._callers = {bytes.fromhex(k.sha256): Caller(k, self._usage) for k in keys}


class KeyDesk:
    """Which keys are asked for now; a reload may bring others. ring None: everybody is let in.

    usage: the file of what each key uses, and this frontend's number among how many.
    """

    def __init__(self, usage: Path, frontends: int, index: int) -> None:
        self.ring: Keyring | None = None
        self._of = (usage, frontends, index)
        self._usage: Usage | None = None

    def ask_for(self, keys: Path | None) -> None:
        """From the next request on. UsageError when the file is not understood: nothing changes."""
        if keys is None:
            self.ring = None
            return
        if self.ring is not None and self.ring.path == keys:
            return
        if self._usage is None:
            self._usage = Usage(*self._of)
        self.ring = Keyring(keys, self._usage)


def wall_clock() -> float:
    """Seconds all frontends agree on."""
    return time.time()
