"""The options of the command line and the fields of the config, one a line.

    python tests/house/golden_lists.py      writes them anew, and the pages of docs/reference/

A change of these lists is a decision that somebody saw.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from appliance.cli import main
from appliance.runtime.config import (
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    ScheduleConfig,
    ServeConfig,
)

GOLDEN = Path(__file__).parent / "golden"
_SECTIONS = {
    "": RuntimeConfig, "model.": ModelConfig, "serve.": ServeConfig,
    "schedule.": ScheduleConfig, "engine.": EngineConfig,
}  # fmt: skip


def cli_options() -> str:
    return "\n".join(_options("appliance", main.group)) + "\n"


def _options(words: str, command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            if not parameter.hidden:
                yield f"{words} {'/'.join((*parameter.opts, *parameter.secondary_opts))}"
        else:
            yield f"{words} {parameter.make_metavar(click.Context(command))}"
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for word in command.list_commands(context):
                inner = command.get_command(context, word)
                assert inner is not None
                yield f"{words} {word}"
                yield from _options(f"{words} {word}", inner)


def config_fields() -> str:
    lines = []
    for prefix, section in _SECTIONS.items():
        for field in msgspec.structs.fields(section):
            if field.name in ("serve", "schedule", "engine", "model") and not prefix:
                continue
            kind = section.__annotations__[field.name]
            default = "" if field.default is msgspec.NODEFAULT else f" = {field.default!r}"
            lines.append(f"{prefix}{field.name}: {kind}{default}")
    return "\n".join(lines) + "\n"


LISTS = {"cli-options.txt": cli_options, "config-fields.txt": config_fields}

if __name__ == "__main__":
    for name, made in LISTS.items():
        (GOLDEN / name).write_text(made())
        sys.stdout.write(f"{GOLDEN / name}\n")
    pages = Path(__file__).parents[2] / "docs" / "write_reference.py"
    subprocess.run([sys.executable, str(pages)], check=True)
