"""Keys, hosts and origins: who is let in, on which route, and what a key may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

from appliance import keys, paths
from appliance.errors import UsageError
from appliance.keys import Key
from appliance.runtime.api.callers import Caller, Keyring, Usage
from appliance.runtime.api.gate import host_name
from appliance.runtime.api.pace import Pace

Serve = Callable[..., Served]
HI = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def key(keys_file: Path) -> str:
    return keys.add_key(keys_file, "ci")


@pytest.fixture
def locked(engine: FakeEngine, serve: Serve, keys_file: Path, key: str) -> Served:
    engine.start()
    return serve(keys_file=str(keys_file)).connected()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def all_routes(served: Served) -> list[tuple[str, str]]:
    app = served.process.server._config.app
    router = app._app._app.router
    return [(m, r.path) for r in router.routes for m in sorted(r.methods)]


def filled(path: str) -> str:
    return "/".join("x" if part.startswith("{") else part for part in path.split("/"))


def test_every_route_but_the_probes_asks_for_a_key(locked: Served, key: str) -> None:
    found = all_routes(locked)
    assert ("POST", "/v1/chat/completions") in found and ("GET", "/openapi.json") in found
    odd = [
        ("GET", "/nowhere"), ("POST", "//v1/completions"), ("OPTIONS", "/v1/completions"),
        ("GET", "/livez/"), ("GET", "/LIVEZ"), ("GET", "/v1/models/%2e%2e/%2e%2e/livez"),
        ("GET", "/livez/%2e%2e/metrics"),
    ]  # fmt: skip
    for method, path in [*found, *odd]:
        url = locked.url + filled(path)
        answer = httpx.request(method, url)
        if path in ("/livez", "/readyz", "/startupz", "/health"):
            assert answer.status_code in (200, 503), path
            assert "phase" not in answer.text and "progress" not in answer.text
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["x-request-id"]
        for wrong in (key[:-1], key + "x", "x", key.upper(), "é", "Bearer", "x" * 20_000):
            given = [(b"authorization", b"Bearer " + wrong.encode())]
            assert httpx.request(method, url, headers=given).status_code == 401, (method, path)
        assert httpx.request(method, url, headers=bearer(key)).status_code != 401, (method, path)


def test_health_says_one_word_to_strangers(locked: Served, key: str) -> None:
    locked.set_state(state="ready", reached_ready=True)
    assert httpx.get(locked.url + "/readyz").json() == {"status": "ok"}
    assert "phase" in httpx.get(locked.url + "/health", headers=bearer(key)).json()


def test_real_clients_are_let_in_and_told(locked: Served, key: str) -> None:
    url = locked.url
    ask: dict[str, Any] = {"model": "default", "max_tokens": 4, "messages": HI["messages"]}
    with openai.OpenAI(base_url=url + "/v1", api_key=key) as good:
        assert good.models.list().data[0].id == "org/tiny"
    with openai.OpenAI(base_url=url + "/v1", api_key="sk-wrong", max_retries=0) as bad:
        with pytest.raises(openai.AuthenticationError) as refused:
            bad.models.list()
    assert refused.value.code == "invalid_api_key"
    with anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as other:
        with pytest.raises(anthropic.AuthenticationError) as denied:
            other.messages.create(**ask)
    assert denied.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    with anthropic.Anthropic(base_url=url, api_key=key) as friend:
        assert friend.messages.create(**ask).usage.output_tokens == 4


def test_a_stranger_reaches_no_engine(locked: Served, engine: FakeEngine) -> None:
    assert httpx.post(locked.url + "/v1/chat/completions", json=HI).status_code == 401
    big = httpx.post(locked.url + "/v1/chat/completions", content=b" " * (1 << 20))
    assert big.status_code == 401 and big.headers["connection"] == "close"
    assert engine.requests == []


def test_keys_come_and_go_while_it_runs(locked: Served, keys_file: Path, key: str) -> None:
    url = locked.url + "/version"
    second = keys.add_key(keys_file, "second")
    assert httpx.get(url, headers=bearer(second)).status_code == 200
    keys.revoke_key(keys_file, "ci")
    assert httpx.get(url, headers=bearer(key)).status_code == 401
    assert httpx.get(url, headers=bearer(second)).status_code == 200
    keys_file.write_text("{")  # half written by another program: what was known holds
    assert httpx.get(url, headers=bearer(second)).status_code == 200
    keys_file.unlink()
    assert httpx.get(url, headers=bearer(second)).status_code == 401


def test_keys_that_cannot_be_read_let_nobody_start(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Keyring(tmp_path / "none.json", Usage(run_dir / "usage", 1, 0))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.json").chmod(0o600)
    with pytest.raises(UsageError):
        Keyring(tmp_path / "bad.json", Usage(run_dir / "usage", 1, 0))


def test_a_key_names_the_client_and_the_cache(
    locked: Served, engine: FakeEngine, key: str, keys_file: Path
) -> None:
    other = keys.add_key(keys_file, "other")
    engine.budget = 0
    with httpx.Client(base_url=locked.url) as client:
        body = {"prompt": "Hello", "max_tokens": 2, "stream": True}
        salted = body | {"cache_salt": "s"}
        for one, given in ((key, body), (other, body), (key, salted)):
            engine.budget = 1
            with client.stream("POST", "/v1/completions", json=given, headers=bearer(one)):
                shown = locked.frontend.rows()[0].client
                assert shown == ("other" if one == other else "ci")
    first, second, third = (r.cache_key for r in engine.requests)
    assert len({first, second, third}) == 3
    assert first.endswith("/") and third == first + "s"
    assert key not in first and len(first) == 17


# Limits of a key


def test_requests_a_minute(engine: FakeEngine, serve: Serve, keys_file: Path, key: str) -> None:
    tight = keys.add_key(keys_file, "tight", requests_per_minute=3)
    engine.start()
    served = serve(keys_file=str(keys_file)).connected()
    url = served.url + "/v1/completions"
    body = {"prompt": "a", "max_tokens": 1}
    codes = [httpx.post(url, json=body, headers=bearer(tight)).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    refused = httpx.post(url, json=body, headers=bearer(tight))
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-should-retry"] == "true"
    assert refused.json()["error"]["code"] == "requests_per_minute"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert httpx.post(url, json=body, headers=bearer(key)).status_code == 200
    assert httpx.get(served.url + "/v1/models", headers=bearer(tight)).status_code == 200


def test_tokens_in_flight(engine: FakeEngine, serve: Serve, keys_file: Path, key: str) -> None:
    tight = keys.add_key(keys_file, "tight", tokens_in_flight=20)
    engine.start()
    served = serve(keys_file=str(keys_file)).connected()
    url = served.url + "/v1/completions"
    alone = httpx.post(url, json={"prompt": [7] * 21}, headers=bearer(tight))
    assert alone.status_code == 400 and alone.json()["error"]["code"] == "tokens_in_flight"
    assert alone.json()["error"]["param"] == "prompt" and "20" in alone.text
    engine.budget = 1
    long = {"prompt": [7] * 15, "max_tokens": 10, "stream": True}
    with httpx.stream("POST", url, json=long, headers=bearer(tight)) as stream:
        assert stream.status_code == 200
        more = httpx.post(url, json={"prompt": [7] * 10}, headers=bearer(tight))
        assert more.status_code == 429 and int(more.headers["retry-after"]) >= 1
        assert more.json()["error"]["code"] == "tokens_in_flight"
        engine.budget = None
        stream.read()
    served.until(lambda: served.frontend.live == 0)
    again = httpx.post(url, json={"prompt": [7] * 15, "max_tokens": 1}, headers=bearer(tight))
    assert again.status_code == 200
    usage = _usage(served)
    assert int(abs(usage._all).sum(axis=(0, 1))[0]) == 0


def _usage(served: Served) -> Usage:
    keyring = served.process.server._config.app._app._desk.ring
    usage: Usage = keyring._usage
    return usage


def test_frontends_share_what_a_key_uses(run_dir: Path) -> None:
    path = paths.key_usage(run_dir)
    first, second = Usage(path, 2, 0), Usage(path, 2, 1)
    key = Key("k", "0" * 64, 5, requests_per_minute=4, tokens_in_flight=100)
    here, there = Caller(key, first), Caller(key, second)
    here.hold(90)
    with pytest.raises(Exception, match="90 tokens in flight"):
        there.check_tokens(11, Pace())
    there.check_tokens(10, Pace())
    for _ in range(2):
        here.count_request(60.0)
        there.count_request(61.0)
    with pytest.raises(Exception, match="requests a minute"):
        here.count_request(62.0)
    with pytest.raises(Exception, match="requests a minute"):
        there.count_request(120.0)  # those of the minute before still count
    here.count_request(159.0)
    here.count_request(241.0)
    Usage(path, 2, 0)  # a successor of the first starts with nothing in flight
    there.check_tokens(100, Pace())


def test_keys_are_looked_up_by_digest(tmp_path: Path, run_dir: Path) -> None:
    path = tmp_path / "keys.json"
    made = keys.add_key(path, "a")
    ring = Keyring(path, Usage(run_dir / "usage", 1, 0))
    found = ring.find(made.encode())
    assert found is not None and found.name == "a"
    assert ring.find(keys.digest(made.encode()).encode()) is None
    assert os.stat(run_dir / "usage").st_mode & 0o077 == 0


# Hosts and origins


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200),
        ("[::1]", 200), ("localhost.", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421),
        ("localhost:evil", 421), ("localhost@evil", 421), ("127.0.0.2", 421), ("0.0.0.0", 421),
        ("[::1", 421), ("localhost,evil", 421), ("", 421), (":80", 421), ("xn--lcalhost-3ya", 421),
    ],
)  # fmt: skip
def test_hosts(served: Served, host: str, status: int) -> None:
    answer = httpx.get(served.url + "/livez", headers={"host": host})
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["code"] == "misdirected_request"


def test_hosts_are_free_where_others_may_call(engine: FakeEngine, serve: Serve) -> None:
    engine.start()
    served = serve(host="0.0.0.0", no_auth=True).connected()
    for host in ("evil.example", "[", "a b", "x" * 300):
        answer = httpx.get(served.url + "/nowhere", headers={"host": host})
        assert answer.status_code == 404, host


@pytest.mark.parametrize(
    "value, name",
    [("a:1", "a"), ("[::1]:2", "::1"), ("[::1]", "::1"), ("::1", ""), ("a/b", ""), ("a:b", "")],
)
def test_host_names(value: str, name: str) -> None:
    assert host_name(value) == name


def test_origins(served: Served) -> None:
    own = {"origin": served.url}
    assert httpx.get(served.url + "/v1/models", headers=own).status_code == 200
    for origin in ("https://x", "null", "http://localhost:1", "file://", "x", "http://"):
        for method in ("GET", "POST", "OPTIONS"):
            answer = httpx.request(
                method, served.url + "/v1/models", headers={"origin": origin}, json={}
            )
            assert answer.status_code == 403, origin
            assert answer.json()["error"]["code"] == "foreign_origin"
            assert not [h for h in answer.headers if h.startswith("access-control")]
