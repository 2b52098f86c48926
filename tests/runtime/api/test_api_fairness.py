"""What one caller may hold, and when one who is turned away hears that there may be room."""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from served_frontend import Served

from appliance.runtime.api import server
from appliance.runtime.api.addresses import Addresses, counted_as
from appliance.runtime.api.pace import LATEST_S, SOONEST_S, UNKNOWN_S, WINDOW_S, Pace


def test_addresses_are_told_apart_as_callers_are() -> None:
    assert counted_as(("127.0.0.1", 5)) == counted_as(("::1", 5, 0, 0)) == ""
    assert counted_as("") == counted_as(None) == counted_as(("", 1)) == ""
    assert counted_as(("10.1.2.3", 5)) == counted_as(("::ffff:10.1.2.3", 5, 0, 0)) == "10.1.2.3"
    one, same = ("2001:db8::1", 5, 0, 0), ("2001:db8::9:9%eth0", 5, 0, 0)
    assert counted_as(one) == counted_as(same) != counted_as(("2001:db8:0:1::1", 5, 0, 0))


def test_an_address_gets_back_what_it_gives_back() -> None:
    held = Addresses(2)
    assert [held.take("a") for _ in range(3)] == [True, True, False]
    assert held.take("b")
    held.leave("a")
    assert held.take("a") and not held.take("a")
    assert all(held.take("") for _ in range(9))
    assert all(Addresses(0).take("a") for _ in range(9))


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=20)


def ask(sock: socket.socket) -> bytes:
    sock.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
    return sock.recv(65536)


def test_one_address_cannot_take_all_connections(
    engine: FakeEngine, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "counted_as", lambda peer: "10.9.8.7")
    engine.start()
    served = serve(max_connections_per_address=2)
    held = [connect(served), connect(served)]
    assert all(b"200" in ask(sock)[:20] for sock in held)
    with connect(served) as third:
        told = third.recv(65536)
        assert b" 429 " in told[:20] and b"10.9.8.7 holds 2 connections" in told
        assert b"retry-after: 1" in told and b"x-should-retry: true" in told
        assert not third.recv(1)
    held.pop().close()

    served.until(lambda: len(served.process.server._state.connections) == 1)
    held.append(connect(served))
    assert b"200" in ask(held[-1])[:20]
    for sock in held:
        sock.close()


def test_this_machines_own_are_not_counted(
    engine: FakeEngine, serve: Callable[..., Served]
) -> None:
    engine.start()
    served = serve(max_connections_per_address=1)
    with connect(served) as one, connect(served) as other:
        assert b"200" in ask(one)[:20] and b"200" in ask(other)[:20]


def test_the_wait_follows_from_what_has_ended() -> None:
    pace = Pace()
    assert pace.wait_for_requests(0.0, 5) == pace.wait_for_tokens(0.0, 5) == UNKNOWN_S
    for second in range(10):
        pace.ended(float(second), 100)
    assert pace.wait_for_requests(10.0, 4) == pytest.approx(4.0)
    assert pace.wait_for_tokens(10.0, 300) == pytest.approx(3.0)
    assert pace.wait_for_requests(10.0, 0) == SOONEST_S
    assert pace.wait_for_requests(10.0, 10_000) == LATEST_S
    assert pace.wait_for_requests(10.0 + 2 * WINDOW_S, 4) == UNKNOWN_S


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9000)), max_size=40),
    st.integers(-5, 9000),
)
def test_the_wait_stays_within_its_bounds(ends: list[tuple[float, int]], wanted: int) -> None:
    pace, now = Pace(), 0.0
    for step, tokens in ends:
        now += step
        pace.ended(now, tokens)
    for wait in (pace.wait_for_requests(now, wanted), pace.wait_for_tokens(now, wanted)):
        assert SOONEST_S <= wait <= LATEST_S


def test_a_full_queue_says_when_to_come_back(
    engine: FakeEngine, serve: Callable[..., Served]
) -> None:
    engine.start()
    served = serve(max_queue=2).connected()
    body = {"prompt": "x", "max_tokens": 2}
    for _ in range(3):
        assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200
    refused = httpx.post(f"{served.url}/v1/completions", json={**body, "n": 3})
    assert refused.status_code == 429
    told = int(refused.headers["retry-after-ms"])
    assert SOONEST_S * 1000 <= told <= LATEST_S * 1000
