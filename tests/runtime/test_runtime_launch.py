"""What an engine's process tells of itself while it serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from appliance.runtime.launch import LogLevel, _beating
from appliance.status import Beat, StatusPipe, decode_child_message


def test_a_beat_tells_what_has_changed_since_the_last(tmp_path: Path) -> None:
    read, write = os.pipe()
    facts: dict[str, Any] = {"pages": 64, "captured": 3}
    beat = _beating(StatusPipe(write), LogLevel(tmp_path / "none", "info"), facts)
    beat(1, 3.0)
    facts["captured"] = 4
    beat(1, 30.0)
    facts["capture_failed"] = "OutOfMemoryError: …"
    beat(2, 3.0)
    beat(3, 3.0)
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        found = [decode_child_message(line) for line in lines.read().splitlines()]
    assert found == [
        Beat(1, 3.0),
        Beat(1, 30.0, {"captured": 4}),
        Beat(2, 3.0, {"capture_failed": "OutOfMemoryError: …"}),
        Beat(3, 3.0),
    ]
