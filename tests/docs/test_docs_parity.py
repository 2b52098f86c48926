"""The table of what is expected names tests that exist, and leaves no row without a word."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import NamedTuple

import pytest
from documents import DOCS, ROOT

PAGE = DOCS / "parity.md"
STATES = {"done", "partly", "not here"}
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_HEAD = "| what is expected | state | where shown |"


class Row(NamedTuple):
    section: str
    expected: str
    state: str
    shown: str

    @property
    def tests(self) -> list[tuple[str, str]]:
        return _TEST.findall(self.shown)

    @property
    def reason(self) -> str:
        return _TEST.sub("", self.shown).strip(" ,;()")


def rows() -> list[Row]:
    found, section = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("|") and line != _HEAD and not line.startswith("|---"):
            found.append(Row(section, *(part.strip() for part in line.strip("|").split("|"))))
    return found


ROWS = rows()


@cache
def functions(file: str) -> set[str]:
    """Names of a file's functions, and of the methods of its classes."""
    tree = ast.parse((ROOT / file).read_text())
    inside = [part for node in tree.body if isinstance(node, ast.ClassDef) for part in node.body]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in [*tree.body, *inside] if isinstance(node, kinds)}


def test_every_subject_has_its_table() -> None:
    sections = [row.section for row in ROWS]
    assert set(sections) == {"Commands", "Dashboard", "The 25 pains"}
    pains = [row.expected for row in ROWS if row.section == "The 25 pains"]
    assert [int(pain.partition(".")[0]) for pain in pains] == list(range(1, 26))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.expected)
def test_a_row_names_tests_that_exist_or_what_is_missing(row: Row) -> None:
    assert row.state in STATES
    assert row.shown.count("::") == len(row.tests)
    missing = [
        f"{file}::{name}"
        for file, name in row.tests
        if not (ROOT / file).is_file() or name not in functions(file)
    ]
    assert not missing
    if row.state == "done":
        assert row.tests and not row.reason
    else:
        assert len(row.reason.split()) > 2
