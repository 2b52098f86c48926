"""What a pull draws: bars on a terminal, rare lines elsewhere, and its rate."""

from __future__ import annotations

import re
import sys

import pytest
from fakehub import FakeHub, Repo, tiny_model
from on_terminal import on_terminal
from pulling import Puller

from appliance.cli import bars
from appliance.cli.output import Output
from appliance.hub.pull import Progress

SHARD = "model-00001-of-00001.safetensors"
PULL = [sys.executable, "-m", "appliance", "pull", "org/tiny", "--source", "hf"]


@pytest.fixture
def slow(hub: FakeHub, env: dict[str, str]) -> Puller:
    """A file of 3 MB that takes three seconds."""
    hub.hf["org/tiny"] = Repo(tiny_model(shards=1, floats=750_000))
    hub.fault(SHARD, rate=1_000_000)
    return Puller(hub, "hf", hub.hf["org/tiny"].files)


def done_of(text: str) -> list[float]:
    """The megabytes that the bar of all files showed, in the order in which it showed them."""
    return [float(n) for n in re.findall(r"total +\S+ ([\d.]+) MB/", text)]


@pytest.mark.slow
def test_bars_grow_and_go(slow: Puller) -> None:
    with on_terminal(PULL) as terminal:
        terminal.sees("total", "━", "MB/s", " left", SHARD)
        assert terminal.left() == 0
        shown = done_of(terminal.text)
        last = terminal.text.rstrip().splitlines()[-1]
    assert len(set(shown)) > 3 and shown == sorted(shown)
    assert last.startswith("Pulled  3.") and "digests of" in last


@pytest.mark.slow
def test_ctrl_c_on_the_bars(slow: Puller) -> None:
    with on_terminal(PULL) as terminal:
        terminal.sees("MB/s")
        terminal.keys("\x03")
        assert terminal.left() == 130
        assert "Run the same command to continue." in terminal.text
        assert "Traceback" not in terminal.text
        assert terminal.raw.count("\x1b[?25l") <= terminal.raw.count(
            "\x1b[?25h"
        )  # the cursor is back


@pytest.mark.slow
def test_the_second_pull_shows_that_it_waits(slow: Puller) -> None:
    with on_terminal(PULL) as first:
        first.sees("MB/s")
        with on_terminal(PULL) as second:
            second.sees("another pull of this model works; waiting for it")
            assert second.left() == 0
            waited = re.findall(r"([\d.]+) MB/[\d.]+ MB  another pull", second.text)
            assert len(set(waited)) > 2 and sorted(waited, key=float) == waited
            assert "Here already: org/tiny" in second.text or "Pulled" in second.text
        assert first.left() == 0
    assert len(slow.hub.bodies(SHARD)) == 1


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(bars.time, "monotonic", lambda: seconds)


def test_the_rate_is_that_of_ten_seconds() -> None:
    rate = bars.Rate()
    assert rate.bytes_per_s == 0
    for second in range(100):
        rate.add(1000 * second, float(second))
    assert rate.bytes_per_s == 1000
    for second in range(100, 106):
        rate.add(99_000, float(second))  # five seconds of silence
    assert 300 < rate.bytes_per_s < 700
    rate.add(99_000, 200.0)
    assert rate.bytes_per_s == 0


def test_without_a_terminal_lines_are_rare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at(monkeypatch, 0.0)
    drawn = bars.drawing("auto", Output())
    for second in range(600):  # ten minutes, one per cent in six seconds
        at(monkeypatch, float(second))
        drawn.show(Progress(1_000_000, second * 1667, second * 1667, ()))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9  # at every tenth part
    assert all(re.fullmatch(r"[\d.]+ MB/1.0 MB  0.0 MB/s  \w+ left", line) for line in lines)
    at(monkeypatch, 0.0)
    quick = bars.drawing("auto", Output())
    for tick in range(100):
        at(monkeypatch, tick / 10)
        quick.show(Progress(1_000_000, tick * 10_000, tick * 10_000, ()))
    assert not capsys.readouterr().err  # and not more than one in half a minute
