"""The chained pass means what the decoder means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytest.importorskip("triton", reason="torch brings triton on Linux alone")


def test_the_same_hidden_states_and_pages() -> None:
    """In the interpreter, which is chosen when triton is imported: so in a process of its own."""
    done = subprocess.run(
        [sys.executable, HERE / "interpreted_few_rows_pass.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "agrees\n", done.stderr
