"""A new option or field is a decision that somebody saw."""

from __future__ import annotations

import golden_lists
import pytest


@pytest.mark.parametrize("name", golden_lists.LISTS)
def test_list_is_the_one_agreed_on(name: str) -> None:
    agreed = (golden_lists.GOLDEN / name).read_text()
    assert golden_lists.LISTS[name]() == agreed, "python tests/house/golden_lists.py, and say why"
