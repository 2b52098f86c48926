"""One served default model for the tests that leave it as it was, or better."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stand import Stand


@pytest.fixture(scope="session")
def served() -> Iterator[Stand]:
    """Dies twice in test_e2e_replay; nobody else ends its engine."""
    with Stand() as stand:
        yield stand
