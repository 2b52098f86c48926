"""The site builds with every link leading somewhere, and needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from documents import DOCS, ROOT

MOST_BYTES = 150_000
"""Of one picture."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = []
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag) and "canonical" not in tag:
                fetched.append((page.name, tag))
    assert not fetched
    for picture in (site / "screens").glob("*.svg"):
        assert not re.search(r"url\(\s*[\"']?https?:|href=[\"']https?:", picture.read_text())


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    named = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(pages)


def test_pictures_are_small_and_whole() -> None:
    pictures = sorted((DOCS / "screens").glob("*.svg"))
    assert len(pictures) >= 7
    for picture in pictures:
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        assert picture.stat().st_size < MOST_BYTES


def test_every_path_named_for_contributors_exists() -> None:
    text = (DOCS / "contribute" / "adding.md").read_text()
    named = {word for word in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if "NAME" not in word}
    assert len(named) > 15
    assert not [word for word in named if not (ROOT / word).exists() and word != "build/site"]


def test_every_code_of_http_that_is_explained_exists() -> None:
    text = (DOCS / "develop" / "connect.md").read_text()
    table = text.partition("| code |")[2].partition("\n\n")[0]
    named = re.findall(
        r"`([a-z_]+)`", "\n".join(row.split("|")[1] for row in table.split("\n")[2:])
    )
    sources = "".join(p.read_text() for p in (ROOT / "appliance" / "runtime").rglob("*.py"))
    assert len(named) > 15
    assert not [code for code in named if f'"{code}"' not in sources]


def test_every_variable_of_ours_is_explained() -> None:
    text = (DOCS / "operate" / "variables.md").read_text()
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", text))
    sources = "".join(p.read_text() for p in (ROOT / "appliance").rglob("*.py"))
    read = set(re.findall(r"[\"']([A-Z]+_[A-Z_]+)[\"']", sources))
    ours = {name for name in read if name.startswith("APPLIANCE_") and not name.endswith("_")}
    assert not ours - named
    assert not named - read
