"""A reload of a run that serves: by command and by signal, and no request is lost by it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from stand import Stand, until

from appliance import keys, paths
from appliance.runtime.config import read_config

ASKED: dict[str, Any] = {
    "model": "default", "prompt": "Once", "max_tokens": 300, "temperature": 0, "ignore_eos": True,
}  # fmt: skip


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as one:
        yield one


def settings(stand: Stand, text: str) -> None:
    folder = stand.home / "config"
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(text)


def whole(url: str) -> str:
    answer = httpx.post(f"{url}/v1/completions", json=ASKED, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == ASKED["max_tokens"]
    return str(answer.json()["choices"][0]["text"])


@pytest.mark.slow
def test_no_request_is_lost(stand: Stand) -> None:
    """Eight answers run while settings change three times and the engine starts again with them."""
    url, right = stand.url, whole(stand.url)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(whole, url) for _ in range(8)]
        until(lambda: len(stand.top().requests) >= 4, "requests are live")
        pids = {p.pid for p in stand.status().processes}
        for policy in ("lpm", "fcfs", "lpm"):
            told = stand.cli_json(
                "reload", "--set", f"schedule.policy={policy}", "--set", "log_level=debug",
                "--set", "model.served_names=other",
            )  # fmt: skip
            assert told["late"] == []
        assert {p.pid for p in stand.status().processes} == pids, "nobody was started again"
        assert stand.cli("restart").returncode == 0
        assert [one.result(90) for one in asked] == [right] * 8
    stand.wait_ready()
    assert stand.cli_json("reload")["restart"] == []
    names = [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]]
    assert "other" in names
    assert "the log's level is debug" in stand.client.logs(500, "engine") or " DEBUG " in (
        stand.client.logs(500)
    )


@pytest.mark.slow
def test_a_signal_reloads_and_a_wrong_file_changes_nothing(stand: Stand) -> None:
    run = stand.home / "runtime" / "default"

    def reloaded(count: int) -> bool:
        return stand.client.logs(500, "supervisor").count(" reload: ") == count

    assert httpx.get(f"{stand.url}/v1/models").status_code == 200
    (stand.home / "config").mkdir()
    key = keys.add_key(stand.home / "config" / "keys.json", "alice")
    settings(stand, '[serve]\nmax_queue = 11\nrequest_log = "off"')
    stand.strike("supervisor", signal.SIGHUP)
    until(lambda: reloaded(1), "the settings hold")
    assert read_config(paths.config_file(run)).serve.max_queue == 11
    assert httpx.get(f"{stand.url}/v1/models").status_code == 401
    bearer = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"{stand.url}/v1/models", headers=bearer).status_code == 200
    settings(stand, "[serve]\nmax_queue = 12\nmax_quue = 1")
    stand.strike("supervisor", signal.SIGHUP)
    until(lambda: "nothing was reloaded" in stand.client.logs(500), "it is refused")
    assert "Did you mean 'serve.max_queue'" in stand.client.logs(500)
    assert read_config(paths.config_file(run)).serve.max_queue == 11
    assert stand.status().state == "ready"
