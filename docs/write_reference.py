"""Writes the pages of docs/reference/ from the code that they describe.

    python docs/write_reference.py

A test compares them with what this would write.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import inspect as shapes

import appliance
from appliance import errors, status
from appliance.cli import main
from appliance.cli.catalogue import CATALOGUE
from appliance.hardware import Gpu
from appliance.profiles import store
from appliance.profiles.compose import LEVELS
from appliance.profiles.schema import SECTIONS, Profile
from appliance.runtime import generation, offline
from appliance.runtime.api.series import ALIASES, Series, engine_dump
from appliance.runtime.wire import request, text
from appliance.supervisor.export import dump

PAGES = Path(__file__).parent / "reference"
_SHORT = {"serve.host": "APPLIANCE_HOST", "serve.port": "APPLIANCE_PORT"}
_GROUPS = {
    "ALR": "Alerts", "AUT": "Hubs and tokens", "BSY": "Taken by somebody else",
    "BUG": "Faults of ours", "DSK": "Disk", "ENG": "Engines", "FIT": "What does not fit",
    "HW": "The machine", "IPC": "Between processes",
    "INT": "Damaged files", "NET": "Network", "NOT": "What is not there", "RUN": "Runs",
    "USE": "How it was asked",
}  # fmt: skip


def _page(title: str, what: str, *parts: str) -> str:
    note = "<!-- written by docs/write_reference.py; edit the code instead -->"
    return "\n\n".join([note, f"# {title}", what, *(part.strip("\n") for part in parts)]) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(c) for c in row)} |" for row in rows)])


def _sentence(words: str) -> str:
    """`words` with a capital and a full stop; a command or an option keeps its letters."""
    if not words.startswith(("appliance ", "nvidia-smi", "--", "`")):
        words = words[:1].upper() + words[1:]
    return words if words.endswith((".", "!", "?")) else f"{words}."


# Errors


def errors_page() -> str:
    groups: dict[str, list[str]] = {}
    for code, entry in CATALOGUE.items():
        group = code.split("-")[1] if code.count("-") > 1 else ""
        groups.setdefault(group, []).append(
            f"### {code}\n\n{_sentence(entry.what)}\n\n"
            f"**Why:** {_sentence(entry.why)}\n\n**What to do:** {_sentence(entry.fix)}"
        )
    ordered = sorted(groups, key=lambda g: (_GROUPS.get(g, ""), g))
    parts = [f"## {_GROUPS.get(g, 'Other')}\n\n" + "\n\n".join(groups[g]) for g in ordered]
    exits = _table(["exit code", "meaning"], _exit_codes())
    return _page(
        "Errors and alerts",
        "A message begins with its code, `error[APL-BSY-001]`, and says the particulars: what,\n"
        "why and what to do. `appliance explain CODE` prints what stands here.",
        "## Exit codes\n\n" + exits,
        *parts,
    )


def _exit_codes() -> list[tuple[object, str]]:
    rows: dict[int, str] = {0: "done", 1: "failed for a reason that none of these fits"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"\W*(\w+Error)\s+exit (\d+)\s+(.*)", line)
        if found:
            rows[int(found[2])] = found[3]
    return [*sorted(rows.items()), (130, "stopped by Ctrl-C")]


# Commands


def commands_page() -> str:
    group = main.group
    aliases = ", ".join(f"`{new}` for `{old}`" for new, old in main.ALIASES.items())
    with click.Context(group, info_name="appliance") as context:
        every = _options(group, context)
        parts = [
            part
            for word in group.list_commands(context)
            for part in _command(group.get_command(context, word), f"appliance {word}", 2)
        ]
    return _page(
        "Commands",
        "`appliance COMMAND --help` prints the same. What a command answers stands on stdout, all\n"
        "else on stderr; with `--json` the answer is one JSON object that names its schema.",
        f"## Options of every command\n\n{every}\n\nFurther words: {aliases}.",
        *parts,
    )


def _command(command: click.Command | None, words: str, level: int) -> Iterator[str]:
    assert command is not None
    context = click.Context(command, info_name=words)
    usage = " ".join([words, *command.collect_usage_pieces(context)])
    yield f"{'#' * level} {words}\n\n{_help(command.help or '')}\n\n```text\n{usage}\n```"
    options = _options(command, context)
    if options:
        yield options
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            yield from _command(command.get_command(context, word), f"{words} {word}", level + 1)


def _help(text: str) -> str:
    """Click's help as Markdown: a paragraph that keeps its lines is a block of code."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        kept = paragraph.lstrip().startswith("\b")
        lines = paragraph.replace("\b\n", "")
        parts.append(f"```bash\n{textwrap.dedent(lines)}\n```" if kept else lines)
    return "\n\n".join(parts)


def _options(command: click.Command, context: click.Context) -> str:
    rows = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            takes = "" if option.is_flag or option.count else option.make_metavar(context)
            rows.append((names, f"`{takes}`" if takes else "", option.help or ""))
    return _table(["option", "takes", "meaning"], rows) if rows else ""


# Settings


