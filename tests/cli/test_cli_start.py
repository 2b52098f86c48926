"""What a start says: the phases that are over, how far it is, and what is left of it."""

from __future__ import annotations

import msgspec
import pytest

from appliance.cli import start
from appliance.cli.output import Output
from appliance.cli.start import Display
from appliance.status import RunStatus

STARTING = RunStatus(
    state="starting",
    phase="load",
    progress=0.25,
    remaining_s=131.0,
    expected_from="earlier",
    phases=[
        {"name": "import", "duration_s": 3.5, "detail": ""},
        {"name": "load", "duration_s": 0.0, "detail": ""},
    ],
)


class Teller(Output):
    """Keeps what it is told."""

    def __init__(self, interactive: bool) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.drawn: list[str] = []
        self._interactive = interactive

    def interactive(self) -> bool:
        return self._interactive

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(f"warning: {text}")

    def draw(self, text: str) -> None:
        self.drawn.append(text)


def test_where_no_terminal_watches_a_long_phase_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Teller(interactive=False)
    display = Display(out)
    display.show(STARTING)
    display.show(STARTING)
    assert len(out.notes) == 1 and out.notes[0].split() == ["Imported", "3.5s"]
    monkeypatch.setattr(start, "_SILENCE_S", 0.0)
    display.show(STARTING)
    assert out.notes[1:] == ["Starting  load 25%, about 2 min left"] and not out.drawn


def test_a_terminal_shows_what_is_left_and_whether_it_is_reckoned() -> None:
    out = Teller(interactive=True)
    Display(out).show(STARTING)
    assert out.drawn[-1].startswith("load 25%, about 2 min left")
    assert "reckoned" not in out.drawn[-1]
    Display(out).show(msgspec.structs.replace(STARTING, expected_from="assumed"))
    assert "about 2 min left (reckoned: the first start here)" in out.drawn[-1]
    Display(out).show(msgspec.structs.replace(STARTING, remaining_s=None, expected_from="assumed"))
    assert out.drawn[-1].strip() == "load 25%"


def test_an_engine_without_its_kernels_is_not_ready_in_silence() -> None:
    out = Teller(interactive=False)
    facts = {"plain": "RuntimeError: Ninja is not there"}
    Display(out).finish(RunStatus(state="ready", facts=facts))
    assert "Ninja is not there" in out.notes[0] and "appliance doctor" in out.notes[0]
    assert "Ready" in out.notes[1]
