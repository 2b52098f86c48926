"""logs of a run that has ended, by time, text and request; several runs side by side."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_stage import live_run

from appliance import paths
from appliance.cli.logs import moment
from appliance.errors import UsageError

Cli = Callable[..., Any]
LINES = """\
2026-11-20T12:00:01.000Z INFO    engine-0 req-1 begins
2026-11-20T12:00:02.000Z ERROR   engine-0 req-2 fails
2026-11-20T12:00:03.000Z INFO    frontend-0 req-1 ends
"""


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        ((), ["begins", "fails", "ends"]),
        (("--since", "2026-11-20T12:00:02Z"), ["fails", "ends"]),
        (("--until", "2026-11-20T12:00:02Z"), ["begins", "fails"]),
        (("--since", "1m"), []),
        (("--request", "req-1"), ["begins", "ends"]),
        (("--grep", "req-1", "--grep", "end"), ["ends"]),
        (("--level", "error"), ["fails"]),
        (("--component", "frontend"), ["ends"]),
    ],
)
def test_logs_of_an_ended_run(
    cli: Cli, own_home: Path, words: tuple[str, ...], ends: list[str]
) -> None:
    path = paths.supervisor_log("default")
    path.parent.mkdir(parents=True)
    path.write_text(LINES)
    said = cli("logs", *words, "--json")
    assert said.code == 0
    found = [json.loads(line)["message"] for line in said.out.splitlines()]
    assert [line.split()[-1] for line in found] == ends


def test_times() -> None:
    assert moment(None, "--since") == ""
    assert moment("2026-11-20T12:00:02+01:00", "--since") == "2026-11-20T11:00:02.000"
    now = datetime.datetime.now(datetime.UTC)
    found = datetime.datetime.fromisoformat(moment("10m", "--since") + "+00:00")
    assert datetime.timedelta(minutes=9) < now - found < datetime.timedelta(minutes=11)
    assert len(moment("14:30", "--since")) == 23
    for wrong in ("soon", "25:00", "10y", "99999999999d"):
        with pytest.raises(UsageError, match="is no time"):
            moment(wrong, "--until")


def test_older_lines_of_a_live_run_are_read_from_its_files(cli: Cli, own_home: Path) -> None:
    path = paths.supervisor_log("default")
    path.parent.mkdir(parents=True)
    path.with_name("default.log.1").write_text(LINES)
    with live_run():
        said = cli("logs", "--since", "2026-11-20T12:00:02Z", "--until", "2026-11-20T12:00:03Z")
        assert [line.split()[-1] for line in said.out.splitlines()] == ["fails", "ends"]
        newest = cli("logs", "-n", "3").out.splitlines()
        assert len(newest) == 3 and not any("req-" in line for line in newest)
