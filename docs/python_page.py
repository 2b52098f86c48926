"""The page of the Python API: its types and methods, from their signatures and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec
from forms import field_docs, page, plain, table

import appliance
from appliance import status
from appliance.runtime import generation, offline
from appliance.runtime.wire import request, text

PUBLIC: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("A model in this process", (appliance.Engine, offline.Stream, generation.Generation)),
    (
        "What is asked and answered",
        (text.AskedSampling, text.Chat, request.Grammar, text.TextDelta, text.TextLogprob),
    ),
    ("A run on this machine", (appliance.Client, appliance.AsyncClient)),
    ("What a run tells", (status.RunStatus, status.ProcessRow, status.TopSnapshot,
                          status.RequestRow)),
)  # fmt: skip


def python_page() -> str:
    parts = []
    for title, kinds in PUBLIC:
        parts.append(f"## {title}")
        parts += [part for kind in kinds for part in _class(kind)]
    return page(
        "Python",
        "From `appliance`: `Engine`, `Client`, `AsyncClient`. The other types are what they take\n"
        "and give. What is raised is an `appliance.errors.ApplianceError` with `message`, `hint`\n"
        "and `code`, as in [errors](errors.md). How they are used: [Python](../develop/python.md).",
        "`AnyPrompt` is a text, a sequence of token ids, or a `Chat`. `AnySampling` is a mapping,\n"
        "or a sequence of one for each prompt. `Finish` is empty, `stop`, `length`, `abort` or\n"
        "`error`.",
        *parts,
    )


def public_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties of a class that a script may use, in the order of the source."""
    for name, member in vars(kind).items():
        callable_ = isinstance(member, classmethod | property) or inspect.isfunction(member)
        if callable_ and (name == "__init__" or not name.startswith("_")):
            yield name, member


def _class(kind: type) -> Iterator[str]:
    yield f"### {kind.__name__}\n\n`from {_home(kind)} import {kind.__name__}`"
    yield _prose(kind.__doc__ if kind.__doc__ else "")
    told = field_docs(kind)
    if told:
        names = {f.name: f for f in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
        rows = []
        for field, meaning in told.items():
            default = names[field].default if field in names else msgspec.NODEFAULT
            shown = "" if default is msgspec.NODEFAULT else f"`{plain(default)}`"
            rows.append((f"`{field}`", f"`{kind.__annotations__[field]}`", shown, meaning))
        yield table(["field", "type", "default", "meaning"], rows)
    if _is_struct(kind):
        return
    for name, member in public_members(kind):
        call = member.__func__ if isinstance(member, classmethod) else member
        shown = kind.__name__ if name == "__init__" else f"{kind.__name__}.{name}"
        if isinstance(member, property):
            yield f"#### {shown}\n\n{_prose(inspect.getdoc(member) or '')}"
        elif name != "__init__" or kind.__name__ in appliance.__all__:
            wait = "async " if inspect.iscoroutinefunction(call) else ""
            signature = _signature(shown, call)
            prose = _prose(call.__doc__ or "")
            yield f"#### {shown}()\n\n```text\n{wait}{signature}\n```\n\n{prose}".rstrip()


def _is_struct(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct)


def _home(kind: type) -> str:
    return "appliance" if kind.__name__ in appliance.__all__ else kind.__module__


def _signature(name: str, call: Any) -> str:
    signature = inspect.signature(call)
    kept = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    one = f"{name}({', '.join(str(p) for p in kept)})"
    answer = (
        "" if signature.return_annotation in ("None", None) else str(signature.return_annotation)
    )
    answer = answer if answer and "empty" not in answer else ""
    if len(one) > 88:
        lines, starred = [], False
        for p in kept:
            if p.kind is p.KEYWORD_ONLY and not starred:
                lines.append("    *,")
                starred = True
            lines.append(f"    {p},")
        one = "\n".join([f"{name}(", *lines, ")"])
    elif any(p.kind is p.KEYWORD_ONLY for p in kept):
        first = next(str(p) for p in kept if p.kind is p.KEYWORD_ONLY)
        one = one.replace(first, f"*, {first}", 1)
    return one.replace("'", "") + (f" -> {answer}" if answer else "")


def _prose(docstring: str) -> str:
    return inspect.cleandoc(docstring).replace("<", "&lt;")
