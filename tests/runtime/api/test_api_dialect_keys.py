"""Keys in the other dialects: who may have what was kept, and who may end whose requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

from appliance import keys

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def two_keys(tmp_path: Path) -> tuple[Path, str, str]:
    path = tmp_path / "keys.json"
    return path, keys.add_key(path, "alice"), keys.add_key(path, "bob")


@pytest.fixture
def locked(
    engine: FakeEngine, serve: Callable[..., Served], two_keys: tuple[Path, str, str]
) -> Served:
    engine.start()
    return serve(keys_file=str(two_keys[0])).connected()


def test_an_answer_is_kept_for_its_caller(locked: Served, two_keys: tuple[Path, str, str]) -> None:
    url = f"{locked.url}/v1"
    with (
        openai.OpenAI(base_url=url, api_key=two_keys[1]) as alice,
        openai.OpenAI(base_url=url, api_key=two_keys[2]) as bob,
    ):
        made = alice.responses.create(model="default", input="Hi", max_output_tokens=3)
        with pytest.raises(openai.NotFoundError):
            bob.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            bob.responses.delete(made.id)
        with pytest.raises(openai.BadRequestError):
            bob.responses.create(model="default", input="?", previous_response_id=made.id)
        assert alice.responses.retrieve(made.id).id == made.id


def test_a_caller_ends_their_own_requests_only(
    locked: Served, engine: FakeEngine, two_keys: tuple[Path, str, str]
) -> None:
    engine.hold.set()
    got: list[httpx.Response] = []
    alice, bob = ({"x-api-key": key} for key in two_keys[1:])

    def ask() -> None:
        got.append(httpx.post(f"{locked.url}/generate", json={"text": "Hi"}, headers=alice))

    thread = threading.Thread(target=ask)
    thread.start()
    engine.wait(lambda: bool(engine.requests))
    everything = {"abort_all": True}
    assert httpx.post(f"{locked.url}/abort_request", json=everything, headers=bob).is_success
    assert locked.frontend.live == 1
    assert httpx.post(f"{locked.url}/abort_request", json=everything, headers=alice).is_success
    thread.join(20)
    assert got[0].json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_anthropics_clients_by_either_header(
    locked: Served, two_keys: tuple[Path, str, str]
) -> None:
    with anthropic.Anthropic(base_url=locked.url, api_key=two_keys[1]) as c:
        assert c.messages.create(model="default", max_tokens=2, messages=HI).content
    with anthropic.Anthropic(base_url=locked.url, auth_token=two_keys[1], api_key=None) as c:
        assert c.messages.create(model="default", max_tokens=2, messages=HI).content
    with anthropic.Anthropic(base_url=locked.url, api_key="wrong", max_retries=0) as c:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            c.messages.create(model="default", max_tokens=2, messages=HI)
    body = refused.value.body
    assert isinstance(body, dict) and body["error"]["type"] == "authentication_error"
