"""What the documents show: blocks of code, and the commands of ours that stand in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOT_CHECKED = "<!-- not checked -->"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)")
_SPAN = re.compile(r"`([^`\n]+)`")
_CHAINED = re.compile(r"\s*(?:&&|\|\||[;|&])\s*")


class Block(NamedTuple):
    """language: empty for an indented block. line: of its first line of code. checked: False
    under the mark that says so."""

    place: str
    line: int
    language: str
    text: str
    checked: bool


class Command(NamedTuple):
    """words: what stands behind `appliance`."""

    place: str
    line: int
    words: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.place}:{self.line} {' '.join(self.words)}"


def pages() -> list[Path]:
    """The site's, and those at the top of the repository."""
    return [*sorted(DOCS.rglob("*.md")), *(ROOT / n for n in ("README.md", "CONTRIBUTING.md"))]


@cache
def blocks(path: Path) -> tuple[Block, ...]:
    """Fenced and indented blocks of code of one page, in order."""
    place = path.relative_to(ROOT).as_posix()
    found: list[Block] = []
    lines = path.read_text().splitlines()
    at, said = 0, ""
    while at < len(lines):
        line = lines[at]
        fence = _FENCE.match(line)
        if fence:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            held = [inner[len(fence["indent"]) :] for inner in lines[at + 1 : end]]
            language = fence["language"] or "text"
            found.append(Block(place, at + 2, language, "\n".join(held), said != NOT_CHECKED))
            at = end
        elif line.startswith("    ") and not lines[at - 1].strip():
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            held = [inner[4:] for inner in lines[at:end]]
            found.append(Block(place, at + 1, "", "\n".join(held).rstrip(), said != NOT_CHECKED))
            at = end - 1
        if lines[at].strip():
            said = lines[at].strip()
        at += 1
    return tuple(found)


def commands(path: Path) -> Iterator[Command]:
    """Every command of ours in blocks of code and in spans of a page."""
    for block in blocks(path):
        if block.checked and block.language in ("", "bash", "console", "sh"):
            joined = re.sub(r" *\\\n *", " ", block.text)
            for line in joined.splitlines():
                where = block.line + block.text[: max(0, block.text.find(line))].count("\n")
                yield from _of_line(block.place, where, line)
    place = path.relative_to(ROOT).as_posix()
    for number, line in prose(path):
        for span in _SPAN.findall(line):
            yield from _of_line(place, number, span)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line outside of the blocks of code."""
    lines = path.read_text().splitlines()
    inside = set()
    for block in blocks(path):
        inside |= set(range(block.line, block.line + block.text.count("\n") + 1))
    yield from ((n, line) for n, line in enumerate(lines, 1) if n not in inside)


def _of_line(place: str, number: int, line: str) -> Iterator[Command]:
    """`line` may hold several commands, an environment before each, and a comment at its end."""
    line = line.strip().removeprefix("$ ")
    if "appliance" not in line:
        return
    for part in _CHAINED.split(_without_comment(line)):
        try:
            words = shlex.split(part)
        except ValueError:
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        words = words[: next((i for i, w in enumerate(words) if re.match(r"\d?>", w)), None)]
        if words[:1] == ["appliance"] and "…" not in words:
            yield Command(place, number, tuple(words[1:]))


def _without_comment(line: str) -> str:
    return re.split(r"\s#\s", line, maxsplit=1)[0]
