"""What processes tell each other survives the way, and a file is read whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from appliance.status import (
    Beat,
    ChildMessage,
    EngineState,
    Failed,
    FrontendSnapshot,
    Phase,
    Ready,
    RequestRow,
    RunState,
    StatusPipe,
    decode_child_message,
    publish,
)


@pytest.mark.parametrize(
    "message",
    [
        Phase(name="load", progress=0.5, limit_s=900.0, detail="3 of 6 files"),
        Ready(facts={"pages": 1000, "load_s": 1.25}),
        Beat(steps=12, limit_s=30.0),
        Beat(steps=12, facts={"captured": 3}),
        Failed(message="out of memory", hint="less context", code="APL-FIT-002", exit_code=7),
    ],
)
def test_child_messages_cross_a_pipe(message: ChildMessage) -> None:
    read, write = os.pipe()
    pipe = StatusPipe(write)
    pipe.send(message)
    pipe.send(Beat(steps=1))
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        first, second = lines.read().splitlines()
    assert decode_child_message(first) == message
    assert decode_child_message(second) == Beat(steps=1)


@pytest.mark.parametrize("line", [b"", b"{}", b'{"type":"other"}', b"Traceback (most recent"])
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_child_message(line)


def test_a_child_outlives_its_listener_until_the_lifeline_ends_it() -> None:
    read, write = os.pipe()
    os.close(read)
    pipe = StatusPipe(write)
    pipe.send(Beat(steps=1))
    os.close(write)
    pipe.send(Beat(steps=2))
    StatusPipe().send(Beat(steps=3))


def test_published_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    publish(path, RunState(state="starting"))
    old = path.open("rb")
    publish(path, RunState(state="ready", reached_ready=True))
    with old:
        assert msgspec.json.decode(old.read(), type=RunState).state == "starting"
    assert msgspec.json.decode(path.read_bytes(), type=RunState).state == "ready"
    assert os.listdir(tmp_path) == ["state.json"]


def test_snapshot_of_a_frontend_comes_back(tmp_path: Path) -> None:
    snapshot = FrontendSnapshot(
        index=1, pid=2, at=3.5, live=1,
        requests=[
            RequestRow(
                id="cmpl-1", phase="decode", prompt_tokens=5, cached_tokens=0, output_tokens=2,
                max_tokens=9, age_s=0.5, ttft_s=0.25,
            )
        ],
        engines=[EngineState(replica=0, connected=True, stats={"running": 1.0})],
        metrics={"live": {"kind": "gauge"}},
    )  # fmt: skip
    publish(tmp_path / "frontend-1.json", snapshot)
    data = (tmp_path / "frontend-1.json").read_bytes()
    assert msgspec.json.decode(data, type=FrontendSnapshot) == snapshot