def settings_page() -> str:
    parts = []
    for name, section in SECTIONS.items():
        told = field_docs(section)
        rows = []
        for field in msgspec.structs.fields(section):
            dotted = f"{name}.{field.name}"
            variable = _SHORT.get(dotted, f"APPLIANCE_{dotted.replace('.', '_').upper()}")
            takes = _takes(shapes.type_info(field.type))
            default = "" if field.default is msgspec.NODEFAULT else f"`{_plain(field.default)}`"
            rows.append((f"`{dotted}`", takes, default, told[field.name], f"`{variable}`"))
        head = ["setting", "takes", "default", "meaning", "variable"]
        parts.append(f"## {name}\n\n{_table(head, rows)}")
    levels = ", ".join(f"`{level}`" for level in LEVELS)
    return _page(
        "Settings",
        "`appliance config show` prints the values of a run, `appliance up --dry-run` those that\n"
        "one would take, each with where it came from. `auto`, and `0` or `[]` where the meaning\n"
        "says so, are answered for the machine and the model. How they are given:\n"
        "[settings and profiles](../operate/profiles.md).",
        *parts,
        f"## Of every process\n\n`log_level` ({levels}; default `info`): what the log holds.\n"
        "Variable: `APPLIANCE_LOG_LEVEL`.",
    )


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


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else '""' if value in ("", b"") else str(value)


def _takes(kind: shapes.Type) -> str:
    match kind:
        case shapes.LiteralType():
            values = sorted(kind.values, key=lambda value: value != "auto")
            return ", ".join(f"`{value}`" for value in values)
        case shapes.IntType() | shapes.FloatType():
            word = "whole number" if isinstance(kind, shapes.IntType) else "number"
            if kind.ge is not None and kind.le is not None:
                return f"{word} from {kind.ge:g} to {kind.le:g}"
            return f"{word} ≥ {kind.ge:g}" if kind.ge is not None else word
        case shapes.BoolType():
            return "`true`, `false`"
        case shapes.VarTupleType():
            return f"list: {_takes(kind.item_type)}"
        case _:
            return "text"


# Profiles


def profiles_page() -> str:
    shipped = [s.profile for s in store.load(own=Path("/nonexistent")).values()]
    shipped.sort(key=lambda p: (p.match.device == "cpu", p.match.gpus, p.match.count, p.name))
    proven = [p for p in shipped if p.evidence.measured]
    return _page(
        "Profiles",
        "The profiles that ship. `appliance profile show NAME` prints every value of one and what\n"
        "it stands on; how one is chosen: [settings and profiles](../operate/profiles.md).",
        _table(
            ["profile", "for", "type", "GPUs", "requests at once", "chunk", "memory", "measured"],
            [_profile_row(p) for p in shipped],
        ),
        "*Requests at once* is `schedule.max_running`, *chunk* is `schedule.chunk` in tokens,\n"
        "*memory* is `engine.memory_fraction`. What is empty follows from the GPU's memory.",
        "## What was measured\n\n"
        + _table(
            ["profile", "date", "machine", "result"],
            [
                (f"`{p.name}`", _e.date, _e.machine, _e.result)
                for p in proven
                for _e in [p.evidence]
            ],
        )
        + "\n\nEvery other profile is derived from the memory and the class of its GPU.",
    )


def _profile_row(profile: Profile) -> tuple[object, ...]:
    values, match = profile.values(), profile.match
    kinds = [values.get(f"model.{name}", "auto") for name in ("dtype", "quantization")]
    kind = ", ".join(word for word in kinds if word not in ("auto", "none"))
    return (
        f"`{profile.name}`",
        profile.summary,
        kind or "as the checkpoint",
        match.count if match.device == "cuda" else "–",
        values.get("schedule.max_running", ""),
        values.get("schedule.chunk", ""),
        values.get("engine.memory_fraction", ""),
        profile.evidence.date if profile.evidence.measured else "derived",
    )


# Metrics


def metrics_page() -> str:
    gpu = Gpu(0, "", "", 1, 0, 90, 0.0, 0.0, 0.0, 0, 0, (), (), 0)
    served = Series("m").registry.dump() | engine_dump([], "m") | dump("ready", 0, 0.0, [gpu], 0)
    rows = [
        (f"`{name}`", metric["kind"], ", ".join(f"`{x}`" for x in metric["labels"]), metric["help"])
        for name, metric in sorted(served.items())
    ]
    other = [(f"`{new}`", f"`{old}`") for new, old in ALIASES.items()]
    return _page(
        "Metrics",
        "`GET /metrics` answers in Prometheus' text format. Every frontend answers for the whole\n"
        "run, so scraping one address is enough; counters begin at 0 with their labels.",
        _table(["name", "kind", "labels", "meaning"], rows),
        "A histogram `x` is exported as `x_bucket`, `x_sum` and `x_count`.",
        "## Names that vLLM's boards know\n\n" + _table(["name", "the same as"], other),
    )


# Python

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
    return _page(
        "Python",
        "From `appliance`: `Engine`, `Client`, `AsyncClient`. The other types are what they take\n"
        "and give. What is raised is an `appliance.errors.ApplianceError` with `message`, `hint`\n"
        "and `code`, as in [errors](errors.md). How they are used: [Python](../develop/python.md).",
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
            shown = "" if default is msgspec.NODEFAULT else f"`{_plain(default)}`"
            rows.append((f"`{field}`", f"`{kind.__annotations__[field]}`", shown, meaning))
        yield _table(["field", "type", "default", "meaning"], rows)
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


REFERENCE = {
    "commands.md": commands_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "profiles.md": profiles_page,
    "python.md": python_page,
    "settings.md": settings_page,
}


def write() -> None:
    PAGES.mkdir(exist_ok=True)
    for name, made in REFERENCE.items():
        (PAGES / name).write_text(made())
        sys.stdout.write(f"{PAGES / name}\n")


if __name__ == "__main__":
    write()
