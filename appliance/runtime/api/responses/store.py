"""Answers kept for the turns that follow them: a file each, which every frontend finds.

Bounded in number, size and age; the oldest go first. A file that cannot be written is kept in this
process alone.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from appliance import paths
from appliance.errors import ApplianceError

MAX_FILES = 4096
MAX_BYTES = 256 << 20
MAX_AGE_S = 30 * 86400.0
IN_MEMORY = 64
TIDY_EVERY = 64

_ID = re.compile(r"resp_[0-9a-f]{48}")

log = logging.getLogger(__name__)


def new_id() -> str:
    return f"resp_{secrets.token_hex(24)}"


class Kept(Struct, frozen=True):
    """owner: namespace of the caller who may have it. response: as it was answered.

    input: the items of its request. messages: the whole conversation with this answer, without
    instructions, which hold for one turn.
    """

    owner: str
    response: dict[str, Any]
    input: list[dict[str, Any]]
    messages: list[dict[str, Any]]


class ResponseStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recent: OrderedDict[str, tuple[Kept, bool]] = OrderedDict()
        self._puts = 0

    def put(self, id: str, kept: Kept) -> None:
        written = self._write(id, kept)
        self._remember(id, kept, written)
        self._puts += 1
        if self._puts % TIDY_EVERY == 1:
            self._tidy()

    def get(self, id: str, owner: str) -> Kept | None:
        """None when there is none, when it is another's, or when its time is over."""
        if _ID.fullmatch(id) is None:
            return None
        kept = self._recall(id)
        if kept is None or kept.owner != owner:
            return None
        return kept

    def delete(self, id: str, owner: str) -> bool:
        if self.get(id, owner) is None:
            return False
        _, written = self._recent.pop(id)
        if written:
            self._file(id).unlink(missing_ok=True)
        return True

    def _file(self, id: str) -> Path:
        return self._folder / f"{id}.json"

    def _recall(self, id: str) -> Kept | None:
        known = self._recent.get(id)
        if known is not None and not known[1]:
            return known[0]
        try:
            # another frontend may have deleted it
            if time.time() - self._file(id).stat().st_mtime > MAX_AGE_S:
                return None
            if known is not None:
                return known[0]
            kept = msgspec.json.decode(self._file(id).read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError):
            return None
        self._remember(id, kept, written=True)
        return kept

    def _remember(self, id: str, kept: Kept, written: bool) -> None:
        self._recent[id] = kept, written
        self._recent.move_to_end(id)
        if len(self._recent) > IN_MEMORY:
            self._recent.popitem(last=False)

    def _write(self, id: str, kept: Kept) -> bool:
        try:
            paths.private_dir(self._folder)
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(kept))
            os.replace(name, self._file(id))
        except (OSError, ApplianceError) as e:
            log.warning("an answer cannot be kept in %s: %s", self._folder, e)
            return False
        return True

    def _tidy(self) -> None:
        """Several frontends may do it at once."""
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*resp_*.json") if self._folder.is_dir() else ():
            try:
                st = path.stat()
            except OSError:
                continue
            found.append((st.st_mtime, st.st_size, path))
        found.sort(reverse=True)
        size, oldest = 0, time.time() - MAX_AGE_S
        for number, (at, length, path) in enumerate(found, 1):
            size += length
            if number > MAX_FILES or size > MAX_BYTES or at < oldest:
                path.unlink(missing_ok=True)
