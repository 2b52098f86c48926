"""How fast downloads are here, and so how long the next one may take."""

from __future__ import annotations

import contextlib
import json

from msgspec import Struct

from appliance import paths
from appliance.cli.output import gigabytes
from appliance.profiles.known import SUGGESTED_BYTES
from appliance.status import about

LARGE_PULL = 10_000_000
"""Bytes from which on a pull's rate says something of the next one's."""
ASSUMED_RATE = 50e6
"""Bytes a second, where nothing large was pulled yet: a line of 400 Mbit/s."""


def keep_rate(received_bytes: int, seconds: float) -> None:
    """Remembers how fast a large pull was, so that the next one can say how long it may take."""
    if received_bytes < LARGE_PULL:
        return
    file = paths.last_pull()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"bytes_per_s": received_bytes / max(seconds, 1e-3)}))


def last_rate() -> float:
    """Bytes a second of the last large pull; 0 where there was none."""
    try:
        return float(json.loads(paths.last_pull().read_bytes())["bytes_per_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


class Download(Struct, frozen=True):
    """What a pull of a suggested model takes. assumed: the rate is no measured one."""

    bytes: int
    bytes_per_s: float
    assumed: bool

    @property
    def seconds(self) -> float:
        return self.bytes / self.bytes_per_s

    @property
    def words(self) -> str:
        if self.assumed:
            basis = f"at {self.bytes_per_s / 1e6:.0f} MB/s, which is a guess"
        else:
            basis = "at your last rate"
        return f"{gigabytes(self.bytes)}, {about(self.seconds)} {basis}"


def download_of(model: str) -> Download | None:
    """Without asking a hub; None for a model whose size is not known here."""
    size = SUGGESTED_BYTES.get(model)
    rate = last_rate()
    return Download(size, rate or ASSUMED_RATE, not rate) if size else None
