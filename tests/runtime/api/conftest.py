"""A frontend served on 127.0.0.1, with a fake engine behind it and no supervisor."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "text"))

from fake_engine import FakeEngine
from tiny_vocabularies import byte_level, spec, write_folder

from appliance import paths, status
from appliance.runtime.api.app import FrontendProcess
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ServeConfig
from appliance.runtime.text.worker import TextWorker
from appliance.status import RunState, StatusPipe

T = TypeVar("T")
VOCAB = 300 + 100


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
        async def stop() -> None:
            self._keeper.cancel()
            await self.process.stop()

        self.call(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture(scope="session")
def text_room(tmp_path_factory: pytest.TempPathFactory) -> TextWorker:
    folder = write_folder(tmp_path_factory.mktemp("model"), byte_level())
    return TextWorker(folder, spec(VOCAB), "tiny")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, because the path of a Unix socket may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="apl") as folder:
        yield Path(folder)


@pytest.fixture
def engine(run_dir: Path) -> Iterator[FakeEngine]:
    made = FakeEngine(paths.engine_socket(run_dir, 0))
    yield made
    made.die()


def make_config(run_dir: Path, **serve: Any) -> RuntimeConfig:
    replicas = serve.pop("replicas", 1)
    return RuntimeConfig(
        run="test",
        dir=str(run_dir),
        model=ModelConfig(path="/nowhere", id="org/tiny", served_names=("small",), context=512),
        serve=ServeConfig(**{"frontends": 1, **serve}),
        engine=EngineConfig(replicas=replicas),
    )


@pytest.fixture
def serve(run_dir: Path, text_room: TextWorker) -> Iterator[Callable[..., Served]]:
    """serve(**ServeConfig fields) -> Served; `index` is the frontend's number."""
    opened: list[Served] = []

    def start(index: int = 0, **fields: Any) -> Served:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = make_config(run_dir, **fields)
        opened.append(
            Served(lambda: FrontendProcess(config, text_room, index, listener), run_dir, port)
        )
        return opened[-1]

    yield start
    for server in opened:
        server.close()


@pytest.fixture
def served(engine: FakeEngine, serve: Callable[..., Served]) -> Served:
    engine.start()
    return serve().connected()
