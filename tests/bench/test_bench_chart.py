"""What is drawn: the numbers, then the same numbers in a terminal and as a picture."""

import struct

import numpy as np
import pytest

from appliance.bench import chart, dots, plot
from appliance.bench.load import Record, Run
from appliance.bench.measure import Slo, figures
from appliance.bench.sweep import Point, Sweep, held
from appliance.errors import UsageError


def run_of(count: int = 30) -> Run:
    """Requests that begin together; the first token of number i comes after i + 1 ms."""
    records = []
    for i in range(count):
        times = 10.0 + (i + 1) / 1000 + np.arange(5) * 0.01
        records.append(Record(i, 10.0, times.tobytes(), float(times[-1]), 8, 5, 5))
    return Run(records, 10.0, 10.2, 0.1)


def test_charts_hold_every_request_once():
    slo = Slo.parse("ttft=20ms")
    spread, ttft, tpot, over_time = chart.of_run(run_of(), slo)
    within = spread.lines[0]
    assert within.name == "time to first token" and within.y[-1] == 1.0
    assert np.allclose(within.x, np.arange(1, 31))
    assert spread.marks == (("ttft limit", 20.0),)
    assert ttft.lines[0].y.sum() == 30 and tpot.lines[0].y.sum() == 30
    (line,) = over_time.lines
    assert np.isclose(line.y.sum() * (line.x[1] - line.x[0]), 150)


def test_nothing_answered_draws_nothing():
    failed = Run([Record(0, 0.0, b"", 0.0, 1, 0, 1, "no")], 0.0, 1.0, 0.0)
    assert chart.of_run(failed) == [] and dots.draw([]) == ""


def test_the_terminal_draws_lines_bars_and_limits():
    text = dots.draw(chart.of_run(run_of(), Slo.parse("ttft=20ms")))
    assert text.count("share of requests within") == 3
    assert "◄ limit" in text and "█" in text and "tok/s" in text
    assert all(len(line) < 100 for line in text.splitlines())


def points(slo: Slo) -> list[Point]:
    run = run_of()
    return [Point(rate, 0, run, figures(run, slo)) for rate in (1.0, 2.0, 4.0)]


def test_a_sweep_is_drawn_with_the_line_of_its_slo():
    slo = Slo.parse("ttft=50ms,tpot=5ms")
    charts = chart.of_sweep(Sweep.parse("rate=1,2,4"), points(slo), slo)
    assert [c.title for c in charts] == [
        "throughput", "time to first token", "time per output token"
    ]  # fmt: skip
    assert charts[1].limit == ("SLO", 50.0)
    assert [line.name for line in charts[1].lines] == ["p50", "p99"]
    assert "SLO 50" in dots.draw(charts)


@pytest.mark.parametrize(
    ("limits", "said"),
    [("ttft=50ms", "It holds rate 4"), ("ttft=2ms", "At none"), (None, "Most output")],
)
def test_a_sweep_says_what_is_held(limits, said):
    slo = Slo.parse(limits or "ttft=1s")
    found = held(Sweep.parse("rate=1,2,4"), points(slo), slo if limits else None)
    assert said in "".join(found)


def test_a_picture_is_a_png(tmp_path):
    file = tmp_path / "deep" / "p.png"
    plot.draw(chart.of_run(run_of()), file, "title")
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 800 and height > 600


def test_without_the_library_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UsageError) as caught:
        plot.check()
    assert "appliance[plot]" in caught.value.hint
