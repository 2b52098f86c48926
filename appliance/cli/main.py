"""The group: global options, command words and their modules, errors and exit codes.

A command's module is imported when it is called. Nothing heavy is imported here.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from appliance.cli import interrupt
from appliance.cli.late import LateGroup
from appliance.cli.output import Output, nearest
from appliance.errors import ApplianceError, UsageError

COMMANDS: dict[str, tuple[str, str, str]] = {
    # word: (module, attribute, one line for --help)
    "pull": ("pull", "pull", "download a model"),
    "up": ("up", "up", "serve a model"),
    "status": ("status", "status", "what runs, and how it is"),
    "ps": ("status", "ps", "every run of this user"),
    "top": ("top", "top", "live dashboard"),
    "chat": ("chat", "chat", "talk to the served model"),
    "run": ("chat", "run", "one prompt, one answer"),
    "complete": ("chat", "complete", "what follows a text, without a chat template"),
    "logs": ("logs", "logs", "what the processes say"),
    "events": ("events", "events", "what has happened to a run"),
    "down": ("down", "down", "drain and stop"),
    "restart": ("down", "restart", "start the engines again; streams go on"),
    "reload": ("reload", "reload", "read settings anew while serving"),
    "list": ("models", "list_", "models on disk"),
    "show": ("show", "show", "one model in detail"),
    "rm": ("models", "rm", "remove a model from disk"),
    "key": ("key", "key", "API keys: who may call"),
    "profile": ("profile", "profile", "settings for a kind of machine"),
    "config": ("config", "config", "every value, from where and why"),
    "bench": ("bench", "bench", "measure a server"),
    "connect": ("connect", "connect", "how a client is pointed here"),
    "cache": ("cache", "cache", "what models take on disk"),
    "kernels": ("kernels", "kernels", "compile ahead of the first start"),
    "service": ("service", "service", "serve from the start of the machine on"),
    "completion": ("completion", "completion", "completion for bash, zsh or fish"),
    "explain": ("explain", "explain", "what an error's code means"),
    "doctor": ("doctor", "doctor", "check this machine"),
    "version": ("version", "version", "versions of everything"),
}

_HANDED_DOWN = ("APPLIANCE_CONFIG", "APPLIANCE_OFFLINE", "CUDA_VISIBLE_DEVICES")

ALIASES = {"ls": "list", "serve": "up", "start": "up", "stop": "down", "download": "pull"}


def _set_output(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Writes a global option into ctx.obj; given twice (before and after), the later wins."""
    if value is None or value is False or value == 0:
        return
    out = ctx.find_root().ensure_object(Output)
    match param.name:
        case "no_progress":
            out.progress = False
        case "json":
            out.json = True
        case "quiet":
            out.quiet = True
        case "verbose":
            out.verbose = int(value)
        case "color":
            out.color = value
        case "config_file":
            os.environ["APPLIANCE_CONFIG"] = str(value.absolute())
        case "offline":
            os.environ["APPLIANCE_OFFLINE"] = "1"
        case _:
            out.yes = True


def _global_options(hidden: bool) -> list[click.Option]:
    def option(*names: str, **more: Any) -> click.Option:
        return click.Option(
            list(names),
            expose_value=False,
            callback=_set_output,
            is_eager=True,
            hidden=hidden,
            **more,
        )

    return [
        option("--json", is_flag=True, help="Answer in JSON on stdout."),
        option("-q", "--quiet", is_flag=True, help="No notes, no progress."),
        option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks."),
        option(
            "--color", type=click.Choice(["auto", "always", "never"]), help="When to use colour."
        ),
        option("--no-progress", is_flag=True, help="Draw no progress."),
        option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="One more file of settings, stronger than the others.",
        ),
        option("--offline", is_flag=True, help="Ask no hub."),
        option("-y", "--yes", is_flag=True, help="Answer questions with yes."),
    ]


def _take_global_options(command: click.Command) -> None:
    """Lets the global options stand behind a command too, where it has none of that name."""
    taken = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for option in _global_options(hidden=True):
        if not taken & set(option.opts):
            command.params.append(option)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _take_global_options(inner)
    if isinstance(command, LateGroup):
        command.when_loaded.append(lambda word, inner: _take_global_options(inner))


