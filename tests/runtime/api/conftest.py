"""A frontend served on 127.0.0.1, with a fake engine behind it and no supervisor."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "text"))

from fake_engine import FakeEngine
from served_frontend import Served, make_config
from tiny_vocabularies import byte_level, spec, write_folder

from appliance import paths
from appliance.runtime.api.app import FrontendProcess
from appliance.runtime.text.worker import TextWorker

VOCAB = 400


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


@pytest.fixture
def serve(
    run_dir: Path, text_room: TextWorker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Served]]:
    """serve(**ServeConfig fields) -> Served; `index` is the frontend's number."""
    monkeypatch.setenv("APPLIANCE_STATE_DIR", str(run_dir / "state"))
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
