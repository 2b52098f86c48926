"""Whether a prefill is in one step with the rows that decode, beside their steps, or takes turns
with them."""

from __future__ import annotations

import numpy as np

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.draft import Draft
from appliance.runtime.schedule.running import Running

MIXED_ROWS = 64
"""Rows past which a step is not mixed: each costs the attention of a prompt, a tile for a token."""


def may_run_beside(config: ScheduleConfig, running: Running, waiting: int) -> bool:
    """Whether some part of a prefill that begins now might, if all that wait begin with it."""
    return bool(config.beside_rows) and running.count + waiting >= config.beside_rows


def runs_beside(
    config: ScheduleConfig, running: Running, cache: Cache, draft: Draft, in_air: int
) -> bool:
    """Whether the prefill is worth a step beside those of the rows that decode. While one is in
    the air, any other would have to wait for its end, and the rows for both."""
    least = config.beside_rows
    if not least or not draft.plain or running.any_constrained(draft.prefill_slots):
        return False
    if in_air:
        return True
    if cache.held < config.beside_filled * cache.total:
        return False
    return draft.tokens > config.mixed_tokens and len(running.ready()) >= least


def mixes(config: ScheduleConfig, running: Running, draft: Draft) -> bool:
    """Whether decode rows join the prefill: where they are to, or where it is so short that its
    pass, like one of theirs, is the time of reading the weights: both as one read them once."""
    if config.mixed_chunk:
        return True
    if draft.tokens > config.mixed_tokens:
        return False
    ready = running.ready()
    rows = len(ready) - int(np.isin(ready.slots, draft.prefill_slots).sum())
    return draft.tokens + rows <= config.mixed_tokens and draft.prefill_rows + rows <= MIXED_ROWS
