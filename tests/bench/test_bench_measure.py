"""Definitions, on timelines made by hand."""

from array import array

import pytest

from appliance.bench.load import Record, Run
from appliance.bench.measure import Slo, figures, timeline
from appliance.errors import UsageError


def record(
    index: int, start: float, times: list[float], last: float, output: int, error: str = ""
) -> Record:
    return Record(index, start, array("d", times).tobytes(), last, 10, output, output, error)


def test_one_request():
    line = timeline(record(0, 1.0, [1.5, 1.7, 2.1], 2.2, 5))
    assert line.ttft == pytest.approx(0.5)
    assert line.itl.tolist() == pytest.approx([0.2, 0.4])
    assert line.e2e == pytest.approx(1.2)
    assert line.tpot == pytest.approx((1.2 - 0.5) / 4)


def test_one_token_has_no_tpot_and_no_gap():
    line = timeline(record(0, 0.0, [0.1], 0.1, 1))
    assert line.tpot is None and len(line.itl) == 0
    assert line.meets(Slo.parse("tpot=1,itl=1"))


def test_an_answer_without_text_is_in_no_ttft_but_is_counted():
    found = figures(Run([record(0, 0.0, [], 0.4, 3)], 0.0, 1.0, 0.0))
    assert found["without_text"] == 1 and found["completed"] == 1
    assert found["ttft_ms_mean"] is None and found["tpot_ms_p50"] is None
    assert found["e2e_ms_p50"] == pytest.approx(400)


def test_a_run():
    records = [
        record(0, 0.0, [0.1, 0.2, 0.3], 0.3, 3),
        record(1, 0.0, [0.2, 0.6], 0.6, 2),
        record(2, 1.0, [1.3, 1.5], 1.5, 2),
        record(3, 0.0, [], 0.0, 0, error="HTTP 503: busy"),
    ]
    found = figures(Run(records, 0.0, 2.0, 0.25), Slo.parse("ttft=0.2s,tpot=150ms"))
    assert (found["completed"], found["failed"], found["short"]) == (3, 1, 0)
    assert found["req_s"] == pytest.approx(1.5)
    assert found["out_tok_s"] == pytest.approx(3.5)
    assert found["in_tok_s"] == pytest.approx(15)
    assert found["total_tok_s"] == pytest.approx(18.5)
    assert found["concurrency"] == pytest.approx((0.3 + 0.6 + 0.5) / 2)
    assert found["peak_concurrency"] == 2
    assert found["peak_out_tok_s"] == 5
    assert found["ttft_ms_p50"] == pytest.approx(200)
    assert found["ttft_ms_mean"] == pytest.approx(200)
    assert found["tpot_ms_max"] == pytest.approx(400)
    assert found["itl_ms_p50"] == pytest.approx((100 + 200) / 2)
    assert found["itl_ms_max"] == pytest.approx(400)
    assert found["e2e_ms_p50"] == pytest.approx(500)
    assert found["goodput_req_s"] == pytest.approx(0.5)
    assert found["slo_share"] == pytest.approx(0.25)  # a failed request meets nothing
    assert found["sender_cpu_s"] == 0.25


def test_fewer_tokens_than_asked_are_counted():
    short = Record(0, 0.0, array("d", [0.1]).tobytes(), 0.1, 10, 3, 9)
    assert figures(Run([short], 0.0, 1.0, 0.0))["short"] == 1


def test_a_run_in_which_all_failed_has_no_latency():
    found = figures(Run([record(0, 0.0, [], 0.0, 0, "x")], 0.0, 1.0, 0.0))
    assert found["failed"] == 1 and found["out_tok_s"] == 0 and found["e2e_ms_p99"] is None


@pytest.mark.parametrize("text", ["", "ttft", "ttft=x", "speed=3", "ttft=5m"])
def test_slos_that_are_none(text):
    with pytest.raises(UsageError):
        Slo.parse(text)
