"""Triton kernels against plain torch where there is no GPU: in Triton's interpreter, which must be
chosen before triton is loaded and so has a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = (
    "interpreted_draw.py", "interpreted_edit_logits.py", "interpreted_filter_logits.py",
    "interpreted_greedy.py", "interpreted_norm.py",
    "interpreted_rope.py", "interpreted_round_fused.py", "interpreted_slot_tables.py",
)  # fmt: skip


def test_in_the_interpreter():
    pytest.importorskip("triton")
    options = ["-q", "-p", "no:cacheprovider", *(str(HERE / file) for file in FILES)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=HERE.parent.parent, env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
