"""The tree as the house tests see it: its files, its modules, what each imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "appliance"
_TEXT = {".py", ".md", ".toml", ".txt", ".tcss", ".json", ".jinja", ".yml", ".yaml", ""}
_FOLDERS = ("appliance", "benchmarks", "docs", "profiles", "tests", "training")


class Module(NamedTuple):
    """path: relative to the root, with slashes. room: of the import contract."""

    name: str
    path: str
    tree: ast.Module

    @property
    def room(self) -> str:
        parts = self.name.split(".")[1:]
        return "/".join(parts[:2] if parts[:1] == ["runtime"] else parts[:1])


class Import(NamedTuple):
    target: str
    line: int
    inside: str
    """The function it stands in; empty at the top of the file."""


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def modules(folder: Path = PACKAGE) -> list[Module]:
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path.relative_to(ROOT).as_posix(), parse(path)))
    return found


def imports(module: Module) -> Iterator[Import]:
    """Every import of a module, in functions and under conditions too."""
    yield from _imports(module.tree, "")


def _imports(node: ast.AST, inside: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, inside)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, inside)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(child, child.name)
        else:
            yield from _imports(child, inside)


def text_files() -> list[Path]:
    """Every file of the project that people read."""
    found = [p for p in ROOT.iterdir() if p.is_file() and not p.name.startswith(".git")]
    for folder in _FOLDERS:
        found += [p for p in (ROOT / folder).rglob("*") if p.is_file()]
    found += [p for p in (ROOT / ".ci").rglob("*") if p.is_file()]
    return [
        p
        for p in found
        if p.suffix in _TEXT and "__pycache__" not in p.parts and p.stat().st_size < 1 << 20
    ]
