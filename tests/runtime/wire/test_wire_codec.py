"""What is encoded is what is read back; what is no message is refused, never something worse."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.runtime.wire.codec import (
    CodecError,
    decode_step,
    decode_to_engine,
    decode_to_frontend,
    encode,
)
from appliance.runtime.wire.delta import (
    Admitted,
    Deltas,
    Leaving,
    Logprob,
    NextTokens,
    StepStats,
    TokenDelta,
    Welcome,
)
from appliance.runtime.wire.request import (
    Abort,
    FlushCache,
    Hello,
    Sampling,
    TokenRequest,
    ids_from_bytes,
    ids_to_bytes,
)
from appliance.runtime.wire.step import NewRow, SharedRuns, Step

int32 = st.integers(0, 2**31 - 1)
int64 = st.integers(0, 2**63 - 1)
reals = st.floats(allow_nan=False)
some_ids = st.lists(int32, max_size=5).map(tuple)

samplings = st.builds(
    Sampling,
    max_tokens=int32,
    temperature=reals,
    top_k=int32,
    top_p=reals,
    min_p=reals,
    frequency_penalty=reals,
    presence_penalty=reals,
    repetition_penalty=reals,
    seed=int64,
    min_tokens=int32,
    stop_ids=some_ids,
    logit_bias=st.lists(st.tuples(int32, reals), max_size=3).map(tuple),
    logprobs=st.integers(-1, 20),
    prompt_logprobs=st.integers(-1, 20),
)
requests = st.builds(
    TokenRequest,
    rid=int64,
    prompt=st.binary(max_size=40),
    sampling=samplings,
    output=st.binary(max_size=12),
    priority=st.integers(-5, 5),
    arrival=reals,
    cache_key=st.text(max_size=8),
    crashes=st.integers(0, 2),
)
to_engine = st.one_of(
    requests,
    st.builds(Abort, rid=int64),
    st.builds(FlushCache),
    st.builds(Hello, version=int32, frontend=int32, pid=int32),
)
logprobs = st.builds(
    Logprob,
    id=int32,
    logprob=reals,
    top_ids=some_ids,
    top_logprobs=st.lists(reals, max_size=3).map(tuple),
)
token_deltas = st.builds(
    TokenDelta,
    rid=int64,
    index=int32,
    ids=some_ids,
    finish=st.sampled_from(["", "stop", "length", "abort", "error"]),
    matched=st.integers(-1, 2**31),
    cached=st.integers(-1, 2**31),
    logprobs=st.lists(logprobs, max_size=2).map(tuple),
    prompt_logprobs=st.lists(logprobs, max_size=2).map(tuple),
    error=st.text(max_size=12),
)
to_frontend = st.one_of(
    st.builds(
        Deltas,
        items=st.lists(token_deltas, max_size=4).map(tuple),
        stats=st.none() | st.builds(StepStats, time=reals, steps=int64, new_token_ratio=reals),
        next=st.none()
        | st.integers(0, 3).map(lambda n: NextTokens(b"\1" * 8 * n, b"\2" * 4 * n, b"\3" * 4 * n)),
    ),
    st.builds(Leaving),
    st.builds(Admitted, rids=st.lists(int64, max_size=4).map(tuple), time=reals),
    st.builds(
        Welcome,
        version=int32, generation=int32, context=int32, total_tokens=int64,
        page_size=int32, max_running=int32, vocab=int32, pid=int32,
    ),
)  # fmt: skip
int32_arrays = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6).map(
    lambda values: np.array(values, dtype=np.int32)
)
steps = st.builds(
    Step,
    id=int64,
    slots=int32_arrays,
    starts=int32_arrays,
    lengths=int32_arrays,
    prefill_rows=int32,
    ids=int32_arrays,
    samples=st.lists(st.booleans(), max_size=6).map(lambda v: np.array(v, dtype=np.bool_)),
    outputs=int32_arrays,
    page_slots=int32_arrays,
    page_columns=int32_arrays,
    page_ids=int32_arrays,
    new=st.lists(
        st.builds(
            NewRow,
            slot=int32, rid=int64, history=int32_arrays, prompt_length=int32, sampling=samplings,
        ),
        max_size=2,
    ),
    freed=st.lists(int32, max_size=4),
    shared=st.none() | st.builds(SharedRuns, rows=int32_arrays, pages=int32_arrays),
)  # fmt: skip


def plain(value: Any) -> Any:
    """A Step as lists, arrays with their dtype, so that `==` compares it whole."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist())
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, Step | NewRow | SharedRuns):
        return {k: plain(v) for k, v in msgspec.structs.asdict(value).items()}
    return value


