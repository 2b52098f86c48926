"""History from pieces, recordings and their replay, and the demo that a script writes."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from appliance.errors import NotFoundError, UsageError
from appliance.status import TopSnapshot
from appliance.tui.once import render
from appliance.tui.source import DEMO, HISTORY_S, History, Recorder, Replay, read_recording

ROOT = Path(__file__).parent.parent.parent


class Server:
    """Keeps a history as the supervisor does: one value a second, its own number."""

    def __init__(self) -> None:
        self.seq = 0
        self.stopped = False

    def top(self, history: int = HISTORY_S, lines: int = 50) -> TopSnapshot:
        values = [float(i) for i in range(max(0, self.seq - HISTORY_S), self.seq)]
        given = values[len(values) - min(history, len(values)) :]
        return TopSnapshot(state="ready", history={"x": given}, history_seq=self.seq)

    def plan(self) -> dict:
        return {"answers": []}

    def cancel(self, id: str) -> None:
        raise AssertionError

    def down(self, drain_s: float = 30.0) -> None:
        self.stopped = True


def whole(seq: int) -> list[float]:
    return [float(i) for i in range(max(0, seq - HISTORY_S), seq)]


def test_history_is_put_together_from_few_seconds_each():
    now, server = 0.0, Server()
    history = History(lambda: now)
    server.seq = 1200
    assert history.wanted() == HISTORY_S
    assert history.merge(server.top(history.wanted())).history["x"] == whole(1200)
    for passed in (0, 1, 3, 0, 40):
        now, server.seq = now + passed, server.seq + passed
        assert history.wanted() <= passed + 5
        assert history.merge(server.top(history.wanted())).history["x"] == whole(server.seq)


def test_history_of_another_run_or_after_a_gap_is_asked_for_whole():
    server, history = Server(), History(lambda: 0.0)
    server.seq = 500
    history.merge(server.top())
    server.seq = 40  # started again
    assert history.merge(server.top(5)).history["x"] == whole(40)[-5:]
    assert history.wanted() == HISTORY_S
    assert history.merge(server.top(history.wanted())).history["x"] == whole(40)
    server.seq = 600  # away for longer than was asked for
    history.merge(server.top(5))
    assert history.wanted() == HISTORY_S


def test_a_recording_plays_at_its_speed_and_again(tmp_path):
    server, path = Server(), tmp_path / "r.ndjson"
    recorder = Recorder(server, path, 0.5)
    server.seq = 100
    for _ in range(4):
        recorder.top(HISTORY_S if server.seq == 100 else 6)
        server.seq += 1
    recorder.down()
    recorder.close()
    assert server.stopped and len(path.read_text().splitlines()) == 5
    now = 7.0
    replay = Replay(path, lambda: now)
    seen = []
    for _ in range(5):
        seen.append(replay.top().history["x"])
        now += 0.5
    assert seen == [whole(100), whole(101), whole(102), whole(103), whole(100)]
    assert replay.top(2).history["x"] == [99.0, 100.0] and replay.label == "REPLAY"
    assert replay.plan() == {"answers": []}
    for change in (lambda: replay.cancel("x"), replay.down):
        with pytest.raises(UsageError, match="cannot be changed"):
            change()


def test_what_json_interval_prints_can_be_played(tmp_path):
    path = tmp_path / "lines"
    frames = [Server(), Server()]
    frames[0].seq, frames[1].seq = 3, 4
    lines = [json.dumps({"state": "ready", "history": f.top().history, "history_seq": f.seq})
             for f in frames]  # fmt: skip
    path.write_text("\n".join(lines) + '\n{"state": "rea')  # cut off in the middle
    head, read = read_recording(path)
    assert head == {} and len(read) == 2
    assert Replay(path, lambda: 0.0).top().history["x"] == whole(3)


OLD = {"state": "ready", "model": {"id": "m"}, "throughput": {"gen_tok_s": 7.0},
       "requests": [{"id": "a", "phase": "decode", "prompt_tokens": 3, "cached_tokens": 0,
                     "output_tokens": 1, "max_tokens": 9, "age_s": 1.0}],
       "history": {"gen_tok_s": [7.0]}, "history_seq": 1}  # fmt: skip
"""A frame as the first version wrote it."""


def test_recordings_of_other_versions_play_where_they_can_be_understood(tmp_path):
    path = tmp_path / "r"
    head = {"schema": "appliance.recording/1", "label": "OLD", "later": 1}
    new = OLD | {"of_a_later_version": {"x": [1]}, "history": {"unheard_s": [1.0]}}
    path.write_text("\n".join(json.dumps(line) for line in (head, OLD, new)))
    found, frames = read_recording(path)
    assert found["label"] == "OLD" and [f.requests[0].id for f in frames] == ["a", "a"]
    for frame in frames:
        assert "READY" in render(frame, 80)
    path.write_text(json.dumps(head | {"schema": "appliance.recording/2"}) + "\n{}")
    with pytest.raises(UsageError, match="recording/2"):
        read_recording(path)
    path.write_text("\n".join(json.dumps(f) for f in (OLD, OLD | {"state": "resting"}, OLD)))
    with pytest.raises(UsageError, match="line 2"):
        read_recording(path)


@pytest.mark.parametrize("content", ["", "x", '{"schema": "appliance.recording/1"}', "[1]"])
def test_what_is_no_recording_is_told(tmp_path, content):
    path = tmp_path / "f"
    path.write_text(content)
    with pytest.raises(UsageError):
        read_recording(path)


def test_no_file_and_no_place_to_write(tmp_path):
    with pytest.raises(NotFoundError):
        read_recording(tmp_path / "none")
    with pytest.raises(UsageError, match="cannot be written"):
        Recorder(Server(), tmp_path / "no" / "f", 1.0)


def test_the_demo_is_what_its_script_writes():
    sys.path.insert(0, str(ROOT / "docs" / "demo"))
    try:
        import record_demo
    finally:
        sys.path.pop(0)
    assert gzip.decompress(DEMO.read_bytes()) == record_demo.recording()
    head, frames = read_recording(DEMO)
    assert head["label"] == "DEMO" and len(frames) == record_demo.FRAMES
    assert len(frames[0].history["gen_tok_s"]) == HISTORY_S
    assert all(frame.requests for frame in frames)
