"""appliance completion, and what it completes: models, profiles, runs, codes. Local files only."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from appliance import paths
from appliance.cli.catalogue import CATALOGUE
from appliance.cli.connect import CLIENTS
from appliance.cli.late import LateGroup
from appliance.cli.output import Output
from appliance.profiles import store
from appliance.profiles.known import KNOWN
from appliance.profiles.schema import field_types

VARIABLE = "_APPLIANCE_COMPLETE"
_NO_SPACE = '    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace\n\n'
_OF_RUNS = ("status", "top", "logs", "down", "restart", "reload", "events", "config", "connect")
_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/appliance",
    "zsh": "~/.zfunc/_appliance",
    "fish": "~/.config/fish/completions/appliance.fish",
}


def model_names() -> Iterable[str]:
    # the hub's room is loaded when a model's name is completed, not for every other word
    disk = importlib.import_module("appliance.hub.store")
    return sorted({model.name for model in disk.installed()})


def profile_names() -> Iterable[str]:
    return sorted(store.load())


def run_names() -> Iterable[str]:
    base = paths.runtime_dir()
    return sorted(p.parent.name for p in base.glob("*/lock")) if base.is_dir() else ()


def code_names() -> Iterable[str]:
    return list(CATALOGUE)


def client_names() -> Iterable[str]:
    return list(CLIENTS)


def setting_names() -> Iterable[str]:
    return [*field_types(), "log_level"]


def machine_names() -> Iterable[str]:
    return [f"{gpu.word}{count}" for gpu in KNOWN for count in ("", "x2", "x4", "x8")]


def settings_to_give() -> Iterable[str]:
    return [f"{name}=" for name in setting_names()]


def attach(word: str, command: click.Command) -> None:
    """Gives a command's parameters the names that they take, and its line its whole sentence."""
    command.short_help = command.get_short_help_str(100)
    if isinstance(command, click.Group):
        for inner_word, inner in command.commands.items():
            attach(f"{word} {inner_word}", inner)
    if isinstance(command, LateGroup):
        command.when_loaded.append(lambda inner, found: attach(f"{word} {inner}", found))
    for parameter in command.params:
        names = _names_for(word, parameter.name or "")
        if names is not None:
            parameter._custom_shell_complete = _completer(names)


def _names_for(word: str, parameter: str) -> Callable[[], Iterable[str]] | None:
    if parameter in ("model", "models"):
        return model_names
    if parameter in ("profile", "stem") or (word, parameter) == ("profile show", "name"):
        return profile_names
    if parameter == "name" and word.split()[0] in _OF_RUNS:
        return run_names
    return _BY_PLACE.get((word, parameter)) or _BY_NAME.get(parameter)


_BY_PLACE: dict[tuple[str, str], Callable[[], Iterable[str]]] = {
    ("connect", "client"): client_names,
    ("explain", "code"): code_names,
    ("config get", "key"): setting_names,
    ("config set", "key"): setting_names,
    ("config unset", "key"): setting_names,
}
_BY_NAME: dict[str, Callable[[], Iterable[str]]] = {
    "settings": settings_to_give,
    "assume_gpus": machine_names,
}


def _completer(
    names: Callable[[], Iterable[str]],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(
        ctx: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            return [CompletionItem(n) for n in names() if n.startswith(incomplete)]
        except Exception:
            return []  # a completion that fails must not write over the line being typed

    return complete


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Write it where the shell looks for it.")
@click.pass_context
def completion(ctx: click.Context, shell: str, install: bool) -> None:
    """The script with which SHELL completes commands, models, profiles and runs."""
    out = ctx.find_object(Output) or Output()
    maker = get_completion_class(shell)
    assert maker is not None
    made = maker(ctx.find_root().command, {}, "appliance", VARIABLE)
    text = made.source_template % made.source_vars()
    # what ends in = goes on with a value
    text = text.replace("    return 0\n", _NO_SPACE + "    return 0\n") if shell == "bash" else text
    data = {"schema": "appliance.completion/1", "shell": shell, "script": text, "path": None}
    if not install:
        out.result(text, data)
        return
    path = Path(_PLACES[shell]).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if shell == "zsh":
        out.note(
            "Where ~/.zshrc does not say so yet: fpath+=~/.zfunc; autoload -U compinit; compinit"
        )
    out.result(f"written to {path}; open a new shell", data | {"path": str(path)})
