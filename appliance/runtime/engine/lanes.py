"""Lanes: the streams on which steps run. Where a prefill may run beside decode steps there are two.

Prefills that are not captured run on the side, all others on the main stream. A step waits for all
that was launched before it, with one exception: what runs beside is waited for by nobody but by
steps that compute prompts too, so that decode steps go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from appliance.kernels.multiprocessors import Room
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.wire.step import Step


class Lane:
    """stream: None for the current one. staging: of this stream alone, for its buffers are free
    when its copies are done."""

    def __init__(self, staging: Staging, stream: torch.cuda.Stream | None) -> None:
        self.staging, self.stream = staging, stream

    def current(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class Lanes:
    """side, room: of prefills beside decode steps; None where all steps run one after the other.

    The main stream is the one that is current when this is made, whichever thread runs steps later.
    """

    def __init__(
        self, main: Staging, side: Staging | None = None, room: Room | None = None
    ) -> None:
        self._room = room
        stream = torch.cuda.current_stream() if main.cuda or side is not None else None
        self.main = self.side = Lane(main, stream)
        if side is not None:
            self.side = Lane(side, torch.cuda.Stream())
        self._serial: torch.cuda.Event | None = None
        self._beside: torch.cuda.Event | None = None

    @property
    def apart(self) -> bool:
        """Whether a prefill and decode steps may be at work at the same time."""
        return self.main is not self.side

    @property
    def crowded(self) -> bool:
        """Whether something beside is not done yet."""
        return self._beside is not None and not self._beside.query()

    @contextmanager
    def run(self, step: Step, captured: bool) -> Iterator[Lane]:
        """The lane of a step, current within. captured: its prefill is one."""
        lane = self._lane(step, captured)
        main, side = self.main.stream, self.side.stream
        if main is None or side is None or not self.apart:
            with lane.current():
                yield lane
            return
        if lane is self.side:
            side.wait_stream(main)
        elif _decodes_only(step):
            if self._serial is not None:
                main.wait_event(self._serial)
                self._serial = None
        else:
            main.wait_stream(side)
        with lane.current(), self._room.left() if step.beside and self._room else nullcontext():
            yield lane

    @contextmanager
    def behind_all(self) -> Iterator[None]:
        """The main stream, current within, for what is no step: it waits for all that was launched,
        and all that is launched later waits for it."""
        main, side = self.main.stream, self.side.stream
        if main is not None and side is not None and self.apart:
            main.wait_stream(side)
        with self.main.current():
            yield

    def queued(self, step: Step, lane: Lane) -> None:
        """All of the step is in its lane now, which is current."""
        if lane is self.main:
            return
        event = torch.cuda.Event()
        event.record()
        if step.beside:
            self._beside = event
        else:
            self._serial = event

    def _lane(self, step: Step, captured: bool) -> Lane:
        return self.main if captured or _decodes_only(step) else self.side


def _decodes_only(step: Step) -> bool:
    return step.prefill_rows == 0 and step.shared is None
