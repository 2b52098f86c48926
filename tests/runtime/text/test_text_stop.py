from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.runtime.text.stop import StopAutomaton, StopScanner


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Grows the text by a character at a time and looks at its end."""
    for at in range(1, len(text) + 1):
        ended = [s for s in stops if text[:at].endswith(s)]
        if ended:
            stop = max(ended, key=len)
            return text[: at if include else at - len(stop)], stop
    return text, None


def scan(parts: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    scanner, out = StopScanner(StopAutomaton(stops), include), []
    for part in parts:
        out.append(scanner.feed(part))
        if scanner.matched is not None:
            return "".join(out), scanner.matched
    return "".join(out) + scanner.flush(), None


few = st.text("abc", min_size=0, max_size=30)
stops = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=5, unique=True)


@given(text=few, stops=stops, include=st.booleans(), cuts=st.lists(st.integers(0, 30), max_size=10))
@settings(max_examples=500, deadline=None)
def test_as_the_naive_search_however_it_is_cut(
    text: str, stops: list[str], include: bool, cuts: list[int]
) -> None:
    edges = sorted({min(c, len(text)) for c in cuts} | {0, len(text)})
    parts = [text[a:b] for a, b in pairwise(edges)]
    assert scan(parts, stops, include) == naive(text, stops, include)


def test_every_boundary_of_a_text_with_a_stop_in_it() -> None:
    text = "say STO STOP now"
    for at in range(len(text) + 1):
        assert scan([text[:at], text[at:]], ["STOP", "</s>"], False) == ("say STO ", "STOP")


@given(text=few, stops=stops)
@settings(max_examples=200, deadline=None)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    scanner = StopScanner(StopAutomaton(stops), False)
    shown = ""
    for at, character in enumerate(text, 1):
        shown += scanner.feed(character)
        if scanner.matched is not None:
            return
        held = text[:at][len(shown) :]
        longest = max(
            (n for s in stops for n in range(len(s)) if text[:at].endswith(s[:n])), default=0
        )
        assert len(held) == longest


def test_many_long_stop_strings_that_overlap() -> None:
    stops = ["a" * n + "b" for n in range(1, 17)]
    text = "a" * 2000
    assert scan([text], stops, False) == (text, None)
    assert scan([text + "b"], stops, False) == ("a" * (2000 - 16), "a" * 16 + "b")
