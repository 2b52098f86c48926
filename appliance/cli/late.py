"""A group of commands whose files are loaded when one of them is asked for, not for its list."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import click


class LateGroup(click.Group):
    """late: word -> file under appliance/cli, its name there, and the line that the list shows.

    when_loaded: told of each command (word, command) as it comes.
    """

    def __init__(
        self, *args: Any, late: Mapping[str, tuple[str, str, str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.late = dict(late or {})
        self.when_loaded: list[Callable[[str, click.Command], None]] = []

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *self.late})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.late and cmd_name not in self.commands:
            module, attribute, _ = self.late[cmd_name]
            found: click.Command = vars(importlib.import_module(f"appliance.cli.{module}"))[
                attribute
            ]
            self.add_command(found, cmd_name)
            for told in self.when_loaded:
                told(cmd_name, found)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for word in self.list_commands(ctx):
            if word in self.late:
                rows.append((word, self.late[word][2]))
            else:
                rows.append((word, self.commands[word].get_short_help_str(100)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
