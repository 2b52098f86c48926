"""A frontend that accepts on a Unix socket."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
from fake_engine import FakeEngine
from served_frontend import Served, make_config

from appliance.runtime.api.app import FrontendProcess
from appliance.runtime.text.worker import TextWorker


def test_any_name_is_answered_and_the_file_stays(
    run_dir: Path, engine: FakeEngine, text_room: TextWorker, monkeypatch
) -> None:
    """The file belongs to the run: other frontends accept on it, and this one's successor."""
    monkeypatch.setenv("APPLIANCE_STATE_DIR", str(run_dir / "state"))
    engine.start()
    path = run_dir / "llm.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    config = make_config(run_dir, uds=str(path))
    served = Served(lambda: FrontendProcess(config, text_room, 0, listener), run_dir, 0)
    served.connected()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        for host in ("localhost", "llm.example", "127.0.0.1:1"):
            answer = client.get("http://x/v1/models", headers={"host": host})
            assert answer.status_code == 200, host
        body = {"prompt": "hello", "max_tokens": 3, "stream": True}
        with client.stream("POST", "http://localhost/v1/completions", json=body) as stream:
            assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"
    served.close()
    assert path.exists()
