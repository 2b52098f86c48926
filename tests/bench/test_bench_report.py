import json

import pytest

from appliance.bench import report
from appliance.bench.load import Record
from appliance.bench.sweep import Sweep
from appliance.errors import NotFoundError, UsageError


def rows(tmp_path, name, *lines):
    file = tmp_path / name
    for line in lines:
        report.append(file, line)
    return str(file)


def test_append_adds_one_object_a_line(tmp_path):
    file = rows(tmp_path, "deep/r.jsonl", {"row": "a", "x": 1}, {"row": "b"})
    with open(file) as lines:
        assert [json.loads(line)["row"] for line in lines] == ["a", "b"]


def test_the_latest_line_of_a_row_counts(tmp_path):
    file = rows(tmp_path, "r.jsonl", {"row": "a", "x": 1}, {"row": "b"}, {"row": "a", "x": 2})
    assert report.load_rows(file)["a"]["x"] == 2
    assert list(report.load_rows(file + "#b")) == ["b"]
    with pytest.raises(NotFoundError, match="no row 'c'"):
        report.load_rows(file + "#c")
    with pytest.raises(NotFoundError):
        report.load_rows(str(tmp_path / "none"))


def test_a_line_that_is_no_json_is_named(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"row": "a"}\nnope\n')
    with pytest.raises(UsageError, match="Line 2"):
        report.load_rows(str(file))


@pytest.mark.parametrize(
    ("gate", "old", "new", "fails"),
    [
        ("ttft_ms_p99>+10%", 100, 111, True),
        ("ttft_ms_p99>+10%", 100, 109, False),
        ("out_tok_s<-5%", 1000, 940, True),
        ("out_tok_s<-5%", 1000, 960, False),
        ("failed>0", 0, 1, True),
        ("failed>0", 0, 0, False),
        ("ttft_ms_p50>20", 5, 21.5, True),
        ("missing>+1%", None, None, True),
        ("req_s>+1%", 0, 1, True),
        ("req_s>+1%", 0, 0, False),
    ],
)
def test_gates(gate, old, new, fails):
    parsed = report.Gate.parse(gate)
    why = parsed.failure({parsed.metric: old}, {parsed.metric: new})
    assert bool(why) is fails


@pytest.mark.parametrize("text", ["", "ttft", "ttft>=3", "ttft>x%"])
def test_gates_that_are_none(text):
    with pytest.raises(UsageError):
        report.Gate.parse(text)


def test_compare_names_the_row_of_a_failure():
    a = {"one": {"req_s": 10.0}, "two": {"req_s": 10.0}, "old": {"req_s": 1.0}}
    b = {"one": {"req_s": 10.0}, "two": {"req_s": 5.0}, "new": {"req_s": 1.0}}
    found = report.compare(a, b, [report.Gate.parse("req_s<-10%")])
    assert found.failures == ["two: req_s<-10%: req_s -50.0%"]
    assert found.data["two"]["req_s"] == [10.0, 5.0, -0.5]
    assert "-50.0%" in found.text and list(found.data) == ["one", "two"]


def test_two_single_rows_are_compared_whatever_their_names():
    assert report.compare({"a": {"req_s": 1.0}}, {"b": {"req_s": 2.0}}, []).data["a"]["req_s"]
    with pytest.raises(UsageError, match="no row in common"):
        report.compare({"a": {}, "c": {}}, {"b": {}}, [])


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
