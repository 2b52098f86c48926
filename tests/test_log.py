"""One event is one line, whatever is in it."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import log as logs


def line_of(message: str, *args: object, extra: dict[str, object] | None = None) -> str:
    record = logging.getLogger("x").makeRecord(
        "x", logging.WARNING, "f.py", 1, message, args, None, extra=extra
    )
    record.created, record.msecs = 0.0, 7.0
    return logs.LineFormatter("engine-0").format(record)


def test_time_level_process_message_and_fields() -> None:
    line = line_of("%d pages", 3, extra={"rid": 12})
    assert line == "1970-01-01T00:00:00.007Z WARNING engine-0 3 pages rid=12"


def test_terminal_escapes_do_not_reach_the_terminal() -> None:
    line = line_of("a\x1b[2Jb\rc\x00")
    assert line.endswith("a\\x1b[2Jb\\rc\\x00")


def test_lines_after_the_first_are_indented() -> None:
    first, second = line_of("one\n2026-01-01T00:00:00.000Z ERROR   forged").split("\n")
    assert first.endswith("one") and second.startswith("    2026")


@given(st.text())
def test_no_text_forges_a_line(text: str) -> None:
    rest = line_of("%s", text).splitlines()[1:]
    assert all(line.startswith("    ") for line in rest)


def test_traceback_is_in_the_event() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f.py", 1, "failed", (), sys.exc_info()
        )
    lines = logs.LineFormatter("frontend-1").format(record).split("\n")
    assert lines[0].endswith("frontend-1 failed") and lines[-1] == "    ValueError: broken"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_setup_replaces_what_was_there(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.setup("supervisor", "info")
    logs.setup("supervisor", "warning")
    logging.getLogger("appliance.some").warning("said once")
    logging.getLogger("appliance.some").info("not said")
    logging.getLogger("httpx").info("not said")
    assert [line.split(" ", 2)[2] for line in stream.getvalue().splitlines()] == [
        "supervisor said once"
    ]
