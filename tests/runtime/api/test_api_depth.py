"""The depth of a body, against a walk over what it decodes to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import RequestError
from appliance.runtime.api import depth
from appliance.runtime.api.depth import MAX_DEPTH, check_depth

VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='{}[]"\\ab\né'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=40,
)


def deepest(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (
        max([deepest(v) + 1 for v in inner], default=1)
        if inner
        else int(isinstance(value, dict | list))
    )


def taken(data: bytes) -> bool:
    try:
        check_depth(data)
    except RequestError:
        return False
    return True


@given(VALUES, st.integers(0, 6))
def test_depth_is_that_of_the_value(value: Any, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "MAX_DEPTH", limit)
        for ascii in (True, False):
            data = json.dumps(value, ensure_ascii=ascii).encode()
            assert taken(data) == (deepest(value) <= limit)


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1, 5_000, 1_000_000])
def test_levels(levels: int) -> None:
    assert taken(b"[" * levels + b"]" * levels) == (levels <= MAX_DEPTH)
    assert taken(b"[" * levels) == (levels <= MAX_DEPTH)
    assert taken(b'{"a":' * levels) == (levels <= MAX_DEPTH)


def test_brackets_in_texts_and_wide_bodies_are_not_deep() -> None:
    assert taken(json.dumps({"prompt": "[{" * 100_000 + '\\"[' * 100}).encode())
    assert taken(json.dumps([[i] for i in range(10_000)]).encode())
    assert taken(b'"' + b'\\"[' * 100_000)  # an unended text is no JSON, which is said later
    with pytest.raises(RequestError, match="more than 64 levels deep"):
        check_depth(b"[" * 65)
