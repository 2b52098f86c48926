import fakecontrol
import msgspec
import pytest
from rich.cells import cell_len

from appliance.status import TopSnapshot
from appliance.tui import figures, graphs, once, styles, tables
from appliance.tui.panels.run import config_panel
from appliance.tui.tables import COLUMNS
from appliance.tui.text import (
    ASCII,
    UNICODE,
    bare,
    compact,
    duration,
    fit,
    fit_line,
    inert,
    said,
    wrapped,
)  # fmt: skip

EMPTY = TopSnapshot()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (950, "950"), (9999, "9999"), (48120, "48.1k"), (4.47e6, "4.5M"),
     (6.3e8, "630M"), (2e9, "2.0G")],
)  # fmt: skip
def test_compact(value, shown):
    assert compact(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.4, "0s"), (59, "59s"), (61, "1m01s"), (7980.2, "2h13m"), (270000, "3d3h")],
)
def test_duration(seconds, shown):
    assert duration(seconds) == shown


def test_inert_text_cannot_steer_a_terminal():
    shown = inert(fakecontrol.ESCAPE)
    assert shown.isprintable() and "[bold]" in shown
    assert inert("naïve 長\x07", ASCII) == "na?ve ??"


@pytest.mark.parametrize("width", range(1, 12))
def test_fit_is_exact_for_wide_characters(width):
    for text in ("", "abc", "長い名前です", "a長b長c長"):
        assert cell_len(fit(text, width)) == width


def test_state_words():
    starting = TopSnapshot(state="starting", phase="load", progress=0.41)
    assert figures.state_words(starting) == "STARTING 4/8 load 41%"
    left = msgspec.structs.replace(starting, remaining_s=38.0)
    assert figures.state_words(left) == "STARTING 4/8 load 41%, about 40 s left"
    assert figures.state_words(fakecontrol.snapshot(phase="load")) == "READY"
    assert figures.state_words(TopSnapshot(state="failed")) == "FAILED"


def test_the_title_tells_overrides_and_restarts():
    top = fakecontrol.snapshot(restarts=2, profile={"name": "p", "overrides": {"tp": 2}})
    line = bare(figures.title(top, 140, "READY"))
    assert "profile p*" in line and "2 restarts" in line and line.rstrip().endswith(":8000")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_titles_fill_their_width_exactly(width):
    for top in (fakecontrol.snapshot(), fakecontrol.hostile(), EMPTY):
        assert cell_len(bare(figures.title(top, width, figures.state_words(top)))) == width


@pytest.mark.parametrize("width", range(20, 200))
def test_the_columns_fit_every_width(width):
    columns = tables.columns_for(width)
    taken = sum(column.width + 2 for column in columns)
    assert taken <= max(width, 49) and columns[0].name == "id"


def test_requests_are_filtered_and_sorted_with_missing_values_last():
    rows = [fakecontrol.request(i) for i in range(4)] + [fakecontrol.request(9, tok_s=None)]
    found = tables.chosen_requests(rows, "team-a", COLUMNS["age"], False)
    assert [r.id for r in found] == ["req-0000", "req-0002"]
    found = tables.chosen_requests(rows, "!team-a", COLUMNS["tok/s"], False)
    assert [r.id for r in found] == ["req-0003", "req-0001", "req-0009"]
    found = tables.chosen_requests(rows, "", COLUMNS["tok/s"], True)
    assert found[0].id == "req-0000" and found[-1].id == "req-0009"


def test_history_shows_two_minutes_and_the_largest_of_each_column():
    values = [0.0] * 100 + [7.0] + [1.0] * 99
    shown, seconds = graphs.buckets(values, 40)
    assert seconds == 3 and len(shown) == 40 and max(shown) == 7.0
    assert graphs.buckets([1.0, 2.0], 80) == ([1.0, 2.0], 1)
    assert graphs.buckets([], 10)[0] == [] and graphs.buckets([1.0], 0) == ([], 1)


def test_bars():
    assert graphs.bars([0, 1, 2], 4, 1) == ["  ▄█"]
    assert graphs.bars([0, 1, 2], 3, 2) == ["  █", " ██"]
    assert graphs.bars([1e-9, 1.0], 2, 1, ASCII) == [".#"]
    assert graphs.bars([], 3, 1) == ["   "]


def test_missing_sensors_are_dashes():
    (_, line) = tables.gpu_lines(TopSnapshot(gpus=[{"index": 0}]))
    assert bare(line).split() == ["0", "–", "–/–", "–", "–", "–"]
    assert bare(tables.gpu_lines(EMPTY)[0]) == "CPU (no GPU)"
    for figure in figures.key_figures(EMPTY):
        assert "–" in figure.line
    for figure in figures.key_figures(EMPTY, ASCII):
        assert figure.line.isascii()


def test_a_line_is_cut_and_filled_across_its_spans():
    line = (("head", "ab"), ("", "長い"), ("dim", "xyz"))
    for width in range(0, 14):
        shown = bare(fit_line(line, width))
        assert cell_len(shown) == width
        assert ("…" in shown) == (0 < width < 9), width