@given(to_engine)
def test_to_engine_comes_back(message: Any) -> None:
    assert decode_to_engine(encode(message)) == message


@given(to_frontend)
def test_to_frontend_comes_back(message: Any) -> None:
    assert decode_to_frontend(encode(message)) == message


@given(steps)
def test_step_comes_back_with_its_arrays(step: Step) -> None:
    assert plain(decode_step(encode(step))) == plain(step)


def test_strided_and_foreign_arrays() -> None:
    """A column of a table is sent as its values; an array of a width nobody agreed on is not."""
    empty = np.zeros(0, dtype=np.int32)
    table = np.arange(12, dtype=np.int32).reshape(4, 3)

    def step(slots: Any) -> Step:
        return Step(
            id=0, slots=slots, starts=empty, lengths=empty, prefill_rows=0, ids=empty,
            samples=np.zeros(0, dtype=np.bool_), outputs=empty, page_slots=empty,
            page_columns=empty, page_ids=empty, new=[], freed=[],
        )  # fmt: skip

    assert decode_step(encode(step(table[:, 1]))).slots.tolist() == [1, 4, 7, 10]
    with pytest.raises(KeyError):
        encode(step(np.zeros(2, dtype=np.int64)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for decode in (decode_to_engine, decode_to_frontend, decode_step):
        try:
            decode(data)
        except CodecError:
            pass


@given(st.one_of(to_engine, to_frontend, steps), st.data())
def test_a_damaged_message_is_read_or_refused(message: Any, data: st.DataObject) -> None:
    whole = encode(message)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    for decode in (decode_to_engine, decode_to_frontend, decode_step):
        for piece in (damaged, whole[:at]):
            try:
                decode(piece)
            except CodecError:
                pass


def test_an_array_of_unknown_kind_or_torn_length_is_refused() -> None:
    empty = np.zeros(0, dtype=np.int32)
    step = Step(
        id=0, slots=np.array([7, 8], dtype=np.int32), starts=empty, lengths=empty, prefill_rows=0,
        ids=empty, samples=np.zeros(0, dtype=np.bool_), outputs=empty, page_slots=empty,
        page_columns=empty, page_ids=empty, new=[], freed=[],
    )  # fmt: skip
    good = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, step.slots.tobytes()))
    data = encode(step)
    assert good in data
    for code, content in ((99, step.slots.tobytes()), (1, b"abcde")):
        bad = msgspec.msgpack.encode(msgspec.msgpack.Ext(code, content))
        with pytest.raises(CodecError):
            decode_step(data.replace(good, bad))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(CodecError):
        decode_to_engine(b"\x92" * 100_000)


@given(st.lists(int32))
def test_ids_cross_as_bytes(ids: list[int]) -> None:
    data = ids_to_bytes(ids)
    assert len(data) == 4 * len(ids)
    assert ids_from_bytes(data).tolist() == ids


def test_read_arrays_are_views() -> None:
    """A step of many ids is read without a copy: its arrays lie in the message."""
    data = ids_to_bytes(range(1000))
    assert not ids_from_bytes(data).flags.owndata


def test_next_tokens_say_what_deltas_of_one_token_would() -> None:
    next = NextTokens(ints([1 << 40, 7], "<i8"), ints([0, 300], "<i4"), ints([128_000, 5], "<i4"))
    ended = TokenDelta(2, 9, (4,), "length")
    message = decode_to_frontend(encode(Deltas((ended,), None, next)))
    assert isinstance(message, Deltas)
    assert [*message.each()] == [
        TokenDelta(1 << 40, 0, (128_000,)), TokenDelta(7, 300, (5,)), ended,
    ]  # fmt: skip
    assert [*Deltas((ended,)).each()] == [ended]


@pytest.mark.parametrize("columns", [(b"", b"", b"1234"), (b"1" * 8, b"1" * 5, b"1" * 4)])
def test_columns_of_different_lengths_are_no_message(columns: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="different lengths"):
        NextTokens(*columns)
    with pytest.raises(CodecError):
        decode_to_frontend(encode(["deltas", [], None, columns]))


def ints(values: list[int], kind: str) -> bytes:
    return np.array(values, dtype=kind).tobytes()
