"""One engine replica as a frontend reaches it: a link that is made again whenever it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.runtime.wire.channel import EngineLink
from appliance.runtime.wire.codec import CodecError
from appliance.runtime.wire.delta import Leaving, StepStats, ToFrontend, Welcome
from appliance.runtime.wire.request import ToEngine
from appliance.status import EngineState, PrefixRow

RETRY_S = 0.05

log = logging.getLogger(__name__)


class EnginePeer:
    """live_tokens is kept by the frontend; everything else is the peer's own."""

    def __init__(self, replica: int, path: Path, frontend: int) -> None:
        self.replica = replica
        self.live_tokens = 0
        self.welcome: Welcome | None = None
        self.stats: StepStats | None = None
        self._path, self._frontend = path, frontend
        self._link: EngineLink | None = None
        self._complained = ""
        self.left = False
        """It said that it would end: what was in flight did not cause it."""

    @property
    def connected(self) -> bool:
        return self._link is not None

    def send(self, message: ToEngine) -> None:
        """Goes nowhere while the engine is away."""
        if self._link is not None:
            self._link.send(message)

    def state(self) -> EngineState:
        stats = {} if self.stats is None else msgspec.structs.asdict(self.stats)
        shared = stats.pop("shared", ())
        stats.pop("partial_rid", None)  # larger than a float can hold, and for the frontend alone
        return EngineState(
            replica=self.replica,
            connected=self.connected,
            generation=self.welcome.generation if self.welcome else 0,
            stats={k: float(v) for k, v in stats.items()},
            shared=[PrefixRow(**msgspec.structs.asdict(prefix)) for prefix in shared],
        )

    async def run(
        self,
        on_message: Callable[[EnginePeer, ToFrontend], None],
        on_up: Callable[[EnginePeer], None],
        on_down: Callable[[EnginePeer], None],
        on_waiting: Callable[[EnginePeer], None],
    ) -> None:
        """Until cancelled. on_waiting: called at each try while there is no engine."""
        while True:
            gone = asyncio.Event()
            try:
                link = await EngineLink.connect(
                    self._path, self._frontend, lambda m: self._heard(m, on_message), gone.set
                )
            except (OSError, CodecError) as e:
                self._complain(e)
                on_waiting(self)
                await asyncio.sleep(RETRY_S)
                continue
            self._complained = ""
            self._link, self.welcome, self.left = link, link.welcome, False
            log.info("engine %d is there", self.replica)
            try:
                on_up(self)
                await gone.wait()
            finally:
                self._link = None
                link.close()
            log.warning("engine %d has gone", self.replica)
            on_down(self)

    def _heard(
        self, message: ToFrontend, on_message: Callable[[EnginePeer, ToFrontend], None]
    ) -> None:
        if isinstance(message, Leaving):
            self.left = True
        else:
            on_message(self, message)

    def _complain(self, e: Exception) -> None:
        """Once for each kind of trouble; an engine that is not there yet is none."""
        if isinstance(e, FileNotFoundError | ConnectionRefusedError):
            return
        if str(e) != self._complained:
            self._complained = str(e)
            log.warning("engine %d cannot be reached: %s", self.replica, e)
