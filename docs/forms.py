"""What the written pages are made of: a page, a table, a value, what stands under a field."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence


def page(title: str, what: str, *parts: str) -> str:
    note = "<!-- written by docs/write_reference.py; edit the code instead -->"
    return "\n\n".join([note, f"# {title}", what, *(part.strip("\n") for part in parts)]) + "\n"


def cell(value: object) -> str:
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda found: f"<code>{found[1]}</code>", str(value))
    text = text.replace("|", "&#124;").replace("\n", " ")
    return re.sub(r"<(?!/?code>|br>)", "&lt;", text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cell(c) for c in row)} |" for row in rows)])


def plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else '""' if value in ("", b"") else str(value)


def field_docs(section: type) -> dict[str, str]:
    """Field -> the text that stands under it where it is declared; empty where none does."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(declared, ast.ClassDef)
    told: dict[str, str] = {}
    last = ""
    for line in declared.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            last = line.target.id
            told[last] = ""
        elif last and isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
            told[last] = " ".join(str(line.value.value).split())
            last = ""
    return told
