"""A line of the log as JSON, for programs that read logs."""

from __future__ import annotations

import re
from typing import Any

_LINE = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>[A-Z]+) +(?P<component>\S+) ?"
    r"(?P<message>.*)"
)


def log_data(text: str) -> dict[str, Any]:
    """Schema appliance.log/1. A line that is not in the common format (a library's print, the
    rest of a traceback) has a message only."""
    found = _LINE.fullmatch(text)
    if found is None:
        nothing = dict.fromkeys(("at", "level", "component"))
        return {"schema": "appliance.log/1", **nothing, "message": text}
    level = found["level"].lower()
    return {"schema": "appliance.log/1", **found.groupdict(), "level": level}
