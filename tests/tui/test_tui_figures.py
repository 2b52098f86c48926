import fakecontrol
import pytest
from rich.cells import cell_len

from appliance.status import TopSnapshot
from appliance.tui import figures, once
from appliance.tui.figures import ASCII, COLUMNS, UNICODE

EMPTY = TopSnapshot()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (950, "950"), (9999, "9999"), (48120, "48.1k"), (4.47e6, "4.5M"),
     (6.3e8, "630M"), (2e9, "2.0G")],
)  # fmt: skip
def test_compact(value, shown):
    assert figures.compact(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.4, "0s"), (59, "59s"), (61, "1m01s"), (7980.2, "2h13m"), (270000, "3d3h")],
)
def test_duration(seconds, shown):
    assert figures.duration(seconds) == shown


def test_inert_text_cannot_steer_a_terminal():
    shown = figures.inert(fakecontrol.ESCAPE)
    assert shown.isprintable() and "[bold]" in shown
    assert figures.inert("naïve 長\x07", ASCII) == "na?ve ??"


@pytest.mark.parametrize("width", range(1, 12))
def test_fit_is_exact_for_wide_characters(width):
    for text in ("", "abc", "長い名前です", "a長b長c長"):
        assert cell_len(figures.fit(text, width)) == width


def test_state_words():
    starting = TopSnapshot(state="starting", phase="load", progress=0.41)
    assert figures.state_words(starting) == "STARTING 3/6 load 41%"
    assert figures.state_words(fakecontrol.snapshot(phase="load")) == "READY"
    assert figures.state_words(TopSnapshot(state="failed")) == "FAILED"


def test_the_title_tells_overrides_and_restarts():
    top = fakecontrol.snapshot(restarts=2, profile={"name": "p", "overrides": {"tp": 2}})
    line = figures.title(top, 140, "READY")
    assert "profile p*" in line and "2 restarts" in line and line.rstrip().endswith(":8000")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_titles_fill_their_width_exactly(width):
    for top in (fakecontrol.snapshot(), fakecontrol.hostile(), EMPTY):
        assert cell_len(figures.title(top, width, figures.state_words(top))) == width


@pytest.mark.parametrize("width", range(20, 200))
def test_the_columns_fit_every_width(width):
    columns = figures.columns_for(width)
    taken = sum(column.width + 2 for column in columns)
    assert taken <= max(width, 49) and columns[0].name == "id"


def test_requests_are_filtered_and_sorted_with_missing_values_last():
    rows = [fakecontrol.request(i) for i in range(4)] + [fakecontrol.request(9, tok_s=None)]
    found = figures.chosen_requests(rows, "team-a", COLUMNS["age"], False)
    assert [r.id for r in found] == ["req-0000", "req-0002"]
    found = figures.chosen_requests(rows, "!team-a", COLUMNS["tok/s"], False)
    assert [r.id for r in found] == ["req-0003", "req-0001", "req-0009"]
    found = figures.chosen_requests(rows, "", COLUMNS["tok/s"], True)
    assert found[0].id == "req-0000" and found[-1].id == "req-0009"


def test_history_shows_two_minutes_and_the_largest_of_each_column():
    values = [0.0] * 100 + [7.0] + [1.0] * 99
    shown, seconds = figures.buckets(values, 40)
    assert seconds == 3 and len(shown) == 40 and max(shown) == 7.0
    assert figures.buckets([1.0, 2.0], 80) == ([1.0, 2.0], 1)
    assert figures.buckets([], 10)[0] == [] and figures.buckets([1.0], 0) == ([], 1)


def test_bars():
    assert figures.bars([0, 1, 2], 4, 1) == ["  ▄█"]
    assert figures.bars([0, 1, 2], 3, 2) == ["  █", " ██"]
    assert figures.bars([1e-9, 1.0], 2, 1, ASCII) == [".#"]
    assert figures.bars([], 3, 1) == ["   "]


def test_missing_sensors_are_dashes():
    (_, line) = figures.gpu_lines(TopSnapshot(gpus=[{"index": 0}]))
    assert line.split() == ["0", "–", "–/–", "–", "–", "–"]
    assert figures.gpu_lines(EMPTY)[0] == "CPU (no GPU)"
    for figure in figures.key_figures(EMPTY):
        assert "–" in figure.line
    for figure in figures.key_figures(EMPTY, ASCII):
        assert figure.line.isascii()


def test_a_failure_says_itself_before_the_alerts():
    top = fakecontrol.snapshot(state="failed", detail="engine 0 died: out of memory")
    assert figures.alert_lines(top)[0] == ("error", "engine 0 died: out of memory")
    assert len(figures.alert_lines(top)) == 2


GOLDEN = """\
READY  Llama-3.1-8B-Instruct  h100x2-bf16  up 2h13m      http://127.0.0.1:8000

gen tok/s     11,263  in 48.1k
run/queue     58 / 4
KV cache      71%  4.5M/6.3M tok
hit 60s       83%
TTFT p50/p99  142 / 910 ms
ITL p50/p99   7.1 / 34 ms
errors/min    1  4xx 2
power         1,220 W  9.23 tok/J

! KV cache above 70 % for 5 min: lower --max-running

gen tok/s, last 4s
▄▆█▁

GPU  util%     mem GiB     W    C    MHz  throttle
0      91     68.4/80   612   63   1905

id                 phase     prompt  cached        out    TTFT   tok/s     age
req-0000           decode      1200     900     40/512   0.12s      88      0s
req-0001           decode      1201     900     41/512   0.12s      87      1s

2026-11-20T12:00:01.000Z INFO    frontend-0 request finished
2026-11-20T12:00:02.000Z WARNING engine-0 two rows were retracted"""


def test_once_is_this_text():
    top = fakecontrol.snapshot(1, 2, history={"gen_tok_s": [4.0, 6.0, 8.0, 0.5]})
    assert once.render(top, 80) == GOLDEN


@pytest.mark.parametrize("width", [40, 80, 100, 160])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_once_keeps_its_width_and_has_no_escapes(width, glyphs):
    for top in (fakecontrol.snapshot(8, 60), fakecontrol.hostile(), EMPTY):
        text = once.render(top, width, glyphs=glyphs)
        for line in text.split("\n"):
            assert cell_len(line) <= max(width, 49) and (not line or line.isprintable())
        assert glyphs is UNICODE or text.isascii()
