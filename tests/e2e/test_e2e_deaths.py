"""Too many deaths: of a request, of an engine, of the supervisor."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest
from stand import Stand, until

ENDLESS = {"model": "default", "prompt": "Once", "max_tokens": 1900, "temperature": 0, "n": 8}
"""Some ten seconds of work: it must not end before a busy machine has seen that it goes on."""


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as one:
        yield one


def stream(stand: Stand, begun: threading.Event) -> list[Any]:
    """The chunks of an endless completion; APIError when it ends with one."""
    with openai.OpenAI(base_url=f"{stand.url}/v1", api_key="-", max_retries=0) as client:
        chunks = []
        extra = {"ignore_eos": True}
        for chunk in client.completions.create(**ENDLESS, stream=True, extra_body=extra):
            chunks.append(chunk)
            begun.set()
        return chunks


@pytest.mark.slow
def test_two_deaths_end_a_request_and_four_the_run(stand: Stand) -> None:
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(stream, stand, begun)
        assert begun.wait(30)
        stand.strike("engine", signal.SIGKILL)
        until(lambda: stand.status().restarts == 1, "the first death is seen")
        stand.wait_ready()
        until(lambda: "decode" in [r.phase for r in stand.top().requests], "the request goes on")
        stand.strike("engine", signal.SIGKILL)
        with pytest.raises(openai.APIError, match="when the engine died, twice"):
            asked.result(30)
    until(lambda: stand.status().restarts == 2, "the second death is seen")
    for deaths in (3, 4):
        stand.wait_ready()
        stand.strike("engine", signal.SIGKILL)
        until(lambda n=deaths: stand.status().restarts == n, f"death {deaths} is seen")
    assert_failed(stand)


def assert_failed(stand: Stand) -> None:
    status = stand.status()
    assert status.state == "failed"
    assert status.failure is not None
    cause = status.failure["message"]
    assert "4 deaths in 60 s" in cause
    for path in ("/health", "/readyz"):
        assert httpx.get(status.url + path).status_code == 503, path
    refused = httpx.post(f"{status.url}/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert refused.status_code == 503
    assert "4 deaths in 60 s" in refused.json()["error"]["message"]
    said = stand.cli("status")
    assert said.returncode == 3
    assert "4 deaths in 60 s" in said.stdout + said.stderr
    top = stand.cli("top", "--once")
    assert "failed" in top.stdout.lower() and "4 deaths in 60 s" in top.stdout


@pytest.mark.slow
def test_a_frontend_comes_back_and_the_death_of_the_supervisor_leaves_nothing(
    stand: Stand,
) -> None:
    url, engine = stand.url, stand.pid("engine")
    old = stand.strike("frontend", signal.SIGKILL)
    body = {"prompt": "Hi", "max_tokens": 2}

    def answers() -> bool:
        try:
            return httpx.post(f"{url}/v1/completions", json=body, timeout=20).status_code == 200
        except httpx.TransportError:
            return False

    until(answers, "the same port answers again")
    assert stand.pid("frontend") != old
    assert (stand.pid("engine"), stand.status().restarts) == (engine, 0)

    pids = [p.pid for p in stand.status().processes]
    stand.strike("supervisor", signal.SIGKILL)
    time.sleep(2)  # the promise is about time
    left = [pid for pid in pids if psutil.pid_exists(pid) and not gone(pid)]
    assert left == []


def gone(pid: int) -> bool:
    """Dead, though nobody has asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
