"""A trace holds the steps that were asked for, and the tokens stay what they are."""

from __future__ import annotations

import gzip
import json
from collections import Counter

from appliance.runtime.offline import Engine
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 2000, "schedule.max_running": 4}  # fmt: skip
GREEDY = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}


def test_a_trace_is_written_once_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("APPLIANCE_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "m").mkdir()
    models.make(tmp_path / "m", "llama")
    with Engine(tmp_path / "m", SETTINGS) as engine:
        [plain] = engine.generate([models.prompts()[0]], GREEDY)
    with Engine(tmp_path / "m", {**SETTINGS, "engine.profile_steps": 4}) as engine:
        [traced] = engine.generate([models.prompts()[0]], GREEDY)
        (path,) = (tmp_path / "state" / "traces").iterdir()
        written = path.stat().st_mtime_ns
        engine.generate([models.prompts()[1]], GREEDY)
    assert traced.ids == plain.ids
    assert path.stat().st_mtime_ns == written
    trace = json.loads(gzip.decompress(path.read_bytes()))
    names = Counter(e["name"] for e in trace["traceEvents"] if e.get("ph") == "X")
    assert names["aten::embedding"] == 4
    assert all(names[phase] >= 4 for phase in ("schedule", "inputs", "launch", "wait", "settle"))


def test_an_engine_in_a_process_of_the_users_captures_nothing_behind_his_back(tmp_path):
    """Who waits for the device meanwhile would be refused, or end the capture."""
    models.make(tmp_path, "llama")
    with Engine(tmp_path, SETTINGS) as engine:
        assert not engine.config.engine.ready_early
    with Engine(tmp_path, {**SETTINGS, "engine.ready_early": True}) as engine:
        assert engine.config.engine.ready_early
