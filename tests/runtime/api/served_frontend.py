"""A FrontendProcess in a thread with its own loop, for tests that are its clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from appliance import paths, status
from appliance.runtime.api.app import FrontendProcess
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ServeConfig
from appliance.status import RunState, StatusPipe

T = TypeVar("T")


class Served:
    """A FrontendProcess in a thread with its own loop."""

    def __init__(self, process: Callable[[], FrontendProcess], run: Path, port: int) -> None:
        self.run_dir, self.port = run, port
        self.url = f"http://127.0.0.1:{port}"
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.process: FrontendProcess = self.call(self._start(process))
        self.frontend = self.process.frontend

    async def _start(self, make: Callable[[], FrontendProcess]) -> FrontendProcess:
        process = make()
        await process.start()
        self._keeper = asyncio.create_task(process.housekeeping(StatusPipe()))
        return process

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def set_state(self, **fields: Any) -> None:
        status.publish(paths.run_state(self.run_dir), RunState(**fields))

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits, in the server's loop, for something that its next turns bring about."""

        async def wait() -> None:
            async with asyncio.timeout(20):
                while not condition():
                    await asyncio.sleep(0.005)

        self.call(wait())

    def connected(self) -> Served:
        self.until(lambda: all(e.connected for e in self.frontend.engines))
        return self

    def close(self) -> None:
        if self.loop.is_closed():
            return

        async def stop() -> None:
            self._keeper.cancel()
            await self.process.stop()

        self.call(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


def make_config(run_dir: Path, **serve: Any) -> RuntimeConfig:
    replicas = serve.pop("replicas", 1)
    return RuntimeConfig(
        run="test",
        dir=str(run_dir),
        model=ModelConfig(path="/nowhere", id="org/tiny", served_names=("small",), context=512),
        serve=ServeConfig(**{"frontends": 1, **serve}),
        engine=EngineConfig(replicas=replicas),
    )
