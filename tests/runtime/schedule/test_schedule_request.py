import pytest

from appliance.runtime.schedule.request import MOVES, Request, State
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes


def make(output: tuple[int, ...] = (), **sampling: int) -> Request:
    wire = TokenRequest(
        rid=7,
        prompt=ids_to_bytes([1, 2, 3]),
        sampling=Sampling(max_tokens=9, stop_ids=(5,), **sampling),
        output=ids_to_bytes(output),
    )
    return Request(wire, 1)


def test_every_state_has_its_moves_and_the_last_has_none() -> None:
    assert set(MOVES) == set(State)
    assert MOVES[State.DONE] == frozenset()
    assert all(State.DONE in to for state, to in MOVES.items() if state is not State.DONE)


def test_a_move_that_is_not_allowed_is_our_bug() -> None:
    request = make()
    with pytest.raises(AssertionError, match="WAITING -> DECODE"):
        request.begin_decode()
    request.finish()
    with pytest.raises(AssertionError, match="DONE -> WAITING"):
        request.wait_again()


def test_emitted_output_is_part_of_what_is_known() -> None:
    request = make(output=(8, 9))
    assert request.history.tolist() == [1, 2, 3, 8, 9]
    assert not request.first


def test_stop_ids_count_after_min_tokens() -> None:
    request = make(min_tokens=2)
    assert not request.stops_at(5, 1)
    assert request.stops_at(5, 2)
    assert not request.stops_at(6, 2)


def test_prompt_logprobs_forbid_the_cache_until_they_are_sent() -> None:
    request = make(prompt_logprobs=0)
    assert not request.matches
    request.first = False
    assert request.matches
