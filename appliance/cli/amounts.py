"""What people write for an amount -> numbers: `40GiB`, `100MB/s`, `500ms`, `10m`."""

from __future__ import annotations

import re

from appliance.errors import UsageError

_NUMBER = r"(\d+(?:\.\d+)?)"
_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_SECONDS = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def byte_count(text: str, option: str) -> int:
    """`40GiB` or `100MB/s` -> bytes (a second). A bare `k` is refused: it means 1000 to some."""
    found = re.fullmatch(_NUMBER + r"\s*([KMGT]?I?B)(?:/S)?", text.strip().upper())
    if found is None or found[2] not in _BYTES or not float(found[1]):
        raise UsageError(
            f"{option}: '{text}' is no number of bytes.",
            "Write such as 100MB (of 1000² bytes) or 100MiB (of 1024²).",
            code="APL-USE-033",
        )
    return round(float(found[1]) * _BYTES[found[2]])


def seconds(text: str, option: str) -> float:
    """`500ms`, `12h`, `30d` -> seconds."""
    found = re.fullmatch(_NUMBER + r"\s*(ms|[smhdw])", text.strip())
    if found is None:
        raise UsageError(
            f"{option}: '{text}' is no length of time.",
            "Write such as 500ms, 10m, 12h, 30d or 2w.",
            code="APL-USE-033",
        )
    return float(found[1]) * _SECONDS[found[2]]


def period(text: str) -> float:
    """`90s`, `10m`, `1h`, or a bare number of seconds: how long something may take."""
    found = re.fullmatch(_NUMBER + r"([smh]?)", text.strip())
    if found is None or not float(found[1]):
        raise UsageError(
            f"'{text}' is no length of time.",
            "Write such as 90s, 10m or 1h.",
            code="APL-USE-033",
        )
    return float(found[1]) * _SECONDS[found[2] or "s"]
