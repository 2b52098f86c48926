"""appliance top: the dashboard; without a terminal, one snapshot or a stream of them."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder
from appliance.client import Client
from appliance.errors import NotRunningError, UsageError
from appliance.status import TopSnapshot
from appliance.tui.remote import Remote
from appliance.tui.source import DEMO, HISTORY_S, Recorder, Replay, Source

_FRAME_S = 0.5
_ANSWER_WITHIN_S = 2.0
_PATIENCE_S = 10.0


@click.command()
@click.argument("name", default="default")
@click.option("--once", is_flag=True, help="Print one snapshot and leave; exit 3 unless ready.")
@click.option(
    "--interval",
    type=click.FloatRange(0.25),
    help="Seconds between frames (0.5). With --json: one snapshot a line, for ever.",
)
@click.option("--ascii", is_flag=True, help="No characters beyond ASCII.")
@click.option("--readonly", is_flag=True, help="Without the keys that change anything.")
@click.option("--inline", is_flag=True, help="In a few lines under the prompt.")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Write to FILE.")
@click.option("--replay", type=click.Path(dir_okay=False, path_type=Path), help="Play FILE.")
@click.option("--url", metavar="URL", help="A server elsewhere; its key: APPLIANCE_API_KEY.")
@click.option("--demo", is_flag=True, help="Play a recording of a made-up busy server.")
@click.option("--web", is_flag=True, help="In a browser of this machine, on loopback, to look at.")
@click.option("--web-port", type=click.IntRange(0, 65535), default=0, help="0 takes a free one.")
@click.pass_context
def top(
    context: click.Context,
    name: str,
    once: bool,
    interval: float | None,
    ascii: bool,
    readonly: bool,
    inline: bool,
    record: Path | None,
    replay: Path | None,
    url: str | None,
    demo: bool,
    web: bool,
    web_port: int,
) -> None:
    """Live dashboard of run NAME."""
    out: Output = context.obj
    if web:
        if record is not None or once or inline:
            raise UsageError("--web draws in a browser.", "Leave out --record, --once, --inline.")
        _serve_web(out, web_port, _options(name, interval, replay, url, demo))
        return
    if sum((record is not None, replay is not None, demo)) > 1:
        raise UsageError("--record, --replay and --demo exclude one another.", "Give one of them.")
    if url is not None and (replay is not None or demo):
        raise UsageError("--url shows a server, --replay and --demo do not.", "Give one of them.")
    played = replay is not None or demo
    frame_s = interval or _FRAME_S
    draws = not (once or out.json) and _terminal()
    wait_s = _ANSWER_WITHIN_S if draws else _PATIENCE_S
    with _source(name, url, wait_s, frame_s, record, replay, demo) as (source, label):
        if out.json and interval is not None and not once:
            _stream(out, source, frame_s)
        elif not draws:
            if record is not None and not once:
                _stream(None, source, frame_s)
            if not once and not out.json:
                out.note("No terminal to draw on: one snapshot. --once says that this is wanted.")
            if not _print(out, source, ascii or not _knows_more_than_ascii()) and once:
                context.exit(NotRunningError.exit_code)
        else:
            from appliance.tui.app import run

            run(
                source,
                interval=frame_s,
                ascii=ascii,
                readonly=readonly or played or url is not None,
                inline=inline,
                label=label,
            )
            if not played and url is None:
                out.note("The server keeps running; appliance down stops it.")


@contextmanager
def _source(
    name: str,
    url: str | None,
    wait_s: float,
    frame_s: float,
    record: Path | None,
    replay: Path | None,
    demo: bool,
) -> Iterator[tuple[Source, str]]:
    """Where the snapshots come from, and what is said of it in the title.

    When nothing runs, that is said now: in words, before a screen or a file is begun.
    """
    if replay is not None or demo:
        played = Replay(replay or DEMO)
        yield played, played.label
        return
    client: Source
    if url is not None:
        key = os.environ.get("APPLIANCE_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
        client = Remote(url, key, timeout=wait_s)
    else:
        client = Client(paths.control_socket(run_folder(name)), timeout=wait_s)
    client.top(1, 0)
    if record is None:
        yield client, ""
        return
    recorder = Recorder(client, record, frame_s)
    try:
        yield recorder, ""
    finally:
        recorder.close()


def _print(out: Output, source: Source, ascii: bool) -> bool:
    """Whether the run is ready."""
    from appliance.tui.once import render
    from appliance.tui.text import ASCII, UNICODE

    snapshot = source.top()
    width = shutil.get_terminal_size((100, 24)).columns
    text = render(snapshot, width, glyphs=ASCII if ascii else UNICODE)
    out.result(text, msgspec.to_builtins(snapshot))
    return snapshot.state == "ready"


def _stream(out: Output | None, source: Source, interval: float) -> None:
    """Snapshots for ever, each with the history that the one before had not; Ctrl-C ends it.

    A supervisor that has gone is waited for, as on the full screen. out: None prints nothing.
    """
    known: int | None = None
    while True:
        asked = HISTORY_S if known is None else int(interval) + 5
        try:
            snapshot = source.top(asked)
        except NotRunningError as problem:
            if known is None:
                raise
            if out is not None:
                out.warn(problem.message)
        else:
            if out is not None:
                out.result("", _news(snapshot, known))
            known = snapshot.history_seq
        time.sleep(interval)


def _news(snapshot: TopSnapshot, known: int | None) -> dict[str, Any]:
    """As plain values, with that part of the history that is new. known: how much was told."""
    plain: dict[str, Any] = msgspec.to_builtins(snapshot)
    if known is not None and snapshot.history_seq >= known:
        new = snapshot.history_seq - known
        plain["history"] = {
            name: values[max(0, len(values) - new) :] for name, values in plain["history"].items()
        }
    return plain


def _knows_more_than_ascii() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def _options(
    name: str, interval: float | None, replay: Path | None, url: str | None, demo: bool
) -> list[str]:
    """The same dashboard in words; the name last, for it may look like an option."""
    words = [] if interval is None else ["--interval", str(interval)]
    words += [] if replay is None else ["--replay", str(replay.resolve())]
    words += [] if url is None else ["--url", url]
    return [*words, *(["--demo"] if demo else []), "--", name]


def _serve_web(out: Output, port: int, options: list[str]) -> None:
    try:
        from appliance.tui.web import serve
    except ModuleNotFoundError as problem:
        raise UsageError(
            f"--web needs a package that is not installed: {problem.name}.",
            "pip install 'appliance[web]'",
        ) from problem

    serve(options, port, lambda url: out.result(f"Open {url}\nCtrl-C ends it.", {"url": url}))


def _terminal() -> bool:
    """Something that can draw: a terminal, or a browser that textual-serve has put behind us."""
    if os.environ.get("TEXTUAL_DRIVER", "").endswith(":WebDriver"):
        return True
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
