"""Writes the pages of docs/reference/ from the code that they describe.

    python docs/write_reference.py

A test compares them with what this would write.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from forms import field_docs, page, plain, table
from python_page import python_page

from appliance import errors
from appliance.cli import main
from appliance.cli.catalogue import CATALOGUE
from appliance.hardware import Gpu
from appliance.profiles import store
from appliance.profiles.compose import LEVELS
from appliance.profiles.schema import SECTIONS, Profile, takes
from appliance.runtime.api.series import ALIASES, Series, engine_dump
from appliance.runtime.config import AT_ENGINE_START, LIVE
from appliance.runtime.model import registry
from appliance.runtime.model.families.quantized import KNOWN
from appliance.runtime.text.reasoning import REASONING_FORMS
from appliance.runtime.text.tools.forms import TOOL_FORMS
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


def _sentence(words: str) -> str:
    """`words` with a capital and a full stop; a command or an option keeps its letters."""
    if not words.startswith(("appliance ", "nvidia-smi", "--", "`")):
        words = words[:1].upper() + words[1:]
    return words if words.endswith((".", "!", "?")) else f"{words}."


# Errors

_GROUP_WORDS = "bench|cache|config|key|profile|service"
_WORDS = rf"(?:(?:{_GROUP_WORDS}) [a-z]+|(?:{'|'.join(main.COMMANDS)})\b)"
_VALUED = r"--(?:component|host|level|profile|request-log) [\w.|]+\b"
_SHOWN = re.compile(
    rf"(?:appliance {_WORDS}|{_VALUED}|(?<![\w`-])--[a-z][\w-]*|nvidia-smi)"
    rf"(?: (?:{_VALUED}|--?\w[\w-]*|[A-Z][A-Z0-9_/]+|[a-z]+\.[a-z_]+(?:=\w+)?|\d+\w*)(?![\w']))*"
)
"""A command, or an option with what is written behind it."""


def _marked(words: str) -> str:
    """The sentence with what is typed set as code."""
    return _sentence(words if "`" in words else _SHOWN.sub(r"`\g<0>`", words))


def errors_page() -> str:
    groups: dict[str, list[str]] = {}
    for code, entry in CATALOGUE.items():
        group = code.split("-")[1] if code.count("-") > 1 else ""
        groups.setdefault(group, []).append(
            f"### {code}\n\n{_sentence(entry.what)}\n\n"
            f"**Why:** {_marked(entry.why)}\n\n**What to do:** {_marked(entry.fix)}"
        )
    ordered = sorted(groups, key=lambda g: (_GROUPS.get(g, ""), g))
    parts = [f"## {_GROUPS.get(g, 'Other')}\n\n" + "\n\n".join(groups[g]) for g in ordered]
    exits = table(["exit code", "meaning"], _exit_codes())
    return page(
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
    return page(
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
            rows.append((names, _given(option, context), option.help or ""))
    return table(["option", "takes", "meaning"], rows) if rows else ""


def _given(option: click.Option, context: click.Context) -> str:
    """What is written behind an option."""
    kind = option.type
    if option.is_flag or option.count:
        return ""
    if isinstance(kind, click.Choice) and not option.metavar:
        return ", ".join(f"`{choice}`" for choice in kind.choices if choice)
    if isinstance(kind, click.IntRange | click.FloatRange) and not option.metavar:
        return _range("whole number" if isinstance(kind, click.IntRange) else "number", kind)
    word = option.make_metavar(context)
    return {"INTEGER": "whole number", "FLOAT": "number", "TEXT": "text"}.get(word, f"`{word}`")


def _range(word: str, kind: click.IntRange | click.FloatRange) -> str:
    if kind.min is not None and kind.max is not None:
        return f"{word} from {kind.min:g} to {kind.max:g}"
    return f"{word} ≥ {kind.min:g}" if kind.min is not None else word


# Settings


def settings_page() -> str:
    parts = []
    for name, section in SECTIONS.items():
        told = field_docs(section)
        rows = []
        for field in msgspec.structs.fields(section):
            dotted = f"{name}.{field.name}"
            variable = _SHORT.get(dotted, f"APPLIANCE_{dotted.replace('.', '_').upper()}")
            wanted = takes(dotted, "`{}`".format)
            default = "" if field.default is msgspec.NODEFAULT else f"`{plain(field.default)}`"
            names = f"`{dotted}`<br>`{variable}`"
            rows.append((names, wanted, default, told[field.name], _when(dotted)))
        head = ["setting, and its variable", "takes", "default", "meaning", "reload"]
        parts.append(f"## {name}\n\n{table(head, rows)}")
    levels = ", ".join(f"`{level}`" for level in LEVELS)
    return page(
        "Settings",
        "`appliance config show` prints the values of a run, `appliance up --dry-run` those that\n"
        "one would take, each with where it came from. `auto`, and `0` or `[]` where the meaning\n"
        "says so, are answered for the machine and the model. How they are given:\n"
        "[settings and profiles](../operate/profiles.md). `reload` says when\n"
        "[`appliance reload`](../operate/profiles.md#while-it-serves) brings a setting to a run:\n"
        "at once, with each engine's next start, or, where nothing is said, with another `up`.",
        *parts,
        f"## Of every process\n\n`log_level` ({levels}; default `info`): what the log holds.\n"
        "Variable: `APPLIANCE_LOG_LEVEL`. A reload brings it at once.",
    )


def _when(setting: str) -> str:
    if setting in LIVE:
        return "at once"
    return "next start" if setting in AT_ENGINE_START else ""


# Profiles


def profiles_page() -> str:
    shipped = [s.profile for s in store.load(own=Path("/nonexistent")).values()]
    shipped.sort(key=lambda p: (p.match.device == "cpu", p.match.gpus, p.match.count, p.name))
    proven = [p for p in shipped if p.evidence.measured]
    return page(
        "Profiles",
        "The profiles that ship. `appliance profile show NAME` prints every value of one and what\n"
        "it stands on; how one is chosen: [settings and profiles](../operate/profiles.md).",
        table(
            ["profile", "for", "type", "GPUs", "requests at once", "chunk", "memory", "measured"],
            [_profile_row(p) for p in shipped],
        ),
        "*Requests at once* is `schedule.max_running`, *chunk* is `schedule.chunk` in tokens,\n"
        "*memory* is `engine.memory_fraction`. What is empty follows from the GPU's memory.",
        "## What was measured\n\n"
        + table(
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
    return page(
        "Metrics",
        "`GET /metrics` answers in Prometheus' text format. Every frontend answers for the whole\n"
        "run, so scraping one address is enough; counters begin at 0 with their labels.",
        table(["name", "kind", "labels", "meaning"], rows),
        "A histogram `x` is exported as `x_bucket`, `x_sum` and `x_count`.",
        "## Names that vLLM's boards know\n\n" + table(["name", "the same as"], other),
    )


# Models


def models_page() -> str:
    kinds = (
        ("writes text", {name: name for name in registry.FAMILIES}),
        ("tells classes, or ranks", registry.CLASSIFIERS),
        ("gives embeddings", registry.BARE),
    )
    rows = [
        (f"`{name}`", what, f"`{registry.FAMILIES[decoder]}`")
        for what, names in kinds
        for name, decoder in names.items()
    ]
    tools, thoughts = (
        ", ".join(f"`{name}`" for name in forms) for forms in (TOOL_FORMS, REASONING_FORMS)
    )
    return page(
        "Models",
        "What is read of a checkpoint. Every family is compared with transformers on small random\n"
        "weights; what was measured, on which weights, is in [measurements](../measurements.md).",
        "## Architectures\n\nAs `architectures` of `config.json` names them.\n\n"
        + table(["architecture", "what it does", "family"], rows),
        "A checkpoint of the first kind that says how its vectors are pooled, as those for\n"
        "sentence-transformers do, gives embeddings.",
        f"## Weights\n\nsafetensors in float32, bfloat16 and float16, and 8-bit float as: {KNOWN}.",
        f"## Forms of tool calls\n\n{tools}.\n\nThe chat template tells which one.",
        f"## Forms of thoughts\n\n{thoughts}.\n\nThe chat template tells which one.",
    )


REFERENCE = {
    "commands.md": commands_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "models.md": models_page,
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
