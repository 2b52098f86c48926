"""The transcripts of wrong turns are what the command line says today."""

from __future__ import annotations

import difflib
import runpy

import pytest
from documents import DOCS

WRITER = runpy.run_path(str(DOCS / "write_wrong_turns.py"))


@pytest.mark.slow
def test_the_page_is_what_is_said() -> None:
    kept, now = WRITER["PAGE"].read_text(), WRITER["page"]()
    changed = "\n".join(difflib.unified_diff(kept.splitlines(), now.splitlines(), lineterm=""))
    assert kept == now, f"python docs/write_wrong_turns.py\n{changed}"


def test_every_turn_has_its_exit_code_and_its_fix() -> None:
    for turn in WRITER["PAGE"].read_text().split("\n### ")[1:]:
        assert "(exit code " in turn, turn
        assert "\n  fix   " in turn or "Ctrl-C" in turn, turn
