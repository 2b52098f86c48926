"""No document shows a command, an option or a choice that the command line does not know."""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator

import click
import pytest
import yaml
from documents import ROOT, Block, Command, blocks, commands, pages, prose

from appliance.cli import main
from appliance.cli.catalogue import CATALOGUE
from appliance.cli.output import Output

_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_@/.-]*|<[^>]+>|\[[^\]]*\]|\S*(?:FILE|MODEL|NAME|HOST)\S*")
_OTHERS = {"--strict"}
"""Options of other programs that stand alone in a span."""

SHOWN = [command for page in pages() for command in commands(page)]


def test_there_is_something_to_check() -> None:
    places = {command.place for command in SHOWN}
    assert {"README.md", "docs/index.md", "docs/operate/models.md"} <= places
    assert len(SHOWN) > 100


def _inner(command: click.Command, words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `words` ask for and what it is given; a group alone is a command too."""
    while isinstance(command, click.Group) and words:
        context = command.make_context(command.name, words, obj=Output())
        rest = [*context._protected_args, *context.args]
        if not rest or rest[0] == "COMMAND":
            return command, []
        found = command.get_command(context, rest[0])
        assert found is not None, f"no command '{rest[0]}' in '{command.name}'"
        command, words = found, rest[1:]
    return command, words


def problem(words: tuple[str, ...]) -> str:
    """What the command line would refuse; empty when nothing."""
    before = dict(os.environ)  # global options are handed down by it
    try:
        command, given = _inner(main.group, list(words))
    except click.UsageError as e:
        return e.format_message()
    except AssertionError as e:
        return str(e)
    except click.exceptions.Exit:  # --help has been answered
        return ""
    finally:
        os.environ.clear()
        os.environ.update(before)
    if isinstance(command, click.Group):
        return ""
    joined = [w.replace("--wait=", "--wait-seconds=") for w in given]
    with click.Context(command, info_name=" ".join(words)) as context:
        try:
            values, rest, _ = command.make_parser(context).parse_args(joined)
        except click.UsageError as e:
            return e.format_message()
        if rest:
            return f"{rest} is one word too many"
        return "; ".join(_wrong_values(command, context, values))


def _wrong_values(command: click.Command, context: click.Context, values: dict) -> Iterator[str]:
    for parameter in command.params:
        value = values.get(parameter.name or "")
        given = isinstance(value, str | tuple | list) and bool(value)
        if parameter.required and isinstance(parameter, click.Argument) and not given:
            yield f"{parameter.name} is missing"
        if isinstance(value, str) and not _PLACEHOLDER.fullmatch(value):
            if isinstance(parameter.type, click.Path | click.File):
                continue
            try:
                parameter.type.convert(value, parameter, context)
            except click.UsageError as e:
                yield e.format_message()


@pytest.mark.parametrize("command", SHOWN, ids=lambda c: c.id)
def test_every_command_parses(command: Command) -> None:
    assert not problem(command.words)


@pytest.mark.parametrize(
    "words, said",
    [
        ("upp", "upp"),
        ("up --contxt 4", "contxt"),
        ("profile lst", "lst"),
        ("completion basch", "basch"),
        ("rm", "missing"),
        ("explain A B", "too many"),
        ("up --tp two", "two"),
    ],
)
def test_the_check_finds_what_is_wrong(words: str, said: str) -> None:
    assert said.lower() in problem(tuple(words.split())).lower()


def _options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for word in command.list_commands(context):
                inner = command.get_command(context, word)
                assert inner is not None
                yield from _options(inner)


def test_every_option_named_exists() -> None:
    known = {*_options(main.group), "--help", *_OTHERS}
    for page in pages():
        for block in blocks(page):  # what is said of another program's option that is shown
            for run in re.findall(r"docker run(?:[^\n]*\\\n)*[^\n]*", block.text):
                known |= set(re.findall(r"(?<=\s)--[a-z][\w-]*", run))
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text()))
    missing = []
    for page in pages():
        if page.name == "clients.md":  # speaks of other programs' options
            continue
        for number, line in prose(page):
            for span in re.findall(r"`(--?[a-z][\w-]*)[^`]*`", line):
                if span not in known and not re.fullmatch(r"-([a-zA-Z])\1*", span):
                    missing.append(f"{page.relative_to(ROOT)}:{number} {span}")
    assert not missing


def test_every_code_named_is_in_the_catalogue() -> None:
    named = {
        (page.relative_to(ROOT).as_posix(), code)
        for page in pages()
        for code in re.findall(r"\bAPL-[A-Z]+-\d{3}\b", page.read_text())
    }
    assert not [where for where in named if where[1] not in CATALOGUE]


def test_the_catalogue_cures_by_commands_that_exist() -> None:
    wrong = {}
    for code, entry in CATALOGUE.items():
        for shown in re.findall(r"appliance ([a-z-]+(?: [\w./=<>-]+)*)", entry.fix):
            words = tuple(shown.split())
            said = problem(words) if words[0] in main.COMMANDS else ""
            if said and "too many" not in said:  # the sentence goes on behind the command
                wrong[code] = said
    assert not wrong


READERS: dict[str, Callable[[str], object]] = {
    "python": ast.parse,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}


@pytest.mark.parametrize(
    "block",
    [b for page in pages() for b in blocks(page) if b.language in READERS and b.checked],
    ids=lambda b: f"{b.place}:{b.line}",
)
def test_blocks_are_what_they_say(block: Block) -> None:
    assert READERS[block.language](block.text)


def test_every_language_is_known() -> None:
    known = {*READERS, "", "bash", "console", "text", "promql"}
    assert not {b.language for page in pages() for b in blocks(page)} - known