def test_words_wrap_and_keep_their_style():
    line = (("warn", "! one two three"), ("dim", " (5s): four five six"))
    lines = wrapped(line, 16)
    assert [bare(part).rstrip() for part in lines] == [
        "! one two three", "  (5s): four", "  five six"
    ]  # fmt: skip
    assert lines[1][1][0] == "dim" and wrapped(said("short"), 40) == [said("short")]
    assert all(cell_len(bare(part).rstrip()) <= 16 for part in lines)


def test_every_style_can_be_read_on_its_ground():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    assert styles.STYLES[True].keys() == styles.STYLES[False].keys()
    for dark, named in styles.STYLES.items():
        for name, style in named.items():
            front, _, ground = style.removeprefix("bold ").partition(" on ")
            if not front:
                continue
            pair = sorted((luminance(front), luminance(ground or styles.GROUNDS[dark])))
            contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
            assert contrast >= (3 if name.startswith(("graph", "power")) else 4.5), (dark, name)


def test_a_bar_is_as_long_as_its_share():
    assert [graphs.gauge(r, 4) for r in (0, 0.5, 1, 2)] == ["    ", "██  ", "████", "████"]
    assert graphs.gauge(None, 3) == "   " and graphs.gauge(1e-9, 3) == "▏  "
    assert graphs.gauge(0.5, 4, ASCII) == "##  "


def test_colours_tell_what_is_high():
    calm, full = (fakecontrol.snapshot(kv={"ratio": r}) for r in (0.5, 0.95))
    assert figures.key_figures(calm)[2].style == "value"
    assert figures.key_figures(full)[2].style == "bad"
    waits = fakecontrol.snapshot(queue={"running": 1, "waiting": 3, "oldest_wait_s": 6.0})
    assert (figures.key_figures(waits)[1].style, figures.key_figures(waits)[1].extra) == (
        "bad", "oldest 6s"
    )  # fmt: skip
    hot = fakecontrol.snapshot(1)
    hot.gpus[0].update(temp_c=90, throttle=["heat"], ecc_uncorrected=3)
    assert {("bad", "   90"), ("bad", "heat"), ("bad", "3 ECC")} <= set(tables.gpu_lines(hot)[1])


def test_a_prompt_in_parts_says_how_far_it_is():
    row = fakecontrol.request(0, phase="prefill", prompt_tokens=4000, prefilled_tokens=1000)
    narrow, wide = tables.columns_for(80)[1], tables.columns_for(140)[1]
    assert narrow.name == wide.name == "phase"
    assert (narrow.cell(row, UNICODE), wide.cell(row, UNICODE)) == ("prefill 25%", "prefill 25%")
    assert COLUMNS["phase"].cell(row, UNICODE) == "pre 25%"


@pytest.mark.parametrize(
    ("top", "words", "told"),
    [
        (None, "", "waiting for the server"),
        (fakecontrol.snapshot(finished=[]), "", "point any OpenAI client at http://127.0.0.1:8000"),
        (fakecontrol.snapshot(), "", "2 shows those that have ended"),
        (fakecontrol.snapshot(state="starting"), "", "until the model is loaded"),
        (fakecontrol.snapshot(state="failed"), "", "nothing is served"),
        (fakecontrol.snapshot(), "zz", "'zz'; Esc clears"),
    ],
)
def test_an_empty_table_says_why(top, words, told):
    assert told in tables.no_requests(top, words, UNICODE)


def test_log_lines_keep_what_they_say():
    line = "2026-11-20T12:00:02.000Z WARNING engine-0 two rows were retracted"
    assert bare(tables.log_line(line)) == line
    assert bare(tables.log_line(line, short=True)).startswith("12:00:02 WARNING engine-0 two")
    assert tables.log_line("  at something") == said("  at something")


def test_a_failure_says_itself_before_the_alerts():
    top = fakecontrol.snapshot(state="failed", detail="engine 0 died: out of memory")
    assert figures.alert_lines(top)[0][0] == ("alarm", "! engine 0 died: out of memory")
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

GPU  util             mem GiB        W   °C   MHz  slowed by
0     91% ███████▎    68.4/80  612/700   63  1905

id             phase         prompt  cached        out    TTFT   tok/s     age
req-0000       decode          1200     900     40/512   0.12s      88      0s
req-0001       decode          1201     900     41/512   0.12s      87      1s

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


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (False, "off"),
        (True, "on"),
        ([], "(none)"),
        ("", "(none)"),
        ([1, 2], "1, 2"),
        (0.94, "0.94"),
    ],
)
def test_settings_are_written_as_the_command_line_writes_them(value, shown):
    plan = {"answers": [{"field": "a.b", "value": value, "source": "rule", "reason": "why"}]}
    _, line = config_panel(EMPTY, plan, 80, UNICODE)
    assert bare(line).split("  ")[1].strip() == shown
