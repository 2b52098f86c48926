import json

import pytest

from appliance.bench import report
from appliance.bench.load import Record
from appliance.bench.sweep import Sweep
from appliance.errors import UsageError


def rows(tmp_path, name, *lines):
    file = tmp_path / name
    for line in lines:
        report.append(file, line)
    return str(file)


def test_append_adds_one_object_a_line(tmp_path):
    file = rows(tmp_path, "deep/r.jsonl", {"row": "a", "x": 1}, {"row": "b"})
    with open(file) as lines:
        assert [json.loads(line)["row"] for line in lines] == ["a", "b"]


def test_warnings_count_failures_by_cause():
    records = [Record(i, 0.0, b"", 0.0, 1, 0, 1, f"cause {i % 7}") for i in range(14)]
    said = report.warnings({"short": 2, "without_text": 1}, records)
    assert said[0] == "2 failed: cause 0"
    assert said[5] == "and 2 more causes"
    assert "fewer tokens" in said[6] and "no text" in said[7]


def test_sweeps():
    assert Sweep.parse("rate=1,2.5").values == (1.0, 2.5)
    for text in ("rate", "rate=0", "size=1", "rate=1,,2"):
        with pytest.raises(UsageError):
            Sweep.parse(text)
