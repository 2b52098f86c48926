"""What the documents name exists, and the package holds what it should."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from house_tree import PACKAGE, ROOT

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] + [
    path.relative_to(ROOT).as_posix() for path in sorted(PACKAGE.rglob("README.md"))
]
ROOMS = ("api", "text", "schedule", "engine", "model", "wire")
NAME = re.compile(r"`([\w./-]+)`|\]\(([\w./-]+)\)")
TABLE_ROW = re.compile(r"^\|([\w./, ]+)\|", re.MULTILINE)


def _named(document: Path) -> set[str]:
    """Words of a document that look like a path of this project."""
    text = document.read_text()
    words = {a or b for a, b in NAME.findall(text)}
    for cell in TABLE_ROW.findall(text):
        words |= {word.strip() for word in cell.split(",")}
    suffixes = (".py", ".md", ".toml", ".txt", "/")
    return {w for w in words if w.endswith(suffixes) and not w.startswith(("/", "."))}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_named_exists(name: str) -> None:
    document = ROOT / name
    places = (document.parent, ROOT, PACKAGE, PACKAGE / "runtime")
    elsewhere = {"config.json", "select.py", "org/model"}
    missing = {
        word
        for word in _named(document) - elsewhere
        if not any((place / word).exists() for place in places)
    }
    assert not missing


def test_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [
        p for folder in (PACKAGE, PACKAGE / "runtime") for p in folder.iterdir()
        if (p.is_dir() and p.name not in ("__pycache__", "runtime"))
        or (p.suffix == ".py" and not p.name.startswith("__"))
    ]  # fmt: skip
    unnamed = []
    for path in rooms:
        shown = path.relative_to(PACKAGE).as_posix() + ("/" if path.is_dir() else "")
        if f"`{shown}`" not in text and f"`appliance/{shown}`" not in text:
            unnamed.append(shown)
    assert not unnamed


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_holds(room: str) -> None:
    text = (PACKAGE / "runtime" / room / "README.md").read_text()
    assert len(text.splitlines()) <= 40
    assert ("always hold" in text and "In" in text and "Out" in text) or "In and out" in text


def test_wheel_holds_what_the_appliance_needs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    needed |= {f"appliance/profiles/shipped/{p.name}" for p in (ROOT / "profiles").glob("*.toml")}
    assert not needed - held
    assert not [name for name in held if name.startswith(("tests/", "training/"))]
