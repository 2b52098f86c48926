"""The death of an engine is a pause: 32 streams go on with exactly the next token."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

import pytest
from replay_rounds import run_round
from stand import Stand
from streams import Answer, ask_all, bodies, with_stops

SEED = 20
Known = tuple[list[dict[str, Any]], list[Answer]]


@pytest.fixture(scope="module")
def known(served: Stand) -> Known:
    """Requests, and their answers in a run that nothing disturbs."""
    asked = bodies(SEED, tokens=160)
    asked = with_stops(asked, asyncio.run(ask_all(served.url, asked)))
    right = asyncio.run(ask_all(served.url, asked))
    assert not [a.error for a in right if a.error]
    finishes = [c.finish for a in right for c in a.choices.values()]
    assert finishes.count("stop") >= 2, "some end by a stop string"
    return asked, right


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_every_stream_ends_as_if_nothing_had_been(
    served: Stand, known: Known, blow: signal.Signals
) -> None:
    asked, right = known
    share = random.Random(SEED + blow).uniform(0.1, 0.7)
    done, _ = run_round(served, asked, right, blow, share)
    assert done["wrong"] == []
    assert done["replayed"] >= 1
