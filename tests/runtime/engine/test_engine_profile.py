"""A trace holds the steps that were asked for, and the tokens stay what they are."""

from __future__ import annotations

import gzip
import json

from appliance.runtime.engine.profile import TracingExecutor
from appliance.runtime.offline import Engine
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 2000, "schedule.max_running": 4}  # fmt: skip
GREEDY = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}


def test_a_trace_is_written_once_and_changes_nothing(tmp_path):
    (tmp_path / "m").mkdir()
    models.make(tmp_path / "m", "llama")
    path = tmp_path / "traces" / "trace.json.gz"
    with Engine(tmp_path / "m", SETTINGS) as engine:
        [plain] = engine.generate([models.prompts()[0]], GREEDY)
        loop = engine._loop
        loop._executor = TracingExecutor(loop._executor, 4, path)
        [traced] = engine.generate([models.prompts()[0]], GREEDY)
        written = path.stat().st_mtime_ns
        engine.generate([models.prompts()[1]], GREEDY)
    assert traced.ids == plain.ids
    assert path.stat().st_mtime_ns == written
    trace = json.loads(gzip.decompress(path.read_bytes()))
    names = [e["name"] for e in trace["traceEvents"] if e.get("ph") == "X"]
    embeddings = sum(n == "aten::embedding" for n in names)
    assert embeddings == 4
