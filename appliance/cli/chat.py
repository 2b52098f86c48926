"""appliance chat, run and complete: talk to the served model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from appliance.cli import interrupt
from appliance.cli.asking import Answer, url_of
from appliance.cli.output import Output
from appliance.errors import ApplianceError, UsageError

_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed")
_LARGEST_FILE = 8 << 20


def _options(command: Any) -> Any:
    for option in (
        click.option("--name", default="default", help="The run to talk to."),
        click.option("--url", help="Any OpenAI-compatible server instead of a run of ours."),
        click.option("--model", help="Model name to ask for."),
        click.option(
            "--file",
            "files",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A text file that is put before the prompt.",
        ),
        click.option("--max-tokens", type=click.IntRange(1), help="Longest answer."),
        click.option("--temperature", type=click.FloatRange(0, 2)),
        click.option("--top-p", type=click.FloatRange(0, 1)),
        click.option("--top-k", type=click.IntRange(-1)),
        click.option("--seed", type=int),
        click.option("--stop", multiple=True, metavar="TEXT", help="Ends the answer."),
        click.option("--no-stream", is_flag=True, help="The answer at once, when it is whole."),
        click.option("--stats", is_flag=True, help="Times and tokens on stderr."),
    ):
        command = option(command)
    return command


def _of_messages(command: Any) -> Any:
    command = click.option("--system", help="System prompt.")(command)
    return click.option(
        "--json-schema",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Hold the answer to the JSON schema in this file.",
    )(command)


@click.command()
@click.argument("prompt", nargs=-1)
@_options
@_of_messages
@click.pass_obj
def chat(out: Output, /, prompt: tuple[str, ...], **given: Any) -> None:
    """Talk to the served model; with PROMPT, one answer."""
    if prompt or not sys.stdin.isatty():
        _one(out, " ".join(prompt), given)
        return
    _repl(out, given)


@click.command()
@click.argument("prompt", nargs=-1)
@_options
@_of_messages
@click.pass_obj
def run(out: Output, /, prompt: tuple[str, ...], **given: Any) -> None:
    """One answer to PROMPT; `-` or nothing reads it from stdin."""
    _one(out, " ".join(prompt), given)


@click.command()
@click.argument("prompt", nargs=-1)
@_options
@click.option(
    "--logprobs", type=click.IntRange(0, 20), help="How likely each token was; the N best."
)
@click.option("--echo", is_flag=True, help="The prompt again before what follows it.")
@click.pass_obj
def complete(out: Output, /, prompt: tuple[str, ...], **given: Any) -> None:
    """What follows PROMPT, without a chat template: for base models."""
    body = {"prompt": _prompt(" ".join(prompt), given, "Once upon a time"), **_body(given)}
    body |= {"logprobs": given["logprobs"]} if given["logprobs"] is not None else {}
    body |= {"echo": True} if given["echo"] else {}
    # tokens and their chances are told when the answer is whole
    stream = not given["no_stream"] and given["logprobs"] is None
    answer = Answer(url_of(given["url"], given["name"]), "completions", body, stream=stream)
    _tell(out, answer, given["stats"])


def _one(out: Output, prompt: str, given: dict[str, Any]) -> None:
    text = _prompt(prompt, given, "What is 2 + 3?")
    _tell(out, _ask(given, [*_system(given), {"role": "user", "content": text}]), given["stats"])


def _tell(out: Output, answer: Answer, stats: bool) -> None:
    if out.json:
        for _ in answer.pieces():
            pass
        out.result(answer.text, answer.data())
    else:
        _print(answer)
        if answer.logprobs:
            out.result(_chances(answer.logprobs), answer.data())
    if stats:
        out.note(answer.stats())


def _chances(logprobs: dict[str, Any]) -> str:
    tokens, chances = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    lines = []
    for token, chance in zip(tokens, chances, strict=False):
        lines.append(f"{'–' if chance is None else f'{chance:.4f}':>9}  {token!r}")
    return "\n".join(lines)


def _prompt(prompt: str, given: dict[str, Any], example: str) -> str:
    """What was typed, or else stdin, behind the files that were named. UsageError for none."""
    files = [_text_of(path) for path in given["files"]]
    if prompt == "-" or (not prompt and not files and not sys.stdin.isatty()):
        prompt = sys.stdin.read().strip()
    if not prompt and not files:
        word = click.get_current_context().info_name
        raise UsageError("there is no prompt.", f'For example: appliance {word} "{example}"')
    return "\n\n".join([*files, prompt] if prompt else files)


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UsageError(
                f"{path} holds {path.stat().st_size:,} bytes.",
                f"A file of at most {_LARGEST_FILE:,} bytes can be put before a prompt.",
            )
        return path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise UsageError(f"{path} cannot be read: {why}.", "Name a text file.") from e


def _repl(out: Output, given: dict[str, Any]) -> None:
    import readline  # noqa: F401  gives input() its line editing

    messages = _system(given)
    before = "\n\n".join(_text_of(path) for path in given["files"])
    out.note("Type to talk; /new forgets, /help tells more, Ctrl-D leaves.")
    while True:
        try:
            line = input(">>> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        if line in ("/bye", "/exit", "/quit"):
            return
        if line == "/new":
            messages = _system(given)
            continue
        if line.startswith("/") and not line.startswith("//"):
            out.note(
                _WORDS if line in ("/help", "/?") else f"There is no {line.split()[0]}.\n{_WORDS}"
            )
            continue
        if not line:
            continue
        line = line.removeprefix("/") if line.startswith("//") else line
        first = before and not any(m["role"] == "user" for m in messages)
        messages.append({"role": "user", "content": f"{before}\n\n{line}" if first else line})
        answer = _ask(given, messages)
        try:
            _print(answer)
        except KeyboardInterrupt:
            interrupt.heard()
            out.note("\n(stopped)")
        except ApplianceError as e:
            # the conversation goes on without what was refused
            out.error(e)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer.text})
        if given["stats"] and answer.seconds:
            out.note(answer.stats())


_WORDS = """\
/new    forgets what was said        /bye    leaves, as Ctrl-D does
Ctrl-C  stops an answer              //text  sends what begins with a stroke"""


def _system(given: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "system", "content": given["system"]}] if given["system"] else []


def _body(given: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": given["model"] or "default"}
    body |= {k: given[k] for k in _SAMPLING if given[k] is not None}
    return body | ({"stop": list(given["stop"])} if given["stop"] else {})


def _ask(given: dict[str, Any], messages: list[dict[str, str]]) -> Answer:
    url = url_of(given["url"], given["name"])
    body = {"messages": messages, **_body(given)}
    if given["json_schema"]:
        try:
            schema = json.loads(given["json_schema"].read_bytes())
        except (OSError, ValueError) as e:
            raise UsageError(
                f"{given['json_schema']} is no JSON: {e}.", "Name a JSON schema."
            ) from e
        held = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": held}
    return Answer(url, "chat/completions", body, stream=not given["no_stream"])


def _print(answer: Answer) -> None:
    for piece in answer.pieces():
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
