"""The one sink: results on stdout, all else on stderr, errors in three parts or as JSON."""

from __future__ import annotations

import difflib
import json as jsonlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

from appliance.errors import ApplianceError

_STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}


@dataclass
class Output:
    """What the global options ask for, and the only way in which a command prints.

    json: results as one JSON object a line on stdout. quiet: no notes, no progress.
    progress: bars and steps may be drawn. verbose: 0, 1 (-v) or 2 (-vv, tracebacks).
    yes: questions are answered with yes.
    """

    json: bool = False
    quiet: bool = False
    progress: bool = True
    verbose: int = 0
    color: Literal["auto", "always", "never"] = "auto"
    yes: bool = False
    _drawn: str = field(default="", init=False, repr=False, compare=False)

    def result(self, text: str, data: Any) -> None:
        """The answer of a command: `text` for people, or `data` (plain JSON values)."""
        self._write(sys.stdout, jsonlib.dumps(data, ensure_ascii=False) if self.json else text)

    def note(self, text: str) -> None:
        if not self.quiet:
            self._write(sys.stderr, text)

    def warn(self, text: str) -> None:
        self._write(sys.stderr, self.paint("warning: ", "yellow", sys.stderr) + text)

    def detail(self, text: str) -> None:
        """Said with -v only."""
        if self.verbose:
            self.note(self.paint(text, "dim", sys.stderr))

    def error(self, e: ApplianceError) -> None:
        """Three parts on stderr; with --json also the error object on stdout."""
        first, *why = e.message.split("\n")
        lines = [self.paint(f"error[{e.code}]: ", "red", sys.stderr) + first]
        lines += [f"  {head}{line}" for head, line in _labelled("why", why)]
        lines += [f"  {head}{line}" for head, line in _labelled("fix", cure(e).split("\n"))]
        self._write(sys.stderr, "\n".join(lines))
        if self.json:
            self._write(sys.stdout, jsonlib.dumps(error_object(e), ensure_ascii=False))

    def confirm(self, question: str) -> bool:
        """Asks on the terminal. Without one, and without -y, the answer is no."""
        if self.yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def draw(self, text: str) -> None:
        """A line on stderr that the next one, drawn or said, takes the place of; nothing where
        lines may not be drawn over."""
        if text != self._drawn and self.interactive():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._drawn = text

    def paint(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """`text` in a style of _STYLES where `stream` (default stdout) shows colours."""
        if not self._colored(stream or sys.stdout):
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def interactive(self) -> bool:
        """Whether lines may be drawn over on stderr."""
        return (
            self.progress
            and not self.quiet
            and sys.stderr.isatty()
            and os.environ.get("TERM", "") != "dumb"
        )

    def _colored(self, stream: TextIO) -> bool:
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR") or os.environ.get("TERM", "") == "dumb":
            return False
        return stream.isatty()

    def _write(self, stream: TextIO, text: str) -> None:
        if self._drawn:
            self.draw("")
        stream.write(text + "\n")
        stream.flush()


def _labelled(label: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    kept = [line for line in lines if line.strip()]
    return [(f"{label}   " if i == 0 else "      ", line) for i, line in enumerate(kept)]


def cure(e: ApplianceError) -> str:
    """What to do: the error's own words, or what is known of its code."""
    return e.hint if e.hint.strip() else f"appliance explain {e.code}     says what cures it"


def error_object(e: ApplianceError) -> dict[str, Any]:
    """Schema appliance.error/1."""
    first, *why = e.message.split("\n")
    return {
        "schema": "appliance.error/1",
        "error": {
            "code": e.code,
            "message": first,
            "why": "\n".join(why) or None,
            "fix": [line for line in cure(e).split("\n") if line.strip()],
            "docs": f"docs/reference/errors.md#{e.code.lower()}",
            "exit_code": e.exit_code,
            "detail": e.detail,
        },
    }


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns, two spaces between; `right` names the columns that align right."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def gigabytes(count: float) -> str:
    """`16.1 GB`: decimal, one digit; MB below a tenth of a GB."""
    return f"{count / 1e9:.1f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """`2h13m`, `4m07s`, `12s`."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"


def nearest(word: str, known: Sequence[str]) -> str:
    """` Did you mean 'pull'?`, or nothing."""
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
