"""The pages of docs/reference/ follow from the code, and the code says what they need."""

from __future__ import annotations

import inspect
import sys

import msgspec
import pytest
from documents import DOCS

sys.path.insert(0, str(DOCS))
import forms
import python_page
import write_reference

from appliance.profiles.schema import SECTIONS

RENEW = "python docs/write_reference.py"


@pytest.mark.parametrize("name", sorted(write_reference.REFERENCE))
def test_the_page_is_what_the_code_says(name: str) -> None:
    written = (DOCS / "reference" / name).read_text()
    assert written == write_reference.REFERENCE[name](), RENEW


def test_no_other_page_lies_there() -> None:
    there = {path.name for path in (DOCS / "reference").iterdir()}
    assert there == set(write_reference.REFERENCE)


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_every_setting_says_what_it_is(section: str) -> None:
    told = forms.field_docs(SECTIONS[section])
    assert not [name for name, meaning in told.items() if not meaning]


KINDS = [kind for _, kinds in python_page.PUBLIC for kind in kinds]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_the_public_api_is_documented(kind: type) -> None:
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
    undocumented = [
        name
        for name, member in python_page.public_members(kind)
        if name != "__init__" and not inspect.getdoc(member)
    ]
    assert not undocumented
    if issubclass(kind, msgspec.Struct):
        told = forms.field_docs(kind)
        class_says = kind.__doc__
        assert not [n for n, meaning in told.items() if not meaning and n not in class_says]
