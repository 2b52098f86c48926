"""How deep a JSON body is nested, found before it is decoded, at a pace of C."""

from __future__ import annotations

import numpy as np

from appliance.errors import RequestError

MAX_DEPTH = 64

_STRUCTURE = b'{}[]"'
_REST = bytes(set(range(256)) - set(_STRUCTURE))
_PIECE = 1 << 18
_FIRST = 1 << 12


def check_depth(data: bytes) -> None:
    """RequestError 400 for more than MAX_DEPTH objects and lists in each other."""
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return
    _check(data[:_FIRST])  # most of what is too deep is so at once
    _check(data)


def _check(data: bytes) -> None:
    # without escaped backslashes, then without escaped quotes, each quote begins or ends a text
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _REST)
    signs = np.frombuffer(plain, dtype=np.uint8)
    level = quotes = 0
    for at in range(0, len(signs), _PIECE):
        piece = signs[at : at + _PIECE]
        is_quote = piece == ord('"')
        seen = np.cumsum(is_quote, dtype=np.int32) + quotes
        steps = np.where((piece == ord("{")) | (piece == ord("[")), np.int8(1), np.int8(-1))
        steps[is_quote | (seen % 2 == 1)] = 0
        levels = np.cumsum(steps, dtype=np.int32) + level
        if int(levels.max()) > MAX_DEPTH:
            raise RequestError(
                f"the body is nested more than {MAX_DEPTH} levels deep, which is the most that is "
                "taken.",
                code="nesting_too_deep",
            )
        level, quotes = int(levels[-1]), int(seen[-1]) % 2
