"""A frontend takes over what a reload has written: from the next request on, and nothing is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
from fake_engine import FakeEngine
from served_frontend import Served, make_config

from appliance import keys, paths
from appliance.runtime.config import replaced, write_config
from appliance.status import FrontendSnapshot


def reload(served: Served, values: dict[str, Any], **fields: Any) -> None:
    """Writes other settings and waits until the frontend says that it goes by them."""
    path = paths.config_file(served.run_dir)
    write_config(replaced(make_config(served.run_dir, **fields), values), path)
    version = path.stat().st_mtime_ns

    def taken() -> bool:
        raw = paths.frontend_snapshot(served.run_dir, 0).read_bytes()
        return msgspec.json.decode(raw, type=FrontendSnapshot).config_version == version

    served.until(taken)


def models(served: Served, **headers: str) -> httpx.Response:
    return httpx.get(f"{served.url}/v1/models", headers=headers)


def test_names_and_limits(served: Served) -> None:
    assert [m["id"] for m in models(served).json()["data"]] == ["org/tiny", "small"]
    reload(
        served,
        {
            "model.served_names": ["other"],
            "serve.max_queue": 1,
            "serve.keep_alive_comment_s": 9.0,
            "serve.max_connections_per_address": 5,
        },
    )
    assert [m["id"] for m in models(served).json()["data"]] == ["org/tiny", "other"]
    assert served.frontend.keep_alive_s == 9.0
    two = {"prompt": ["a", "b"], "max_tokens": 1}
    refused = httpx.post(f"{served.url}/v1/completions", json=two)
    assert refused.json()["error"]["code"] == "queue_full"
    info = httpx.get(f"{served.url}/server_info").json()
    assert info["config"]["serve"]["max_queue"] == 1


def test_keys_come_and_go(served: Served, run_dir: Path) -> None:
    mine = run_dir / "mine.json"
    key = keys.add_key(mine, "alice")
    reload(served, {"serve.keys_file": str(mine)})
    assert models(served).status_code == 401
    assert models(served, authorization=f"Bearer {key}").status_code == 200
    # a file that cannot be trusted changes nothing
    odd = run_dir / "odd.json"
    odd.write_text("{}")
    odd.chmod(0o666)
    reload(served, {"serve.keys_file": str(odd)})
    assert models(served).status_code == 401
    assert models(served, authorization=f"Bearer {key}").status_code == 200
    reload(served, {"serve.no_auth": True})
    assert models(served).status_code == 200


def test_a_request_that_is_under_way_goes_on(
    engine: FakeEngine, serve: Callable[..., Served], run_dir: Path
) -> None:
    """Asked before keys were wanted, answered after."""
    engine.start()
    engine.budget = 1
    served = serve().connected()
    mine = run_dir / "mine.json"
    keys.add_key(mine, "alice")
    body = {"prompt": "hello", "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        reload(served, {"serve.keys_file": str(mine), "serve.max_queue": 2})
        engine.budget = None
        told = [line for line in lines if line]
    assert told[-1] == "data: [DONE]" and len(told) > 1


def test_the_request_log(served: Served) -> None:
    def ask(word: str) -> None:
        body = {"prompt": word, "max_tokens": 1}
        assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200
        served.until(lambda: served.process._requests.waiting == 0)

    ask("first")
    reload(served, {"serve.request_log": "content"})
    ask("second")
    reload(served, {"serve.request_log": "off"})
    ask("third")
    reload(served, {"serve.request_log": "on"})
    ask("fourth")
    served.close()
    lines = paths.request_log("test", 0).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row.get("request") or {}).get("prompt") for row in rows] == [None, "second", None]


def test_a_file_that_cannot_be_read_changes_nothing(served: Served) -> None:
    path = paths.config_file(served.run_dir)
    path.write_text('{"run": 1}')
    served.call(_look(served))
    assert models(served).status_code == 200


async def _look(served: Served) -> None:
    served.process.look_at_settings()
