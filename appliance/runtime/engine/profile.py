"""A torch trace of some steps, for whoever wants to see where a step goes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from appliance.runtime.wire.step import Executor, Flight, Step

log = logging.getLogger(__name__)

SKIPPED = 8
"""Steps before the trace begins, so that it shows none that does something for the first time."""

span = record_function
"""Names a part of a step in the trace: the loop's phases, and the inputs among them."""


class TracingExecutor:
    """An Executor that traces `steps` steps of another, once, and then only passes them on.

    The trace (Chrome's format, gzip) is written while the engine waits; it lies at `path`.
    """

    def __init__(self, inner: Executor, steps: int, path: Path) -> None:
        self._inner, self._steps, self._path = inner, steps, path
        self._seen = 0
        self._profile: profile | None = None

    def launch(self, step: Step) -> Flight:
        if self._seen <= SKIPPED + self._steps:
            self._advance()
        return self._inner.launch(step)

    def chore(self, busy: bool) -> Callable[[], None] | None:
        return self._inner.chore(busy)

    def _advance(self) -> None:
        """Called before each step: begins the trace, or ends it when its steps are over."""
        if self._seen == SKIPPED:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, acc_events=True)
            self._profile.start()
        elif self._seen == SKIPPED + self._steps and self._profile is not None:
            self._profile.stop()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._path))
            self._profile = None
            log.info("trace of %d steps written to %s", self._steps, self._path)
        self._seen += 1
