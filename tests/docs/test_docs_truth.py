"""The page of bounds names tests that exist, and bounds that stand in them."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from documents import DOCS, ROOT
from test_docs_parity import functions

_PLACE = re.compile(r"`([\w/]+\.py)::(\w+)`")
_NUMBER = re.compile(r"`([\d.e-]+)`")


class Row(NamedTuple):
    path: str
    held_to: str
    bound: str
    where: str


def rows() -> list[Row]:
    lines = (DOCS / "contribute" / "truth.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")][1:]
    return [Row(*(part.strip() for part in line.strip("|").split("|"))) for line in table]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.path)
def test_a_path_names_its_bound_where_it_is_held(row: Row) -> None:
    places = _PLACE.findall(row.where)
    assert places and row.where.count("::") == len(places)
    for file, name in places:
        assert name in functions(file), f"{file}::{name}"
    sources = "".join((ROOT / file).read_text() for file in {file for file, _ in places})
    for number in _NUMBER.findall(row.bound):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", sources), number
