"""What the page shows of a GPU is what was recorded last, and records say all that they should."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from benchmarks import latest

RESULTS = latest.RECORD.parent
FILES = ("h100.jsonl", "h200.jsonl")
NAMED = {"out_tok_s", "req_s", "ttft_ms_p50", "tpot_ms_p50", "itl_ms_p50", "e2e_ms_p50"}
OF_OTHERS = {"start": {"ready_s_warm", "ready_s_cold", "phases"}, "host": {"host_us", "step_us"},
             "idle": {"idle_share"}}  # fmt: skip


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def test_the_table_is_that_of_the_last_records() -> None:
    want = "python -m benchmarks.latest --write"
    assert latest.shown(latest.PAGE.read_text()) == latest.table(), want


def test_every_row_of_the_table_is_recorded() -> None:
    assert {line.row for line in latest.lines()} <= latest.latest(latest.RECORD).keys()


@pytest.mark.parametrize("name", FILES)
def test_a_record_names_its_machine_and_command(name: str) -> None:
    for line in lines(name):
        assert {"row", "command", "date", "gpu", "torch", "commit"} <= line.keys(), line["row"]
        assert re.match(r"\d{4}-\d\d-\d\dT", line["date"])
        if line.get("kind") == "serve":
            assert line.keys() >= NAMED
        assert line.keys() >= OF_OTHERS.get(line["row"], set())


@pytest.mark.parametrize("name", FILES)
def test_what_is_shown_is_of_runs_in_which_nothing_failed(name: str) -> None:
    for row, line in latest.latest(RESULTS / name).items():
        assert not line.get("failed") and not line.get("short"), row


def test_the_table_of_the_other_gpu() -> None:
    """Each number of its first column is that of the record."""
    records = latest.latest(RESULTS / "h200.jsonl")
    page = latest.PAGE.read_text()
    table = page[page.index("| row | H200 |") :].split("\n\n")[0].splitlines()[2:]
    for shown in table:
        name, ours = (cell.strip() for cell in shown.split("|")[1:3])
        row, _, words = name.partition(": ")
        names = ("out_tok_s",) if "tok/s" in words else ("ttft_ms_p50", "tpot_ms_p50")
        for figure, number in zip(names, ours.split(" / "), strict=True):
            digits = len(number.partition(".")[2])
            assert f"{records[row][figure]:,.{digits}f}" == number, (row, figure)
    assert len(table) == len(records)
