"""Records against each other: samples of a row, gates, noise."""

from pathlib import Path

import pytest

from appliance.bench import compare, report
from appliance.errors import NotFoundError, UsageError
from benchmarks import rows as rows_of_the_table


def rows(tmp_path, name, *lines):
    file = tmp_path / name
    for line in lines:
        report.append(file, line)
    return str(file)


def runs(*values, **more):
    return [{"out_tok_s": value, **more} for value in values]


def test_a_row_is_the_lines_of_its_latest_commit(tmp_path):
    lines = [{"row": "a", "x": x, "commit": c} for x, c in ((1, "1"), (2, "2"), (3, "2"))]
    file = rows(tmp_path, "r.jsonl", *lines, {"row": "b"})
    assert [line["x"] for line in compare.load_rows(file)["a"]] == [2, 3]
    assert list(compare.load_rows(file + "#b")) == ["b"]
    with pytest.raises(NotFoundError, match="no row 'c'"):
        compare.load_rows(file + "#c")
    with pytest.raises(NotFoundError):
        compare.load_rows(str(tmp_path / "none"))


def test_points_of_a_sweep_are_rows_of_their_own(tmp_path):
    lines = [{"row": "a", "point": f"rate={rate}"} for rate in (1, 2)]
    file = rows(tmp_path, "r.jsonl", *lines)
    assert list(compare.load_rows(file)) == ["a rate=1", "a rate=2"]


def test_a_line_that_is_no_json_is_named(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"row": "a"}\nnope\n')
    with pytest.raises(UsageError, match="Line 2"):
        compare.load_rows(str(file))


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
    parsed = compare.Gate.parse(gate)
    assert parsed.judge([{parsed.metric: old}], [{parsed.metric: new}])[1] is fails


@pytest.mark.parametrize("text", ["", "ttft", "ttft>=3", "ttft>x%"])
def test_gates_that_are_none(text):
    with pytest.raises(UsageError):
        compare.Gate.parse(text)


@pytest.mark.parametrize(
    ("old", "new", "fails", "noise"),
    [
        ((100, 102, 104), (90, 91, 92), True, False),
        ((100, 102, 88), (90, 91, 92), False, True),  # runs lie among each other
        ((100, 102, 104), (99, 100, 101), False, False),
        ((100,), (90,), True, False),  # single runs show no noise
    ],
)
def test_a_change_within_the_noise_fails_nothing_and_is_told(old, new, fails, noise):
    gate = compare.Gate.parse("out_tok_s<-5%")
    found = compare.compare({"r": runs(*old)}, {"r": runs(*new)}, [gate])
    assert (bool(found.failures), bool(found.notes)) == (fails, noise)


def test_an_absolute_gate_takes_the_worst_run():
    gate = compare.Gate.parse("failed>0")
    many = [{"failed": 0}, {"failed": 0}, {"failed": 3}]
    assert gate.judge([{"failed": 0}], many)[1]


def test_medians_and_spreads_are_shown():
    found = compare.compare({"r": runs(90, 100, 110)}, {"r": runs(100.0)}, [])
    assert found.data["r"]["out_tok_s"] == [100, 100.0, 0.0]
    assert "100 ±10.0%" in found.text.replace("100.00", "100") and "3 and 1 runs" in found.text


def test_a_row_is_held_to_the_figures_that_its_record_has():
    gates = compare.Gate.regression()
    old = {"r": [{"out_tok_s": 100.0, "failed": 0}], "host": [{"host_us": 100.0}]}
    good = {"r": [{"out_tok_s": 99.0, "failed": 0}], "host": [{"host_us": 110.0}]}
    assert not compare.compare(old, good, gates).failures
    bad = {"r": [{"out_tok_s": 90.0, "failed": 1}], "host": [{"host_us": 120.0}]}
    assert len(compare.compare(old, bad, gates).failures) == 3
    assert len(compare.compare(old, {"r": [{}], "host": [{}]}, gates).failures) == 3


def test_another_machine_is_told():
    found = compare.compare({"r": runs(1.0, gpu="A")}, {"r": runs(1.0, gpu="B")}, [])
    assert "measured on A, B on B" in found.notes[0]


def test_compare_names_the_row_of_a_failure():
    a = {"one": [{"req_s": 10.0}], "two": [{"req_s": 10.0}], "old": [{"req_s": 1.0}]}
    b = {"one": [{"req_s": 10.0}], "two": [{"req_s": 5.0}], "new": [{"req_s": 1.0}]}
    found = compare.compare(a, b, [compare.Gate.parse("req_s<-10%")])
    assert found.failures == ["two: req_s<-10%: req_s -50.0%"]
    assert found.data["two"]["req_s"] == [10.0, 5.0, -0.5]
    assert "-50.0%" in found.text and list(found.data) == ["one", "two"]


def test_two_single_rows_are_compared_whatever_their_names():
    a, b = {"a": [{"req_s": 1.0}]}, {"b": [{"req_s": 2.0}]}
    assert compare.compare(a, b, []).data["a"]["req_s"]
    with pytest.raises(UsageError, match="no row in common"):
        compare.compare({"a": [{}], "c": [{}]}, {"b": [{}]}, [])


def test_rows_that_were_not_measured_are_named():
    a = {"one": [{"req_s": 10.0}], "two": [{"req_s": 10.0}], "other": [{"pool": 1}]}
    found = compare.compare(a, {"one": [{"req_s": 10.0}], "other": [{"pool": 2}]}, [])
    assert "B has no two" in found.notes[0] and not found.failures
    assert "no figure" in found.text and not found.data["other"]


def test_small_shares_are_shown_as_they_are():
    row = {"idle": [{"idle_share": 0.02198}]}
    gate = compare.Gate.parse("idle_share>+20%")
    assert "0.022" in compare.compare(row, row, [gate]).text


RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "h100.jsonl"


def test_the_last_record_is_held_to_itself_and_a_worse_one_to_it(tmp_path):
    """The gate over what was recorded last, for each figure that it knows."""
    old = compare.load_rows(str(RECORD))
    gates = compare.Gate.regression()
    assert not compare.compare(old, old, gates).failures
    found = set()
    for metric, factor in (("out_tok_s", 0.9), ("ttft_ms_p50", 1.2), ("tpot_ms_p50", 1.1),
                           ("host_us", 1.2), ("idle_share", 1.3), ("ready_s_warm", 1.3),
                           ("ready_s_cold", 1.3)):  # fmt: skip
        file = tmp_path / f"{metric}.jsonl"
        for lines in old.values():
            line = dict(lines[-1])
            if metric in line:
                line[metric] *= factor
                report.append(file, line)
        failures = compare.compare(old, compare.load_rows(str(file)), gates).failures
        assert failures and all(f": {metric}" in failure for failure in failures)
        found |= {failure.partition(":")[0] for failure in failures}
    served = {row.id for group in rows_of_the_table.GROUPS for row in group.rows}
    assert found >= served | {"host", "idle", "start"}