class _Lazy(click.Group):
    """Knows its commands by name and loads the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        word = ALIASES.get(cmd_name, cmd_name)
        if word not in COMMANDS:
            return None
        if word in self.commands:
            return self.commands[word]
        module, attribute, _ = COMMANDS[word]
        command: click.Command = vars(importlib.import_module(f"appliance.cli.{module}"))[attribute]
        _take_global_options(command)
        if "_APPLIANCE_COMPLETE" in os.environ:
            vars(importlib.import_module("appliance.cli.completion"))["attach"](word, command)
        self.commands[word] = command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UsageError(
                f"no command '{args[0]}'.{nearest(args[0], [*COMMANDS, *ALIASES])}",
                "`appliance --help` lists the commands.",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(word, line) for word, (_, _, line) in COMMANDS.items()])


@click.group(
    cls=_Lazy,
    invoke_without_command=True,
    params=[*_global_options(hidden=False)],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, help="Print the version and leave.")
@click.pass_context
def group(ctx: click.Context, version: bool) -> None:
    """Turns a GPU box into a served language model.

    \b
    appliance pull MODEL    download
    appliance up MODEL      serve on http://127.0.0.1:8000/v1
    appliance top           watch

    Options below may stand before or after the command.
    """
    ctx.ensure_object(Output)
    if version:
        ctx.invoke(vars(importlib.import_module("appliance.cli.version"))["version"])
    elif ctx.invoked_subcommand is None:
        ctx.invoke(vars(importlib.import_module("appliance.cli.welcome"))["welcome"])


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; never raises."""
    out = Output(json="--json" in argv)
    before = dict(os.environ)

    def attempt() -> int:
        if "_APPLIANCE_COMPLETE" in os.environ:
            group.main(args=list(argv), prog_name="appliance", obj=out, standalone_mode=False)
        # not by `group.main`, which makes a 1 of a reader that has gone
        try:
            with group.make_context("appliance", list(argv), obj=out) as ctx:
                code = group.invoke(ctx)
        except click.exceptions.Exit as e:
            return e.exit_code
        return code if isinstance(code, int) else 0

    try:
        return _guard(out, attempt)
    except BrokenPipeError:
        # the reader of our stdout has gone (`| head`); nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        # options that hold for everything below are handed down there by the environment
        for name in _HANDED_DOWN:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _guard(out: Output, attempt: Callable[[], int]) -> int:
    try:
        return attempt()
    except ApplianceError as e:
        out.error(e)
        if out.verbose > 1:
            traceback.print_exc()
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        out.note(e.format_message())
        return 2
    except click.UsageError as e:
        usage = f"`{e.ctx.command_path} --help` shows what it takes." if e.ctx else ""
        out.error(UsageError(_plain(e.format_message()), usage))
        return 2
    except click.ClickException as e:
        out.error(ApplianceError(e.format_message()))
        return 1
    except (click.Abort, EOFError, KeyboardInterrupt) as e:
        if not isinstance(e, click.Abort):
            click.echo(err=True)  # ends the line on which the terminal has written ^C
        out.note("stopped by Ctrl-C")
        return 130
    except BrokenPipeError:
        raise
    except Exception as e:
        out.error(_unexpected(out, e))
        return 1


def _plain(text: str) -> str:
    """click's words for ranges and choices in those that a reader without Python knows."""
    text = " ".join(text.split())
    text = re.sub(r"is not a valid (?:integer|float)(?: range)?\b", _kind_of, text)
    text = re.sub(r"(\S+) is not in the range (\S+)<=x<=(\S+)\.", r"\1 is not from \2 to \3.", text)
    return re.sub(r"(\S+) is not in the range x>=(\S+)\.", r"\1 is less than \2.", text)


def _kind_of(found: re.Match[str]) -> str:
    return "is no whole number" if "integer" in found[0] else "is no number"


def _unexpected(out: Output, e: Exception) -> ApplianceError:
    """A bug of ours: the traceback goes to a file, unless it was asked for."""
    text = traceback.format_exc()
    if out.verbose > 1 or os.environ.get("APPLIANCE_DEBUG"):
        sys.stderr.write(text)
        where = "The traceback is above."
    else:
        from appliance import paths

        path = paths.logs_dir() / "cli-traceback.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            where = f"The traceback is in {path}."
        except OSError:
            sys.stderr.write(text)
            where = "The traceback is above."
    return ApplianceError(
        f"this should not have happened: {type(e).__name__}: {e}",
        f"{where} Please report it.",
        code="APL-BUG-001",
    )


def main() -> None:
    interrupt.answering(lambda: run(sys.argv[1:]))
