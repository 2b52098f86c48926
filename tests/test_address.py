"""How a run is reached: what is put together, taken apart and shown."""

from __future__ import annotations

import pytest

from appliance import address
from appliance.errors import UsageError

ODD = "/run/user/1000/a b%/@[x]:9.sock"


@pytest.mark.parametrize("path", ["/run/llm.sock", ODD])
def test_a_path_comes_back_with_any_route_behind_it(path: str) -> None:
    url = address.unix_url(path)
    for asked in (url, f"{url}/v1", f"{url}/v1/chat/completions?x=1"):
        assert address.socket_of(asked) == path
    assert address.route_of(f"{url}/v1") == "" and address.route_of(f"{url}/base/v1") == "/base"
    assert address.shown(url) == f"unix:{path}"


def test_a_port_is_no_socket() -> None:
    assert address.socket_of("http://127.0.0.1:8000/v1") is None
    assert address.shown("http://127.0.0.1:8000") == "http://127.0.0.1:8000/v1"
    assert address.curl("http://127.0.0.1:8000", "/v1/models") == "http://127.0.0.1:8000/v1/models"


@pytest.mark.parametrize("odd", ["", "http://[", "\x1b[2J", "http+unix:", "unix"])
def test_what_a_hostile_server_calls_itself_is_shown_and_no_more(odd: str) -> None:
    assert address.socket_of(odd) is None
    assert odd in address.shown(odd)


def test_what_is_typed() -> None:
    assert address.normal("127.0.0.1:8000") == "http://127.0.0.1:8000"
    assert address.normal("https://h/v1") == "https://h/v1"
    assert address.socket_of(address.normal("unix:/run/llm.sock")) == "/run/llm.sock"
    assert address.socket_of(address.normal("unix:///run/llm.sock")) == "/run/llm.sock"


def test_curl_is_for_a_shell() -> None:
    url = address.unix_url("/run/a b.sock")
    assert address.curl(url, "/v1/models") == (
        "--unix-socket '/run/a b.sock' http://localhost/v1/models"
    )


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://h:port", "", "http+unix:///v1", "http://[x"]
)
def test_what_names_no_server(url: str) -> None:
    with pytest.raises(UsageError, match="is no URL"):
        address.connection(url, 1.0)
